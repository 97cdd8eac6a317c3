"""Group normalization over time: torchaudio's convolution module, and the norm wav2vec 2.0 shares with it.

It normalizes with the statistics of a row's valid frames alone, so a row in a padded batch gives what it
gives alone. (The originals include padding, so single clips are the reference.) It neither streams nor folds
into the convolution, because the statistics are those of the clip.

Source: torchaudio, models/conformer.py (torch.nn.GroupNorm with one group).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig
from edge_asr.model.feed_forward import ACTIVATIONS

_GROUP_NORM_EPS = 1e-5  # the default of torch.nn.GroupNorm, which both originals keep


class MaskedGroupNorm(nn.Module):
    """GroupNorm over time, valid frames only: one group of all channels, or one group per channel.

    Args:
        n_channels: C.
        per_channel: every channel has its own mean and variance.
    """

    def __init__(self, n_channels: int, *, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Normalize.

        Args:
            x: float (B, C, T), finite everywhere.
            valid: bool (B, T); a row without any valid frame gives finite values that mean nothing.

        Returns:
            float (B, C, T).
        """
        mask = valid[:, None, :].to(x.dtype)
        count = mask.sum(dim=2, keepdim=True).clamp(min=1.0)
        centered = x - self._mean(x * mask, count)
        variance = self._mean(centered.square() * mask, count)
        normalized = centered * torch.rsqrt(variance + _GROUP_NORM_EPS)
        return normalized * self.weight[:, None] + self.bias[:, None]

    def _mean(self, masked: Tensor, count: Tensor) -> Tensor:
        if not self.per_channel:
            masked = masked.mean(dim=1, keepdim=True)
        return masked.sum(dim=2, keepdim=True) / count


class GroupNormConvolution(nn.Module):
    """`Convolution` with `MaskedGroupNorm` after the depthwise convolution."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.context = config.conv_left_right
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.pointwise_in = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, config.conv_kernel_size, groups=d_model)
        self.group_norm = MaskedGroupNorm(d_model, per_channel=False)
        self.pointwise_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """See `Convolution.forward`."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        x = x * valid[:, :, None].to(x.dtype)
        x = self.depthwise(F.pad(x.transpose(1, 2), self.context))  # (B, D, T)
        x = self.group_norm(x, valid).transpose(1, 2)
        return cast(Tensor, self.dropout(self.pointwise_out(self.activation(x))))
