"""The feed-forward module of a Conformer block, and the activations."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "hardtanh": F.hardtanh,
    "selu": F.selu,
}


class FeedForward(nn.Module):
    """LayerNorm, expansion, Swish (or another), dropout, projection, dropout: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.expand = nn.Linear(config.d_model, config.ff_inner)
        self.project = nn.Linear(config.ff_inner, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.dropout(self.activation(self.expand(self.norm(x))))
        return cast(Tensor, self.dropout(self.project(x)))
