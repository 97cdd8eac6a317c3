"""Not written yet: a .nemo file."""

from pathlib import Path

from edge_asr.checkpoints.native import Checkpoint
from edge_asr.checkpoints.registry import CheckpointLoader, LoadOptions


def detect(path: Path) -> bool:
    """Never, yet."""
    return False


def load(path: Path, options: LoadOptions) -> Checkpoint:
    """Not yet."""
    raise NotImplementedError


LOADER = CheckpointLoader(
    name="nemo",
    what="a .nemo file",
    detect=detect,
    load=load,
)
