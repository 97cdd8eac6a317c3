"""Runs a step of a stream in PyTorch: a window of features and a state in, log-probs and a state out.

It runs the modules of a `ConformerCTC` chunk by chunk, so that the chunks of a clip, one after the other,
give what the model gives for the whole clip under the same `attention_context`. There is no second set of
weights.
What this file does not do: cut windows out of a feature stream (edge_asr.runtime.streaming_model), choose the
geometry (streamable.py).

The state has for every layer what attention recalls, the last inputs of the depthwise convolution, and the
number of frames of the former. NeMo recalls the inputs of attention (after its LayerNorm), the other layout,
which is faster, keys and values (`StreamingGeometry.layout`). WeNet's attention always recalls these, and its
count continues beyond the memory, because its positions are absolute.

Sources: NeMo, nemo/collections/asr/modules/conformer_encoder.py (`forward_internal`,
`setup_streaming_params`) and parts/submodules/{multi_head_attention,causal_convs}.py (`update_cache`); WeNet,
wenet/models/transformer/encoder.py (`forward_chunk`).
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from edge_asr.model.attention.choose import positions_as
from edge_asr.model.ctc import ConformerCTC
from edge_asr.model.encoder import ConformerBlock
from edge_asr.model.masks import MASKED_SCORE, valid_frames
from edge_asr.model.subsampling.striding import subsampled_lens
from edge_asr.stream_geometry import StreamingGeometry


class StreamCaches(NamedTuple):
    """The state of a batch of streams between steps; a new stream is all zeros.

    Attributes:
        channel: float (B, *cache_last_channel), memories of attention, the latest frame last.
        time: float (B, *cache_last_time), inputs of the depthwise convolutions, likewise.
        channel_len: int64 (B,), frames heard; of relative attention at most left_frames.
    """

    channel: Tensor
    time: Tensor
    channel_len: Tensor


class StreamingStep(nn.Module):
    """A model as a function of a window and a state.

    Args:
        model: in eval mode, or its inference form (edge_asr.export.inference_form).
        geometry: `geometry_from_config` of its configuration.
    """

    def __init__(self, model: ConformerCTC, geometry: StreamingGeometry) -> None:
        super().__init__()
        self.acoustic_model = model
        self.geometry = geometry
        self.counts_on = model.config.attention == "absolute_pos"
        self._n_heads = model.config.n_heads

    def initial_state(self, batch: int = 1) -> StreamCaches:
        """The state of streams that have heard nothing."""
        return StreamCaches(
            channel=torch.zeros(batch, *self.geometry.cache_last_channel),
            time=torch.zeros(batch, *self.geometry.cache_last_time),
            channel_len=torch.zeros(batch, dtype=torch.int64),
        )

    def forward(
        self, features: Tensor, lens: Tensor, state: StreamCaches
    ) -> tuple[Tensor, Tensor, StreamCaches]:
        """Run one step.

        Args:
            features: float32 (B, T, n_mels), the step's window (`StreamingGeometry.window`): the first ones
                may be shorter than the later ones, the last is padded behind its end.
            lens: int64 (B,), valid frames of the window; fewer than T where the clip ends.
            state: from the step before.

        Returns:
            float32 (B, chunk_frames, vocab_size); int64 (B,) valid ones; the next state, further by those. A
            row without a valid frame keeps its state.
        """
        encoded, n_valid, following = self.encode(features, lens, state)
        return self.acoustic_model.head(encoded), n_valid, following

    def encode(
        self, features: Tensor, lens: Tensor, state: StreamCaches
    ) -> tuple[Tensor, Tensor, StreamCaches]:
        """Run a step of the encoder alone: as `forward`, but float32 (B, chunk_frames, d_model)."""
        geometry, encoder = self.geometry, self.acoustic_model.encoder
        n_new = geometry.chunk_frames + geometry.ahead_frames
        x, n_valid = self._subsample(features, lens, n_new)
        valid = valid_frames(n_valid, n_new)
        bias = self._bias(valid, state.channel_len)
        positions = positions_as(
            x.dtype, cast(Any, encoder.positions).stream(n_new, geometry.left_frames, state.channel_len)
        )
        memories, caches = self._split_state(state)
        x = x.flatten(0, 1)
        for number, layer in enumerate(encoder.layers):
            before = memories[number], caches[number]
            x, memories[number], caches[number] = cast(ConformerBlock, layer).stream(
                x, bias, positions, valid, *before
            )
        if encoder.output_norm is not None:
            x = encoder.output_norm(x)
        x = x.reshape(-1, n_new, x.shape[1])
        n_valid = n_valid.clamp(max=geometry.chunk_frames)
        n_heard = state.channel_len + n_valid
        n_heard = n_heard if self.counts_on else n_heard.clamp(max=geometry.left_frames)
        following = self._join_state(memories, caches, n_valid, n_heard)
        return x[:, : geometry.chunk_frames], n_valid, following

    def _split_state(self, state: StreamCaches) -> tuple[list[Tensor], list[Tensor]]:
        """The state as `ConformerBlock.stream` takes it: memories and caches by layer."""
        n_layers, channel, time = self.geometry.n_layers, state.channel, state.time
        if self.geometry.layout == "nemo":
            time = time.transpose(2, 3)
            if self.counts_on:  # WeNet's keys and values
                heads = channel.reshape(*channel.shape[:3], 2 * self._n_heads, -1)
                channel = heads.transpose(2, 3).flatten(1, 2)
        memories = torch.split(channel, channel.shape[1] // n_layers, dim=1)
        return list(memories), list(torch.split(time, 1, dim=1))

    def _join_state(
        self, memories: list[Tensor], caches: list[Tensor], n_valid: Tensor, n_heard: Tensor
    ) -> StreamCaches:
        geometry = self.geometry
        channel = _cut(torch.cat(memories, dim=1), n_valid, geometry.left_frames)
        time = _cut(torch.cat(caches, dim=1), n_valid, geometry.time_frames)
        if geometry.layout == "nemo":
            time = time.transpose(2, 3)
            if self.counts_on:
                rows = channel.reshape(channel.shape[0], geometry.n_layers, -1, *channel.shape[2:])
                channel = rows.transpose(2, 3).flatten(3)
        return StreamCaches(channel=channel, time=time, channel_len=n_heard)

    def _subsample(self, features: Tensor, lens: Tensor, n_new: int) -> tuple[Tensor, Tensor]:
        """The window's new encoder frames (B, n_new, D) and how many of them are valid, int64 (B,)."""
        model = self.acoustic_model
        frames = model.config.output_frames
        if model.cmvn is not None:
            features = model.cmvn(features)
        features = features.masked_fill(~valid_frames(lens, features.shape[1])[:, :, None], 0.0)
        x = model.encoder.subsampling(features, lens)
        # Shorter windows begin where the clip does: there the subsampling's own padding is right.
        n_dropped = x.shape[1] - n_new if self.geometry.dropped_frames else 0
        x = x.narrow(1, n_dropped, n_new)
        if model.config.xscaling:
            x = x * math.sqrt(model.config.d_model)
        n_valid = subsampled_lens(lens, frames.factor, frames.first) - n_dropped
        return x, n_valid.clamp(min=0, max=n_new)

    def _bias(self, valid: Tensor, n_heard: Tensor) -> Tensor:
        """0 where a key may be seen, MASKED_SCORE where not: (B, 1, 1 or Q, left_frames + Q)."""
        n_memory, n_new = self.geometry.left_frames, valid.shape[1]
        age = n_memory - torch.arange(n_memory, device=valid.device)  # the last of the memory is 1 frame old
        visible = torch.cat((age[None, :] <= n_heard[:, None], valid), dim=1)[:, None, None, :]
        config = self.acoustic_model.config
        if config.attention_context_style == "regular":
            assert config.attention_context is not None
            left, right = config.attention_context
            frame = torch.arange(n_memory + n_new, device=valid.device)
            behind = frame[n_memory:, None] - frame[None, :]  # (Q, K)
            visible = visible & ((behind <= left) & (behind >= -right))
        return (~visible).to(torch.float32) * MASKED_SCORE


def _cut(frames: Tensor, first: Tensor, n_kept: int) -> Tensor:
    """Frames first[b] ... first[b] + n_kept - 1 of row b of (B, L, K, .).

    Whole frames are selected from a flat list of them, which copies memory in long pieces.
    """
    n_rows, n_layers, n_frames, width = frames.shape
    row = torch.arange(n_rows, device=frames.device)[:, None] * n_layers + torch.arange(
        n_layers, device=frames.device
    )  # (B, L)
    start = row * n_frames + first[:, None]
    index = start[:, :, None] + torch.arange(n_kept, device=frames.device)  # (B, L, n_kept)
    kept = frames.reshape(-1, width).index_select(0, index.flatten())
    return kept.reshape(-1, n_layers, n_kept, width)
