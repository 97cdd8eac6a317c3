"""WeNet's causal convolution module: its k - 1 zero frames come in before the first pointwise convolution.

Does: what that means for a clip's first frames: the depthwise convolution sees GLU(bias) there, not 0.
Does not: mask padded frames, for a causal convolution never looks ahead; keep a cache between chunks (it
would hold the last k - 1 frames behind the LayerNorm).

Source: WeNet, wenet/models/transformer/convolution.py, ConvolutionModule with causal=True. Its non-causal
form pads behind the GLU, as `Convolution` does.
"""

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from edge_asr.errors import ConfigError
from edge_asr.model.config import ConformerConfig
from edge_asr.model.convolution import Convolution


class WenetConvolution(Convolution):
    """LayerNorm, padding, pointwise, GLU, depthwise, norm, activation, pointwise, dropout.

    Raises:
        ConfigError: a convolution that looks ahead.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config)
        if self.context[1]:
            raise ConfigError(
                'conv_padding "before_pointwise" goes with conv_context "causal", got '
                f"{self.context[1]} frames of look-ahead."
            )

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """See `Convolution.forward`; `valid` is not needed."""
        x = F.pad(self.norm(x), (0, 0, self.context[0], 0))  # (B, k - 1 + T, D)
        x = F.glu(self.pointwise_in(x), dim=-1)
        x = self.depthwise(x.transpose(1, 2))  # (B, D, T)
        if self.batch_norm is not None:
            x = self.batch_norm(x)
        x = x.transpose(1, 2)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.dropout(self.pointwise_out(self.activation(x))))
