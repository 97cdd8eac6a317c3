"""Not written yet: a WeNet folder with train.yaml and final.pt."""

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
    name="wenet",
    what="a WeNet folder with train.yaml and final.pt",
    detect=detect,
    load=load,
)
