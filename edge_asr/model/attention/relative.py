"""Self-attention over encoder frames with Transformer-XL relative positions.

The encoder computes masks and positions once for all layers. Nothing is looked up in a table of fixed length.
What this file does not do: keep the memory of a stream between chunks (edge_asr.model.streaming).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig


class RelativePositions(nn.Module):
    """Sinusoid encodings of the distances T, T-1, ..., -(T-1), computed for the T at hand.

    Source: Transformer-XL (Dai et al. 2019, section 3.3), sine and cosine interleaved as in NeMo. Distance T
    is never used; with it the table has 2T rows, and the relative shift needs no padding.
    """

    inverse_frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        frequency = torch.exp(
            torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> Tensor:
        """float32 (2 * n_frames, d_model)."""
        return self._encode(n_frames, 2 * n_frames)

    def stream(self, n_frames: int, n_memory: int, n_before: Tensor) -> Tensor:
        """Encode distances n_memory + n_frames, ..., -(n_frames - 1), for `RelPosAttention` with a memory."""
        return self._encode(n_memory + n_frames, n_memory + 2 * n_frames)

    def _encode(self, first: int, n_distances: int) -> Tensor:
        distance = first - torch.arange(n_distances, device=self.inverse_frequency.device)
        angle = distance.to(torch.float32)[:, None] * self.inverse_frequency.float()[None, :]  # (2T, D/2)
        return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(1)


def relative_shift(scores: Tensor) -> Tensor:
    """Line up scores by distance with keys; the queries are the last Q of K frames.

    out[..., i, j] = scores[..., i, Q - (i - j)], for query i is frame K - Q + i. Only slices and reshapes of
    the flat matrix, so it exports with a dynamic length (no as_strided, no gather).

    Args:
        scores: (B, H, Q, K + Q), column m belonging to distance K - m.

    Returns:
        (B, H, Q, K).
    """
    batch, n_heads, n_queries, n_distances = scores.shape
    flat = scores.reshape(batch, n_heads, n_queries * n_distances)[:, :, n_queries:]
    rows = flat.reshape(batch, n_heads, n_queries, n_distances - 1)
    return rows[:, :, :, : n_distances - n_queries]


def recall(attention: Any, x: Tensor, memory: Tensor, n_new: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project a chunk, and join it to what attention recalls of the frames before.

    Args:
        attention: has `qkv`, or for NeMo's memory `query` and `keys_values`, and `n_heads`.
        x: float (B * Q, D).
        memory: float (B, 2H, M, d) of keys, then values, or float (B, 1, M, D) of inputs, as in NeMo's cache.
        n_new: Q.

    Returns:
        Queries (B, H, Q, d); keys and values (B, H, M + Q, d); the memory with the chunk's frames.
    """
    n_heads, d_model, batch = attention.n_heads, x.shape[1], memory.shape[0]

    def split_heads(projected: Tensor, n_frames: int) -> Tensor:
        return projected.reshape(batch, n_frames, -1, d_model // n_heads).transpose(1, 2)

    if memory.shape[1] == 1:
        memory = torch.cat((memory, x.reshape(batch, 1, n_new, d_model)), dim=2)
        query = split_heads(attention.query(x), n_new)
        both = split_heads(attention.keys_values(memory.reshape(-1, d_model)), memory.shape[2])
    else:
        query, both = torch.split(split_heads(attention.qkv(x), n_new), [n_heads, 2 * n_heads], dim=1)
        both = memory = torch.cat((memory, both), dim=2)
    keys, values = torch.split(both, n_heads, dim=1)
    return query, keys, values, memory


class RelPosAttention(nn.Module):
    """Multi-head attention with relative positions and untied biases u and v.

    score(i, j) = ((q_i + u) . k_j + (q_i + v) . W_pos r(i - j)) / sqrt(d_head); Transformer-XL, section 3.3.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.position = nn.Linear(config.d_model, config.d_model, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(config.n_heads, self.d_head))
        self.pos_bias_v = nn.Parameter(torch.zeros(config.n_heads, self.d_head))
        self.dropout = nn.Dropout(config.dropout_attention)

    def forward(
        self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor, memory: Tensor | None = None
    ) -> Any:
        """Attend: within a clip, or with a memory from a chunk to the frames before it and its own.

        Args:
            x: float (B, T, D), the clip, or (B * T, D), the chunk.
            bias: float (B, 1, 1 or T, K), added to the scores (`masks.attention_bias`); K is T for a clip.
            positions: float (2T, D), from `RelativePositions`; from its `stream` with a memory.
            valid: bool (B, T).
            memory: what attention recalls of the frames before the chunk; see `recall`.

        Returns:
            float, the shape of `x`; with a memory also the memory with the chunk's frames.
        """
        if memory is None:
            query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, self.d_head)).unbind(2)
            query, key, value = (part.transpose(1, 2) for part in (query, key, value))
            return self.out(self._attend(query, key, value, bias, positions).flatten(2))
        query, key, value, memory = recall(self, x, memory, valid.shape[1])
        return self.out(self._attend(query, key, value, bias, positions).reshape(-1, x.shape[1])), memory

    def query(self, x: Tensor) -> Tensor:
        """(..., D) -> queries (..., D)."""
        d_model = self.n_heads * self.d_head
        return F.linear(x, self.qkv.weight[:d_model], self.qkv.bias[:d_model])

    def keys_values(self, x: Tensor) -> Tensor:
        """(..., D) -> keys, then values (..., 2D)."""
        d_model = self.n_heads * self.d_head
        return F.linear(x, self.qkv.weight[d_model:], self.qkv.bias[d_model:])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
        """Attend: queries (B, H, Q, d) are the last of the K frames of keys and values; (B, Q, H, d)."""
        scale = self.d_head**-0.5
        query_u = (query + self.pos_bias_u[:, None]) * scale  # (B, H, Q, d)
        query_v = (query + self.pos_bias_v[:, None]) * scale
        position = self.position(positions).reshape(-1, self.n_heads, self.d_head).permute(1, 2, 0)
        by_content = torch.matmul(query_u, key.transpose(2, 3))  # (B, H, Q, K)
        by_distance = relative_shift(torch.matmul(query_v, position))
        weights = torch.softmax(by_content + by_distance + bias, dim=-1)
        return torch.matmul(self.dropout(weights), value).transpose(1, 2)
