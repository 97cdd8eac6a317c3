"""The Conformer-CTC network in PyTorch (training and export only; the runtime never imports it).

It exposes the configuration (no torch needed) and, on first use, the network.
What this file does not do: load checkpoints (`edge_asr.checkpoints`), compute features
(`edge_asr.runtime.features.extractor`).
"""

from typing import TYPE_CHECKING, Any

from edge_asr.model.config import ConformerConfig
from edge_asr.model.presets import PRESETS

if TYPE_CHECKING:
    from edge_asr.model.ctc import ConformerCTC

__all__ = ["PRESETS", "ConformerCTC", "ConformerConfig"]


def __getattr__(name: str) -> Any:
    """Import the network only when asked for, so that reading a configuration never imports torch."""
    if name == "ConformerCTC":
        from edge_asr.model.ctc import ConformerCTC

        return ConformerCTC
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
