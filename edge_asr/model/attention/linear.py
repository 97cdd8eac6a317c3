"""Linear attention: the exponential of softmax is replaced by the first terms of its Taylor series.

With K terms, exp(s) becomes 1 + s + s^2 / 2 + ... + s^(K-1) / (K-1)!, s = q . k / sqrt(d). A power of s is
the inner product of outer powers, (q . k)^n = <q x ... x q, k x ... x k>, so sums over keys are taken once
for all queries: O(T d^K) time and O(T d^(K-1)) memory a head, where softmax takes O(T^2 d) and O(T^2).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig


class TaylorAttention(nn.Module):
    """Attention in linear time, with `config.taylor_terms` terms.

    An expansion that ends with an even power is above 0 for any s (1/2 and more with three terms), so weights
    are positive and need no stabilization. It carries no positions (the convolutions do) and cannot take
    chunk masks (refused).
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.n_terms = config.taylor_terms
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
        context = taylor_attend(query, key, value, valid[:, None, :, None].to(x.dtype), self.n_terms)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_frames, -1)))


def taylor_attend(query: Tensor, key: Tensor, value: Tensor, weight: Tensor, n_terms: int) -> Tensor:
    """Attend with `n_terms` terms of the exponential.

    Args:
        query, key, value: float (B, H, T, d), the query times 1 / sqrt(d).
        weight: float (B, 1, T, 1), 1 for the keys that count and 0 for others.
        n_terms: odd, see `TaylorAttention`.

    Returns:
        float (B, H, T, d).
    """
    # The extra column of ones makes the last column of every sum the normalizer.
    value = torch.cat((value, torch.ones_like(value[..., :1])), dim=-1) * weight  # (B, H, T, d + 1)
    context = value.sum(dim=2, keepdim=True)
    of_query, of_key = query, key
    for power in range(1, n_terms):
        if power > 1:
            of_query, of_key = _outer(of_query, query), _outer(of_key, key)
        term = torch.matmul(of_query, torch.matmul(of_key.transpose(2, 3), value))
        context = context + (term if power == 1 else term * (1.0 / math.factorial(power)))
    # A row of length 0 has a normalizer of 0; its output means nothing but must be finite.
    return context[..., :-1] / context[..., -1:].clamp(min=1e-4)


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """Return every frame's outer product: (B, H, T, m) and (B, H, T, d) -> (B, H, T, m * d)."""
    return (x[..., :, None] * y[..., None, :]).flatten(3)
