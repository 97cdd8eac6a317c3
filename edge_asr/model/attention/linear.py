"""Linear attention by a second-order Taylor expansion of the exponential."""

from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig


class TaylorAttention(nn.Module):
    """Linear-time attention: exp(s) is replaced by 1 + s + s^2 / 2, s = q . k / sqrt(d_head).

    The kernel is the inner product of [1, x, (x outer x) / sqrt(2)], so sums over keys are taken once:
    O(T d_head^2) per value column. The kernel is at least 1/2 for any s, so weights are positive and need no
    stabilization. It carries no positions (the convolutions do) and cannot take chunk masks (refused).
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Attend.

        Args:
            x: float (B, T, D).
            bias, positions: unused.
            valid: bool (B, T); other keys have no weight.

        Returns:
            float (B, T, D).
        """
        batch, n_frames, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
        query = query.transpose(1, 2) * self.d_head**-0.5  # (B, H, T, d)
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        weight = valid[:, None, :, None].to(x.dtype)
        # The extra column of ones makes the last column of every sum the normalizer.
        value = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1) * weight  # (B, H, T, d + 1)
        context = (
            value.sum(dim=2, keepdim=True)
            + torch.matmul(query, torch.matmul(key.transpose(2, 3), value))
            + 0.5 * torch.matmul(_outer(query), torch.matmul(_outer(key).transpose(2, 3), value))
        )
        # A row of length 0 has a normalizer of 0; its output means nothing but must be finite.
        context = context[..., :-1] / context[..., -1:].clamp(min=1e-4)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_frames, -1)))


def _outer(x: Tensor) -> Tensor:
    """Return every frame's outer product with itself: (B, H, T, d) -> (B, H, T, d * d)."""
    return (x[..., :, None] * x[..., None, :]).flatten(3)
