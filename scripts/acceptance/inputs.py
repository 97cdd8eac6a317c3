"""Reads what an acceptance run starts from: recordings, and a former result.

What this file does not do: run or measure anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.errors import AudioError, ConfigError
from edge_asr.proof.clips import find_clips, load_clips

F32Array = npt.NDArray[np.float32]

SAMPLE = Path(__file__).with_name("robot_commands.npy")
"""The embedded sample, int16 at 16 kHz, for a machine without soundfile (made with --save-clips)."""


def read_waveforms(paths: Sequence[str], sample_rate: int) -> dict[str, F32Array]:
    """Read recordings: .npy, [S] int16 or float at the model's rate; anything else with soundfile."""
    waveforms: dict[str, F32Array] = {}
    for path in map(Path, paths or [str(SAMPLE)]):
        if path.suffix != ".npy":
            waveforms |= load_clips(find_clips([path]), sample_rate)
            continue
        samples = np.load(path, allow_pickle=False)
        if samples.ndim != 1 or samples.dtype.kind not in "if":
            found = f"{samples.dtype} {list(samples.shape)}"
            raise AudioError(f"{path} holds {found}; a clip is one row of int16 or float")
        scale = np.iinfo(samples.dtype).max + 1 if samples.dtype.kind == "i" else 1
        waveforms[path.name] = (samples / scale).astype(np.float32)
    return waveforms


def find_files(sources: list[str]) -> tuple[str, ...]:
    """List the clips: what folders hold, .npy files before sound files."""
    files: list[str] = []
    for source in map(Path, sources):
        found = sorted(source.glob("*.npy")) or [source] if source.is_dir() else [source]
        missing = [path for path in found if not path.exists()]
        if missing:
            raise ConfigError(
                f"there is no {missing[0]}; --clips takes sound files, folders of them, and .npy files"
            )
        files += [str(path.resolve()) for path in found]
    return tuple(files)


def save_clips(source: str, target: str) -> int:
    """Write sound files as .npy of int16 at 16 kHz, for a machine without soundfile."""
    Path(target).mkdir(parents=True, exist_ok=True)
    for name, waveform in load_clips(find_clips([source]), 16_000).items():
        samples = np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)
        np.save(Path(target) / f"{Path(name).stem}.npy", samples)
    return 0


def read_former(path: Path | None, bundle: str, rehearsal: bool, working: Path) -> list[dict[str, Any]]:
    """Read the sections of a former result that ran, and put its engines into the working copy."""
    if path is None:
        return []
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
        same = (former["settings"]["bundle"], former["rehearsal"]) == (bundle, rehearsal)
        sections: list[dict[str, Any]] = former["sections"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--resume {path} is no result of this script ({error}); give a gpu_acceptance.json"
        ) from error
    if not same:
        raise ConfigError(
            f"--resume {path} is of the bundle {former['settings']['bundle']}"
            f"{' in a rehearsal' if former['rehearsal'] else ''}; resume with the same bundle and way"
        )
    engines = path.parent / "engines"
    if engines.is_dir():
        shutil.copytree(engines, working / "engines")
    return [section for section in sections if section["status"] == "ran"]
