"""WeNet's causal convolution module, padded before the first pointwise convolution.

Not written yet: it belongs to the WeNet (P) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class WenetConvolution(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("WenetConvolution")
