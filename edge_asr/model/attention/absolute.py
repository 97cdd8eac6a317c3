"""WeNet's `rel_pos` attention, which is absolute: a key carries the encoding of its own position, no shift.

score(i, j) = ((q_i + u) . k_j + (q_i + v) . W_pos r(j)) / sqrt(d_head), computed by one product with
k_j + W_pos r(j). WeNet's limit of 5000 frames does not apply.

Source: WeNet, wenet/models/transformer/attention.py (RelPositionMultiHeadedAttention, whose rel_shift is
commented out) and embedding.py (RelPositionalEncoding).
"""

import math

import torch
from torch import Tensor, nn

from edge_asr.model.attention.relative import RelPosAttention


class AbsolutePositions(nn.Module):
    """Sinusoid encodings of positions 0, 1, ..., sine and cosine interleaved."""

    inverse_frequency: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        frequency = torch.exp(
            torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model)
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> Tensor:
        """float32 (n_frames, d_model)."""
        return self._encode(torch.arange(n_frames, device=self.inverse_frequency.device))

    def stream(self, n_frames: int, n_memory: int, n_before: Tensor) -> Tensor:
        """Encode the last n_memory frames before a chunk, and the chunk: float32 (B, K, d_model).

        `n_before`, int64 (B,), frames came before the chunk. Encodings of frames before the first mean
        nothing.
        """
        frame = torch.arange(n_memory + n_frames, device=n_before.device) - n_memory
        return self._encode(n_before[:, None] + frame[None, :])

    def _encode(self, position: Tensor) -> Tensor:
        angle = position.to(torch.float32)[..., None] * self.inverse_frequency.float()  # (..., D/2)
        return torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1).flatten(-2)


class AbsolutePosAttention(RelPosAttention):
    """Multi-head attention whose keys know their position; the weights of `RelPosAttention`.

    Of a stream it recalls keys and values, as WeNet's does.
    """

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, positions: Tensor) -> Tensor:
        """See `RelPosAttention._attend`; positions are (K, D), from `AbsolutePositions`, or (B, K, D)."""
        scale = self.d_head**-0.5
        position = self.position(positions).unflatten(-1, (self.n_heads, self.d_head)).transpose(-3, -2)
        # (q + u) . k + (q + v) . p = q . (k + p) + (u . k + v . p)
        of_u, of_v = key * self.pos_bias_u[:, None], position * self.pos_bias_v[:, None]
        of_key = of_u.sum(-1) + of_v.sum(-1)  # (B, H, K)
        scores = torch.matmul(query * scale, (key + position).transpose(2, 3))
        scores = scores + (of_key * scale)[:, :, None, :]  # (B, H, Q, K)
        weights = torch.softmax(scores + bias, dim=-1)
        return torch.matmul(self.dropout(weights), value).transpose(1, 2)
