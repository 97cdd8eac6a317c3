"""Not written yet: a Hugging Face folder of ParakeetForCTC."""

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
    name="parakeet",
    what="a Hugging Face folder of ParakeetForCTC",
    detect=detect,
    load=load,
)
