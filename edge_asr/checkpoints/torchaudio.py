"""Not written yet: a folder with model.pt and config.json of torchaudio's Conformer."""

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
    name="torchaudio",
    what="a folder with model.pt and config.json of torchaudio's Conformer",
    detect=detect,
    load=load,
)
