"""Small models whose every parameter and running statistic is away from its default, so nothing hides."""

from typing import Any

import torch

from edge_asr.model import ConformerConfig, ConformerCTC

VOCAB_SIZE = 11
N_MELS = 20


def build_model(seed: int = 0, **overrides: Any) -> ConformerCTC:
    """A random model in eval mode, 2 layers of width 16 unless told otherwise."""
    generator = torch.Generator().manual_seed(seed)
    config = ConformerConfig.from_dict(
        {
            "vocab_size": VOCAB_SIZE,
            "n_mels": N_MELS,
            "d_model": 16,
            "n_layers": 2,
            "n_heads": 2,
            "conv_kernel_size": 5,
            "subsampling_channels": 6,
            "cmvn": True,
            **overrides,
        }
    )
    torch.manual_seed(seed)
    model = ConformerCTC(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight") and parameter.ndim > 1:
                # Variance-preserving, so that the output depends on the input as strongly as a trained one's.
                parameter.copy_(noise * (2 * parameter.shape[0] / parameter.numel()) ** 0.5)
            else:
                parameter.add_(0.3 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    if config.cmvn:
        mean = torch.randn(config.n_mels, generator=generator)
        model.set_cmvn(mean, 0.5 + torch.rand(config.n_mels, generator=generator))
    return model.eval()
