"""Wav2Vec2-Conformer's rotary attention.

The input of the layer, cut into heads, is rotated by its position before the projections of query and key.
The value is projected from the unrotated input. Rotary attention elsewhere rotates the projected queries and
keys, which would give another result with these weights.

Source: transformers, models/wav2vec2_conformer/modeling_wav2vec2_conformer.py, `_apply_rotary_embedding`.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.attention.plain import attend
from edge_asr.model.config import ConformerConfig


def rotary_frequencies(d_head: int, base: float) -> Tensor:
    """Return the radians per frame of each pair of channels, float32 (d_head / 2,)."""
    exponent = torch.arange(0, d_head, 2, dtype=torch.int64).float() / d_head
    return 1.0 / (base**exponent)


class RotaryPositions(nn.Module):
    """Cosine and sine of position times frequency, shared by heads and layers."""

    frequency: Tensor

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        frequency = rotary_frequencies(config.d_model // config.n_heads, config.rotary_base)
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, n_frames: int) -> Tensor:
        """float32 (2, n_frames, 1, d_head / 2): cosines, then sines."""
        position = torch.arange(n_frames, device=self.frequency.device).to(torch.float32)
        angle = position[:, None] * self.frequency.float()[None, :]
        return torch.stack((torch.cos(angle), torch.sin(angle)))[:, :, None, :]


class RotaryProjection(nn.Linear):
    """Projects query and key from the rotated input, value from the plain one, by one weight as elsewhere."""

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, 3 * d_model)

    def forward(self, x: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, T, D) twice -> (B, T, 2 * D) query and key, (B, T, D) value."""
        d_model = self.in_features
        query_key = F.linear(rotated, self.weight[: 2 * d_model], self.bias[: 2 * d_model])
        return query_key, F.linear(x, self.weight[2 * d_model :], self.bias[2 * d_model :])


class RotaryAttention(nn.Module):
    """Attention whose queries and keys are projected from the rotated input.

    score(i, j) = (W_q R_i x_i) . (W_k R_j x_j) / sqrt(d_head), where R_i turns the channels c and
    c + d_head / 2 of every head by i times their frequency.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.d_head = config.d_model // config.n_heads
        self.qkv = RotaryProjection(config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.dropout = nn.Dropout(config.dropout_attention)

    def forward(self, x: Tensor, bias: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """See `RelPosAttention.forward`; positions come from `RotaryPositions`, `valid` is not used."""
        batch, n_frames, _ = x.shape
        cosine, sine = positions.to(x.dtype).unbind(0)  # (T, 1, d / 2)
        first, second = x.reshape(batch, n_frames, self.n_heads, self.d_head).chunk(2, dim=-1)
        rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
        query_key, value = self.qkv(x, rotated.flatten(2))
        query, key = query_key.reshape(batch, n_frames, 2, self.n_heads, self.d_head).unbind(2)
        value = value.reshape(batch, n_frames, self.n_heads, self.d_head)
        context = attend(query * self.d_head**-0.5, key, value, bias, self.dropout)
        return cast(Tensor, self.out(context))
