"""The stack over samples, rotary attention, and wav2vec 2.0's networks as graphs."""

from typing import Any

import pytest
import torch
from onnx_check import check_graph
from small_models import build_model
from torch.nn import functional as F

from edge_asr.errors import ConfigError
from edge_asr.model.attention.rotary import RotaryAttention, RotaryPositions
from edge_asr.model.masks import attention_bias
from edge_asr.model.subsampling.waveform import WaveformSubsampling

WAVEFORM: dict[str, Any] = {
    "n_mels": 1,
    "subsampling": "waveform",
    "waveform_layers": [[6, 10, 5], [8, 3, 2], [7, 2, 2]],
    "subsampling_factor": 20,
    "output_norm": True,
    "cmvn": False,
}


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("layers", [[[6, 10, 5], [8, 3, 2], [7, 2, 2]], [[4, 2, 3], [5, 1, 4]]])
@torch.inference_mode()
def test_the_stack_against_unpadded_convolutions(norm: str, layers: list[list[int]]) -> None:
    factor = 20 if len(layers) == 3 else 12
    overrides = {"waveform_layers": layers, "waveform_norm": norm, "subsampling_factor": factor}
    model = build_model(**{**WAVEFORM, **overrides})
    stack = model.encoder.subsampling
    assert isinstance(stack, WaveformSubsampling)
    frames = model.config.output_frames
    lengths = [frames.first, 203, 301]
    clips = [torch.randn(n) for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)[:, :, None]
    given = stack(batch, torch.tensor(lengths))
    assert given.shape[1] == -(-batch.shape[1] // factor)
    weights = stack.state_dict()
    for row, clip in zip(given, clips, strict=True):
        x = clip[None, None]
        for number, (channels, _, stride) in enumerate(layers):
            x = F.conv1d(
                x, weights[f"stages.{number}.0.weight"], weights[f"stages.{number}.0.bias"], stride=stride
            )
            scale, shift = weights.get(f"stages.{number}.1.weight"), weights.get(f"stages.{number}.1.bias")
            if norm == "layer":
                x = F.layer_norm(x.transpose(1, 2), (channels,), scale, shift).transpose(1, 2)
            elif number == 0 and x.shape[2] > 1:
                x = F.group_norm(x, channels, scale, shift)
            elif number == 0:
                assert shift is not None
                x = shift[None, :, None]  # a single value less itself
            x = F.gelu(x)
        x = F.layer_norm(x[0].T, (x.shape[1],), weights["out_norm.weight"], weights["out_norm.bias"])
        expected = F.linear(x, weights["out.weight"], weights["out.bias"])
        assert len(expected) == frames.n_valid(len(clip))
        torch.testing.assert_close(row[: len(expected)], expected, atol=2e-5, rtol=0)


@torch.inference_mode()
def test_rotary_attention_rotates_the_input_and_not_the_queries() -> None:
    model = build_model(d_model=24, n_heads=3, attention="rotary", rotary_base=70.0, cmvn=False)
    attention = model.encoder.layers[0].attention
    assert isinstance(attention, RotaryAttention)
    n_frames, d_head = 11, 8
    x = torch.randn(1, n_frames, 24)
    matrices = torch.zeros(n_frames, d_head, d_head)  # R_i, one frame after the other
    for frame in range(n_frames):
        for pair in range(d_head // 2):
            angle = torch.tensor(frame * 70.0 ** (-2 * pair / d_head))
            partner = pair + d_head // 2
            matrices[frame, pair, pair] = matrices[frame, partner, partner] = angle.cos()
            matrices[frame, pair, partner], matrices[frame, partner, pair] = -angle.sin(), angle.sin()
    turned = torch.einsum("tij,thj->thi", matrices, x[0].reshape(n_frames, 3, d_head)).reshape(n_frames, 24)
    query, key, value = attention.qkv.weight.chunk(3)
    query_bias, key_bias, value_bias = attention.qkv.bias.chunk(3)
    q = F.linear(turned, query, query_bias).reshape(n_frames, 3, d_head)
    k = F.linear(turned, key, key_bias).reshape(n_frames, 3, d_head)
    v = F.linear(x[0], value, value_bias).reshape(n_frames, 3, d_head)
    scores = torch.einsum("ihd,jhd->hij", q, k) / d_head**0.5
    context = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(n_frames, 24)
    expected = F.linear(context, attention.out.weight, attention.out.bias)
    valid = torch.ones(1, n_frames, dtype=torch.bool)
    positions = RotaryPositions(model.config)(n_frames)
    given = attention(x, attention_bias(valid, None, None), positions, valid)[0]
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


def test_rotary_needs_an_even_head() -> None:
    with pytest.raises(ConfigError, match="even width"):
        build_model(d_model=18, n_heads=2, attention="rotary")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("norm", "attention"), [("group", "rotary"), ("layer", "rel_pos")])
def test_the_graph_equals_the_model_at_every_length(norm: str, attention: str) -> None:
    model = build_model(**{**WAVEFORM, "n_layers": 1}, waveform_norm=norm, attention=attention)
    check_graph(model, (1, 19, 20, 21, 45, 46, 399, 1000, 1001, 8000))
