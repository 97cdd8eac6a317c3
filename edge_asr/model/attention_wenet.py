"""WeNet's rel_pos attention: absolute positions of keys, no shift.

Not written yet: it belongs to the WeNet (P) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class AbsolutePositions(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("AbsolutePositions")


class AbsolutePosAttention(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("AbsolutePosAttention")
