"""Checkpoints: our own format and other projects', and the registry that distinguishes them.

`native` saves and loads our own, `registry` has `load_any`, `detect` distinguishes formats without torch.
Names are imported when first used.
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.checkpoints.native import Checkpoint as Checkpoint
    from edge_asr.checkpoints.native import load_checkpoint as load_checkpoint
    from edge_asr.checkpoints.native import save_checkpoint as save_checkpoint
    from edge_asr.checkpoints.native_config import SourceFacts as SourceFacts
    from edge_asr.checkpoints.registry import CheckpointLoader as CheckpointLoader
    from edge_asr.checkpoints.registry import LoadOptions as LoadOptions
    from edge_asr.checkpoints.registry import find_loader as find_loader
    from edge_asr.checkpoints.registry import load_any as load_any
    from edge_asr.checkpoints.registry import register_loader as register_loader

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "Checkpoint": "native",
        "CheckpointLoader": "registry",
        "LoadOptions": "registry",
        "SourceFacts": "native_config",
        "find_loader": "registry",
        "load_any": "registry",
        "load_checkpoint": "native",
        "register_loader": "registry",
        "save_checkpoint": "native",
    },
)
