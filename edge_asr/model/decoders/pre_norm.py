"""The Transformer decoder of ESPnet and WeNet: x + module(LayerNorm(x)) three times a block.

It differs from ours (transformer.py) in the place of the norms, and multiplies embeddings by sqrt(d_model).
What this file does not do: norms behind the modules (`normalize_before: false`), `concat_after`.

Sources: ESPnet, espnet2/asr/decoder/transformer_decoder.py and espnet/nets/pytorch_backend/transformer/
decoder_layer.py; WeNet, wenet/models/transformer/decoder.py and decoder_layer.py.
"""

import math

from torch import Tensor, nn

from edge_asr.model.decoders.base import Attention, FeedForward
from edge_asr.model.decoders.config import DecoderConfig
from edge_asr.model.decoders.transformer import TransformerDecoder, attend_past


class PreNormBlock(nn.Module):
    """Masked self-attention, attention to the clip and feed-forward, each behind a LayerNorm."""

    def __init__(self, config: DecoderConfig, d_model: int, d_memory: int, d_inner: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.attention = Attention(config, d_model, d_model)
        self.cross_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.cross_attention = Attention(config, d_model, d_memory)
        self.feed_forward_norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.feed_forward = FeedForward(config, d_model, d_inner)
        self.dropout = nn.Dropout(config.dropout)

    def recall(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `TransformerDecoderBlock.recall`."""
        return self.cross_attention.recall(memory)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], causal: Tensor, memory: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `TransformerDecoderBlock.forward`."""
        attended, kept = attend_past(self.attention, self.attention_norm(x), past, causal)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), *memory))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), kept


class PreNormDecoder(TransformerDecoder):
    """Embedding times sqrt(d_model) and positions, `PreNormBlock`s, LayerNorm, projection."""

    block = PreNormBlock

    def embed(self, tokens: Tensor) -> Tensor:
        """See `TransformerDecoder.embed`."""
        return super().embed(tokens) * math.sqrt(self.d_model)
