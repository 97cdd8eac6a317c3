"""The block of a plain Transformer encoder: attention and feed-forward, each between two LayerNorms.

Both are LayerNorm(x + module(LayerNorm(x))), as in our attention decoders; there is no convolution, so the
frames know their places from positions alone.
"""

from typing import cast

from torch import Tensor, nn

from edge_asr.model.attention.choose import attention_from_config
from edge_asr.model.config import ConformerConfig
from edge_asr.model.feed_forward import FeedForward


class TransformerBlock(nn.Module):
    """One block, (B, T, D) -> (B, T, D), ending in a LayerNorm; any attention of a Conformer fits."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = attention_from_config(config)
        self.attention_out_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward_out = FeedForward(config)  # as INT8 groups know it; begins with a LayerNorm
        self.final_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """See `RelPosAttention.forward` for the arguments."""
        attended = self.attention(self.attention_norm(x), bias, positions, valid)
        x = self.attention_out_norm(x + self.dropout(attended))
        return cast(Tensor, self.final_norm(x + self.feed_forward_out(x)))
