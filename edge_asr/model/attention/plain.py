"""Multi-head attention without positions: torchaudio's Conformer, and Wav2Vec2-Conformer without embeddings.

It is softmax attention over content alone, with the masks of the encoder. In these models only the
convolutions know where a frame is.

Source: torchaudio, models/conformer.py (torch.nn.MultiheadAttention: query, key and value packed in order).
"""

from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig


class PlainAttention(nn.Module):
    """score(i, j) = q_i . k_j / sqrt(d_head)."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout_attention)

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """See `RelPosAttention.forward`; `positions` and `valid` are not used."""
        batch, n_frames, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
        context = attend(query * self.d_head**-0.5, key, value, bias, self.dropout)
        return cast(Tensor, self.out(context))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: nn.Module) -> Tensor:
    """Apply softmax attention to scaled queries, and join the heads again.

    Args:
        query, key, value: float (B, T, H, d), the query times 1 / sqrt(d).
        bias: float (B, 1, 1 or T, T), added to the scores.
        dropout: applied to the weights.

    Returns:
        float (B, T, H * d).
    """
    scores = torch.matmul(query.transpose(1, 2), key.permute(0, 2, 3, 1))  # (B, H, T, T)
    weights = dropout(torch.softmax(scores + bias, dim=-1))
    return torch.matmul(weights, value.transpose(1, 2)).transpose(1, 2).flatten(2)
