"""wav2vec 2.0's convolutions over samples and its feature projection.

It is a stack of unpadded strided convolutions over the waveform, then LayerNorm and projection. A LayerNorm
over channels follows each convolution, or a GroupNorm with one group per channel follows the first alone.
What this file does not do: normalize the waveform, which the front end does (`FeatureConfig.normalize`
"waveform").

Source: transformers, models/wav2vec2_conformer/modeling_wav2vec2_conformer.py,
`Wav2Vec2ConformerFeatureEncoder` and `Wav2Vec2ConformerFeatureProjection`.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig
from edge_asr.model.convolution.group_norm import MaskedGroupNorm
from edge_asr.model.feed_forward import ACTIVATIONS
from edge_asr.model.masks import valid_frames

_CONV_NORM_EPS = 1e-5  # the default of torch.nn.LayerNorm; layer_norm_eps does not apply to these


class WaveformSubsampling(nn.Module):
    """(B, S, 1) samples -> (B, ceil(S / factor), d_model).

    Stage i is a list of a convolution and its norm, if it has one. Zeros appended to the samples make the
    unpadded stack give a frame for every `factor` samples begun. Valid frames do not read them.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        n_in = 1
        for channels, kernel, stride in config.waveform_layers:
            modules: list[nn.Module] = [nn.Conv1d(n_in, channels, kernel, stride=stride)]
            if config.waveform_norm == "layer":
                modules.append(nn.LayerNorm(channels, eps=_CONV_NORM_EPS))
            elif not stages:
                modules.append(MaskedGroupNorm(channels, per_channel=True))
            stages.append(nn.ModuleList(modules))
            n_in = channels
        self.stages = nn.ModuleList(stages)
        self.activation = ACTIVATIONS[config.waveform_activation]
        self.missing = config.first_output_frames - 1
        _, self.first_kernel, self.first_stride = config.waveform_layers[0]
        eps = config.norm_eps if config.output_norm_eps is None else config.output_norm_eps
        self.out_norm = nn.LayerNorm(n_in, eps=eps)
        self.out = nn.Linear(n_in, config.d_model)

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """Subsample samples that are zero past their lengths.

        Args:
            features: float (B, S, 1).
            lens: int64 (B,), in samples.

        Returns:
            float (B, S', d_model); past the end of a row it is finite and means nothing.
        """
        x = F.pad(features.transpose(1, 2), (0, self.missing))  # (B, 1, S + missing)
        for stage in self.stages:
            modules = cast(nn.ModuleList, stage)
            x = modules[0](x)
            if len(modules) > 1:
                norm = modules[1]
                if isinstance(norm, MaskedGroupNorm):
                    x = norm(x, valid_frames(lens, x.shape[2], self.first_stride, self.first_kernel))
                else:
                    x = norm(x.transpose(1, 2)).transpose(1, 2)
            x = self.activation(x)
        return cast(Tensor, self.out(self.out_norm(x.transpose(1, 2))))
