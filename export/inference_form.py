"""The inference form of a model: the same function, arranged to be fast and easy to quantize.

Before export a copy of the model is changed. All changes are exact in real arithmetic, and the proof compares
the result with the original:
- BatchNorm is folded into the depthwise convolution (fold.py), the half-step factor of the
  feed-forward modules into their projection, 1 / sqrt(d_head) and the biases u, v into the queries.
- Relative positions are projected for distances of one sign only (`ShiftAttention`).
- The depthwise convolution runs over a plane of height 1, for which onnxruntime has a vectorized kernel.
- The subsampling runs with time along its rows. Padding is masked inside its first convolution, so no pass
over the
  large output is left (`MaskedSubsampling`).
The result cannot be trained.
What this file does not do: decide which parts become INT8 (edge_asr.calibration).
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.export.fold import fold_batch_norm
from edge_asr.graph.part_names import (
    DISTANCE_TABLE,
    EVEN_WEIGHT,
    FIRST_CONVOLUTION,
    ODD_WEIGHT,
    SHIFTED_PRODUCT,
)
from edge_asr.model.attention.relative import RelPosAttention, recall
from edge_asr.model.convolution.base import Convolution
from edge_asr.model.ctc import ConformerCTC
from edge_asr.model.encoder import ConformerBlock
from edge_asr.model.feed_forward import FeedForward
from edge_asr.model.masks import MASKED_SCORE, valid_frames
from edge_asr.model.subsampling.striding import ConvSubsampling


def to_inference_form(model: nn.Module) -> nn.Module:
    """Return a copy of `model` for export; modules from outside `edge_asr.model` only lose their BatchNorm.

    Args:
        model: in eval mode.

    Raises:
        CheckpointError: see `fold_batch_norm`.
    """
    folded = fold_batch_norm(model)
    if not isinstance(folded, ConformerCTC):
        return folded
    encoder = folded.encoder
    blocks = [layer for layer in encoder.layers if isinstance(layer, ConformerBlock)]
    # Types must match exactly, because a subclass may compute something else.
    if type(encoder.subsampling) is ConvSubsampling:
        encoder.add_module("subsampling", MaskedSubsampling(encoder.subsampling))
    if blocks and all(type(block.attention) is RelPosAttention for block in blocks):
        encoder.add_module("positions", HalfPositions(folded.config.d_model))
        for block in blocks:
            block.add_module("attention", ShiftAttention(cast(RelPosAttention, block.attention)))
    for block in blocks:
        if type(block.convolution) is Convolution:
            block.add_module("convolution", PlaneConvolution(block.convolution))
        if type(block.feed_forward_in) is type(block.feed_forward_out) is FeedForward:
            for feed_forward in (block.feed_forward_in, block.feed_forward_out):
                _scale_projection(feed_forward, block.half_step)
            block.half_step = 1.0
    return folded.eval()


def freeze_stream_positions(model: ConformerCTC, n_new: int, n_memory: int) -> None:
    """Make positions constants in an inference form that runs in chunks of always the same distances."""
    positions = model.encoder.positions
    for layer in model.encoder.layers if isinstance(positions, HalfPositions) else ():
        attention = cast(ShiftAttention, cast(ConformerBlock, layer).attention)
        with torch.no_grad():
            rows = getattr(attention, DISTANCE_TABLE)(*positions(n_memory + n_new), n_new)
            heads = rows.reshape(-1, attention.n_heads, attention.d_head)
            attention.table = heads.permute(1, 2, 0).contiguous()


def _scale_projection(feed_forward: FeedForward, factor: float) -> None:
    with torch.no_grad():
        feed_forward.project.weight.mul_(factor)
        feed_forward.project.bias.mul_(factor)


class HalfPositions(nn.Module):
    """Sines and cosines of the distances 0, 1, ..., K, for `DistanceTable`."""

    inverse_frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        frequency = torch.exp(
            torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the tables for T frames, with K = T.

        Returns:
            Sines and cosines, float32 (K + 1, D / 2) each, and the distances K, ..., 1, 0, int64 (K + 1,).
        """
        distance = torch.arange(n_frames + 1, device=self.inverse_frequency.device)
        angle = distance.to(torch.float32)[:, None] * self.inverse_frequency[None, :]
        return torch.sin(angle), torch.cos(angle), n_frames - distance

    def stream(self, n_frames: int, n_memory: int, n_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the tables for a chunk of T frames after M memorized ones, as `forward` with K = M + T."""
        return cast("tuple[Tensor, Tensor, Tensor]", self(n_memory + n_frames))


class DistanceTable(nn.Module):
    """Projects positions: W_pos r(m) for every distance m = i - j, r(m) = [sin(w m), cos(w m)].

    The sines are odd in m and the cosines even, so both are projected only for m from 0 to K, which halves
    the products. calibration/angles.py finds both weights by name in the exported graph.
    """

    def __init__(self, position: Tensor) -> None:
        """Split W_pos (D, D), whose columns are sine and cosine interleaved, as in NeMo."""
        super().__init__()
        self.register_buffer(ODD_WEIGHT, position.detach()[:, 0::2].T.contiguous())
        self.register_buffer(EVEN_WEIGHT, position.detach()[:, 1::2].T.contiguous())

    def forward(self, sine: Tensor, cosine: Tensor, backwards: Tensor, n_queries: int) -> Tensor:
        """Project what `HalfPositions` gives: (K + 1 + Q, D), m = K, ..., -Q; the last one is never used."""
        odd = torch.matmul(sine, getattr(self, ODD_WEIGHT))  # (K + 1, D)
        even = torch.matmul(cosine, getattr(self, EVEN_WEIGHT))
        behind = torch.index_select(even + odd, 0, backwards)
        return torch.cat((behind, (even - odd)[1 : n_queries + 1]))


class ShiftedProduct(nn.Module):
    """Computes scores by distance; a module of its own, so that its nodes can be found by name."""

    def forward(self, query: Tensor, table: Tensor) -> Tensor:
        """(B, H, Q, d) and (K + 1 + Q, D) of `DistanceTable`, or (H, d, K + 1 + Q) -> (B, H, Q, K)."""
        batch, n_heads, n_queries, d_head = query.shape
        if table.dim() == 2:
            table = table.reshape(-1, n_heads, d_head).permute(1, 2, 0)
        scores = torch.matmul(query, table)  # (B, H, Q, N)
        n_distances = scores.shape[3]
        # Row i needs columns Q - i and up, which in the flat matrix are rows of N - 1 that begin at Q.
        flat = scores.reshape(batch, n_heads, n_queries * n_distances)[:, :, n_queries:]
        rows = flat.reshape(batch, n_heads, n_queries, n_distances - 1)
        return rows[:, :, :, : n_distances - 1 - n_queries]


class ShiftAttention(nn.Module):
    """`RelPosAttention` with biases and scale in its weights, and half the projection of positions."""

    v_less_u: Tensor
    table: Tensor | None

    def __init__(self, attention: RelPosAttention) -> None:
        super().__init__()
        self.n_heads, self.d_head = attention.n_heads, attention.d_head
        d_model = self.n_heads * self.d_head
        scale = self.d_head**-0.5
        with torch.no_grad():
            query, key, value = attention.qkv.weight.chunk(3)
            query_bias, key_bias, value_bias = attention.qkv.bias.chunk(3)
            self.qkv = nn.Linear(d_model, 3 * d_model)
            self.qkv.weight.copy_(torch.cat((query * scale, key, value)))
            by_content = (query_bias + attention.pos_bias_u.flatten()) * scale
            self.qkv.bias.copy_(torch.cat((by_content, key_bias, value_bias)))
            # Turns q + u, which the content uses, into q + v.
            self.register_buffer("v_less_u", ((attention.pos_bias_v - attention.pos_bias_u) * scale)[:, None])
            for name, part in (("query", slice(None, d_model)), ("keys_values", slice(d_model, None))):
                linear = nn.Linear(d_model, len(self.qkv.bias[part]))
                linear.weight.copy_(self.qkv.weight[part])
                linear.bias.copy_(self.qkv.bias[part])
                self.add_module(name, linear)  # for a memory of inputs
        self.add_module(DISTANCE_TABLE, DistanceTable(attention.position.weight))
        self.add_module(SHIFTED_PRODUCT, ShiftedProduct())
        self.register_buffer("table", None)
        self.out = attention.out

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        positions: tuple[Tensor, Tensor, Tensor],
        valid: Tensor,
        memory: Tensor | None = None,
    ) -> Any:
        """See `RelPosAttention.forward`; positions come from `HalfPositions`."""
        if memory is None:
            batch, n_frames, _ = x.shape
            query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            context = self._attend(query, key, value, bias, positions)
            return self.out(context.reshape(batch, n_frames, -1))
        query, key, value, memory = recall(self, x, memory, valid.shape[1])
        return self.out(self._attend(query, key, value, bias, positions).reshape(-1, x.shape[1])), memory

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        positions: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """See `RelPosAttention._attend`."""
        by_content = torch.matmul(query, key.transpose(2, 3))  # (B, H, Q, K)
        table = self.table
        if table is None:
            table = getattr(self, DISTANCE_TABLE)(*positions, query.shape[2])
        scores = by_content + getattr(self, SHIFTED_PRODUCT)(query + self.v_less_u, table)
        weights = torch.softmax(scores + bias, dim=-1)
        return torch.matmul(weights, value).transpose(1, 2)


class PlaneConvolution(nn.Module):
    """`Convolution` whose depthwise kernel is (1, K) over (B, D, 1, T): 0.04 ms instead of 0.11 for 10 s."""

    def __init__(self, module: Convolution) -> None:
        super().__init__()
        self.context = module.context
        self.norm, self.layer_norm = module.norm, module.layer_norm
        self.pointwise_in, self.pointwise_out = module.pointwise_in, module.pointwise_out
        self.activation = module.activation
        assert module.batch_norm is None  # it was folded before
        d_model, n_taps = module.depthwise.out_channels, module.depthwise.kernel_size[0]
        self.depthwise = nn.Conv2d(d_model, d_model, (1, n_taps), groups=d_model)
        with torch.no_grad():
            self.depthwise.weight.copy_(module.depthwise.weight[:, :, None])
            cast(Tensor, self.depthwise.bias).copy_(cast(Tensor, module.depthwise.bias))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """See `Convolution.forward`."""
        return self._filter(F.pad(self._gate(x, valid)[:, None].permute(0, 3, 1, 2), self.context))

    def stream(self, x: Tensor, valid: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `Convolution.stream`."""
        gated = self._gate(x, valid if self.context[1] else None).reshape(
            cache.shape[0], 1, valid.shape[1], -1
        )
        frames = torch.cat((cache, gated), dim=2)
        padded = F.pad(frames.permute(0, 3, 1, 2), (0, self.context[1]))
        filtered = self.depthwise(padded).permute(0, 2, 3, 1)  # (B, 1, Q, D)
        return self._project(filtered.reshape(x.shape)), frames

    def _gate(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """See `Convolution._gate`."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        return x if valid is None else x * valid.reshape(*x.shape[:-1], 1).to(x.dtype)

    def _filter(self, x: Tensor) -> Tensor:
        """(B, D, 1, left + T + right) -> (B, T, D)."""
        return self._project(self.depthwise(x).permute(0, 2, 3, 1).squeeze(1))

    def _project(self, x: Tensor) -> Tensor:
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.pointwise_out(self.activation(x)))


class MaskedSubsampling(nn.Module):
    """`ConvSubsampling`, exact, in less time.

    - Time is the last axis, as in the input of the graph, because it is long and onnxruntime's kernels work
      along rows. The second convolution of a Conformer of 176 channels takes 31 ms for 10 s instead of 39.
    - The projection is a convolution over all bands at once, so nothing has to be reordered for it.
    - The first convolution gets a second channel, 1 on padding, whose only weight is MASKED_SCORE at the
      center. So a padded output frame is far below 0, and the ReLU makes it the 0 that the next convolution
      needs. What follows the last convolution is read frame by frame, so it needs no mask.
    """

    def __init__(self, subsampling: ConvSubsampling) -> None:
        super().__init__()
        first = cast(nn.Conv2d, cast(nn.Sequential, subsampling.stages[0])[0])
        channels, d_model = first.out_channels, subsampling.out.out_features
        n_bands = subsampling.out.in_features // channels
        masked = nn.Conv2d(2, channels, 3, stride=2, padding=1)
        self.add_module(FIRST_CONVOLUTION, masked)
        self.stages = nn.ModuleList(copy.deepcopy(stage) for stage in list(subsampling.stages)[1:])
        self.out = nn.Conv2d(channels, d_model, (n_bands, 1))
        with torch.no_grad():
            masked.weight.zero_()
            masked.weight[:, :1] = first.weight.transpose(2, 3)
            masked.weight[:, 1, 1, 1] = MASKED_SCORE
            cast(Tensor, masked.bias).copy_(cast(Tensor, first.bias))
            for module in self.stages.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.copy_(module.weight.transpose(2, 3).clone())
            self.out.weight.copy_(subsampling.out.weight.reshape(d_model, channels, n_bands, 1))
            cast(Tensor, self.out.bias).copy_(subsampling.out.bias)

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`; frames past the end of a row mean nothing."""
        valid = valid_frames(lens, features.shape[1])
        padding = (~valid).to(features.dtype)[:, None, :].expand(-1, features.shape[2], -1)
        x = torch.stack((features.transpose(1, 2), padding), dim=1)  # (B, 2, F, T)
        x = F.relu(getattr(self, FIRST_CONVOLUTION)(x))
        for number, stage in enumerate(self.stages, start=2):
            x = stage(x)
            if number <= len(self.stages):
                x = x * valid_frames(lens, x.shape[3], 2**number)[:, None, None, :].to(x.dtype)
            x = F.relu(x)
        return cast(Tensor, self.out(x).squeeze(2).transpose(1, 2))  # (B, D, 1, T') -> (B, T', D)
