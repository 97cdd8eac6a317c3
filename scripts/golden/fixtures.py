"""Folders of golden fixtures: a checkpoint, clips, and what the original project's code made of them.

It finds fixtures, the checkpoint inside each, and the arrays of golden.npz by clip.
What this file does not do: run anything (compare.py).

A fixture is a folder with golden.json and golden.npz, at any depth, and audio_<i>.flac there or one folder
up; its checkpoint is the
folder itself or the one thing inside it that a loader recognizes. Keys of golden.npz: `clip<i>_feat`
[1, T, F] (of waveform models the normalized wave [1, S]; `clip<i>_feat_raw` is the same before
normalization, where it was kept), `clip<i>_feat_len`, `clip<i>_logp` [1, T', V], `clip<i>_len`,
`clip<i>_ids0`, and `batch_*` over the clips in `batch_order`. Rows past a length mean nothing. Lengths,
tokens (they follow from the log-probs) and batches may be absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.checkpoints import find_loader

F32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixture:
    """One fixture.

    Attributes:
        folder: where it lies.
        name: for the table and the dump: the folder's path in the folder that was asked for.
        info: golden.json.
        checkpoint: what `load_any` takes, or None where no loader recognizes anything.
    """

    folder: Path
    name: str
    info: dict[str, Any]
    checkpoint: Path | None

    @property
    def family(self) -> str:
        """The project, such as "nemo"."""
        return str(self.info.get("family", "?"))

    @property
    def variant(self) -> str:
        """The variant, such as "conformer-bpe"."""
        return str(self.info.get("variant", "?"))

    @property
    def has_model(self) -> bool:
        """False for features alone."""
        return any(key.endswith("_logp") for key in self.arrays())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """golden.npz; where golden.json names another fixture in `features_of`, with that one's features."""
        with np.load(self.folder / "golden.npz") as archive:
            arrays = {key: archive[key] for key in archive.files}
        if "features_of" in self.info:
            with np.load(self.folder.parent / self.info["features_of"] / "golden.npz") as archive:
                arrays |= {k: archive[k] for k in archive.files if re.fullmatch(r"clip\d+_feat", k)}
        return arrays

    def waveforms(self) -> list[F32Array]:
        """The clips, [S] float32, full scale 1.0."""
        return [soundfile.read(path, dtype="float32")[0] for path in self.clip_paths()]

    def clip_paths(self) -> list[Path]:
        """The sound files in order: the fixture's own, or those it shares with the fixtures beside it."""
        own = list(self.folder.glob("audio_*.flac")) or list(self.folder.parent.glob("audio_*.flac"))
        return sorted(own, key=lambda path: int(path.stem.rpartition("_")[2]))


def find_fixtures(root: Path) -> list[Fixture]:
    """The fixtures in a folder at any depth, or the folder as one; golden.npz alone counts as one too."""
    found = {path.parent for name in ("golden.json", "golden.npz") for path in root.rglob(name)}
    folders = [root] if root in found else sorted(found)
    return [read_fixture(folder, root) for folder in folders]


def read_fixture(folder: Path, root: Path) -> Fixture:
    """Read one fixture folder; without a readable golden.json it has neither family nor variant."""
    try:
        info = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        info = {}
    name = "-".join(folder.relative_to(root).parts) or folder.resolve().name
    return Fixture(
        folder=folder,
        name=name,
        info=info if isinstance(info, dict) else {},
        checkpoint=_find_checkpoint(folder),
    )


def _find_checkpoint(folder: Path) -> Path | None:
    # Folders in folders: exp/<name> of an ESPnet recipe that was not packed.
    candidates = [folder, *(path for depth in ("*", "*/*", "*/*/*") for path in sorted(folder.glob(depth)))]
    return next((path for path in candidates if find_loader(path) is not None), None)
