"""The convolution module of a Conformer block (Gulati et al. 2020, figure 2), with its own pre-norm.

Padded frames never reach a valid one.
What this file does not do: add the residual, which `encoder.ConformerBlock` does. Convolution modules of
other projects that are more than a setting of this one have their own files (`convolution_from_config`).
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig
from edge_asr.model.feed_forward import ACTIVATIONS


class Convolution(nn.Module):
    """LayerNorm, pointwise, GLU, depthwise, BatchNorm or LayerNorm, Swish, pointwise, dropout.

    The pointwise convolutions are linear layers over the channel axis. Zeros are padded after
    the GLU, as in NeMo, so the end of a clip looks the same at the end of a tensor and in a padded batch.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        d_model = config.d_model
        self.context = config.conv_left_right
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(d_model, eps=config.norm_eps)
        self.pointwise_in = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(d_model, d_model, config.conv_kernel_size, groups=d_model)
        self.batch_norm = nn.BatchNorm1d(d_model) if config.conv_norm == "batch_norm" else None
        self.layer_norm = (
            nn.LayerNorm(d_model, eps=config.norm_eps) if config.conv_norm == "layer_norm" else None
        )
        self.pointwise_out = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: float (B, T, D).
            valid: bool (B, T).

        Returns:
            float (B, T, D).
        """
        gated = self._gate(x, valid)
        if not self.training:
            return self._filter(F.pad(gated.transpose(1, 2), self.context))
        # As an image one pixel wide, channels last: forward and backward take a quarter of the time on a CPU.
        image = F.pad(gated, (0, 0, *self.context)).unsqueeze(2).permute(0, 3, 1, 2)
        weight = self.depthwise.weight.unsqueeze(3)
        return self._project(
            F.conv2d(image, weight, self.depthwise.bias, groups=self.depthwise.groups).squeeze(3)
        )

    def stream(self, x: Tensor, valid: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve a chunk that follows what came before it.

        Args:
            x: float (B * Q, D).
            valid: bool (B, Q).
            cache: float (B, 1, left, D), the last frames before the chunk; zeros at the clip's beginning.

        Returns:
            float (B * Q, D); the frames of the cache and the chunk, (B, 1, left + Q, D), from which the next
            cache is cut.
        """
        # Nothing valid reads what follows the clip, unless the convolution looks ahead.
        gated = self._gate(x, valid if self.context[1] else None)
        frames = torch.cat((cache, gated.reshape(cache.shape[0], 1, valid.shape[1], -1)), dim=2)
        filtered = self._filter(F.pad(frames.squeeze(1).transpose(1, 2), (0, self.context[1])))
        return filtered.reshape(x.shape), frames

    def _gate(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """(B, T, D) or (B * T, D) -> the depthwise convolution's input of the same shape, 0 on padding."""
        x = F.glu(self.pointwise_in(self.norm(x)), dim=-1)
        return x if valid is None else x * valid.reshape(*x.shape[:-1], 1).to(x.dtype)

    def _filter(self, x: Tensor) -> Tensor:
        """(B, D, left + T + right) -> (B, T, D)."""
        return self._project(self.depthwise(x))

    def _project(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, T, D)."""
        if self.batch_norm is not None and not self.training:
            x = self.batch_norm(x)
        x = x.transpose(1, 2)
        if self.batch_norm is not None and self.training:
            # Of rows side by side it takes a seventh of the time on a CPU.
            x = self.batch_norm(x.flatten(0, 1)).view_as(x)
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        return cast(Tensor, self.dropout(self.pointwise_out(self.activation(x))))
