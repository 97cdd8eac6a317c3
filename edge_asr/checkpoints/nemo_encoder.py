"""NeMo's ConformerEncoder: its settings as ours, its tensors under our names.

It supports striding and dw_striding subsampling (causal too), rel_pos and rel_pos_local_attn with every
context, batch and layer norm, missing biases, and an output projection, which is multiplied into the head.
What this file does not do: open files (nemo.py), or read Parakeet's folders, which have the same network
under other names (parakeet.py).

Source: nemo/collections/asr/modules/conformer_encoder.py (defaults of its constructor),
parts/submodules/{subsampling,conformer_modules,multi_head_attention}.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, float64, full, int64, zeros
from torch.nn import BatchNorm1d

from edge_asr.checkpoints.assembly import TensorMap
from edge_asr.checkpoints.safe_yaml import Settings
from edge_asr.errors import CheckpointError
from edge_asr.model.config import ConformerConfig

# They change training, memory or caches only.
_IGNORED = (
    "_target_", "dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att", "pos_emb_max_len",
    "stochastic_depth_drop_prob", "stochastic_depth_mode", "stochastic_depth_start_layer", "untie_biases",
    "use_pytorch_sdpa", "use_pytorch_sdpa_backends", "att_context_probs",
    "sync_max_audio_length", "conv_dual_mode", "adapter", "dropout_pre", "att_chunk_context_size",
    "conv_context_style",
)  # fmt: skip
_STYLES = ("regular", "chunked_limited", "chunked_limited_with_rc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """A NeMo encoder's settings.

    Attributes:
        fields: for `ConformerConfig`.
        use_bias: whether linear and convolution layers of the blocks have biases.
        has_projection: whether `encoder.out_proj` stands before the head.
        fused_norm: the convolution's BatchNorm is a scale and an offset, its statistics multiplied in.
        notes: for people.
    """

    fields: dict[str, Any]
    use_bias: bool
    has_projection: bool
    fused_norm: bool = False
    notes: list[str] = field(default_factory=list)

    def move_head(self, weights: TensorMap, source: str) -> None:
        """The CTC head, with the output projection multiplied into it (in float64): no layer lies between."""
        weights.linear(source, "head.projection")
        if not self.has_projection:
            return
        weight, bias = weights.take("encoder.out_proj.weight"), weights.take("encoder.out_proj.bias")
        head, head_bias = weights.ours["head.projection.weight"], weights.ours["head.projection.bias"]
        if head.shape[1] != weight.shape[0]:
            raise CheckpointError(
                f"{weights.where}: the head takes {head.shape[1]} channels, encoder.out_proj gives "
                f"{weight.shape[0]}"
            )
        weights.ours["head.projection.weight"] = _product(head, weight)
        weights.ours["head.projection.bias"] = head_bias + _product(head, bias)


def encoder_fields(settings: Settings, n_mels: int) -> Encoder:
    """Our fields for an encoder's settings; absent ones take NeMo's defaults.

    Raises:
        CheckpointError: a setting that edge-asr does not have; it names it and what is supported.
    """
    name = str(settings.take("_target_", "ConformerEncoder")).rpartition(".")[2]
    if name != "ConformerEncoder":
        raise settings.refusal("_target_", name, "ConformerEncoder")
    feat_in = settings.integer("feat_in", n_mels)
    if feat_in != n_mels:
        raise settings.refusal("feat_in", feat_in, f"the {n_mels} bands of the preprocessor")
    d_model = settings.integer("d_model")
    feat_out = settings.integer("feat_out", -1)
    kernel = settings.integer("conv_kernel_size", 31)
    channels = settings.integer("subsampling_conv_channels", -1)
    reduction = settings.take("reduction", None)
    if reduction and settings.integer("reduction_factor", 1) > 1:
        raise settings.refusal("reduction", reduction, "null")
    settings.ignore("reduction_factor", "reduction_position")
    norm = settings.expect("conv_norm_type", ("batch_norm", "layer_norm", "fused_batch_norm"), "batch_norm")
    fields: dict[str, Any] = {
        "n_layers": settings.integer("n_layers"),
        "d_model": d_model,
        "n_heads": settings.integer("n_heads", 4),
        "ff_expansion": settings.integer("ff_expansion_factor", 4),
        "subsampling": settings.expect("subsampling", ("striding", "dw_striding"), "striding"),
        "subsampling_factor": settings.expect("subsampling_factor", (2, 4, 8, 16), 4),
        "subsampling_channels": d_model if channels == -1 else channels,
        "subsampling_causal": settings.flag("causal_downsampling", False),
        "xscaling": settings.flag("xscaling", True),
        "conv_kernel_size": kernel,
        "conv_norm": norm.removeprefix("fused_"),
        "conv_context": _conv_context(settings, kernel),
    }
    notes: list[str] = []
    fields.update(_attention(settings, notes))
    chunking = settings.integer("subsampling_conv_chunking_factor", 1)
    if chunking > 1 and fields["subsampling"] == "dw_striding":
        notes.append(
            f"subsampling_conv_chunking_factor is {chunking}: NeMo from 2.5 on then does not mask a single "
            "clip's subsampling, which changes its last frames; edge-asr computes what NeMo gives in a batch."
        )
    encoder = Encoder(
        fields=fields,
        use_bias=settings.flag("use_bias", True),
        has_projection=feat_out > 0 and feat_out != d_model,
        fused_norm=norm == "fused_batch_norm",
        notes=notes,
    )
    settings.ignore(*_IGNORED)
    settings.finish()
    return encoder


def trained_contexts(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Read the attention contexts of an encoder's settings, as fields of `SourceFacts`.

    Returns:
        `attention_contexts`, every (left, right), the default first, mostly one; `attention_context_style`.

    Raises:
        CheckpointError: one is no pair of numbers.
    """
    value, style = encoder.get("att_context_size") or [-1, -1], encoder.get("att_context_style", "regular")
    if style == "chunked_limited_with_rc":
        value, style = [-1, -1], "regular"  # as `_attention` has it
    contexts = value if isinstance(value[0], list) else [value]
    for context in contexts:
        if not (isinstance(context, list) and len(context) == 2 and all(isinstance(n, int) for n in context)):
            raise CheckpointError(f"att_context_size lists {context!r}; each must be [left, right] in frames")
    pairs = tuple((left, right) for left, right in contexts)
    return {"attention_contexts": pairs, "attention_context_style": style}


def _conv_context(settings: Settings, kernel: int) -> Any:
    value = settings.take("conv_context_size", None)
    if value is None:
        half = (kernel - 1) // 2
        return [half, kernel - 1 - half]
    if value == "causal" or isinstance(value, list):
        return value
    raise settings.refusal("conv_context_size", value, "null, 'causal' or [left, right]")


def _attention(settings: Settings, notes: list[str]) -> dict[str, Any]:
    model = settings.expect("self_attention_model", ("rel_pos", "rel_pos_local_attn"), "rel_pos")
    style = settings.expect("att_context_style", _STYLES, "regular")
    contexts = settings.take("att_context_size", None) or [-1, -1]
    if style == "chunked_limited_with_rc":
        # Whatever att_context_size says: its contexts are drawn in training, or set for streaming.
        notes.append(
            "Trained with contexts of many sizes (chunked_limited_with_rc); full context is exported."
        )
        style, contexts = "regular", [-1, -1]
    if isinstance(contexts, list) and contexts and isinstance(contexts[0], list):
        if len(contexts) > 1:
            notes.append(f"Trained with the contexts {contexts}; the first is NeMo's default.")
        contexts = contexts[0]
    tokens = {
        "global_tokens": settings.integer("global_tokens", 0),
        "global_tokens_spacing": settings.integer("global_tokens_spacing", 1),
        "global_attn_separate": settings.flag("global_attn_separate", False),
    }
    if not (isinstance(contexts, list) and len(contexts) == 2 and all(isinstance(c, int) for c in contexts)):
        raise settings.refusal("att_context_size", contexts, "[left, right] in frames, -1 for unlimited")
    left, right = contexts
    if model == "rel_pos":
        # Unlimited to the right, the chunks of chunked_limited become a band (`_create_masks`).
        if right < 0:
            style = "regular"
        context = None if left < 0 and right < 0 else [max(left, -1), max(right, -1)]
        return {
            "attention": "rel_pos",
            "attention_context": context,
            "attention_context_style": "regular" if context is None else style,
        }
    # Local attention has its window and no other mask, whatever the style says.
    if min(left, right) < 0 or max(left, right) < 1:
        raise settings.refusal(
            "att_context_size", contexts, "two numbers of 0 or more for rel_pos_local_attn"
        )
    if left == right and tokens["global_tokens"] == 0:
        # Nothing but a band: the frames it lets a frame see are the same, and so are their distances.
        return {"attention": "rel_pos", "attention_context": [left, right]}
    if tokens["global_tokens"] == 0:
        tokens["global_attn_separate"] = False
    return {"attention": "rel_pos_local", "attention_context": [left, right], **tokens}


def move_encoder(weights: TensorMap, config: ConformerConfig, encoder: Encoder) -> None:
    """NeMo's `encoder.*` tensors under our names."""
    bias = encoder.use_bias
    source, target = "encoder.pre_encode", "encoder.subsampling"
    move_subsampling(weights, config, f"{source}.conv", target)
    weights.linear(f"{source}.out", f"{target}.out")
    for layer in range(config.n_layers):
        source = target = f"encoder.layers.{layer}"
        for theirs, ours in (("1", "in"), ("2", "out")):
            weights.norm(f"{source}.norm_feed_forward{theirs}", f"{target}.feed_forward_{ours}.norm")
            weights.linear(
                f"{source}.feed_forward{theirs}.linear1", f"{target}.feed_forward_{ours}.expand", bias=bias
            )
            weights.linear(
                f"{source}.feed_forward{theirs}.linear2", f"{target}.feed_forward_{ours}.project", bias=bias
            )
        weights.norm(f"{source}.norm_self_att", f"{target}.attention_norm")
        weights.norm(f"{source}.norm_out", f"{target}.final_norm")
        _move_attention(weights, f"{source}.self_attn", f"{target}.attention", config, bias=bias)
        weights.norm(f"{source}.norm_conv", f"{target}.convolution.norm")
        source, target = f"{source}.conv", f"{target}.convolution"
        weights.linear(f"{source}.pointwise_conv1", f"{target}.pointwise_in", bias=bias)
        weights.convolution(f"{source}.depthwise_conv", f"{target}.depthwise", bias=bias)
        weights.linear(f"{source}.pointwise_conv2", f"{target}.pointwise_out", bias=bias)
        if encoder.fused_norm:
            _move_fused_norm(weights, f"{source}.batch_norm", f"{target}.batch_norm")
        elif config.conv_norm == "batch_norm":
            weights.batch_norm(f"{source}.batch_norm", f"{target}.batch_norm")
        else:  # NeMo keeps the attribute's name
            weights.norm(f"{source}.batch_norm", f"{target}.layer_norm")
    # Tables of sines that older versions stored.
    weights.ignore(r"encoder\.pos_enc\.(pe|center_pos)")
    weights.ignore(r"encoder\.(pos_bias_[uv])")


def move_subsampling(weights: TensorMap, config: ConformerConfig, source: str, target: str) -> None:
    """Convolutions numbered as in one sequence with their activations."""
    weights.convolution(f"{source}.0", f"{target}.stages.0.0")
    n_stages = config.subsampling_factor.bit_length() - 1
    for stage in range(1, n_stages):
        if config.subsampling == "striding":
            weights.convolution(f"{source}.{2 * stage}", f"{target}.stages.{stage}.0")
        else:
            for part in (0, 1):
                weights.convolution(f"{source}.{3 * stage - 1 + part}", f"{target}.stages.{stage}.{part}")


def _move_fused_norm(weights: TensorMap, source: str, target: str) -> None:
    """weight * x + bias as a BatchNorm of mean 0 whose variance and epsilon add up to 1."""
    weights.norm(source, target)
    channels = weights.ours[f"{target}.weight"].shape
    weights.ours[f"{target}.running_mean"] = zeros(channels)
    weights.ours[f"{target}.running_var"] = full(channels, 1.0 - BatchNorm1d(1).eps)
    weights.ours[f"{target}.num_batches_tracked"] = zeros((), dtype=int64)


def _move_attention(
    weights: TensorMap, source: str, target: str, config: ConformerConfig, *, bias: bool
) -> None:
    weights.stack_linears([f"{source}.linear_{name}" for name in "qkv"], f"{target}.qkv", bias=bias)
    weights.linear(f"{source}.linear_out", f"{target}.out", bias=bias)
    weights.move(f"{source}.linear_pos.weight", f"{target}.position.weight")
    for name in ("pos_bias_u", "pos_bias_v"):
        weights.move(f"{source}.{name}", f"{target}.{name}")
    if config.global_attn_separate:
        names = [f"{source}.global_{name}" for name in "qkv"]
        weights.stack_linears(names, f"{target}.global_qkv", bias=bias)
    else:  # there without global tokens, and then unused
        weights.ignore(rf"{source.replace('.', chr(92) + '.')}\.global_[qkv]\.(weight|bias)")


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left.to(float64) @ right.to(float64)).to(left.dtype)
