"""The architecture against NeMo's own code: the weights of its fixtures give NeMo's log-probs in our network.

The fixtures are small random models run by nemo_toolkit (tests/data/golden/README.md). The mapping of names
below is for these tests only; it is no checkpoint loader.
"""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from golden.fixtures import read_fixture
from torch import Tensor

from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.model.masks import attention_bias, valid_frames

# float32 rounding over two layers: NeMo's own eager and fused attention differ by up to 4e-5 here.
TOLERANCE = 1e-4

CONFIGS: dict[str, dict[str, Any]] = {
    "nemo-conformer-bpe": {
        "d_model": 32,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "subsampling_channels": 16,
        "conv_kernel_size": 31,
    },
    "nemo-conformer-char": {
        "d_model": 24,
        "subsampling": "striding",
        "subsampling_factor": 4,
        "subsampling_channels": 24,
        "conv_kernel_size": 31,
    },
    "nemo-fastconformer-bpe": {"d_model": 32, "subsampling_channels": 24, "conv_kernel_size": 9},
    "nemo-fastconformer-streaming": {
        "d_model": 32,
        "subsampling_channels": 24,
        "conv_kernel_size": 9,
        "conv_context": "causal",
        "conv_norm": "layer_norm",
    },
}

_PLAIN = {
    "norm_feed_forward1": "feed_forward_in.norm",
    "feed_forward1.linear1": "feed_forward_in.expand",
    "feed_forward1.linear2": "feed_forward_in.project",
    "norm_feed_forward2": "feed_forward_out.norm",
    "feed_forward2.linear1": "feed_forward_out.expand",
    "feed_forward2.linear2": "feed_forward_out.project",
    "norm_conv": "convolution.norm",
    "conv.depthwise_conv": "convolution.depthwise",
    "norm_self_att": "attention_norm",
    "self_attn.linear_out": "attention.out",
    "self_attn.linear_pos": "attention.position",
    "norm_out": "final_norm",
}


def read_nemo_weights(file: Path) -> dict[str, Tensor]:
    with tarfile.open(file, "r:*") as archive:
        member = archive.extractfile("./model_weights.ckpt")
        assert member is not None
        weights: dict[str, Tensor] = torch.load(
            io.BytesIO(member.read()), weights_only=True, map_location="cpu"
        )
    return weights


def ours_from_nemo(nemo: dict[str, Tensor], config: ConformerConfig) -> dict[str, Tensor]:
    """Our state dict from NeMo's; every encoder and decoder tensor must be used."""
    left = {name: value for name, value in nemo.items() if not name.startswith("preprocessor.")}
    ours: dict[str, Tensor] = {}

    def move(source: str, target: str, squeeze: bool = False) -> None:
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in left:
                value = left.pop(f"{source}.{kind}")
                ours[f"{target}.{kind}"] = value.squeeze(-1) if squeeze and kind == "weight" else value

    move("encoder.pre_encode.out", "encoder.subsampling.out")
    move("encoder.pre_encode.conv.0", "encoder.subsampling.stages.0.0")
    if config.subsampling == "striding":
        move("encoder.pre_encode.conv.2", "encoder.subsampling.stages.1.0")
    else:
        for stage in (1, 2):
            for part in (0, 1):
                move(
                    f"encoder.pre_encode.conv.{3 * stage - 1 + part}",
                    f"encoder.subsampling.stages.{stage}.{part}",
                )
    for layer in range(config.n_layers):
        source, target = f"encoder.layers.{layer}", f"encoder.layers.{layer}"
        for theirs, name in _PLAIN.items():
            move(f"{source}.{theirs}", f"{target}.{name}")
        move(f"{source}.conv.pointwise_conv1", f"{target}.convolution.pointwise_in", squeeze=True)
        move(f"{source}.conv.pointwise_conv2", f"{target}.convolution.pointwise_out", squeeze=True)
        move(f"{source}.conv.batch_norm", f"{target}.convolution.{config.conv_norm}")
        for statistic in ("running_mean", "running_var", "num_batches_tracked"):
            if config.conv_norm == "batch_norm":
                ours[f"{target}.convolution.batch_norm.{statistic}"] = left.pop(
                    f"{source}.conv.batch_norm.{statistic}"
                )
        for kind in ("weight", "bias"):
            parts = [left.pop(f"{source}.self_attn.linear_{letter}.{kind}") for letter in "qkv"]
            ours[f"{target}.attention.qkv.{kind}"] = torch.cat(parts)
        for letter in "uv":
            ours[f"{target}.attention.pos_bias_{letter}"] = left.pop(f"{source}.self_attn.pos_bias_{letter}")
    move("decoder.decoder_layers.0", "head.projection", squeeze=True)
    assert not left, f"unmapped: {sorted(left)}"
    return ours


def load_fixture(folder: Path) -> tuple[ConformerCTC, dict[str, npt.NDArray[Any]]]:
    nemo = read_nemo_weights(folder / "model.nemo")
    config = ConformerConfig.from_dict(
        {
            "n_layers": 2,
            "n_heads": 4,
            "ff_expansion": 2,
            "xscaling": True,
            "vocab_size": nemo["decoder.decoder_layers.0.bias"].shape[0],
            **CONFIGS[folder.name],
        }
    )
    model = ConformerCTC(config)
    weights = ours_from_nemo(nemo, config)
    if "streaming" in folder.name:  # its subsampling is of the causal kind, with wider frequency padding
        for name in [name for name in weights if name.startswith("encoder.subsampling.out")]:
            del weights[name]
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert missing == ["encoder.subsampling.out.weight", "encoder.subsampling.out.bias"]
        assert not unexpected
    else:
        model.load_state_dict(weights, strict=True)
    return model.eval(), read_fixture(folder, folder.parent).arrays()


@pytest.mark.parametrize("name", ["nemo-conformer-bpe", "nemo-conformer-char", "nemo-fastconformer-bpe"])
@torch.inference_mode()
def test_log_probs_equal_nemo(golden_dir: Path, name: str) -> None:
    model, golden = load_fixture(golden_dir / name)
    for clip in range(3):
        features = torch.from_numpy(golden[f"clip{clip}_feat"])
        log_probs, lens = model(features, torch.from_numpy(golden[f"clip{clip}_feat_len"]))
        end = int(golden[f"clip{clip}_len"][0])
        assert lens.tolist() == [end]
        np.testing.assert_allclose(
            log_probs[0, :end], golden[f"clip{clip}_logp"][0, :end], rtol=0, atol=TOLERANCE
        )
        expected = golden[f"clip{clip}_logp"][0, :end]
        np.testing.assert_array_equal(log_probs[0, :end].argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("name", ["nemo-conformer-bpe", "nemo-fastconformer-bpe"])
@torch.inference_mode()
def test_padded_batch_equals_nemo(golden_dir: Path, name: str) -> None:
    model, golden = load_fixture(golden_dir / name)
    order = (1, 0, 2)  # golden README: the order of the rows of batch_*
    clips = [torch.from_numpy(golden[f"clip{clip}_feat"][0]) for clip in order]
    lens = torch.tensor([int(golden[f"clip{clip}_feat_len"][0]) for clip in order])
    features = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=9.0)
    log_probs, out_lens = model(features, lens)
    assert out_lens.tolist() == golden["batch_len"].tolist()
    for row, end in enumerate(out_lens.tolist()):
        np.testing.assert_allclose(
            log_probs[row, :end], golden["batch_logp"][row, :end], rtol=0, atol=TOLERANCE
        )


@torch.inference_mode()
def test_chunk_mask_and_causal_blocks_equal_nemo(golden_dir: Path) -> None:
    """NeMo's chunked_limited [7, 6] is chunks of 7 and 1 chunk to the left; from its subsampled frames."""
    model, golden = load_fixture(golden_dir / "nemo-fastconformer-streaming")
    encoder = model.encoder
    x = torch.from_numpy(golden["dbg_clip0_pre_encode"])[None] * model.config.d_model**0.5
    end = int(golden["clip0_len"][0])
    valid = valid_frames(torch.tensor([end]), x.shape[1])
    bias = attention_bias(valid, 7, 1)
    for layer in encoder.layers:
        x = layer(x, bias, encoder.positions(x.shape[1]), valid)
    np.testing.assert_allclose(x[0, :end], golden["clip0_enc"][0, :end], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(model.head(x)[0, :end], golden["clip0_logp"][0, :end], rtol=0, atol=TOLERANCE)
