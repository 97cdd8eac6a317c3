"""Decides which attention context an export has, and whether and how it streams.

A checkpoint trained with limited context streams with it. If it was trained with several contexts, one is
chosen by its look-ahead, for the offline graph too. A checkpoint trained with chunks of many sizes (WeNet's
dynamic chunks; ours, on request) streams with the requested chunk, and its offline graph keeps full context.
What this file does not do: build anything.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from edge_asr.errors import ConfigError
from edge_asr.model.streamable import lookahead_frames, why_not_streamable
from edge_asr.stream_geometry import StreamLayout

if TYPE_CHECKING:
    from edge_asr.checkpoints import Checkpoint
    from edge_asr.model.config import ConformerConfig

#: For models that accept chunks of any size: WeNet's usual chunk (16 frames of 40 ms), and sherpa-onnx's 4
#: chunks before it.
DEFAULT_CHUNK_MS = 640
DEFAULT_LEFT_CONTEXT_MS = 2560


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingOptions:
    """What the user asked to stream, and how.

    Attributes:
        enabled: whether to write a streaming graph; None writes one if the checkpoint was trained for it.
        lookahead_ms: chooses one of the checkpoint's contexts by its look-ahead; None takes its default.
        chunk_ms: chunk of a model trained with chunks of many sizes; rounded up to whole encoder frames.
        left_context_ms: what attention sees before the chunk, where training left it open; rounded up to
            whole chunks.
        layout: of the caches; None takes NeMo's for a NeMo checkpoint, and else the faster "kv"
            (`StreamingGeometry.layout`).

    Raises:
        ConfigError: a number is out of range, or options are given for a stream that is disabled.
    """

    enabled: bool | None = None
    lookahead_ms: float | None = None
    chunk_ms: float | None = None
    left_context_ms: float | None = None
    layout: StreamLayout | None = None

    def __post_init__(self) -> None:
        for name, least in (("lookahead_ms", 0), ("chunk_ms", 1), ("left_context_ms", 1)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{name} is {value!r}; give {least} ms or more")
        if self.layout not in (None, *get_args(StreamLayout)):
            raise ConfigError(
                f"layout is {self.layout!r}; it must be one of {', '.join(get_args(StreamLayout))}"
            )
        if self.enabled is False and (self.chunk_ms is not None or self.left_context_ms is not None):
            raise ConfigError("a chunk or left context is given, but the stream is disabled; leave one out")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingPlan:
    """What will be exported.

    Attributes:
        offline: configuration of the offline graph.
        stream: configuration of the streaming graph, with its context; None without such a graph.
        reason: why a model of limited context has no streaming graph, for people.
        layout: of the caches of the stream.
    """

    offline: ConformerConfig
    stream: ConformerConfig | None
    reason: str | None = None
    layout: StreamLayout = "kv"


def plan_streaming(checkpoint: Checkpoint, options: StreamingOptions) -> StreamingPlan:
    """Decide what a checkpoint streams.

    Raises:
        ConfigError: this checkpoint does not support an option; the message names what it supports.
    """
    offline = _choose_context(checkpoint, options.lookahead_ms)
    if options.enabled is False:
        return StreamingPlan(offline=offline, stream=None)
    asked = options.enabled or options.chunk_ms is not None or options.left_context_ms is not None
    context = offline.attention_context
    if context is None and not (asked or checkpoint.has_dynamic_chunks):
        return StreamingPlan(offline=offline, stream=None)
    if context is None:
        stream = _chunks(offline, _frame_ms(checkpoint), options)
    else:
        stream = _fixed_context(offline, context, _frame_ms(checkpoint), options)
    reason = why_not_streamable(stream, checkpoint.features)
    if reason is not None and asked:
        raise ConfigError(f"{checkpoint.path.name} cannot stream: {reason}; export it with --no-streaming")
    if reason is None and not asked and stream.attention_context_style == "regular":
        # Each step would compute its look-ahead again, which is too expensive as a default.
        lookahead_ms = lookahead_frames(stream) * _frame_ms(checkpoint)
        if lookahead_ms > 0:
            reason = f"its look-ahead adds up to {lookahead_ms:g} ms over the layers; --streaming forces it"
    layout = options.layout or ("nemo" if checkpoint.provenance.get("format") == "nemo" else "kv")
    return StreamingPlan(
        offline=offline, stream=stream if reason is None else None, reason=reason, layout=layout
    )


def _frame_ms(checkpoint: Checkpoint) -> float:
    features = checkpoint.features
    return 1000 * checkpoint.model_config.subsampling_factor * features.hop_length / features.sample_rate


def _choose_context(checkpoint: Checkpoint, lookahead_ms: float | None) -> ConformerConfig:
    config = checkpoint.model_config
    if lookahead_ms is None:
        return config
    style = checkpoint.attention_context_style
    choices: dict[float, ConformerConfig] = {}
    for context in checkpoint.attention_contexts:
        if context[1] >= 0:
            choice = dataclasses.replace(config, attention_context=context, attention_context_style=style)
            choices.setdefault(lookahead_frames(choice) * _frame_ms(checkpoint), choice)
    if lookahead_ms in choices:
        return choices[lookahead_ms]
    have = ", ".join(f"{ms:g}" for ms in sorted(choices)) or "none: it sees every later frame"
    raise ConfigError(f"lookahead_ms is {lookahead_ms:g}; {checkpoint.path.name} was trained with {have}")


def _chunks(config: ConformerConfig, frame_ms: float, options: StreamingOptions) -> ConformerConfig:
    """Set chunks of the requested length, in a model that was trained with many."""
    chunk = math.ceil((options.chunk_ms or DEFAULT_CHUNK_MS) / frame_ms)
    left = _whole_chunks(options.left_context_ms, frame_ms, chunk)
    return dataclasses.replace(
        config, attention_context=(left, chunk - 1), attention_context_style="chunked_limited"
    )


def _fixed_context(
    config: ConformerConfig, context: tuple[int, int], frame_ms: float, options: StreamingOptions
) -> ConformerConfig:
    """Take the context of training, and limit its left side if training did not."""
    left, right = context
    if options.chunk_ms is not None:
        raise ConfigError(
            f"chunk_ms is {options.chunk_ms:g}, but the model was trained with one context, {list(context)} "
            "encoder frames; leave it out, or choose among several by lookahead_ms"
        )
    if left >= 0:
        if options.left_context_ms is not None:
            raise ConfigError(
                f"left_context_ms is {options.left_context_ms:g}, but the model was trained with {left} "
                f"encoder frames ({left * frame_ms:g} ms); leave it out"
            )
        return config
    chunk = right + 1 if config.attention_context_style == "chunked_limited" else 1
    left = _whole_chunks(options.left_context_ms, frame_ms, chunk)
    return dataclasses.replace(config, attention_context=(left, right))


def _whole_chunks(left_context_ms: float | None, frame_ms: float, chunk: int) -> int:
    wanted = (DEFAULT_LEFT_CONTEXT_MS if left_context_ms is None else left_context_ms) / frame_ms
    return max(math.ceil(wanted / chunk), 1) * chunk
