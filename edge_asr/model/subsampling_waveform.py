"""wav2vec 2.0's convolutions over samples and its feature projection.

Not written yet: it belongs to the Wav2Vec2 (Q) helper.
"""

from torch import nn

from edge_asr.model.config import ConformerConfig


class WaveformSubsampling(nn.Module):
    """See the head of this file."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        raise NotImplementedError("WaveformSubsampling")
