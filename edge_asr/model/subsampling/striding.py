"""Convolutional subsampling of log-mel features, by 2 to 16 in time.

These are NeMo's `striding` (Conformer) and `dw_striding` (FastConformer) stacks: 3x3, stride 2, padding 1, so
n frames give ceil(n / factor). Frames past the length of a row are zeroed before every convolution.
What this file does not do: normalize. Other kinds have their own files (`subsampling_from_config`).

The last input frame that output frame i sees is factor * i + factor - 1: chunks of input frames map onto
chunks of output frames without look-ahead, which dynamic-chunk training relies on.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig
from edge_asr.model.masks import valid_frames


def subsampled_lens(lens: Tensor, factor: int, first: int = 1) -> Tensor:
    """Count the encoder frames of rows of `lens` input frames, int64 (B,), as `OutputFrames.n_valid` does."""
    counts = (lens + (factor - first)) // factor
    return counts if first == 1 else torch.where(lens > 0, counts.clamp(min=0), torch.zeros_like(counts))


class FullPrecisionConv2d(nn.Conv2d):
    """A convolution that stays in float32 under autocast on a CPU.

    The gradient of a strided depthwise convolution in bfloat16 takes 12 to 20 times as long there (torch
    2.13, AMX), a third of a training step of a small model; the first, of one channel, gains nothing.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See `torch.nn.Conv2d`."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class MaskedReLU(torch.autograd.Function):
    """relu(x * mask) in place, with one pass over the gradient: x are the largest tensors of the network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        """Overwrite x, of any shape, given a mask of 0 and 1 that broadcasts to it."""
        x.mul_(mask).clamp_(min=0)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient where the output is not 0."""
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, y, 0), None


def mask_and_rectify(x: Tensor, mask: Tensor) -> Tensor:
    """Apply `MaskedReLU`."""
    return cast(Tensor, MaskedReLU.apply(x, mask))  # type: ignore[no-untyped-call]


class ConvSubsampling(nn.Module):
    """(B, T, n_mels) -> (B, ceil(T / factor), d_model).

    Source: NeMo, nemo/collections/asr/parts/submodules/subsampling.py (masking as in 2.5 and later).
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        n_stages = int(math.log2(config.subsampling_factor))
        channels = config.subsampling_channels
        stages = [nn.Sequential(FullPrecisionConv2d(1, channels, 3, stride=2, padding=1))]
        for _ in range(n_stages - 1):
            if config.subsampling == "striding":
                stages.append(nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1)))
            else:
                depthwise = FullPrecisionConv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
                stages.append(nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1)))
        self.stages = nn.ModuleList(stages)
        n_bands = config.n_mels
        for _ in range(n_stages):
            n_bands = (n_bands - 1) // 2 + 1
        self.out = nn.Linear(channels * n_bands, config.d_model)

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """Subsample features that are zero past their lengths.

        Args:
            features: float (B, T, n_mels).
            lens: int64 (B,), in feature frames.

        Returns:
            float (B, T', d_model); past the end of a row only the bias of the projection is left.
        """
        x = features[:, None]  # (B, 1, T, F)
        if self.training:
            # With channels-last strides the convolutions take 0.6 of the time in a training step on a CPU.
            x = features[..., None].permute(0, 3, 1, 2)
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            # The next convolution's window reaches one frame past the row's end.
            valid = valid_frames(lens, x.shape[2], 2**number)[:, None, :, None].to(x.dtype)
            x = mask_and_rectify(x, valid) if self.training else nn.functional.relu(x * valid)
        x = x.transpose(1, 2).flatten(2)  # (B, T', C * F'), channel-major as in NeMo
        return cast(Tensor, self.out(x))
