"""The inference form of a model: the same function, arranged to be fast and easy to quantize.

Ahead of export, on a copy, all exact in real arithmetic (the proof compares with the original):
- BatchNorm is folded into the depthwise convolution (fold.py), the half-step factor of the
  feed-forward modules into their projection, 1 / sqrt(d_head) and the biases u, v into the queries.
- Relative positions without the relative shift: by the angle sums a score by distance is a plain product
  with one table of sines and cosines, shared by heads and layers (`ProductAttention`).
- The depthwise convolution runs over a plane of height 1, for which onnxruntime has a vectorized kernel.
- Padding is masked inside the first subsampling convolution; no pass over its large output is left, and
  the flattening behind the last one is a view in channels-last layout.
Nothing here can be trained. Which parts become INT8 is edge_asr.calibration's affair.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.export.fold import fold_batch_norm
from edge_asr.model.attention import RelPosAttention
from edge_asr.model.convolution import Convolution, FeedForward
from edge_asr.model.ctc import ConformerCTC
from edge_asr.model.encoder import ConformerBlock
from edge_asr.model.masks import MASKED_SCORE, valid_frames
from edge_asr.model.subsampling import ConvSubsampling

# A score by distance costs d_model multiplications as a product and 2 * d_head with the shift, whose two
# copies of the scores cost about as much as 66 more in float32 and 200 in INT8 (docs/log.md, 2026-11-23).
MAX_PRODUCT_HEADS = 4


def to_inference_form(model: nn.Module) -> nn.Module:
    """A copy of `model` for export; other modules than those of `edge_asr.model` only lose their BatchNorm.

    Args:
        model: in eval mode.

    Raises:
        CheckpointError: see `fold_batch_norm`.
    """
    folded = fold_batch_norm(model)
    if not isinstance(folded, ConformerCTC):
        return folded
    encoder = folded.encoder
    blocks = [cast(ConformerBlock, layer) for layer in encoder.layers]
    # Exact types: what a subclass does differently is not known here.
    if type(encoder.subsampling) is ConvSubsampling:
        encoder.add_module("subsampling", MaskedSubsampling(encoder.subsampling))
    if all(type(b.attention) is RelPosAttention and b.attention.n_heads <= MAX_PRODUCT_HEADS for b in blocks):
        encoder.add_module("positions", AnglePositions(folded.config.d_model))
        for block in blocks:
            block.add_module("attention", ProductAttention(cast(RelPosAttention, block.attention)))
    for block in blocks:
        if type(block.convolution) is Convolution:
            block.add_module("convolution", PlaneConvolution(block.convolution))
        if type(block.feed_forward_in) is type(block.feed_forward_out) is FeedForward:
            for feed_forward in (block.feed_forward_in, block.feed_forward_out):
                _scale_projection(feed_forward, block.half_step)
            block.half_step = 1.0
    return folded.eval()


def _scale_projection(feed_forward: FeedForward, factor: float) -> None:
    with torch.no_grad():
        feed_forward.project.weight.mul_(factor)
        feed_forward.project.bias.mul_(factor)


class AnglePositions(nn.Module):
    """Sines and cosines of the position of every frame, for `ProductAttention`."""

    inverse_frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        frequency = torch.exp(
            torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """float32 (T, D) of [sin, sin], (T, D) of [cos, cos], and (D, T) of [cos; sin]."""
        # From 0, whatever the length: in INT8 the table is rounded, and padding must not move that rounding.
        position = torch.arange(n_frames, device=self.inverse_frequency.device).to(torch.float32)
        angle = position[:, None] * self.inverse_frequency[None, :]  # (T, D / 2)
        sine, cosine = torch.sin(angle), torch.cos(angle)
        table = torch.cat((cosine, sine), dim=-1).transpose(0, 1)
        return torch.cat((sine, sine), dim=-1), torch.cat((cosine, cosine), dim=-1), table

    def stream(self, n_frames: int, n_memory: int, n_before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For a chunk of T behind M memorized frames: (T, D), (T, D) and (D, M + T)."""
        sine, cosine, table = self(n_memory + n_frames)
        return sine[n_memory:], cosine[n_memory:], table


class DistanceProduct(nn.Module):
    """Scores by distance as a product, in a module of its own so that its nodes can be told by name.

    The score (q_i + v) . W_pos r(i - j) is linear in r = [sin(w m), cos(w m)] of m = i - j: with
    [a, b] = (q_i + v) W_pos it is the sum over the frequencies w of a sin(w (i - j)) + b cos(w (i - j)), and
    by sin(x - y) = sin x cos y - cos x sin y, cos(x - y) = cos x cos y + sin x sin y that is
    (a sin wi + b cos wi) cos wj + (b sin wi - a cos wi) sin wj.
    """

    by_sine: Tensor
    by_cosine: Tensor

    def __init__(self, position: Tensor) -> None:
        """From W_pos (H, d, D), whose columns are sine and cosine interleaved, as in NeMo."""
        super().__init__()
        sine, cosine = position.detach()[:, :, 0::2], position.detach()[:, :, 1::2]
        self.register_buffer("by_sine", torch.cat((sine, cosine), dim=-1).contiguous())
        self.register_buffer("by_cosine", torch.cat((cosine, -sine), dim=-1).contiguous())

    def forward(self, query: Tensor, sine: Tensor, cosine: Tensor, table: Tensor) -> Tensor:
        """(B, H, Q, d) and what `AnglePositions` gives -> (B, H, Q, K)."""
        rotated = torch.matmul(query, self.by_sine) * sine + torch.matmul(query, self.by_cosine) * cosine
        return torch.matmul(rotated, table)


class ProductAttention(nn.Module):
    """`RelPosAttention` without the relative shift, see `DistanceProduct`."""

    def __init__(self, attention: RelPosAttention) -> None:
        super().__init__()
        self.n_heads, self.d_head = attention.n_heads, attention.d_head
        d_model = self.n_heads * self.d_head
        scale = self.d_head**-0.5
        with torch.no_grad():
            query, key, value = attention.qkv.weight.chunk(3)
            query_bias, key_bias, value_bias = attention.qkv.bias.chunk(3)
            by_content = (query_bias + attention.pos_bias_u.flatten()) * scale
            by_distance = (query_bias + attention.pos_bias_v.flatten()) * scale
            self.qqkv = nn.Linear(d_model, 4 * d_model)
            self.qqkv.weight.copy_(torch.cat((query * scale, query * scale, key, value)))
            self.qqkv.bias.copy_(torch.cat((by_content, by_distance, key_bias, value_bias)))
            position = attention.position.weight.reshape(self.n_heads, self.d_head, d_model)
        self.by_distance = DistanceProduct(position)
        self.out = attention.out

    def forward(
        self, x: Tensor, bias: Tensor, positions: tuple[Tensor, Tensor, Tensor], valid: Tensor
    ) -> Tensor:
        """See `RelPosAttention.forward`; positions come from `AnglePositions`."""
        batch, n_frames, _ = x.shape
        split = self.qqkv(x).reshape(batch, n_frames, 4, self.n_heads, self.d_head)
        query_u, query_v, key, value = split.unbind(2)
        return self._attend(query_u, query_v, key, value, bias, positions)

    def memorize(self, x: Tensor) -> Tensor:
        """See `RelPosAttention.memorize`."""
        return x

    def recall(
        self, x: Tensor, memory: Tensor, bias: Tensor, positions: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """See `RelPosAttention.recall`; positions come from `AnglePositions.stream`."""
        d_model = self.n_heads * self.d_head
        queries = F.linear(x, self.qqkv.weight[: 2 * d_model], self.qqkv.bias[: 2 * d_model])
        recalled = F.linear(memory, self.qqkv.weight[2 * d_model :], self.qqkv.bias[2 * d_model :])
        query_u, query_v = self._split_heads(queries)
        key, value = self._split_heads(recalled)
        return self._attend(query_u, query_v, key, value, bias, positions)

    def _split_heads(self, pair: Tensor) -> tuple[Tensor, ...]:
        """(B, T, 2D) -> two of (B, T, H, d)."""
        return pair.reshape(pair.shape[0], pair.shape[1], 2, self.n_heads, self.d_head).unbind(2)

    def _attend(
        self,
        query_u: Tensor,
        query_v: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        positions: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        batch, n_queries, _, _ = query_u.shape
        by_content = torch.matmul(query_u.transpose(1, 2), key.permute(0, 2, 3, 1))  # (B, H, Q, K)
        scores = by_content + self.by_distance(query_v.transpose(1, 2), *positions)
        weights = torch.softmax(scores + bias, dim=-1)
        context = torch.matmul(weights, value.transpose(1, 2))  # (B, H, Q, d)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_queries, -1)))


class PlaneConvolution(nn.Module):
    """`Convolution` whose depthwise kernel is (1, K) over (B, D, 1, T): 0.04 ms in place of 0.11 for 10 s."""

    def __init__(self, module: Convolution) -> None:
        super().__init__()
        self.context = module.context
        self.norm, self.layer_norm = module.norm, module.layer_norm
        self.pointwise_in, self.pointwise_out = module.pointwise_in, module.pointwise_out
        self.activation = module.activation
        assert module.batch_norm is None  # folded before
        d_model, n_taps = module.depthwise.out_channels, module.depthwise.kernel_size[0]
        self.depthwise = nn.Conv2d(d_model, d_model, (1, n_taps), groups=d_model)
        with torch.no_grad():
            self.depthwise.weight.copy_(module.depthwise.weight[:, :, None])
            cast(Tensor, self.depthwise.bias).copy_(cast(Tensor, module.depthwise.bias))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """See `Convolution.forward`."""
        return self._filter(F.pad(self._gate(x, valid), self.context))

    def stream(self, x: Tensor, valid: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """See `Convolution.stream`."""
        frames = torch.cat((cache[:, :, None], self._gate(x, valid)), dim=3)
        return self._filter(F.pad(frames, (0, self.context[1]))), frames.squeeze(2)

    def _gate(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, T, D) -> (B, D, 1, T)."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        x = x * valid[:, :, None].to(x.dtype)
        return x[:, None].permute(0, 3, 1, 2)

    def _filter(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)  # (B, D, 1, T)
        x = x.permute(0, 2, 3, 1).squeeze(1)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.pointwise_out(self.activation(x)))


class MaskedSubsampling(nn.Module):
    """`ConvSubsampling` in two exact steps less over its largest tensors.

    The first convolution gets a second channel, 1 on padding, whose only weight is MASKED_SCORE at the
    center: a padded output frame is far below 0 and the ReLU makes it 0, which the next convolution needs.
    What comes after the last one is only ever read frame by frame, so it needs no mask.
    """

    def __init__(self, subsampling: ConvSubsampling) -> None:
        super().__init__()
        first = cast(nn.Conv2d, cast(nn.Sequential, subsampling.stages[0])[0])
        self.first = nn.Conv2d(2, first.out_channels, 3, stride=2, padding=1)
        self.stages = nn.ModuleList(copy.deepcopy(stage) for stage in list(subsampling.stages)[1:])
        self.out = copy.deepcopy(subsampling.out)
        n_bands = subsampling.out.in_features // first.out_channels
        with torch.no_grad():
            self.first.weight.zero_()
            self.first.weight[:, :1] = first.weight
            self.first.weight[:, 1, 1, 1] = MASKED_SCORE
            self.first.bias.copy_(cast(Tensor, first.bias))  # type: ignore[union-attr]
            weight = subsampling.out.weight.reshape(-1, first.out_channels, n_bands)
            self.out.weight.copy_(weight.transpose(1, 2).flatten(1))  # band-major: see forward

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`; frames past a row's end mean nothing."""
        valid = valid_frames(lens, features.shape[1])
        padding = (~valid).to(features.dtype)[:, :, None].expand(-1, -1, features.shape[2])
        x = F.relu(self.first(torch.stack((features, padding), dim=1)))  # (B, C, T / 2, F / 2)
        for number, stage in enumerate(self.stages, start=2):
            x = stage(x)
            if number <= len(self.stages):
                x = x * valid_frames(lens, x.shape[2], 2**number)[:, None, :, None].to(x.dtype)
            x = F.relu(x)
        return cast(Tensor, self.out(x.permute(0, 2, 3, 1).flatten(2)))  # (B, T', F' * C)
