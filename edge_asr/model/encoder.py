"""The Conformer encoder: subsampling, then blocks of feed-forward, attention, convolution, feed-forward.

It is equation 1 of Gulati et al. 2020, in three block orders, with chunk masks for streaming-ready training.
The blocks of a plain Transformer take their place on request.
What this file does not do: the CTC head and feature normalization (ctc.py), the state of a stream
(streaming.py).
"""

import math
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from edge_asr.model.attention.absolute import AbsolutePositions
from edge_asr.model.attention.choose import (
    attention_from_config,
    check_chunking,
    positions_as,
    positions_from_config,
)
from edge_asr.model.config import ConformerConfig
from edge_asr.model.convolution.choose import convolution_from_config
from edge_asr.model.feed_forward import FeedForward
from edge_asr.model.masks import attention_bias, context_mask, valid_frames
from edge_asr.model.subsampling.choose import subsampling_from_config
from edge_asr.model.subsampling.striding import subsampled_lens
from edge_asr.model.transformer_block import TransformerBlock


class ConformerBlock(nn.Module):
    """One block, (B, T, D) -> (B, T, D), ending in a LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.order = config.block_order
        self.half_step = 0.5
        self.feed_forward_in = FeedForward(config)
        self.attention_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = attention_from_config(config)
        self.convolution = convolution_from_config(config)
        self.feed_forward_out = FeedForward(config)
        self.final_norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """See `RelPosAttention.forward` for the arguments."""

        def attend(x: Tensor) -> Tensor:
            return cast(Tensor, self.dropout(self.attention(self.attention_norm(x), bias, positions, valid)))

        return self._run(x, attend, lambda x: self.convolution(x, valid))

    def stream(
        self, x: Tensor, bias: Tensor, positions: Any, valid: Tensor, memory: Tensor, cache: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Process one chunk of a stream.

        Args:
            x: float (B * Q, D); with two axes a linear layer is one product with its bias.
            bias, positions, memory: see `RelPosAttention.forward`.
            valid: bool (B, Q).
            cache: float (B, 1, left, D), see `Convolution.stream`.

        Returns:
            float (B * Q, D), and the memory and cache with the chunk's frames.
        """
        kept: dict[str, Tensor] = {}

        def attend(x: Tensor) -> Tensor:
            x, kept["memory"] = self.attention(self.attention_norm(x), bias, positions, valid, memory)
            return x

        def convolve(x: Tensor) -> Tensor:
            x, kept["cache"] = cast(Any, self.convolution).stream(x, valid, cache)
            return x

        return self._run(x, attend, convolve), kept["memory"], kept["cache"]

    def _run(
        self, x: Tensor, attend: Callable[[Tensor], Tensor], convolve: Callable[[Tensor], Tensor]
    ) -> Tensor:
        x = x + self.half_step * self.feed_forward_in(x)
        if self.order == "attention_first":
            x = x + attend(x)
            x = x + convolve(x)
        elif self.order == "convolution_first":
            x = x + convolve(x)
            x = x + attend(x)
        else:
            x = x + attend(x) + convolve(x)
        x = x + self.half_step * self.feed_forward_out(x)
        return cast(Tensor, self.final_norm(x))


class ConformerEncoder(nn.Module):
    """(B, T, n_mels) -> (B, T', d_model), T' = `config.output_frames.n_graph(T)`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.subsampling = subsampling_from_config(config)
        self.added_positions = AbsolutePositions(config.d_model) if config.added_positions else None
        self.positions = positions_from_config(config)
        self.dropout = nn.Dropout(config.dropout)
        block = TransformerBlock if config.encoder == "transformer" else ConformerBlock
        self.layers = nn.ModuleList(block(config) for _ in range(config.n_layers))
        eps = config.norm_eps if config.output_norm_eps is None else config.output_norm_eps
        self.output_norm = nn.LayerNorm(config.d_model, eps=eps) if config.output_norm else None

    def forward(
        self, features: Tensor, feature_lens: Tensor, chunk_frames: int | None, left_chunks: int | None
    ) -> tuple[list[Tensor], Tensor]:
        """Encode features that are zero past their lengths.

        Args:
            features: float (B, T, n_mels).
            feature_lens: int64 (B,), in feature frames.
            chunk_frames, left_chunks: see `ConformerCTC.forward`.

        Returns:
            The outputs (B, T', d_model) of the intermediate CTC layers in order and, last, of the final
            layer; int64 (B,) lengths.
        """
        check_chunking(self.config, chunk_frames, left_chunks)
        x = self.subsampling(features, feature_lens)
        if self.config.xscaling:
            x = x * math.sqrt(self.config.d_model)
        if self.added_positions is not None:
            x = x + self.added_positions(x.shape[1]).to(x.dtype)
        x = self.dropout(x)
        n_frames = x.shape[1]
        frames = self.config.output_frames
        valid = valid_frames(feature_lens, n_frames, frames.factor, frames.first)
        context = context_mask(self.config, n_frames, valid.device)
        bias = attention_bias(valid, chunk_frames, left_chunks, context)
        positions = positions_as(x.dtype, self.positions(n_frames))
        wanted = {*self.config.intermediate_ctc_layers, self.config.n_layers}
        outputs = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, bias, positions, valid)
            if number in wanted:
                outputs.append(x if self.output_norm is None else self.output_norm(x))
        return outputs, subsampled_lens(feature_lens, frames.factor, frames.first)
