"""ESPnet's legacy relative attention: a one-sided table and the old shift.

Not written yet: it belongs to the ESPnet (P) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class LegacyPositions(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("LegacyPositions")


class LegacyRelPosAttention(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("LegacyRelPosAttention")
