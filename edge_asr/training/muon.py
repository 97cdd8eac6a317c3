"""Muon for the matrices of the hidden layers, AdamW for all else, as one optimizer.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the scale of an update is that of Liu et
al. 2025 (arXiv 2502.16982), with which a learning rate of AdamW is right as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `"muon": True` are stepped by Muon.

    A matrix (rows, columns) of such a group moves along its momentum with all singular values brought to
    about 1, and by 0.2 sqrt(max(rows, columns)) of the learning rate. A matrix of n * columns rows, several
    projections in one, counts as n matrices where its group says `"parts": n`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        super().__init__([{"muon": False, "parts": 1, **group} for group in groups], **options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
                state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            nesterov = parameter.grad.lerp(momentum, MOMENTUM)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parts = zip(parameter.chunk(group["parts"]), nesterov.chunk(group["parts"]), strict=True)
            for weights, update in parts:
                rows, columns = weights.shape
                flat = (weights.T, update.T) if rows > columns else (weights, update)
                alike[tuple(flat[0].shape)].append(flat)
        for (_, columns), pairs in alike.items():
            updates = orthogonalized(torch.stack([update for _, update in pairs]))
            for (weights, _), update in zip(pairs, updates, strict=True):
                weights.sub_(update, alpha=group["lr"] * 0.2 * columns**0.5)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices to about 1 (0.7 to 1.2), by Newton and Schulz's iteration.

    Args:
        matrices: float (N, rows, columns), rows <= columns.

    Returns:
        float32 of the same shape; computed in bfloat16.
    """
    a, b, c = _COEFFICIENTS
    x: Tensor = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.float()
