"""Runs a step of a stream in PyTorch: a window of features and a state in, log-probs and a state out.

It runs the modules of a `ConformerCTC` chunk by chunk, so that the chunks of a clip, one after the other,
give what the model gives for the whole clip under the same `attention_context`. There is no second set of
weights.
What this file does not do: cut windows out of a feature stream (edge_asr.runtime.streaming_model), choose the
geometry (streamable.py).

The state is NeMo's: for every layer the last inputs of attention (after its LayerNorm) and of the depthwise
convolution, and the number of frames of the former. WeNet's attention memorizes keys and values instead, and
its count continues beyond the memory, because its positions are absolute.

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
        channel: float (B, L, left_frames, channel_width), memories of attention, the latest last.
        time: float (B, L, D, time_frames), inputs of the depthwise convolutions.
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
        geometry, encoder = self.geometry, self.acoustic_model.encoder
        n_new = geometry.chunk_frames + geometry.ahead_frames
        x, n_valid = self._subsample(features, lens, n_new)
        valid = valid_frames(n_valid, n_new)
        bias = self._bias(valid, state.channel_len)
        positions = positions_as(
            x.dtype, cast(Any, encoder.positions).stream(n_new, geometry.left_frames, state.channel_len)
        )
        memories, caches = [], []
        for number, layer in enumerate(encoder.layers):
            block = cast(ConformerBlock, layer)
            before = state.channel[:, number], state.time[:, number]
            x, memory, cache = block.stream(x, bias, positions, valid, *before)
            memories.append(memory)
            caches.append(cache)
        if encoder.output_norm is not None:
            x = encoder.output_norm(x)
        log_probs = self.acoustic_model.head(x[:, : geometry.chunk_frames])
        n_valid = n_valid.clamp(max=geometry.chunk_frames)
        n_heard = state.channel_len + n_valid
        next_state = StreamCaches(
            channel=_cut(torch.stack(memories, dim=1), n_valid, geometry.left_frames, dim=2),
            time=_cut(torch.stack(caches, dim=1), n_valid, geometry.time_frames, dim=3),
            channel_len=n_heard if self.counts_on else n_heard.clamp(max=geometry.left_frames),
        )
        return log_probs, n_valid, next_state

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


def _cut(frames: Tensor, first: Tensor, n_kept: int, dim: int) -> Tensor:
    """Frames first[b] ... first[b] + n_kept - 1 along a dimension of row b of (B, L, ., .)."""
    index = first[:, None] + torch.arange(n_kept, device=frames.device)  # (B, n_kept)
    shape = [-1, frames.shape[1], frames.shape[2], frames.shape[3]]
    shape[dim] = n_kept
    index = index[:, None, :, None] if dim == 2 else index[:, None, None, :]
    return torch.gather(frames, dim, index.expand(*shape))
