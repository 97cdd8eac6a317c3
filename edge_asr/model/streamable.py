"""Decides whether a network can run chunk by chunk, and with which geometry; no torch needed.

It holds the rules, describes in words what they allow, and computes the numbers (`edge_asr.stream_geometry`)
from the configuration alone.
What this file does not do: choose a context where a checkpoint lists several
(edge_asr.export.streaming.plan), or run anything (streaming.py).

NeMo's own streaming has the same chunks (nemo/collections/asr/modules/conformer_encoder.py,
`setup_streaming_params`) and, for causal subsampling, the same windows. It keeps them for centered
subsampling too, where the last frame of a chunk then lacks the frames that follow it. Our windows are longer
by those frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.config import ConformerConfig, ContextStyle
from edge_asr.stream_geometry import StreamingGeometry, StreamLayout

_CACHED = ("rel_pos", "absolute_pos")


def why_not_streamable(config: ConformerConfig, features: FeatureConfig) -> str | None:
    """Say why no streaming graph can give what the model gives offline; None when one can.

    Args:
        config: the configuration, with the context that the stream will have.
        features: the front end.
    """
    if features.normalize != "none":
        return f"its features are normalized over the whole clip ({features.normalize})"
    if config.encoder != "conformer":
        return f"encoder {config.encoder} has no caches"
    if config.attention not in _CACHED:
        return f"attention {config.attention} has no cache"
    if config.added_positions:
        return "positions are added to its input, counted from the clip's beginning"
    if config.head != "linear":
        return f"a head with {config.head} has no cache"
    if config.conv_norm == "group_norm":
        return "group_norm normalizes over the whole clip"
    if config.subsampling == "waveform":
        return "subsampling of the waveform has no cache"
    if config.attention_context is None or config.attention_context[1] < 0:
        return "attention sees every later frame"
    left, _ = config.attention_context
    before, behind = config.conv_left_right
    if left < 1 or before < 1:
        return (
            f"attention sees {left} frames to the left, convolution {before}; caches need limits of 1 or more"
        )
    if config.attention_context_style == "chunked_limited":
        chunk = config.attention_context[1] + 1
        if behind:
            return f"its convolutions look {behind} frames ahead, past the end of a chunk"
        if left % chunk:
            return f"{left} frames of left context are not a whole number of chunks of {chunk}"
    return None


def lookahead_frames(config: ConformerConfig) -> int:
    """Count the later encoder frames that a frame may depend on; `attention_context` must limit them.

    Chunks add nothing from layer to layer; a context to the right of every frame grows with each.
    """
    assert config.attention_context is not None
    right = config.attention_context[1]
    if config.attention_context_style == "chunked_limited":
        return right
    return config.n_layers * (right + config.conv_left_right[1])


def describe_streaming(
    config: ConformerConfig,
    features: FeatureConfig,
    contexts: Sequence[tuple[int, int]] = (),
    *,
    style: ContextStyle | None = None,
    dynamic_chunks: bool = False,
) -> dict[str, Any]:
    """Describe for people, as JSON, what `edge-asr export` can stream of a checkpoint.

    Args:
        config: the configuration of the checkpoint.
        features: its front end.
        contexts: every attention context that it was trained with; none for full context.
        style: the style of the contexts; None takes that of `config`.
        dynamic_chunks: whether it was trained with chunks of many sizes.
    """
    frame_ms = 1000 * config.subsampling_factor * features.hop_length / features.sample_rate
    limited = [
        dataclasses.replace(
            config,
            # A left side without limit gets one when exported.
            attention_context=(left if left >= 0 else right + 1, right),
            attention_context_style=style or config.attention_context_style,
        )
        for left, right in contexts
        if right >= 0
    ]
    if limited:
        reasons = [why_not_streamable(candidate, features) for candidate in limited]
        pairs = zip(limited, reasons, strict=True)
        lookaheads = [lookahead_frames(candidate) * frame_ms for candidate, reason in pairs if reason is None]
        return {"lookahead_ms": lookaheads} if lookaheads else {"impossible": reasons[0]}
    if config.encoder == "conformer" and config.attention in _CACHED and config.attention_context is None:
        config = dataclasses.replace(
            config, attention_context=(1, 0), attention_context_style="chunked_limited"
        )
    reason = why_not_streamable(config, features)
    if reason is not None:
        return {"impossible": reason}
    default = "by default" if dynamic_chunks else "when asked, for models trained with chunk masks"
    return {"chunk_ms": f"any ({default})"}


def geometry_from_config(
    config: ConformerConfig, features: FeatureConfig, layout: StreamLayout = "nemo"
) -> StreamingGeometry:
    """Compute the geometry of a model's streaming graph, with caches of a layout.

    Raises:
        ConfigError: the model cannot stream; the message says why.
    """
    reason = why_not_streamable(config, features)
    if reason is not None:
        raise ConfigError(f"this model cannot stream: {reason}; export it with --no-streaming")
    assert config.attention_context is not None
    left, right = config.attention_context
    chunked = config.attention_context_style == "chunked_limited"
    before, behind = _subsampling_reach(config)
    factor = config.subsampling_factor
    return StreamingGeometry(
        subsampling_factor=factor,
        first_output_frames=config.first_output_frames,
        frame_ms=1000 * factor * features.hop_length / features.sample_rate,
        chunk_frames=right + 1 if chunked else 1,
        ahead_frames=0 if chunked else lookahead_frames(config),
        left_frames=left,
        dropped_frames=-(-before // factor),
        reach_frames=behind,
        n_layers=config.n_layers,
        # What attention recalls: its input, or keys and values.
        channel_width=config.d_model * (2 if config.attention == "absolute_pos" or layout == "kv" else 1),
        time_width=config.d_model,
        time_frames=config.conv_left_right[0],
        layout=layout,
        n_heads=config.n_heads,
    )


def _subsampling_reach(config: ConformerConfig) -> tuple[int, int]:
    """Count the feature frames that encoder frame i reads before and after frame i * factor."""
    factor = config.subsampling_factor
    if config.subsampling in ("striding", "dw_striding"):
        # Each stage has kernel 3: it reads two frames before and none after, or one and one.
        return (2 * (factor - 1), 0) if config.subsampling_causal else (factor - 1, factor - 1)
    return 0, config.first_output_frames - 1  # nothing is padded, or nothing convolved
