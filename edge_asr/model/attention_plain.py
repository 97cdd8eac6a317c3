"""Multi-head attention without positions (torchaudio).

Not written yet: it belongs to the torchaudio (Q) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class PlainAttention(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("PlainAttention")
