"""Folds BatchNorm into the depthwise convolution before it, in PyTorch, before export.

At inference a BatchNorm is an affine map per channel, so it disappears into the kernel and bias of
the convolution that feeds it: w' = w * g / sqrt(v + eps), b' = (b - m) * g / sqrt(v + eps) + beta
(Ioffe and Szegedy 2015, algorithm 2), computed in float64. The folded model cannot be trained further.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from edge_asr.errors import CheckpointError, require

if TYPE_CHECKING:
    import torch


def fold_batch_norm(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `model` in which the BatchNorm of every convolution module is folded away.

    A convolution module is any submodule with a `depthwise` Conv1d and a `batch_norm` that follows it
    (edge_asr.model.convolution.base.Convolution). Its LayerNorm variant has none and does not change.

    Args:
        model: a model in eval mode.

    Returns:
        The folded copy; `model` itself is unchanged.

    Raises:
        CheckpointError: a BatchNorm has no running statistics, or one is left over.
    """
    require("torch", extra="export")
    import torch

    folded = copy.deepcopy(model).eval()
    for name, module in folded.named_modules():
        convolution, norm = getattr(module, "depthwise", None), getattr(module, "batch_norm", None)
        if not (isinstance(convolution, torch.nn.Conv1d) and isinstance(norm, torch.nn.BatchNorm1d)):
            continue
        if norm.running_mean is None or norm.running_var is None:
            raise CheckpointError(
                f"{name}.batch_norm has no running statistics; train it with track_running_stats=True"
            )
        module.depthwise = fold_into_convolution(convolution, norm)
        module.batch_norm = None
    left = [n for n, m in folded.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if left:
        raise CheckpointError(f"no depthwise convolution feeds these BatchNorm layers: {', '.join(left)}")
    return folded


def fold_into_convolution(convolution: torch.nn.Conv1d, norm: torch.nn.BatchNorm1d) -> torch.nn.Conv1d:
    """Return one convolution that computes `norm(convolution(x))` in eval mode.

    Args:
        convolution: weight [C, C / groups, K], with or without a bias [C].
        norm: over C channels, with running statistics.
    """
    import torch

    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if norm.affine:
        scale = scale * norm.weight.double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.double()
    bias = shift * scale + (norm.bias.double() if norm.affine else 0.0)
    folded = copy.deepcopy(convolution)
    folded.weight = torch.nn.Parameter(
        (convolution.weight.double() * scale[:, None, None]).float(), requires_grad=False
    )
    folded.bias = torch.nn.Parameter(bias.float(), requires_grad=False)
    return folded
