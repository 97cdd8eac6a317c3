"""Group normalization over valid time, plain attention, and torchaudio's network as a graph."""

from typing import Any

import pytest
import torch
from onnx_check import check_graph
from small_models import build_model
from torch.nn import functional as F

from edge_asr.model.attention.plain import PlainAttention
from edge_asr.model.convolution.group_norm import MaskedGroupNorm
from edge_asr.model.masks import attention_bias

TORCHAUDIO: dict[str, Any] = {
    "n_mels": 16,
    "subsampling": "none",
    "subsampling_factor": 1,
    "attention": "no_pos",
    "cmvn": False,
}


@pytest.mark.parametrize("per_channel", [False, True])
def test_group_norm_counts_valid_frames_alone(per_channel: bool) -> None:
    torch.manual_seed(0)
    norm = MaskedGroupNorm(6, per_channel=per_channel)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(3, 6, 20) * 5 + 100  # far from 0: the variance must not come from two large numbers
    lengths = (20, 7, 1)
    valid = torch.arange(20)[None, :] < torch.tensor(lengths)[:, None]
    given = norm(x.masked_fill(~valid[:, None, :], 1e4), valid)
    for row, length in enumerate(lengths):
        if per_channel and length == 1:
            continue  # torch refuses groups of one value
        expected = F.group_norm(
            x[row : row + 1, :, :length], 6 if per_channel else 1, norm.weight, norm.bias, 1e-5
        )
        torch.testing.assert_close(given[row : row + 1, :, :length], expected, atol=1e-4, rtol=0)
    assert bool(torch.isfinite(norm(x, torch.zeros(3, 20, dtype=torch.bool))).all())


@torch.inference_mode()
def test_plain_attention_is_torch_multi_head_attention() -> None:
    config = build_model(**TORCHAUDIO).config
    attention = PlainAttention(config).eval()
    reference = torch.nn.MultiheadAttention(16, config.n_heads, batch_first=True).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            parameter.normal_(std=0.5)
            ours = name.replace("in_proj_", "qkv.").replace("out_proj.", "out.")
            dict(attention.named_parameters())[ours].copy_(parameter)
    x = torch.randn(2, 9, 16)
    valid = torch.arange(9)[None, :] < torch.tensor([[9], [4]])
    given = attention(x, attention_bias(valid, None, None), torch.empty(0), valid)
    expected, _ = reference(x, x, x, key_padding_mask=~valid, need_weights=False)
    torch.testing.assert_close(given[valid], expected[valid], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_silence_is_as_good_as_any_input() -> None:
    # All bands alike: LayerNorm must not see the rounding error of their mean.
    model = build_model(**TORCHAUDIO)
    silence = torch.full((1, 30, 16), -13.815511)
    expected, _ = model.double()(silence.double(), torch.tensor([30]))
    given, _ = model.float()(silence, torch.tensor([30]))
    torch.testing.assert_close(given, expected.float(), atol=2e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("conv_norm", ["batch_norm", "group_norm"])
def test_the_graph_equals_the_model_at_every_length(conv_norm: str) -> None:
    order = "convolution_first" if conv_norm == "group_norm" else "attention_first"
    model = build_model(**{**TORCHAUDIO, "n_layers": 1}, conv_norm=conv_norm, block_order=order)
    check_graph(model, (1, 2, 3, 4, 5, 16, 17, 131, 700))
