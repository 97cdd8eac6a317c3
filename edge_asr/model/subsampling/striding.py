"""Convolutional subsampling of log-mel features, by 2 to 16 in time, and the choice of other front ends.

Does: NeMo's `striding` (Conformer) and `dw_striding` (FastConformer) stacks, 3x3 stride 2 padding 1, so that
n frames give ceil(n / factor), with the frames past a row's length zeroed before every convolution.
Does not: normalize. Other kinds have their own files (`subsampling_from_config`).

The last input frame that output frame i sees is factor * i + factor - 1: chunks of input frames map onto
chunks of output frames without look-ahead, which dynamic-chunk training relies on.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig
from edge_asr.model.masks import valid_frames


def subsampled_lens(lens: Tensor, factor: int, first: int = 1) -> Tensor:
    """Encoder frames of rows of `lens` input frames, int64 (B,), as `OutputFrames.n_valid` of each."""
    counts = (lens + (factor - first)) // factor
    return counts if first == 1 else torch.where(lens > 0, counts.clamp(min=0), torch.zeros_like(counts))


class NoSubsampling(nn.Module):
    """The features less their mean over bands, for models that work at the rate of the features (torchaudio).

    All that reads them is a LayerNorm over bands, which takes the mean out anyway. Done once ahead, silence
    (all bands alike) is 0, where a LayerNorm would make 300 times its rounding error of it.
    """

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """(B, T, d_model) -> the same shape."""
        return features - features.mean(dim=-1, keepdim=True)


class LinearInput(nn.Module):
    """A linear layer and its LayerNorm: (B, T, n_mels) -> (B, T, d_model).

    Sources: ESPnet, espnet2/asr/encoder/conformer_encoder.py (input_layer "linear"); WeNet,
    wenet/models/transformer/subsampling.py (LinearNoSubsampling).
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.out = nn.Linear(config.n_mels, config.d_model)
        self.norm = nn.LayerNorm(config.d_model)  # torch's epsilon in both, whatever the blocks have

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`; `lens` is not needed."""
        return cast(Tensor, self.norm(self.out(features)))


def subsampling_from_config(config: ConformerConfig) -> nn.Module:
    """The front end that the configuration names; all are called as `ConvSubsampling.forward`."""
    if config.subsampling == "none":
        return NoSubsampling()
    if config.subsampling == "linear":
        return LinearInput(config)
    if config.subsampling == "conv2d":
        from edge_asr.model.subsampling.conv2d import UnpaddedSubsampling

        return UnpaddedSubsampling(config)
    if config.subsampling == "waveform":
        from edge_asr.model.subsampling.waveform import WaveformSubsampling

        return WaveformSubsampling(config)
    if config.subsampling_causal:
        from edge_asr.model.subsampling.causal import CausalSubsampling

        return CausalSubsampling(config)
    return ConvSubsampling(config)


class ConvSubsampling(nn.Module):
    """(B, T, n_mels) -> (B, ceil(T / factor), d_model).

    Source: NeMo, nemo/collections/asr/parts/submodules/subsampling.py (masking as in 2.5 and later).
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        n_stages = int(math.log2(config.subsampling_factor))
        channels = config.subsampling_channels
        stages = [nn.Sequential(nn.Conv2d(1, channels, 3, stride=2, padding=1))]
        for _ in range(n_stages - 1):
            if config.subsampling == "striding":
                stages.append(nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2, padding=1)))
            else:
                depthwise = nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels)
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
            float (B, T', d_model); past a row's end only the bias of the projection is left.
        """
        x = features[:, None]  # (B, 1, T, F)
        if self.training:
            # Strides that say channels-last, and the convolutions follow: this part of a training step takes
            # 0.6 x the time on a CPU.
            x = features[..., None].permute(0, 3, 1, 2)
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x)
            # The next convolution's window reaches one frame past the row's end. In place, and before the
            # ReLU: these are the largest tensors of the network, and neither gradient needs its input.
            x.mul_(valid_frames(lens, x.shape[2], 2**number)[:, None, :, None].to(x.dtype))
            x = nn.functional.relu(x, inplace=True)
        x = x.transpose(1, 2).flatten(2)  # (B, T', C * F'), channel-major as NeMo
        return cast(Tensor, self.out(x))
