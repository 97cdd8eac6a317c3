"""Two convolutions over time that halve the rate of the frames: the front of a plain Transformer encoder."""

from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.model.config import ConformerConfig
from edge_asr.model.masks import valid_frames


class Conv1dSubsampling(nn.Module):
    """Kernels of 3 frames, padded by one, each followed by GELU; the second has stride 2."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.widen = nn.Conv1d(config.n_mels, config.d_model, 3, padding=1)
        self.halve = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)

    def forward(self, features: Tensor, lens: Tensor) -> Tensor:
        """See `ConvSubsampling.forward`."""
        x = F.gelu(self.widen(features.transpose(1, 2)))  # (B, D, T)
        # Behind the end of a row the second convolution must find zeros, as it does in the row alone.
        x = x * valid_frames(lens, features.shape[1])[:, None, :].to(x.dtype)
        return F.gelu(self.halve(x)).transpose(1, 2)
