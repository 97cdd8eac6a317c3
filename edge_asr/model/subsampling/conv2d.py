"""The unpadded subsampling of ESPnet and WeNet: full 3x3 (or 5x5) convolutions with strides, by 1 to 8.

It appends zero frames, so that any n frames, however few, give ceil(n / factor). It needs no masks between
the convolutions: nothing is padded, so a valid output frame reads valid frames only, and the outputs of the
appended zeros come after the last valid one.

Sources: ESPnet, espnet/nets/pytorch_backend/transformer/subsampling.py (Conv2dSubsampling, 1, 2, 6, 8);
WeNet, wenet/models/transformer/subsampling.py (Conv2dSubsampling4, 6, 8).
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.errors import ConfigError
from edge_asr.model.config import CONV2D_STAGES, ConformerConfig


class UnpaddedSubsampling(nn.Module):
    """(B, T, n_mels) -> (B, ceil(T / factor), d_model).

    Raises:
        ConfigError: too few mel bands for the unpadded convolutions.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        channels, n_bands = config.subsampling_channels, config.n_mels
        stages = []
        for number, (kernel, stride) in enumerate(CONV2D_STAGES[config.subsampling_factor]):
            stages.append(nn.Sequential(nn.Conv2d(channels if number else 1, channels, kernel, stride)))
            n_bands = (n_bands - kernel) // stride + 1
        if n_bands < 1:
            raise ConfigError(
                f"conv2d subsampling by {config.subsampling_factor} leaves nothing of {config.n_mels} mel "
                "bands; use more bands"
            )
        self.stages = nn.ModuleList(stages)
        self.out = nn.Linear(channels * n_bands, config.d_model)
        self.n_appended = config.first_output_frames - 1

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`; `lens` is not needed."""
        x = F.pad(features[:, None], (0, 0, 0, self.n_appended))  # (B, 1, T + first - 1, F)
        for stage in self.stages:
            x = F.relu(stage(x))
        x = x.transpose(1, 2).flatten(2)  # (B, T', C * F'), channel-major as in the originals
        return cast(Tensor, self.out(x))
