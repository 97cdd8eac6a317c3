"""NeMo's local attention where it is more than a band mask: an asymmetric context, or global tokens."""

from torch import nn

from edge_asr.model.config import ConformerConfig


class LocalAttention(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("LocalAttention")
