"""WeNet's causal convolution module: its k - 1 zero frames come in before the first pointwise convolution.

So the depthwise convolution sees GLU(bias), not 0, before the first frames of a clip. Padded frames need no
mask, because a causal convolution never looks ahead.

Source: WeNet, wenet/models/transformer/convolution.py, ConvolutionModule with causal=True. Its non-causal
form pads after the GLU, as `Convolution` does.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from edge_asr.errors import ConfigError
from edge_asr.model.config import ConformerConfig
from edge_asr.model.convolution.base import Convolution


class WenetConvolution(Convolution):
    """LayerNorm, padding, pointwise, GLU, depthwise, norm, activation, pointwise, dropout.

    Raises:
        ConfigError: the convolution looks ahead.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config)
        if self.context[1]:
            raise ConfigError(
                'conv_padding "before_pointwise" goes with conv_context "causal", got '
                f"{self.context[1]} frames of look-ahead"
            )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """See `Convolution.forward`; `valid` is not needed."""
        return self._filter(F.pad(self.norm(x), (0, 0, self.context[0], 0)))

    def stream(self, x: Tensor, valid: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `Convolution.stream`; the cache holds frames after the LayerNorm, as in WeNet."""
        new = self.norm(x).reshape(cache.shape[0], 1, valid.shape[1], -1)
        frames = torch.cat((cache, new), dim=2)
        return self._filter(frames.squeeze(1)).reshape(x.shape), frames

    def _filter(self, x: Tensor) -> Tensor:
        """(B, k - 1 + T, D) -> (B, T, D)."""
        return super()._filter(F.glu(self.pointwise_in(x), dim=-1).transpose(1, 2))
