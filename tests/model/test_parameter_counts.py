"""Parameter counts of every preset against a formula written from the papers, not from the code.

Gulati et al. 2020, figures 1 to 4; relative positions as Transformer-XL (Dai et al. 2019, section 3.3);
depthwise striding as FastConformer (Rekesh et al. 2023).
"""

import pytest
import torch

from edge_asr.model import PRESETS, ConformerConfig, ConformerCTC

# d_model, layers, heads, kernel, factor, depthwise subsampling, subsampling channels: the published shapes.
SHAPES = {
    "tiny": (128, 8, 4, 15, 4, True, 48),
    "small": (176, 16, 4, 31, 4, False, 176),
    "medium": (256, 18, 4, 31, 4, False, 256),
    "large": (512, 18, 8, 31, 4, False, 512),
    "paper-s": (144, 16, 4, 31, 4, False, 144),
    "paper-m": (256, 16, 4, 31, 4, False, 256),
    "paper-l": (512, 17, 8, 31, 4, False, 512),
}
N_MELS = 80


def linear(n_in: int, n_out: int, bias: bool = True) -> int:
    return n_in * n_out + (n_out if bias else 0)


def count_block(d: int, kernel: int) -> int:
    norm = 2 * d  # gain and bias
    feed_forward = norm + linear(d, 4 * d) + linear(4 * d, d)
    query_key_value_output = 4 * linear(d, d)
    attention = (
        norm + query_key_value_output + linear(d, d, bias=False) + 2 * d
    )  # W_pos; u and v over all heads
    depthwise = d * kernel + d
    batch_norm = 2 * d
    convolution = norm + linear(d, 2 * d) + depthwise + batch_norm + linear(d, d)
    return feed_forward + attention + convolution + feed_forward + norm


def count_subsampling(d: int, factor: int, is_depthwise: bool, channels: int) -> int:
    n_halvings = {4: 2, 8: 3}[factor]
    total = 9 * channels + channels
    for _ in range(n_halvings - 1):
        if is_depthwise:
            total += 9 * channels + channels + linear(channels, channels)
        else:
            total += 9 * channels * channels + channels
    return total + linear(channels * (N_MELS // factor), d)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("vocab_size", [29, 257, 1025])
def test_counts_equal_the_papers_structure(name: str, vocab_size: int) -> None:
    d, n_layers, n_heads, kernel, factor, is_depthwise, channels = SHAPES[name]
    config = ConformerConfig.from_preset(name, vocab_size=vocab_size)
    with torch.device("meta"):
        model = ConformerCTC(config)
    expected = count_subsampling(d, factor, is_depthwise, channels) + n_layers * count_block(d, kernel)
    assert sum(p.numel() for p in model.parameters()) == expected + linear(d, vocab_size)
    assert config.n_heads == n_heads


def test_transformer_is_two_convolutions_and_plain_blocks() -> None:
    assert {*PRESETS} == {*SHAPES, "transformer"}
    with torch.device("meta"):
        model = ConformerCTC(ConformerConfig.from_preset("transformer", vocab_size=257))
    d, norm = 200, 2 * 200
    front = (3 * N_MELS * d + d) + (3 * d * d + d)
    block = 4 * linear(d, d) + linear(d, 2 * d) + linear(2 * d, d) + 4 * norm
    assert sum(p.numel() for p in model.parameters()) == front + 4 * block + linear(d, 257)


# FIELD.md and the model cards of NeMo's Conformer-CTC: about 13, 30 and 121 million with 1024 pieces.
@pytest.mark.parametrize(("name", "millions"), [("small", 13), ("medium", 30), ("large", 121)])
def test_nemo_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = ConformerCTC(ConformerConfig.from_preset(name, vocab_size=1025))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_tiny_stays_under_its_budget() -> None:
    with torch.device("meta"):
        model = ConformerCTC(ConformerConfig.from_preset("tiny", vocab_size=257))
    assert sum(p.numel() for p in model.parameters()) <= 6_000_000


def test_options_change_the_count_as_they_should() -> None:
    def count(**overrides: object) -> int:
        config = ConformerConfig.from_preset("tiny", vocab_size=257, **overrides)
        with torch.device("meta"):
            return sum(p.numel() for p in ConformerCTC(config).parameters())

    d, n_layers = 128, 8
    assert count(conv_norm="layer_norm") == count()
    assert count(block_order="parallel") == count(block_order="convolution_first") == count()
    assert count(head="lstm") - count() == 4 * (
        2 * d * d + 2 * d
    )  # four gates, two weights and two biases each
    assert count() - count(attention="linear") == n_layers * (d * d + 2 * d)  # no W_pos, u, v
