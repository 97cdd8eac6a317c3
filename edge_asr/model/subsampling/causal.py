"""NeMo's causal subsampling (`causal_downsampling`), of its cache-aware streaming models.

The stacks are those of `ConvSubsampling`, padded by 2 before and 1 after, on time and on bands alike, so n
frames give n // 2 + 1 per stage. Frames past the length of a row are zeroed before every convolution.
What this file does not do: keep a cache of frames between chunks.

Source: NeMo, nemo/collections/asr/parts/submodules/subsampling.py and causal_convs.py (CausalConv2D).
"""

import math
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.frames import OutputFrames
from edge_asr.model.config import ConformerConfig
from edge_asr.model.masks import valid_frames

_PADDING = (2, 1, 2, 1)  # bands before and after, frames before and after


class CausalSubsampling(nn.Module):
    """(B, T, n_mels) -> (B, T', d_model), T' = `config.output_frames.n_graph(T)`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        n_stages = int(math.log2(config.subsampling_factor))
        channels = config.subsampling_channels
        stages = [nn.Sequential(nn.Conv2d(1, channels, 3, stride=2))]
        for _ in range(n_stages - 1):
            if config.subsampling == "striding":
                stages.append(nn.Sequential(nn.Conv2d(channels, channels, 3, stride=2)))
            else:
                depthwise = nn.Conv2d(channels, channels, 3, stride=2, groups=channels)
                stages.append(nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1)))
        self.stages = nn.ModuleList(stages)
        n_bands = config.n_mels
        for _ in range(n_stages):
            n_bands = n_bands // 2 + 1
        self.out = nn.Linear(channels * n_bands, config.d_model)

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`."""
        x = features[:, None]  # (B, 1, T, F)
        for number, stage in enumerate(self.stages, start=1):
            x = stage(F.pad(x, _PADDING))
            frames = OutputFrames.from_convolutions([(3, 2, 3)] * number)
            valid = valid_frames(lens, x.shape[2], frames.factor, frames.first)
            x = F.relu(x * valid[:, None, :, None].to(x.dtype))
        x = x.transpose(1, 2).flatten(2)  # (B, T', C * F'), channel-major as in NeMo
        return cast(Tensor, self.out(x))
