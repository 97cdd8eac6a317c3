"""What of a `ConformerConfig` goes together: subsampling, attention, context, numbers.

Does: refuse combinations that no module here computes, and say how many frames a subsampling gives.
Does not: hold fields or defaults (`config.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from edge_asr.errors import ConfigError
from edge_asr.frames import OutputFrames

if TYPE_CHECKING:
    from edge_asr.model.config import ConformerConfig

LARGEST_SIZE = 1 << 20
"""Of any width or count, far above every published model: what asks for more means to fill the memory."""

LARGEST_LOCAL_CONTEXT = 1 << 16
"""Frames to a side in local attention, which has a table of them: an hour and a half of FastConformer."""

SUBSAMPLING_FACTORS = (2, 4, 8, 16)
"""Of the striding kinds; "conv2d" takes those of `CONV2D_STAGES`."""

#: (kernel, stride) of each unpadded convolution of "conv2d", by factor. Sources: ESPnet,
#: espnet/nets/pytorch_backend/transformer/subsampling.py; WeNet, wenet/transformer/subsampling.py.
CONV2D_STAGES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((3, 1), (3, 1)),
    2: ((3, 2), (3, 1)),
    4: ((3, 2), (3, 2)),
    6: ((3, 2), (5, 3)),
    8: ((3, 2), (3, 2), (3, 2)),
}


def output_frames_from_config(config: ConformerConfig) -> OutputFrames:
    """How many encoder frames a clip gives."""
    if config.subsampling in ("none", "linear"):
        return OutputFrames(factor=1)
    if config.subsampling == "waveform":
        layers = config.waveform_layers
        return OutputFrames.from_convolutions((kernel, stride, 0) for _, kernel, stride in layers)
    if config.subsampling == "conv2d":
        stages = CONV2D_STAGES[config.subsampling_factor]
        return OutputFrames.from_convolutions((kernel, stride, 0) for kernel, stride in stages)
    n_stages = int(math.log2(config.subsampling_factor))
    padding = 3 if config.subsampling_causal else 2
    return OutputFrames.from_convolutions([(3, 2, padding)] * n_stages)


def check_subsampling(config: ConformerConfig) -> None:
    """Refuse a factor, input width or setting that the subsampling kind does not have.

    Raises:
        ConfigError: it names the field.
    """
    kind, factor = config.subsampling, config.subsampling_factor
    striding = kind in ("striding", "dw_striding")
    if striding and factor not in SUBSAMPLING_FACTORS:
        raise ConfigError(f"subsampling_factor must be 2, 4, 8 or 16, got {factor!r}.")
    if kind == "conv2d" and factor not in CONV2D_STAGES:
        raise ConfigError(f"subsampling_factor of conv2d must be 1, 2, 4, 6 or 8, got {factor!r}.")
    if kind == "none" and (factor != 1 or config.n_mels != config.d_model):
        raise ConfigError(
            "without subsampling, subsampling_factor must be 1 and n_mels equal to d_model, got factor "
            f"{factor}, {config.n_mels} bands and d_model {config.d_model}."
        )
    if kind == "linear" and factor != 1:
        raise ConfigError(f"subsampling_factor of linear must be 1, got {factor!r}.")
    if config.subsampling_causal and not striding:
        raise ConfigError(f"subsampling_causal goes with striding and dw_striding, not with {kind}.")
    if (kind == "waveform") != bool(config.waveform_layers):
        raise ConfigError(
            f"subsampling is {kind!r} with {len(config.waveform_layers)} waveform_layers; "
            '"waveform" needs them, the other kinds have none.'
        )
    if kind == "waveform":
        product = math.prod(stride for _, _, stride in config.waveform_layers)
        if factor != product or config.n_mels != 1:
            raise ConfigError(
                f"a waveform model needs subsampling_factor {product} (the product of its strides) and "
                f"n_mels 1, got {factor} and {config.n_mels}."
            )


def check_attention(config: ConformerConfig) -> None:
    """Refuse contexts and global tokens that the attention kind does not have.

    Raises:
        ConfigError: it names the field.
    """
    context = config.attention_context
    if config.attention == "rotary" and config.d_model // config.n_heads % 2:
        raise ConfigError(
            "attention rotary turns pairs of channels, so each head needs an even width, got d_model "
            f"{config.d_model} with {config.n_heads} heads."
        )
    if config.attention == "linear" and context is not None:
        raise ConfigError('attention "linear" sees the whole clip; leave attention_context out.')
    if config.attention_context_style == "chunked_limited" and (context is None or context[1] < 0):
        raise ConfigError(
            "attention_context_style chunked_limited needs an attention_context [left, right] with "
            f"right >= 0, got {context}."
        )
    if config.attention == "rel_pos_local":
        if context is None or min(context) < 0 or config.attention_context_style != "regular":
            raise ConfigError(
                "attention rel_pos_local needs a regular attention_context [left, right] of 0 or more, "
                f"got {context}, {config.attention_context_style}."
            )
        if max(context) > LARGEST_LOCAL_CONTEXT:
            raise ConfigError(
                f"attention_context of rel_pos_local must be at most {LARGEST_LOCAL_CONTEXT} frames to a "
                f"side, got {context}."
            )
    elif config.global_tokens or config.global_attn_separate:
        raise ConfigError(f"global_tokens go with attention rel_pos_local, not with {config.attention}.")


def check_numbers(config: ConformerConfig) -> None:
    """Refuse epsilons, sizes and bases out of range.

    Raises:
        ConfigError: it names the field.
    """
    for name, optional in (("norm_eps", False), ("output_norm_eps", True), ("rotary_base", False)):
        value = getattr(config, name)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"{name} must be a number above 0, got {value!r}.")
    for name, least, optional in (("ff_size", 1, True), ("global_tokens", 0, False)):
        value = getattr(config, name)
        if value is None and optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST_SIZE:
            raise ConfigError(
                f"{name} must be a whole number of at least {least}, at most {LARGEST_SIZE}, got {value!r}."
            )


def attention_context_from_value(value: Any) -> tuple[int, int] | None:
    """(left, right) from JSON's list; -1 is unlimited.

    Raises:
        ConfigError: not two whole numbers of at least -1.
    """
    if value is None:
        return None
    if _is_whole(value, 2) and min(value) >= -1 and max(value) <= 1 << 31:
        return (value[0], value[1])
    raise ConfigError(f"attention_context must be [left, right] in frames, -1 unlimited, got {value!r}.")


def waveform_layers_from_value(value: Any) -> tuple[tuple[int, int, int], ...]:
    """(channels, kernel, stride) of each layer from JSON's lists.

    Raises:
        ConfigError: not triples of whole numbers of at least 1.
    """
    if isinstance(value, tuple | list) and all(_is_whole(layer, 3) and min(layer) >= 1 for layer in value):
        return tuple((channels, kernel, stride) for channels, kernel, stride in value)
    raise ConfigError(f"waveform_layers must be a list of [channels, kernel, stride], got {value!r}.")


def _is_whole(value: Any, length: int) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == length
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )
