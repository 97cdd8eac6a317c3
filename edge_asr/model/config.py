"""The shape of a Conformer-CTC: one frozen, validated, JSON-serializable description, and its presets.

It validates every field on creation, resolves presets, and converts to and from a dict. It never imports
torch. It is above 400 lines because every field is described, typed and checked here.
What this file does not do: training, or features other than the number of mel bands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge_asr.errors import ConfigError
from edge_asr.frames import OutputFrames
from edge_asr.model.decoders.config import Activation, DecoderConfig
from edge_asr.model.presets import PRESETS
from edge_asr.records import check_fields, json_from_record, record_from_json

LARGEST_SIZE = 1 << 20
"""Largest accepted width or count; larger values are treated as hostile files that would fill the memory."""

LARGEST_TAYLOR_FEATURES = 1 << 16
"""Most numbers that linear attention makes of a query or key, a frame and head: 0.26 MB."""

LARGEST_LOCAL_CONTEXT = 1 << 16
"""Most frames on a side in local attention, which has a table of them: 90 minutes of FastConformer."""

SUBSAMPLING_FACTORS = (2, 4, 8, 16)
"""Factors of the striding kinds; "conv2d" takes those of `CONV2D_STAGES`."""

#: (kernel, stride) of each unpadded convolution of "conv2d", by factor. Sources: ESPnet,
#: espnet/nets/pytorch_backend/transformer/subsampling.py; WeNet, wenet/transformer/subsampling.py.
CONV2D_STAGES: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((3, 1), (3, 1)),
    2: ((3, 2), (3, 1)),
    4: ((3, 2), (3, 2)),
    6: ((3, 2), (5, 3)),
    8: ((3, 2), (3, 2), (3, 2)),
}

Encoder = Literal["conformer", "transformer"]
Subsampling = Literal["striding", "dw_striding", "conv1d", "conv2d", "linear", "none", "waveform"]
BlockOrder = Literal["attention_first", "convolution_first", "parallel"]
Attention = Literal[
    "rel_pos", "linear", "rel_pos_local", "rel_pos_legacy", "absolute_pos", "rotary", "no_pos"
]
ContextStyle = Literal["regular", "chunked_limited"]
ConvNorm = Literal["batch_norm", "layer_norm", "group_norm"]
ConvPadding = Literal["after_glu", "before_pointwise"]
WaveformNorm = Literal["layer", "group"]
Head = Literal["linear", "lstm"]
ConvContext = Literal["symmetric", "causal"] | tuple[int, int]

_POSITIVE = (
    "vocab_size",
    "n_mels",
    "d_model",
    "n_layers",
    "n_heads",
    "ff_expansion",
    "conv_kernel_size",
    "subsampling_channels",
    "subsampling_factor",
    "global_tokens_spacing",
    "position_table",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformerConfig:
    """Everything that decides the network's tensors and arithmetic.

    Attributes:
        vocab_size: number of CTC outputs, the blank included; the blank is the last one.
        encoder: "conformer", or "transformer": blocks of attention and feed-forward, each between two
            LayerNorms, without convolution.
        size: a label for people ("tiny", "custom", ...); the preset it was made from.
        n_mels: mel bands of the input features.
        d_model: width of the encoder; a multiple of `n_heads`, and even.
        n_layers, n_heads: Conformer blocks, and attention heads in each.
        ff_expansion: inner width of the feed-forward modules, in units of d_model.
        ff_size: the same in channels; takes the place of `ff_expansion` when given.
        activation: that of the feed-forward and convolution modules.
        norm_eps: epsilon of every LayerNorm of the blocks (and of `output_norm` unless it has its own).
        conv_kernel_size: taps of the depthwise convolution, in encoder frames.
        conv_context: "symmetric" (odd kernels), "causal", or (left, right) with left + right = kernel - 1.
        conv_norm: normalization inside the convolution module; "group_norm" is one group, over channels and
            time (torchaudio), so it neither streams nor folds.
        conv_padding: where zeros come in at a clip's edges: "after_glu", or "before_pointwise" (WeNet's
            causal module, where the padding carries GLU(bias)).
        subsampling: "striding" (Conformer) or "dw_striding" (FastConformer), named as in NeMo; "conv2d"
            (ESPnet, WeNet: unpadded, full convolutions); "linear" (both: a layer and its norm, no
            convolutions); "conv1d" (two convolutions over time with GELU, by 2);
            "none" (torchaudio: n_mels is d_model); "waveform" (wav2vec 2.0: over samples, n_mels is 1).
        subsampling_factor: input frames per encoder frame: 2, 4, 8 or 16 (striding), 1, 2, 4, 6 or 8
            (conv2d), 2 (conv1d), 1 (linear, none), the product of the strides (waveform).
        subsampling_channels: channels of the subsampling convolutions.
        subsampling_causal: striding kinds only: NeMo's `causal_downsampling`, padding 2/1 on time and bands.
        waveform_layers: (channels, kernel, stride) of each convolution over samples; only for "waveform".
        waveform_norm: "layer" (over channels, after each) or "group" (a group a channel, over time, after the
            first only).
        waveform_activation: that of the convolutions over samples.
        xscaling: multiply the subsampled features by sqrt(d_model).
        added_positions: add sinusoids of the frames' positions to that (abs_pos of ESPnet and WeNet).
        attention: "rel_pos" (Transformer-XL; NeMo, Parakeet, ESPnet "latest", Wav2Vec2-Conformer "relative"),
            "linear" (Taylor kernel, O(T), no positions), "rel_pos_local" (NeMo's local attention
            where it is more than a band mask), "rel_pos_legacy" (ESPnet's one-sided table), "absolute_pos"
            (WeNet: positions of keys), "rotary" (Wav2Vec2-Conformer), "no_pos" (torchaudio, abs_pos).
        attention_context: (left, right) encoder frames that a frame may see, -1 unlimited; None is all.
        attention_context_style: "regular" (a band), or "chunked_limited" (chunks of right + 1 frames, each
            sees itself and left // (right + 1) chunks before; NeMo).
        global_tokens, global_tokens_spacing, global_attn_separate: NeMo's global tokens ("rel_pos_local").
        position_table: "rel_pos_legacy": rows of ESPnet's table (its max_pos_emb_len).
        taylor_terms: "linear": terms of the exponential, odd; 3 is second order. Time and memory grow with
            (d_model / n_heads) ** (taylor_terms - 1).
        rotary_base: "rotary": base of the frequencies.
        output_norm: a LayerNorm after the last block (ESPnet and WeNet `after_norm`, wav2vec 2.0).
        output_norm_eps: its epsilon, and that of the norm behind the convolutions over samples (wav2vec 2.0's
            layer_norm_eps); None is `norm_eps`.
        block_order: order of attention and convolution between the two half-step feed-forward modules.
        head: "linear" projection, or one unidirectional "lstm" layer before it.
        intermediate_ctc_layers: 1-based layers whose output also gets a CTC loss; never the last one.
        dropout, dropout_attention: probabilities; the latter on the attention weights.
        decoder: an attention decoder beside the CTC head, or None.
        right_decoder: a second one, which reads and writes from right to left (WeNet's U2++).
        cmvn: whether a global mean and variance normalization of the features is part of the model.

    Raises:
        ConfigError: for a value outside its range; the message names the field.
    """

    vocab_size: int
    encoder: Encoder = "conformer"
    size: str = "custom"
    n_mels: int = 80
    d_model: int = 144
    n_layers: int = 10
    n_heads: int = 4
    ff_expansion: int = 4
    ff_size: int | None = None
    activation: Activation = "silu"
    norm_eps: float = 1e-5
    conv_kernel_size: int = 9
    conv_context: ConvContext = "symmetric"
    conv_norm: ConvNorm = "batch_norm"
    conv_padding: ConvPadding = "after_glu"
    subsampling: Subsampling = "dw_striding"
    subsampling_factor: int = 8
    subsampling_channels: int = 128
    subsampling_causal: bool = False
    waveform_layers: tuple[tuple[int, int, int], ...] = ()
    waveform_norm: WaveformNorm = "layer"
    waveform_activation: Activation = "gelu"
    xscaling: bool = False
    added_positions: bool = False
    attention: Attention = "rel_pos"
    attention_context: tuple[int, int] | None = None
    attention_context_style: ContextStyle = "regular"
    global_tokens: int = 0
    global_tokens_spacing: int = 1
    global_attn_separate: bool = False
    position_table: int = 5000
    taylor_terms: int = 3
    rotary_base: float = 10000.0
    output_norm: bool = False
    output_norm_eps: float | None = None
    block_order: BlockOrder = "attention_first"
    head: Head = "linear"
    intermediate_ctc_layers: tuple[int, ...] = ()
    dropout: float = 0.1
    dropout_attention: float = 0.1
    cmvn: bool = False
    decoder: DecoderConfig | None = None
    right_decoder: DecoderConfig | None = None

    def __post_init__(self) -> None:
        check_fields(self, "the model")
        for name in _POSITIVE:
            if not 1 <= getattr(self, name) <= LARGEST_SIZE:
                raise ConfigError(f"{name} must be from 1 to {LARGEST_SIZE}, got {getattr(self, name)}")
        if self.vocab_size < 2:
            raise ConfigError("vocab_size must be at least 2 (one token and the blank), got 1")
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ConfigError(
                "d_model must be even and a multiple of n_heads, "
                f"got {self.d_model} with {self.n_heads} heads"
            )
        for name in ("dropout", "dropout_attention"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")
        self._check_lists()
        check_numbers(self)
        check_subsampling(self)
        check_attention(self)
        _ = self.conv_left_right
        if self.right_decoder is not None and self.decoder is None:
            raise ConfigError("right_decoder is given without decoder; give decoder too")
        for name in ("decoder", "right_decoder"):
            if getattr(self, name) is not None:
                complete = getattr(self, name).complete(self.d_model, self.vocab_size)
                object.__setattr__(self, name, complete)

    def _check_lists(self) -> None:
        layers, context = self.intermediate_ctc_layers, self.attention_context
        if any(not 1 <= layer < self.n_layers for layer in layers) or sorted(set(layers)) != list(layers):
            raise ConfigError(
                f"intermediate_ctc_layers must rise without repeats, from 1 to {self.n_layers - 1} (the "
                f"layer before the last), got {list(layers)}"
            )
        if context is not None and not -1 <= min(context) <= max(context) <= 1 << 31:
            raise ConfigError(
                f"attention_context must be [left, right] in frames, -1 unlimited, got {list(context)}"
            )
        if any(min(layer) < 1 for layer in self.waveform_layers):
            raise ConfigError(
                "waveform_layers must be [channels, kernel, stride] of at least 1, got "
                f"{list(self.waveform_layers)}"
            )

    @property
    def blank_id(self) -> int:
        """Index of the CTC blank: always the last output."""
        return self.vocab_size - 1

    @property
    def ff_inner(self) -> int:
        """Inner width of the feed-forward modules, in channels."""
        return self.d_model * self.ff_expansion if self.ff_size is None else self.ff_size

    @property
    def output_frames(self) -> OutputFrames:
        """Return the rule for how many encoder frames a clip gives."""
        return output_frames_from_config(self)

    @property
    def first_output_frames(self) -> int:
        """Input frames that the first encoder frame asks for; 1 is ceil(T / subsampling_factor) frames."""
        return self.output_frames.first

    @property
    def conv_left_right(self) -> tuple[int, int]:
        """Frames the depthwise convolution sees before and after the current one.

        Raises:
            ConfigError: when kernel size and context do not fit together.
        """
        kernel = self.conv_kernel_size
        if self.conv_context == "causal":
            return kernel - 1, 0
        if self.conv_context == "symmetric":
            if kernel % 2 == 0:
                raise ConfigError(
                    f"conv_kernel_size must be odd with a symmetric context, got {kernel}; "
                    'use an odd kernel, or conv_context "causal" or [left, right]'
                )
            return kernel // 2, kernel // 2
        left, right = self.conv_context
        if left < 0 or right < 0 or left + right != kernel - 1:
            raise ConfigError(
                "conv_context [left, right] must be non-negative and add up to conv_kernel_size - 1 = "
                f"{kernel - 1}, got [{left}, {right}]"
            )
        return left, right

    @classmethod
    def from_preset(cls, name: str, *, vocab_size: int, **overrides: Any) -> ConformerConfig:
        """A named shape, with single fields replaced by `overrides`.

        Raises:
            ConfigError: for an unknown preset or field.
        """
        if name not in PRESETS:
            raise ConfigError(f"unknown model preset {name!r}; choose one of {', '.join(PRESETS)}")
        return cls.from_dict({"size": name, **PRESETS[name], "vocab_size": vocab_size, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable dict, all fields present."""
        data: dict[str, Any] = json_from_record(self)
        return data

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConformerConfig:
        """The inverse of `to_dict`; absent keys take their default.

        Raises:
            ConfigError: for an unknown key, a missing vocab_size or a bad value.
        """
        return record_from_json(cls, values, "the model settings")


def output_frames_from_config(config: ConformerConfig) -> OutputFrames:
    """Return the rule for how many encoder frames a clip gives."""
    if config.subsampling in ("none", "linear"):
        return OutputFrames(factor=1)
    if config.subsampling == "waveform":
        layers = config.waveform_layers
        return OutputFrames.from_convolutions((kernel, stride, 0) for _, kernel, stride in layers)
    if config.subsampling == "conv2d":
        stages = CONV2D_STAGES[config.subsampling_factor]
        return OutputFrames.from_convolutions((kernel, stride, 0) for kernel, stride in stages)
    if config.subsampling == "conv1d":
        return OutputFrames.from_convolutions([(3, 1, 2), (3, 2, 2)])
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
        raise ConfigError(f"subsampling_factor must be 2, 4, 8 or 16, got {factor!r}")
    if kind == "conv2d" and factor not in CONV2D_STAGES:
        raise ConfigError(f"subsampling_factor of conv2d must be 1, 2, 4, 6 or 8, got {factor!r}")
    if kind == "none" and (factor != 1 or config.n_mels != config.d_model):
        raise ConfigError(
            "without subsampling, subsampling_factor must be 1 and n_mels equal to d_model, got factor "
            f"{factor}, {config.n_mels} bands and d_model {config.d_model}"
        )
    for fixed, only in (("linear", 1), ("conv1d", 2)):
        if kind == fixed and factor != only:
            raise ConfigError(f"subsampling_factor of {fixed} must be {only}, got {factor!r}")
    if config.subsampling_causal and not striding:
        raise ConfigError(f"subsampling_causal goes with striding and dw_striding, not with {kind}")
    if (kind == "waveform") != bool(config.waveform_layers):
        raise ConfigError(
            f"subsampling is {kind!r} with {len(config.waveform_layers)} waveform_layers; "
            '"waveform" needs them, the other kinds have none'
        )
    if kind == "waveform":
        product = math.prod(stride for _, _, stride in config.waveform_layers)
        if factor != product or config.n_mels != 1:
            raise ConfigError(
                f"a waveform model needs subsampling_factor {product} (the product of its strides) and "
                f"n_mels 1, got {factor} and {config.n_mels}"
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
            f"{config.d_model} with {config.n_heads} heads"
        )
    if config.attention == "linear" and context is not None:
        raise ConfigError('attention "linear" sees the whole clip; leave attention_context out')
    check_taylor(config)
    if config.attention_context_style == "chunked_limited" and (context is None or context[1] < 0):
        raise ConfigError(
            "attention_context_style chunked_limited needs an attention_context [left, right] with "
            f"right >= 0, got {context}"
        )
    if config.attention == "rel_pos_local":
        if context is None or min(context) < 0 or config.attention_context_style != "regular":
            raise ConfigError(
                "attention rel_pos_local needs a regular attention_context [left, right] of 0 or more, "
                f"got {context}, {config.attention_context_style}"
            )
        if max(context) > LARGEST_LOCAL_CONTEXT:
            raise ConfigError(
                f"attention_context of rel_pos_local must be at most {LARGEST_LOCAL_CONTEXT} frames to a "
                f"side, got {context}"
            )
    elif config.global_tokens or config.global_attn_separate:
        raise ConfigError(f"global_tokens go with attention rel_pos_local, not with {config.attention}")


def check_taylor(config: ConformerConfig) -> None:
    """Refuse a number of Taylor terms that gives no weights, or takes too much memory.

    Raises:
        ConfigError: it names the field.
    """
    terms, d_head = config.taylor_terms, config.d_model // config.n_heads
    if config.attention != "linear":
        if terms != 3:
            raise ConfigError(f"taylor_terms goes with attention linear, not with {config.attention}")
        return
    if terms < 3 or terms % 2 == 0:
        raise ConfigError(
            "taylor_terms must be odd and at least 3, because an expansion that ends with an odd power goes "
            f"below 0, got {terms}"
        )
    # Compared as logarithms: the power itself may have millions of digits.
    if (terms - 1) * math.log2(d_head) > math.log2(LARGEST_TAYLOR_FEATURES):
        raise ConfigError(
            f"taylor_terms {terms} makes {d_head} ** {terms - 1} numbers of every frame and head, more than "
            f"{LARGEST_TAYLOR_FEATURES}; use fewer terms, or more heads"
        )


def check_numbers(config: ConformerConfig) -> None:
    """Refuse epsilons, sizes and bases out of range.

    Raises:
        ConfigError: it names the field.
    """
    for name in ("norm_eps", "output_norm_eps", "rotary_base"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be a number above 0, got {value!r}")
    for name, least in (("ff_size", 1), ("global_tokens", 0)):
        value = getattr(config, name)
        if value is not None and not least <= value <= LARGEST_SIZE:
            raise ConfigError(f"{name} must be from {least} to {LARGEST_SIZE}, got {value!r}")
