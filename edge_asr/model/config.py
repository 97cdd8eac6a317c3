"""The shape of a Conformer-CTC: one frozen, validated, JSON-serializable description, and its presets.

Does: validate every field on creation, resolve presets, convert to and from a dict.
Does not: import torch, or hold anything about training or features other than the number of mel bands.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from edge_asr.errors import ConfigError

Subsampling = Literal["striding", "dw_striding"]
BlockOrder = Literal["attention_first", "convolution_first", "parallel"]
Attention = Literal["rel_pos", "linear"]
ConvNorm = Literal["batch_norm", "layer_norm"]
Head = Literal["linear", "lstm"]
ConvContext = Literal["symmetric", "causal"] | tuple[int, int]

_CHOICES: dict[str, tuple[str, ...]] = {
    "subsampling": get_args(Subsampling),
    "block_order": get_args(BlockOrder),
    "attention": get_args(Attention),
    "conv_norm": get_args(ConvNorm),
    "head": get_args(Head),
}
_POSITIVE = (
    "vocab_size",
    "n_mels",
    "d_model",
    "n_layers",
    "n_heads",
    "ff_expansion",
    "conv_kernel_size",
    "subsampling_channels",
)
SUBSAMPLING_FACTORS = (4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformerConfig:
    """Everything that decides the network's tensors and arithmetic.

    Attributes:
        vocab_size: number of CTC outputs, the blank included; the blank is the last one.
        size: a label for people ("tiny", "custom", ...); the preset it was made from.
        n_mels: mel bands of the input features.
        d_model: width of the encoder; a multiple of `n_heads`, and even.
        n_layers, n_heads: Conformer blocks, and attention heads in each.
        ff_expansion: inner width of the feed-forward modules, in units of d_model.
        conv_kernel_size: taps of the depthwise convolution, in encoder frames.
        conv_context: "symmetric" (odd kernels), "causal", or (left, right) with left + right = kernel - 1.
        conv_norm: normalization inside the convolution module.
        subsampling: "striding" (Conformer) or "dw_striding" (FastConformer), named as in NeMo.
        subsampling_factor: input frames per encoder frame, 4 or 8.
        subsampling_channels: channels of the subsampling convolutions.
        xscaling: multiply the subsampled features by sqrt(d_model).
        attention: "rel_pos" (Transformer-XL) or "linear" (second-order Taylor kernel, O(T), no positions).
        block_order: order of attention and convolution between the two half-step feed-forward modules.
        head: "linear" projection, or one unidirectional "lstm" layer before it.
        intermediate_ctc_layers: 1-based layers whose output also gets a CTC loss; never the last one.
        dropout, dropout_attention: probabilities; the latter on the attention weights.
        cmvn: whether a global mean and variance normalization of the features is part of the model.

    Raises:
        ConfigError: for a value outside its range; the message names the field.
    """

    vocab_size: int
    size: str = "custom"
    n_mels: int = 80
    d_model: int = 144
    n_layers: int = 10
    n_heads: int = 4
    ff_expansion: int = 4
    conv_kernel_size: int = 9
    conv_context: ConvContext = "symmetric"
    conv_norm: ConvNorm = "batch_norm"
    subsampling: Subsampling = "dw_striding"
    subsampling_factor: int = 8
    subsampling_channels: int = 128
    xscaling: bool = False
    attention: Attention = "rel_pos"
    block_order: BlockOrder = "attention_first"
    head: Head = "linear"
    intermediate_ctc_layers: tuple[int, ...] = ()
    dropout: float = 0.1
    dropout_attention: float = 0.1
    cmvn: bool = False

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.vocab_size < 2:
            raise ConfigError("vocab_size must be at least 2 (one token and the blank), got 1.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.subsampling_factor not in SUBSAMPLING_FACTORS:
            raise ConfigError(f"subsampling_factor must be 4 or 8, got {self.subsampling_factor!r}.")
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ConfigError(
                "d_model must be even and a multiple of n_heads, "
                f"got {self.d_model} with {self.n_heads} heads."
            )
        for name in ("xscaling", "cmvn"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        for name in ("dropout", "dropout_attention"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
                raise ConfigError(f"{name} must be at least 0 and below 1, got {value!r}.")
        if not isinstance(self.size, str):
            raise ConfigError(f"size must be a text label, got {self.size!r}.")
        object.__setattr__(self, "conv_context", _conv_context_from_value(self.conv_context))
        object.__setattr__(self, "intermediate_ctc_layers", self._check_intermediate_layers())
        _ = self.conv_left_right

    def _check_intermediate_layers(self) -> tuple[int, ...]:
        layers = self.intermediate_ctc_layers
        if not isinstance(layers, tuple | list) or any(
            isinstance(layer, bool) or not isinstance(layer, int) or not 1 <= layer < self.n_layers
            for layer in layers
        ):
            raise ConfigError(
                f"intermediate_ctc_layers must list whole numbers from 1 to {self.n_layers - 1} "
                f"(the layer before the last), got {layers!r}."
            )
        if sorted(set(layers)) != list(layers):
            raise ConfigError(f"intermediate_ctc_layers must rise without repeats, got {list(layers)!r}.")
        return tuple(layers)

    @property
    def blank_id(self) -> int:
        """Index of the CTC blank: always the last output."""
        return self.vocab_size - 1

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
                    'use an odd kernel, or conv_context "causal" or [left, right].'
                )
            return kernel // 2, kernel // 2
        left, right = self.conv_context
        if left < 0 or right < 0 or left + right != kernel - 1:
            raise ConfigError(
                "conv_context [left, right] must be non-negative and add up to conv_kernel_size - 1 = "
                f"{kernel - 1}, got [{left}, {right}]."
            )
        return left, right

    @classmethod
    def from_preset(cls, name: str, *, vocab_size: int, **overrides: Any) -> "ConformerConfig":
        """A named shape, with single fields replaced by `overrides`.

        Raises:
            ConfigError: for an unknown preset or field.
        """
        if name not in PRESETS:
            raise ConfigError(f"Unknown model preset {name!r}; choose one of {', '.join(PRESETS)}.")
        return cls.from_dict({"size": name, **PRESETS[name], "vocab_size": vocab_size, **overrides})

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serializable dict, all fields present."""
        values = asdict(self)
        if isinstance(self.conv_context, tuple):
            values["conv_context"] = list(self.conv_context)
        values["intermediate_ctc_layers"] = list(self.intermediate_ctc_layers)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ConformerConfig":
        """The inverse of `to_dict`; absent keys take their default.

        Raises:
            ConfigError: for an unknown key, a missing vocab_size or a bad value.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"Unknown model setting {unknown[0]!r}; known are {', '.join(sorted(known))}.")
        if "vocab_size" not in values:
            raise ConfigError("The model settings lack vocab_size (number of tokens, the blank included).")
        return cls(**values)


def _conv_context_from_value(value: Any) -> ConvContext:
    if value in ("symmetric", "causal"):
        return cast(ConvContext, value)
    if (
        isinstance(value, tuple | list)
        and len(value) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) for side in value)
    ):
        return (value[0], value[1])
    raise ConfigError(
        f'conv_context must be "symmetric", "causal" or [left, right] in frames, got {value!r}.'
    )


_NEMO: dict[str, Any] = {
    "subsampling": "striding",
    "subsampling_factor": 4,
    "conv_kernel_size": 31,
    "xscaling": True,
}
_PAPER: dict[str, Any] = {**_NEMO, "xscaling": False}

# small/medium/large: NeMo examples/asr/conf/conformer/conformer_ctc_bpe.yaml.
# paper-*: Gulati et al. 2020, table 1; its kernel of 32 is even, hence not centered, so 31 stands for it.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "d_model": 128,
        "n_layers": 8,
        "n_heads": 4,
        "conv_kernel_size": 15,
        "conv_context": "causal",
        "subsampling": "dw_striding",
        "subsampling_factor": 4,
        "subsampling_channels": 48,
        "cmvn": True,
    },
    "small": {**_NEMO, "d_model": 176, "n_layers": 16, "n_heads": 4, "subsampling_channels": 176},
    "medium": {**_NEMO, "d_model": 256, "n_layers": 18, "n_heads": 4, "subsampling_channels": 256},
    "large": {**_NEMO, "d_model": 512, "n_layers": 18, "n_heads": 8, "subsampling_channels": 512},
    "paper-s": {**_PAPER, "d_model": 144, "n_layers": 16, "n_heads": 4, "subsampling_channels": 144},
    "paper-m": {**_PAPER, "d_model": 256, "n_layers": 16, "n_heads": 4, "subsampling_channels": 256},
    "paper-l": {**_PAPER, "d_model": 512, "n_layers": 17, "n_heads": 8, "subsampling_channels": 512},
}
