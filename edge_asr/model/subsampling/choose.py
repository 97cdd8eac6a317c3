"""The subsampling that a configuration asks for, and the two that do not subsample."""

from typing import cast

from torch import Tensor, nn

from edge_asr.model.config import ConformerConfig
from edge_asr.model.subsampling.causal import CausalSubsampling
from edge_asr.model.subsampling.conv1d import Conv1dSubsampling
from edge_asr.model.subsampling.conv2d import UnpaddedSubsampling
from edge_asr.model.subsampling.striding import ConvSubsampling
from edge_asr.model.subsampling.waveform import WaveformSubsampling


class NoSubsampling(nn.Module):
    """Subtracts the mean over bands, for models that work at the rate of the features (torchaudio).

    Only a LayerNorm over bands reads the features, and it removes the mean anyway. With the mean removed
    first, silence (all bands equal) is 0; the LayerNorm alone would amplify its rounding error 300 times.
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
        self.norm = nn.LayerNorm(config.d_model)  # torch's epsilon in both projects, whatever the blocks have

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`; `lens` is not needed."""
        return cast(Tensor, self.norm(self.out(features)))


def subsampling_from_config(config: ConformerConfig) -> nn.Module:
    """The front end that the configuration names; all are called as `ConvSubsampling.forward`."""
    if config.subsampling == "none":
        return NoSubsampling()
    if config.subsampling == "linear":
        return LinearInput(config)
    if config.subsampling == "conv1d":
        return Conv1dSubsampling(config)
    if config.subsampling == "conv2d":
        return UnpaddedSubsampling(config)
    if config.subsampling == "waveform":
        return WaveformSubsampling(config)
    if config.subsampling_causal:
        return CausalSubsampling(config)
    return ConvSubsampling(config)
