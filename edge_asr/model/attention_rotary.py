"""Wav2Vec2-Conformer's rotary attention.

Not written yet: it belongs to the Wav2Vec2 (Q) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class RotaryPositions(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("RotaryPositions")


class RotaryAttention(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("RotaryAttention")
