"""ESPnet's and WeNet's unpadded convolutional subsampling.

Not written yet: it belongs to the ESPnet and WeNet (P) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class UnpaddedSubsampling(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("UnpaddedSubsampling")
