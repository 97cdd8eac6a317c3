"""The plain Transformer encoder, written out by its definition, and what it refuses."""

import math

import pytest
import torch
from small_models import N_MELS, build_model
from torch.nn import functional as F

from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.model.streamable import describe_streaming, geometry_from_config, why_not_streamable

KIND = {
    "encoder": "transformer",
    "subsampling": "conv1d",
    "subsampling_factor": 2,
    "attention": "no_pos",
    "added_positions": True,
    "ff_expansion": 2,
    "activation": "gelu",
    "cmvn": False,
}


@torch.inference_mode()
def test_it_is_what_its_definition_says() -> None:
    """SubBlock(x) = LayerNorm(x + Module(LayerNorm(x))) over GELU convolutions and sinusoids, in float64."""
    model = build_model(**KIND).double()
    weights = dict(model.named_parameters())
    features = torch.randn(1, 31, N_MELS, dtype=torch.float64)

    def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{name}.weight"], weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (16,), *part(name))

    x = F.gelu(F.conv1d(features.mT, *part("encoder.subsampling.widen"), padding=1))
    x = F.gelu(F.conv1d(x, *part("encoder.subsampling.halve"), stride=2, padding=1)).mT[0]
    assert x.shape == (16, 16)
    for frame in range(16):
        for pair in range(8):
            angle = frame / 10000 ** (2 * pair / 16)
            x[frame, 2 * pair] += math.sin(angle)
            x[frame, 2 * pair + 1] += math.cos(angle)
    for layer in (f"encoder.layers.{number}" for number in range(2)):
        query, key, value = F.linear(
            norm(x, f"{layer}.attention_norm"), *part(f"{layer}.attention.qkv")
        ).chunk(3, dim=-1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            scores = torch.softmax(query[:, head] @ key[:, head].T / math.sqrt(8), dim=-1)
            heads.append(scores @ value[:, head])
        attended = F.linear(torch.cat(heads, dim=-1), *part(f"{layer}.attention.out"))
        x = norm(x + attended, f"{layer}.attention_out_norm")
        inner = F.gelu(
            F.linear(norm(x, f"{layer}.feed_forward_out.norm"), *part(f"{layer}.feed_forward_out.expand"))
        )
        x = norm(x + F.linear(inner, *part(f"{layer}.feed_forward_out.project")), f"{layer}.final_norm")
    encoded, lens = model.encode(features, torch.tensor([31]))
    assert lens.tolist() == [16]
    # Positions are computed in float32.
    torch.testing.assert_close(encoded[0], x, rtol=0, atol=1e-5)


def test_streaming_is_refused_in_one_sentence() -> None:
    features = FeatureConfig.from_preset("nemo", n_mels=N_MELS)
    config = build_model(**KIND).config
    assert why_not_streamable(config, features) == "encoder transformer has no caches"
    for dynamic in (True, False):
        assert "impossible" in describe_streaming(config, features, dynamic_chunks=dynamic)
    with pytest.raises(
        ConfigError, match=r"cannot stream: encoder transformer .*; export it with --no-streaming"
    ):
        geometry_from_config(config, features)
    with_positions = build_model(**{**KIND, "attention": "rel_pos", "added_positions": False}).config
    assert describe_streaming(with_positions, features) == {"impossible": "encoder transformer has no caches"}
