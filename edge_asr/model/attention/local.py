"""NeMo's local attention where it is more than a band mask: an asymmetric context, or global tokens.

It computes rel_pos_local_attn as NeMo does, including two faults that checkpoints were trained with: in an
asymmetric context the positions of one side are shifted (`_column_positions`), and the queries of several
global tokens are dealt out to other heads (`_global_output`). Scores are a dense (T, T), which bounded
windows allow.
What this file does not do: symmetric contexts without global tokens, which are `RelPosAttention` with a band
mask.

Source: nemo/collections/asr/parts/submodules/multi_head_attention.py,
RelPositionMultiHeadAttentionLongformer and LocalAttRelPositionalEncoding.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig
from edge_asr.model.masks import MASKED_SCORE


class LocalPositions(nn.Module):
    """Sinusoids of the distances left, left - 1, ..., -right, and which of them each pair of frames gets."""

    table: Tensor

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        assert config.attention_context is not None  # check_attention
        self.left, self.right = config.attention_context
        frequency = torch.exp(
            torch.arange(0, config.d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / config.d_model)
        )
        distance = torch.arange(self.left, -self.right - 1, -1, dtype=torch.float32)
        angle = distance[:, None] * frequency[None, :]
        table = torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(1)
        self.register_buffer("table", table, persistent=False)

    def forward(self, n_frames: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the table (L + R + 1, D), the row of each pair, int64 (T, T), and 1.0 where one exists."""
        frame = torch.arange(n_frames, device=self.table.device)
        behind = frame[:, None] - frame[None, :]  # (T, T)
        row, exists = _column_positions(behind, self.left, self.right)
        return self.table, row.clamp(0, self.left + self.right), exists.to(self.table.dtype)


def _column_positions(behind: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """Return NeMo's row of the position table for a key `behind` frames before the query, and if it exists.

    NeMo holds scores in 2w + 1 columns, w = max(left, right), with column c for the distance w - c. It adds
    rows 0 ... left - 1 of the table to the first columns, and the other rows to the last columns. This is
    right where left = right. Otherwise the shorter side gets the positions of other distances, and the
    columns between get none.
    """
    width = max(left, right)
    column = width - behind
    first_of_last = 2 * width - right
    is_first, is_last = column < left, column >= first_of_last
    row = torch.where(is_first, column, left + column - first_of_last)
    return row, is_first | is_last


class LocalAttention(nn.Module):
    """Multi-head attention over the frames left ... right around each, and over global tokens.

    Names as in `RelPosAttention`, and `global_qkv` where the global tokens have projections of their own.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        assert config.attention_context is not None  # check_attention
        self.left, self.right = config.attention_context
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.n_global, self.spacing = config.global_tokens, config.global_tokens_spacing
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.position = nn.Linear(config.d_model, config.d_model, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(config.n_heads, self.d_head))
        self.pos_bias_v = nn.Parameter(torch.zeros(config.n_heads, self.d_head))
        self.global_qkv = (
            nn.Linear(config.d_model, 3 * config.d_model) if config.global_attn_separate else None
        )
        self.dropout = nn.Dropout(config.dropout_attention)

    def forward(
        self, x: Tensor, bias: Tensor, positions: tuple[Tensor, Tensor, Tensor], valid: Tensor
    ) -> Tensor:
        """Attend.

        Args:
            x: float (B, T, D).
            bias: float (B, 1, T, T): the band left ... right, and no padding.
            positions: from `LocalPositions`.
            valid: bool (B, T).

        Returns:
            float (B, T, D).
        """
        batch, n_frames, _ = x.shape
        query, key, value = self._heads(self.qkv, x)  # (B, H, T, d)
        scale = self.d_head**-0.5
        table, row, exists = positions
        rows = (
            self.position(table).reshape(-1, self.n_heads, self.d_head).permute(1, 2, 0)
        )  # (H, d, L + R + 1)
        by_row = torch.matmul((query + self.pos_bias_v[:, None]) * scale, rows)  # (B, H, T, L + R + 1)
        index = row[None, None].expand(batch, self.n_heads, n_frames, n_frames)
        scores = torch.gather(by_row, 3, index) * exists
        scores = scores + torch.matmul((query + self.pos_bias_u[:, None]) * scale, key.transpose(2, 3)) + bias
        if self.n_global == 0:
            context = torch.matmul(self.dropout(torch.softmax(scores, dim=-1)), value)
        else:
            context = self._with_global_tokens(x, scores, query * scale, key, value, valid)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_frames, -1)))

    def _heads(self, projection: nn.Linear, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, n_frames, _ = x.shape
        split = projection(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def _with_global_tokens(
        self, x: Tensor, scores: Tensor, query: Tensor, key: Tensor, value: Tensor, valid: Tensor
    ) -> Tensor:
        """Add global keys to every softmax, and put in the output of the global frames: (B, H, T, d).

        Global keys have no positions and biases. A global key that also lies in the window counts twice.
        """
        n_frames = x.shape[1]
        global_query, global_key, global_value = query, key, value
        if self.global_qkv is not None:
            global_query, global_key, global_value = self._heads(self.global_qkv, x)
            global_query = global_query * self.d_head**-0.5
        token = torch.arange(self.n_global, device=x.device) * self.spacing  # frames of the global tokens
        exists = token[None, :] < valid.sum(dim=1)[:, None]  # (B, G)
        frame = torch.clamp(token, max=n_frames - 1)
        absent = (~exists).to(scores.dtype)[:, None, None, :] * MASKED_SCORE
        beside = torch.matmul(global_query, global_key[:, :, frame].transpose(2, 3)) + absent  # (B, H, T, G)
        weights = self.dropout(torch.softmax(torch.cat((beside, scores), dim=-1), dim=-1))
        context = torch.matmul(weights[..., : self.n_global], value[:, :, frame])
        context = context + torch.matmul(weights[..., self.n_global :], value)
        own = self._global_output(global_query[:, :, frame], global_key, global_value, exists, valid)
        # Put the output of the global frames in their places.
        place = torch.arange(n_frames, device=x.device)[:, None] == token[None, :]  # (T, G)
        chosen = (place[None] & exists[:, None, :]).to(scores.dtype)  # (B, T, G)
        local = 1.0 - chosen.sum(dim=2)[:, None, :, None]
        return context * local + torch.matmul(chosen[:, None], own)

    def _global_output(
        self, query: Tensor, key: Tensor, value: Tensor, exists: Tensor, valid: Tensor
    ) -> Tensor:
        """Attend from global tokens to all frames, (B, H, G, d).

        NeMo's `_compute_out_global_to_all` reads the queries (token, head) as (head, token), so that head h
        of token g asks with number h * G + g in the order of tokens, then heads; G counts the clip's tokens.
        """
        batch = query.shape[0]
        n_tokens = exists.sum(dim=1)  # (B,)
        flat = query.permute(0, 2, 1, 3).reshape(batch, self.n_global * self.n_heads, self.d_head)
        head = torch.arange(self.n_heads, device=query.device)
        token = torch.arange(self.n_global, device=query.device)
        number = head[None, :, None] * n_tokens[:, None, None] + token[None, None, :]  # (B, H, G)
        number = torch.clamp(number, max=self.n_global * self.n_heads - 1).reshape(batch, -1, 1)
        asked = torch.gather(flat, 1, number.expand(-1, -1, self.d_head))
        asked = asked.reshape(batch, self.n_heads, self.n_global, self.d_head)
        hidden = (~valid).to(query.dtype)[:, None, None, :] * MASKED_SCORE
        weights = torch.softmax(torch.matmul(asked, key.transpose(2, 3)) + hidden, dim=-1)
        return torch.matmul(self.dropout(weights), value)
