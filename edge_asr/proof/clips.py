"""Finds and loads the real recordings of a proof: the embedded samples, or those that the caller names.

Sound files and manifests may be mixed; everything is resampled to the model's rate. No text is read, because
a proof compares two models, not a model with the truth (`edge-asr evaluate` does that).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.audio import has_sound_suffix, read_audio
from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.errors import AudioError
from edge_asr.manifest import read_manifest

SAMPLES = EMBEDDED_MODELS / "samples"


def find_clips(sources: Sequence[str | Path] | None = None) -> list[Path]:
    """Find the sound files of `sources`, or the samples of the package if None or empty.

    Args:
        sources: sound files, folders of them, and JSON Lines manifests.

    Raises:
        AudioError: nothing was found.
        ManifestError: a manifest cannot be read.
    """
    paths: list[Path] = []
    for source in map(Path, sources or [SAMPLES]):
        if source.is_dir():
            paths += sorted(p for p in source.rglob("*") if has_sound_suffix(p) and p.is_file())
        elif source.suffix == ".jsonl":
            manifest = read_manifest(source)
            if manifest.bad_rows:
                row = manifest.bad_rows[0]
                raise AudioError(
                    f"{source} has {len(manifest.bad_rows)} unusable rows, the first is row {row.row} "
                    f"({row.detail}); fix the manifest"
                )
            paths += [utterance.audio_path for utterance in manifest.utterances]
        elif source.is_file():
            paths.append(source)
        else:
            raise AudioError(f"no sound file or manifest at {source}; check --clips")
    if not paths:
        looked = ", ".join(str(s) for s in sources or [SAMPLES])
        raise AudioError(f"no sound file under {looked}; a proof needs real speech: give --clips")
    return paths


def load_clips(paths: Sequence[Path], sample_rate: int) -> dict[str, npt.NDArray[np.float32]]:
    """Load waveforms by file name, [S] float32 at `sample_rate`; equal names get their folder in front.

    Raises:
        AudioError: a file cannot be read as sound.
    """
    clips: dict[str, npt.NDArray[np.float32]] = {}
    for path in paths:
        name = path.name if path.name not in clips else f"{path.parent.name}/{path.name}"
        clips[name if name not in clips else str(path)] = read_audio(path, sample_rate)
    return clips
