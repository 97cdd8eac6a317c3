"""The Transformer decoder: blocks of masked self-attention, attention to the clip and feed-forward."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.attention.absolute import AbsolutePositions
from edge_asr.model.decoders.base import (
    Attention,
    AttentionDecoder,
    CrossBlock,
    SubBlock,
    causal_bias,
    log_softmax,
    memory_bias,
    stack_pairs,
)
from edge_asr.model.decoders.config import DecoderConfig


class TransformerDecoderBlock(nn.Module):
    """Masked self-attention in a `SubBlock`, then a `CrossBlock`."""

    def __init__(self, config: DecoderConfig, d_model: int, d_memory: int, d_inner: int) -> None:
        super().__init__()
        self.attention = Attention(config, d_model, d_model)
        self.attention_block = SubBlock(config, d_model)
        self.cross = CrossBlock(config, d_model, d_memory, d_inner)

    def recall(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values of the clip; see `Attention.recall`."""
        return self.cross.attention.recall(memory)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor], causal: Tensor, memory: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run new tokens.

        Args:
            x: float (B, U, D).
            past: keys and values of the tokens before, (B, H, P, d) each.
            causal: float (U, P + U), the bias of `causal_bias`.
            memory: keys, values and bias of the clip.

        Returns:
            float (B, U, D), and keys and values with those of the new tokens.
        """
        kept = past

        def attend(x: Tensor) -> Tensor:
            nonlocal kept
            attended, kept = attend_past(self.attention, x, past, causal)
            return attended

        x = self.attention_block(x, attend)
        return self.cross(x, *memory), kept


def attend_past(
    attention: Attention, x: Tensor, past: tuple[Tensor, Tensor], causal: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attend to the tokens so far and to x (B, U, D) itself; also keys and values of both."""
    key, value = attention.recall(x)
    kept = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
    return attention(x, *kept, causal), kept


class TransformerDecoder(AttentionDecoder):
    """Embedding and positions, blocks, LayerNorm, projection.

    The state is the keys and values of all tokens so far, float (L, B, H, U, d) each; their number is the
    position of the next token.
    """

    block: Callable[[DecoderConfig, int, int, int], nn.Module] = TransformerDecoderBlock

    def __init__(self, config: DecoderConfig, d_memory: int) -> None:
        super().__init__(config)
        width = self.d_model
        self.embedding = nn.Embedding(self.n_tokens, width)
        self.positions = AbsolutePositions(width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            self.block(config, width, d_memory, self.d_feed_forward) for _ in range(config.n_layers)
        )
        self.norm_out = nn.LayerNorm(width, eps=config.norm_eps)
        self.projection = nn.Linear(width, self.n_tokens)

    def cross(self, memory: Tensor) -> tuple[Tensor, ...]:
        """See `AttentionDecoder.cross`; every block attends."""
        return stack_pairs([cast(TransformerDecoderBlock, layer).recall(memory) for layer in self.layers])

    def embed(self, tokens: Tensor) -> Tensor:
        """Embed tokens, without positions: int64 (B, U) to float (B, U, D)."""
        return cast(Tensor, self.embedding(tokens))

    def initial_state(self, batch: int) -> tuple[Tensor, ...]:
        """See `AttentionDecoder.initial_state`."""
        config = self.config
        shape = (config.n_layers, batch, config.n_heads, 0, self.d_model // config.n_heads)
        empty = self.embedding.weight.new_zeros(shape)
        return empty, empty.clone()

    def advance(
        self, tokens: Tensor, state: tuple[Tensor, ...], cross: tuple[Tensor, ...], memory_lengths: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `AttentionDecoder.advance`."""
        n_before, n_new = state[0].shape[3], tokens.shape[1]
        x = self.embed(tokens)
        x = self.dropout(x + self.positions(n_before + n_new)[n_before:].to(x.dtype))
        causal = causal_bias(n_before, n_new, tokens.device)
        bias = memory_bias(memory_lengths, cross[0].shape[3])
        kept = []
        for number, layer in enumerate(self.layers):
            past = state[0][number], state[1][number]
            x, pair = layer(x, past, causal, (cross[0][number], cross[1][number], bias))
            kept.append(pair)
        return log_softmax(self.projection(self.norm_out(x))), stack_pairs(kept)
