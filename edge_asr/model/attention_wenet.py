"""WeNet's `rel_pos` attention, which is absolute: a key carries the encoding of its own position, no shift.

Does: score(i, j) = ((q_i + u) . k_j + (q_i + v) . W_pos r(j)) / sqrt(d_head), by one product with
k_j + W_pos r(j).
Does not: have an offset for streams (a chunk's keys begin at its offset), or WeNet's limit of 5000 frames.

Source: WeNet, wenet/models/transformer/attention.py (RelPositionMultiHeadedAttention, whose rel_shift is
commented out) and embedding.py (RelPositionalEncoding).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.attention import RelPosAttention
from edge_asr.model.config import ConformerConfig


class AbsolutePositions(nn.Module):
    """Sinusoid encodings of positions 0, 1, ..., sine and cosine interleaved."""

    inverse_frequency: Tensor

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        frequency = torch.exp(
            torch.arange(0, config.d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / config.d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> Tensor:
        """float32 (n_frames, d_model)."""
        position = torch.arange(n_frames, device=self.inverse_frequency.device)
        angle = position.to(torch.float32)[:, None] * self.inverse_frequency.float()[None, :]  # (T, D/2)
        return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(1)


class AbsolutePosAttention(RelPosAttention):
    """Multi-head attention whose keys know their position; the weights of `RelPosAttention`."""

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """See `RelPosAttention.forward`; positions are (T, D), from `AbsolutePositions`."""
        batch, n_frames, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
        scale = self.d_head**-0.5
        position = self.position(positions).reshape(n_frames, self.n_heads, self.d_head)
        # (q + u) . k + (q + v) . p = q . (k + p) + (u . k + v . p)
        of_key = (key * self.pos_bias_u).sum(-1) + (position * self.pos_bias_v).sum(-1)  # (B, T, H)
        scores = torch.matmul(query.transpose(1, 2) * scale, (key + position).permute(0, 2, 3, 1))
        scores = scores + (of_key * scale).transpose(1, 2)[:, :, None, :]  # (B, H, T, T)
        weights = torch.softmax(scores + bias, dim=-1)
        context = torch.matmul(self.dropout(weights), value.transpose(1, 2))  # (B, H, T, d)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_frames, -1)))
