"""The encoder weights that ESPnet and WeNet name alike (WeNet began as ESPnet's encoder), under our names.

It maps subsampling, blocks and the norm after them. A block without its first (macaron) feed-forward becomes
one whose first adds zero and whose second counts in full. Another epsilon of BatchNorm than PyTorch's is
folded in.
What this file does not do: read settings (espnet.py, wenet.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_asr.checkpoints.assembly import TensorMap
from edge_asr.model.config import CONV2D_STAGES, ConformerConfig

TORCH_BATCH_NORM_EPS = 1e-5
"""Epsilon of `nn.BatchNorm1d`, which our modules have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockForm:
    """The facts of a block that are not in `ConformerConfig`.

    Attributes:
        macaron: whether there are two half-step feed-forward modules; one whole one otherwise.
        n_kv_heads: heads of keys and values, where queries have more (grouped attention).
        query_bias, key_bias, value_bias: those of the attention's linear layers; the first also that of its
            output.
        ff_bias, conv_bias: those of the feed-forward and convolution modules.
        batch_norm_eps: epsilon of BatchNorm.
    """

    macaron: bool = True
    n_kv_heads: int | None = None
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    ff_bias: bool = True
    conv_bias: bool = True
    batch_norm_eps: float = TORCH_BATCH_NORM_EPS


def move_encoder(weights: TensorMap, config: ConformerConfig, form: BlockForm) -> None:
    """`encoder.*` but for CMVN. The linear layer behind the convolutions is `out`, `out.0` or `linear`."""
    # Position tables follow from their size; older files hold them.
    weights.ignore(r"encoder\.embed\.(.*\.)?pe")
    if config.subsampling == "linear":
        prefix = "encoder.embed.out" if "encoder.embed.out.0.weight" in weights else "encoder.embed"
        weights.linear(f"{prefix}.0", "encoder.subsampling.out")
        weights.norm(f"{prefix}.1", "encoder.subsampling.norm")
    else:
        _move_convolutions(weights, config)
    for layer in range(config.n_layers):
        _move_block(weights, config, form, f"encoder.encoders.{layer}", f"encoder.layers.{layer}")
    if config.output_norm:
        weights.norm("encoder.after_norm", "encoder.output_norm")
    else:
        weights.ignore(r"encoder\.after_norm\..*")  # WeNet keeps it without using it


def _move_convolutions(weights: TensorMap, config: ConformerConfig) -> None:
    for stage in range(len(CONV2D_STAGES[config.subsampling_factor])):
        weights.convolution(f"encoder.embed.conv.{2 * stage}", f"encoder.subsampling.stages.{stage}.0")
    names = [name for name in ("out", "linear") if f"encoder.embed.{name}.weight" in weights]
    weights.linear(f"encoder.embed.{names[0] if names else 'out.0'}", "encoder.subsampling.out")


def _move_block(weights: TensorMap, config: ConformerConfig, form: BlockForm, theirs: str, ours: str) -> None:
    _feed_forward(weights, f"{theirs}.feed_forward", f"{theirs}.norm_ff", f"{ours}.feed_forward_out", form)
    if form.macaron:
        source, norm = f"{theirs}.feed_forward_macaron", f"{theirs}.norm_ff_macaron"
        _feed_forward(weights, source, norm, f"{ours}.feed_forward_in", form)
    else:
        for kind in ("weight", "bias"):
            weights.ours[f"{ours}.feed_forward_out.project.{kind}"] *= 2.0  # against the half step
        _feed_forward_of_zero(weights, config, f"{ours}.feed_forward_in")
    weights.norm(f"{theirs}.norm_mha", f"{ours}.attention_norm")
    _attention(weights, config, form, f"{theirs}.self_attn", f"{ours}.attention")
    weights.norm(f"{theirs}.norm_conv", f"{ours}.convolution.norm")
    source, target = f"{theirs}.conv_module", f"{ours}.convolution"
    weights.linear(f"{source}.pointwise_conv1", f"{target}.pointwise_in", bias=form.conv_bias)
    weights.convolution(f"{source}.depthwise_conv", f"{target}.depthwise", bias=form.conv_bias)
    weights.linear(f"{source}.pointwise_conv2", f"{target}.pointwise_out", bias=form.conv_bias)
    if config.conv_norm == "batch_norm":
        weights.batch_norm(f"{source}.norm", f"{target}.batch_norm")
        # (x - mean) / sqrt(var + eps): the difference of the epsilons goes into the variance.
        name = f"{target}.batch_norm.running_var"
        weights.ours[name] = weights.ours[name] + (form.batch_norm_eps - TORCH_BATCH_NORM_EPS)
    else:
        weights.norm(f"{source}.norm", f"{target}.layer_norm")
    weights.norm(f"{theirs}.norm_final", f"{ours}.final_norm")


def _feed_forward(weights: TensorMap, source: str, norm: str, target: str, form: BlockForm) -> None:
    weights.norm(norm, f"{target}.norm")
    weights.linear(f"{source}.w_1", f"{target}.expand", bias=form.ff_bias)
    weights.linear(f"{source}.w_2", f"{target}.project", bias=form.ff_bias)


def _feed_forward_of_zero(weights: TensorMap, config: ConformerConfig, target: str) -> None:
    d_model, inner = config.d_model, config.ff_inner
    weights.ours[f"{target}.norm.weight"] = torch.ones(d_model)
    weights.ours[f"{target}.norm.bias"] = torch.zeros(d_model)
    weights.ours[f"{target}.expand.weight"] = torch.zeros(inner, d_model)
    weights.ours[f"{target}.expand.bias"] = torch.zeros(inner)
    weights.ours[f"{target}.project.weight"] = torch.zeros(d_model, inner)
    weights.ours[f"{target}.project.bias"] = torch.zeros(d_model)


def _attention(
    weights: TensorMap, config: ConformerConfig, form: BlockForm, source: str, target: str
) -> None:
    for part, bias in (("q", form.query_bias), ("k", form.key_bias), ("v", form.value_bias)):
        weights.linear(f"{source}.linear_{part}", f"{target}.{part}", bias=bias)
        if part != "q" and form.n_kv_heads is not None:
            for kind in ("weight", "bias"):
                name = f"{target}.{part}.{kind}"
                weights.ours[name] = repeated_heads(weights.ours[name], form.n_kv_heads, config.n_heads)
    for kind in ("weight", "bias"):
        parts = [weights.ours.pop(f"{target}.{part}.{kind}") for part in "qkv"]
        weights.ours[f"{target}.qkv.{kind}"] = torch.cat(parts)
    weights.linear(f"{source}.linear_out", f"{target}.out", bias=form.query_bias)
    if config.attention == "no_pos":
        return
    weights.move(f"{source}.linear_pos.weight", f"{target}.position.weight")
    for name in ("pos_bias_u", "pos_bias_v"):
        weights.move(f"{source}.{name}", f"{target}.{name}")


def repeated_heads(rows: Tensor, n_kv_heads: int, n_heads: int) -> Tensor:
    """Rows of `n_kv_heads` heads, each once for every one of the neighboring query heads that it serves."""
    per_head = rows.reshape(n_kv_heads, -1, *rows.shape[1:])
    return per_head.repeat_interleave(n_heads // n_kv_heads, dim=0).reshape(-1, *rows.shape[1:])
