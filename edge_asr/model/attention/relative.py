"""Self-attention over encoder frames with Transformer-XL relative positions.

The encoder computes masks and positions once for all layers. Nothing is looked up in a table of fixed length.
What this file does not do: keep the memory of a stream. `edge_asr.model.streaming` keeps it; `memorize` and
`recall` use it.
"""

import math
from typing import cast

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
        """Encode distances n_memory + n_frames, ..., -(n_frames - 1), for `RelPosAttention.recall`."""
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

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """Attend.

        Args:
            x: float (B, T, D).
            bias: float (B, 1, 1 or T, T), added to the scores (`masks.attention_bias`).
            positions: float (2T, D), from `RelativePositions`.
            valid: unused, because the bias holds it.

        Returns:
            float (B, T, D).
        """
        batch, n_frames, _ = x.shape
        query, key, value = self.qkv(x).reshape(batch, n_frames, 3, self.n_heads, self.d_head).unbind(2)
        return self._attend(query, key, value, bias, positions)

    def memorize(self, x: Tensor) -> Tensor:
        """Return what `recall` will need of these frames: their input, which is what NeMo's cache holds."""
        return x

    def recall(self, x: Tensor, memory: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
        """Attend from a chunk to memorized frames, which include its own.

        Args:
            x: float (B, Q, D), the chunk.
            memory: float (B, K, D or 2D), from `memorize`; its last Q frames are those of `x`.
            bias: float (B, 1, 1 or Q, K), added to the scores.
            positions: from the `stream` of the positions.

        Returns:
            float (B, Q, D).
        """
        d_model = self.n_heads * self.d_head
        query = F.linear(x, self.qkv.weight[:d_model], self.qkv.bias[:d_model])
        key, value = self._keys_values(memory).chunk(2, dim=-1)
        query, key, value = (self._split_heads(part) for part in (query, key, value))
        return self._attend(query, key, value, bias, positions)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, H, d)."""
        return x.reshape(x.shape[0], x.shape[1], self.n_heads, self.d_head)

    def _keys_values(self, x: Tensor) -> Tensor:
        """(B, K, D) -> keys and values (B, K, 2D)."""
        d_model = self.n_heads * self.d_head
        return F.linear(x, self.qkv.weight[d_model:], self.qkv.bias[d_model:])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
        """Attend: queries (B, Q, H, d) are the last of the K frames of keys and values (B, K, H, d)."""
        batch, n_queries, _, _ = query.shape
        scale = self.d_head**-0.5
        query_u = ((query + self.pos_bias_u) * scale).transpose(1, 2)  # (B, H, Q, d)
        query_v = ((query + self.pos_bias_v) * scale).transpose(1, 2)
        position = self.position(positions).reshape(-1, self.n_heads, self.d_head).permute(1, 2, 0)
        by_content = torch.matmul(query_u, key.permute(0, 2, 3, 1))  # (B, H, Q, K)
        by_distance = relative_shift(torch.matmul(query_v, position))
        weights = torch.softmax(by_content + by_distance + bias, dim=-1)
        context = torch.matmul(self.dropout(weights), value.transpose(1, 2))  # (B, H, Q, d)
        return cast(Tensor, self.out(context.transpose(1, 2).reshape(batch, n_queries, -1)))
