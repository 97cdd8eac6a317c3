"""Parakeet folders: the golden fixture, and the same weights through NeMo's names for other settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_checks import check_fixture, golden_folder
from make_nemo import changed, random_weights, write_nemo
from safetensors.torch import save_file
from torch import Tensor

from edge_asr.checkpoints import LoadOptions, load_any
from edge_asr.errors import CheckpointError

# transformers' convert_nemo_to_hf.py, the other way round: our own reading of both modules' attributes.
_NAMES = (
    (r"^encoder\.pre_encode\.conv\.", "encoder.subsampling.layers."),
    (r"^encoder\.pre_encode\.out\.", "encoder.subsampling.linear."),
    (r"\.conv\.batch_norm\.", ".conv.norm."),
    (r"\.linear_([qkv])\.", r".\1_proj."),
    (r"\.linear_out\.", ".o_proj."),
    (r"\.linear_pos\.", ".relative_k_proj."),
    (r"\.pos_bias_([uv])$", r".bias_\1"),
    (r"^decoder\.decoder_layers\.0\.", "ctc_head."),
)

CONFIG: dict[str, Any] = {
    "architectures": ["ParakeetForCTC"],
    "model_type": "parakeet_ctc",
    "dtype": "float32",
    "vocab_size": 5,
    "pad_token_id": 4,
    "encoder_config": {
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 24,
        "conv_kernel_size": 5,
        "num_mel_bins": 16,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 6,
        "scale_input": False,
    },
}
EXTRACTOR = {"feature_extractor_type": "ParakeetFeatureExtractor", "feature_size": 16}
TOKENS = {
    "model": {"type": "BPE", "vocab": {"▁": 0, "a": 1, "b": 2, "c": 3}},
    "added_tokens": [{"id": 4, "content": "<pad>"}],
}


def hf_weights(nemo: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in nemo.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = tensor
    return weights


def write_folder(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    config: dict[str, Any] | None = None,
    processor_file: str = "processor_config.json",
    **encoder: Any,
) -> Path:
    folder.mkdir()
    values = {**CONFIG, **(config or {})}
    values["encoder_config"] = {**values["encoder_config"], **encoder}
    (folder / "config.json").write_text(json.dumps(values))
    nested = {"feature_extractor": EXTRACTOR} if processor_file == "processor_config.json" else EXTRACTOR
    (folder / processor_file).write_text(json.dumps(nested))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENS))
    save_file(weights, folder / "model.safetensors")
    return folder


def test_golden_outputs(golden_dir: Path) -> None:
    check_fixture(golden_folder(golden_dir, "hf-parakeet"))


@pytest.mark.parametrize(
    ("nemo", "hf"),
    [
        ({}, {}),
        ({"xscaling": True, "subsampling_factor": 8}, {"scale_input": True, "subsampling_factor": 8}),
        ({"use_bias": False}, {"attention_bias": False, "convolution_bias": False}),
    ],
)
@pytest.mark.parametrize("processor_file", ["processor_config.json", "preprocessor_config.json"])
def test_same_weights_as_in_nemo(
    tmp_path: Path, nemo: dict[str, Any], hf: dict[str, Any], processor_file: str
) -> None:
    config = changed(encoder=nemo)
    weights = random_weights(config)
    first = load_any(write_nemo(tmp_path / "model.nemo", config, weights))
    second = load_any(write_folder(tmp_path / "hf", hf_weights(weights), processor_file=processor_file, **hf))
    assert first.features == second.features
    assert first.vocabulary.tokens == second.vocabulary.tokens
    assert second.source_blank_id == 4
    features, lengths = (
        torch.randn(2, 37, 16, generator=torch.Generator().manual_seed(1)),
        torch.tensor([37, 20]),
    )
    with torch.no_grad():
        expected, n_expected = first.build_model()(features, lengths)
        given, n_given = second.build_model()(features, lengths)
    assert torch.equal(expected, given)
    assert torch.equal(n_expected, n_given)


def test_a_blank_elsewhere_is_moved_last(tmp_path: Path) -> None:
    weights = hf_weights(random_weights(changed()))
    last = load_any(write_folder(tmp_path / "last", weights))
    order = [4, 0, 1, 2, 3]
    for kind in ("weight", "bias"):
        weights[f"ctc_head.{kind}"] = weights[f"ctc_head.{kind}"][order].contiguous()
    folder = write_folder(tmp_path / "first", weights, config={"pad_token_id": 0})
    tokens = {
        "model": {"vocab": {"▁": 1, "a": 2, "b": 3, "c": 4}},
        "added_tokens": [{"id": 0, "content": "<pad>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    first = load_any(folder)
    assert first.source_blank_id == 0
    assert first.vocabulary.tokens == last.vocabulary.tokens
    for name, tensor in last.state_dict.items():
        assert torch.equal(first.state_dict[name], tensor), name


def test_activations_reach_both_modules(tmp_path: Path) -> None:
    weights = hf_weights(random_weights(changed()))
    models = {
        act: load_any(write_folder(tmp_path / act, weights, hidden_act=act)).build_model()
        for act in ("silu", "swish", "gelu", "gelu_python", "relu")
    }
    x = torch.randn(1, 9, 12, generator=torch.Generator().manual_seed(2))
    for act, function in (("silu", torch.nn.SiLU()), ("gelu", torch.nn.GELU()), ("relu", torch.nn.ReLU())):
        block = models[act].encoder.layers[0]
        with torch.no_grad():
            feed_forward = block.feed_forward_in
            expected = feed_forward.project(function(feed_forward.expand(feed_forward.norm(x))))
            assert torch.equal(feed_forward(x), expected)
        assert block.convolution.activation is feed_forward.activation
    assert models["swish"].config.activation == "silu"
    assert models["gelu_python"].config.activation == "gelu"


def test_absent_sizes_are_those_of_transformers(tmp_path: Path) -> None:
    """ParakeetCTCConfig: vocab_size 1025, pad_token_id 1024; ParakeetEncoderConfig: subsampling by 8."""
    folder = write_folder(tmp_path / "hf", hf_weights(random_weights(changed())))
    values = json.loads((folder / "config.json").read_text())
    for key in ("vocab_size", "pad_token_id", "encoder_config"):
        del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    extractor = {"feature_extractor": {**EXTRACTOR, "feature_size": 80}}
    (folder / "processor_config.json").write_text(json.dumps(extractor))
    with pytest.raises(CheckpointError, match="the model has 1025 outputs"):
        load_any(folder)
    tokens = {"model": {"vocab": {f"t{index}": index for index in range(1024)}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    # By 8, one stage more than these weights have.
    with pytest.raises(CheckpointError, match=r"lacks the tensor 'encoder\.subsampling\.layers\.5\.weight'"):
        load_any(folder)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1"),
        ({"subsampling_conv_kernel_size": 5}, "subsampling_conv_kernel_size is 5"),
        ({"attention_chunk": 8}, "unknown setting 'attention_chunk'"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, encoder: dict[str, Any], message: str
) -> None:
    folder = write_folder(tmp_path / "hf", hf_weights(random_weights(changed())), **encoder)
    with pytest.raises(CheckpointError, match=message):
        load_any(folder)


def test_shards_and_what_is_missing(tmp_path: Path) -> None:
    weights = hf_weights(random_weights(changed()))
    folder = write_folder(tmp_path / "hf", weights)
    whole = load_any(folder)
    names = sorted(weights)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_any(folder)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = load_any(folder)
    assert all(torch.equal(sharded.state_dict[name], tensor) for name, tensor in whole.state_dict.items())
    index["weight_map"][names[0]] = "../a.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leaves the folder"):
        load_any(folder)


def test_a_front_end_cannot_be_asked_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", hf_weights(random_weights(changed())))
    with pytest.raises(CheckpointError, match="leave it out"):
        load_any(folder, LoadOptions(feature_preset="nemo-2.4"))
