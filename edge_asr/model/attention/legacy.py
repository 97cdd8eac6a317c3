"""ESPnet's legacy relative attention: a table of T rows where 2T - 1 are needed, and the old shift.

Each row of a padded batch gives what the clip gives alone, which requires the row's own length. The positions
mean nothing as distances. For a clip of n frames, with P = max(5000, n) rows in ESPnet's table
(config.position_table), row m of the cut is position P - 1 - m, and the shift makes of
M[i, m] = (q_i + v) . W_pos r(P - 1 - m):
    score(i, j) for j <= i:     M[i, n - 1 - i + j]
    score(i, i + 1):            0
    score(i, j) for j > i + 1:  M[i + 1, j - i - 2], the next frame's query

Sources: ESPnet, espnet/nets/pytorch_backend/transformer/attention.py (LegacyRelPositionMultiHeadedAttention)
and embedding.py (PositionalEncoding with reverse=True, whose table is built once, for 5000 rows).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.attention.relative import RelPosAttention
from edge_asr.model.config import ConformerConfig


class LegacyPositions(nn.Module):
    """Sinusoid encodings of positions P - 1, P - 2, ..., P - T with P = max(rows, T); interleaved."""

    inverse_frequency: Tensor

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_rows = config.position_table
        frequency = torch.exp(
            torch.arange(0, config.d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / config.d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> Tensor:
        """float32 (n_frames, d_model)."""
        frame = torch.arange(n_frames, device=self.inverse_frequency.device)
        position = (frame[-1] + 1).clamp(min=self.n_rows) - 1 - frame  # max() of integers, inside the graph
        angle = position.to(torch.float32)[:, None] * self.inverse_frequency.float()[None, :]  # (T, D/2)
        return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(1)


def legacy_shift(scores: Tensor) -> Tensor:
    """Apply ESPnet's old shift: put a column of zeros in front, then read rows of T from the second on.

    Args:
        scores: (B, H, T, T).

    Returns:
        (B, H, T, T).
    """
    batch, n_heads, n_frames, _ = scores.shape
    flat = F.pad(scores, (1, 0)).reshape(batch, n_heads, n_frames * (n_frames + 1))
    return flat[:, :, n_frames:].reshape(batch, n_heads, n_frames, n_frames)


class LegacyRelPosAttention(RelPosAttention):
    """Multi-head attention with the legacy scores; the weights of `RelPosAttention`.

    The shift reads columns m <= T - 2 - r of row r for the frame before (j > i + 1), and the others for the
    frame itself (j <= i). A shorter row of a batch needs its own table for each half: positions P - 1 - m
    unchanged for the first half, and moved to the end of the tensor for the second.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__(config)
        self.n_rows = config.position_table

    def forward(  # type: ignore[override]
        self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor
    ) -> Tensor:
        """See `RelPosAttention.forward`; positions are (T, D), from `LegacyPositions`."""
        batch, n_frames, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
        scale = self.d_head**-0.5
        query_u = ((query + self.pos_bias_u) * scale).transpose(1, 2)  # (B, H, T, d)
        query_v = ((query + self.pos_bias_v) * scale).transpose(1, 2)
        position = self.position(positions).reshape(n_frames, self.n_heads, self.d_head)
        before, own = self._columns(valid)
        by_position = torch.where(
            _reads_own(n_frames, x.device),
            torch.matmul(query_v, position[own].permute(0, 2, 3, 1)),
            torch.matmul(query_v, position[before].permute(0, 2, 3, 1)),
        )
        by_content = torch.matmul(query_u, key.permute(0, 2, 3, 1))  # (B, H, T, T)
        weights = torch.softmax(by_content + legacy_shift(by_position) + bias, dim=-1)
        context = torch.matmul(self.dropout(weights), value.transpose(1, 2))  # (B, H, T, d)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_frames, -1)))

    def _columns(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the table row of each column, int64 (B, T): for the frame before, and for itself."""
        frame = torch.arange(valid.shape[1], device=valid.device)
        last = frame[-1]
        n_own = valid.sum(1, keepdim=True)  # (B, 1)
        # The tensor's table begins at P(T) - 1, the row's at P(n) - 1.
        start = (last + 1).clamp(min=self.n_rows) - n_own.clamp(min=self.n_rows)
        before = torch.minimum(frame[None, :] + start, last)
        own = (frame[None, :] + start - (last + 1 - n_own)).clamp(min=0)
        return before, torch.minimum(own, last)


def _reads_own(n_frames: int, device: torch.device) -> Tensor:
    """Return bool (T, T): whether the shift reads column m of row r for the frame itself, m >= T - 1 - r."""
    frame = torch.arange(n_frames, device=device)
    return frame[:, None] + frame[None, :] >= n_frames - 1
