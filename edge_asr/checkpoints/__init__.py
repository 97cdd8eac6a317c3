"""Checkpoints: our own format, and the registry through which other projects' formats will come.

Does: save and load native checkpoints; `load_any` asks each registered loader in turn.
Does not: execute pickles, or guess: what no loader recognizes is an error that lists the known formats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_asr.checkpoints.native import Checkpoint, is_native, load_checkpoint, save_checkpoint
from edge_asr.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointLoader",
    "load_any",
    "load_checkpoint",
    "register_loader",
    "save_checkpoint",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLoader:
    """One format: `detect` looks at names only and never raises, `load` raises CheckpointError."""

    name: str
    detect: Callable[[str | Path], bool]
    load: Callable[[str | Path], Checkpoint]


_LOADERS: dict[str, CheckpointLoader] = {}


def register_loader(loader: CheckpointLoader) -> None:
    """Add a format, or replace the one of the same name; earlier ones are asked first."""
    _LOADERS[loader.name] = loader


def load_any(path: str | Path) -> Checkpoint:
    """Load a checkpoint of any registered format.

    Args:
        path: file or folder, or the name of an embedded model such as "tiny-en".

    Raises:
        CheckpointError: when no loader recognizes it, or the one that does cannot read it.
    """
    for loader in _LOADERS.values():
        if loader.detect(path):
            return loader.load(path)
    found = "exists but is none of these" if Path(path).exists() else "does not exist"
    raise CheckpointError(
        f"{path} {found}: {', '.join(_LOADERS)} checkpoint (a folder with config.json and weights)."
    )


register_loader(CheckpointLoader(name="edge-asr", detect=is_native, load=load_checkpoint))
