"""Model configuration: validation, presets, round trips, and that reading one needs no torch."""

import json
import subprocess
import sys
from typing import Any

import pytest

from edge_asr.errors import ConfigError
from edge_asr.model import PRESETS, ConformerConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = ConformerConfig.from_preset(name, vocab_size=100, conv_context=[20, 10], conv_kernel_size=31)
    again = ConformerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.size == name
    assert again.conv_left_right == (20, 10)
    assert again.blank_id == 99


@pytest.mark.parametrize(
    ("context", "kernel", "expected"),
    [("symmetric", 9, (4, 4)), ("causal", 9, (8, 0)), ("causal", 8, (7, 0)), ([3, 1], 5, (3, 1))],
)
def test_conv_context_in_frames(context: Any, kernel: int, expected: tuple[int, int]) -> None:
    config = ConformerConfig(vocab_size=5, conv_context=context, conv_kernel_size=kernel)
    assert config.conv_left_right == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"vocab_size": 1}, "vocab_size must be at least 2"),
        ({"n_layers": 0}, "n_layers must be from 1 to 1048576, got 0"),
        ({"n_layers": True}, "n_layers is True; it must be a whole number"),
        ({"d_model": 144.0}, "d_model is 144.0; it must be a whole number"),
        ({"d_model": 145}, "d_model must be even and a multiple of n_heads, got 145 with 4 heads"),
        ({"attention": "flash"}, "attention is '.*'; it must be one of rel_pos, linear, .*, "),
        ({"block_order": "sideways"}, "block_order is '.*'; it must be one of attention_first"),
        ({"head": "rnnt"}, "head is '.*'; it must be one of linear, lstm"),
        ({"conv_norm": "instance_norm"}, "conv_norm is '.*'; it must be one of"),
        ({"subsampling": "vggnet"}, "subsampling is '.*'; it must be one of"),
        ({"subsampling_factor": 3}, "subsampling_factor must be 2, 4, 8 or 16, got 3"),
        ({"conv_kernel_size": 32}, "conv_kernel_size must be odd with a symmetric context, got 32"),
        ({"conv_context": [4, 5]}, r"add up to conv_kernel_size - 1 = 8, got \[4, 5\]"),
        ({"conv_context": "future"}, "conv_context is .future.; it must be .symmetric. or .causal. or"),
        ({"encoder": "rnn"}, "encoder is '.*'; it must be one of conformer, transformer"),
        ({"subsampling": "conv1d"}, "subsampling_factor of conv1d must be 2, got 8"),
        ({"taylor_terms": 5}, "taylor_terms goes with attention linear, not with rel_pos"),
        ({"attention": "linear", "taylor_terms": 4}, "taylor_terms must be odd and at least 3, .* got 4"),
        ({"attention": "linear", "taylor_terms": 1}, "taylor_terms must be odd and at least 3, .* got 1"),
        (
            {"attention": "linear", "taylor_terms": 5},
            r"taylor_terms 5 makes 36 \*\* 4 numbers .*, more than 65536; use fewer terms, or more heads",
        ),
        ({"attention": "linear", "taylor_terms": 10**9 + 1}, "taylor_terms 1000000001 makes 36"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"cmvn": "yes"}, "cmvn is 'yes'; it must be true or false"),
        ({"size": 3}, "size is 3; it must be text"),
        ({"intermediate_ctc_layers": [10]}, "from 1 to 9"),
        ({"intermediate_ctc_layers": [4, 2]}, "must rise without repeats"),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_bad_settings_name_the_field_and_the_value(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConformerConfig.from_dict({"vocab_size": 30, **setting})


def test_vocab_size_has_no_default() -> None:
    with pytest.raises(ConfigError, match="lacks 'vocab_size'"):
        ConformerConfig.from_dict({})


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match="'huge'; choose one of tiny, transformer, small, medium, large, paper-s"
    ):
        ConformerConfig.from_preset("huge", vocab_size=30)


def test_configuration_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edge_asr.model import ConformerConfig\n"
        "ConformerConfig.from_preset('tiny', vocab_size=30)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"subsampling": "conv2d", "subsampling_factor": 16}, "conv2d must be 1, 2, 4, 6 or 8, got 16"),
        ({"subsampling": "linear", "subsampling_factor": 4}, "linear must be 1, got 4"),
        ({"added_positions": 1}, "added_positions is 1; it must be true or false"),
        ({"subsampling": "conv2d", "subsampling_factor": 4, "subsampling_causal": True}, "not with conv2d"),
        ({"subsampling": "none", "subsampling_factor": 1}, "n_mels equal to d_model"),
        ({"subsampling": "waveform", "subsampling_factor": 10, "n_mels": 1}, "0 waveform_layers"),
        ({"waveform_layers": [[4, 10, 5]]}, '1 waveform_layers; "waveform" needs them'),
        ({"subsampling": "waveform", "waveform_layers": [[4, 10, 5], [4, 3, 2]]}, "subsampling_factor 10"),
        ({"waveform_layers": [[4, 10]]}, r"waveform_layers\[0\] is \[4, 10\]; it must be a list of 3 values"),
        ({"attention_context": [3, -2]}, "attention_context must be"),
        ({"attention_context": [3, 1], "attention": "linear"}, "leave attention_context out"),
        ({"attention_context_style": "chunked_limited"}, "right >= 0, got None"),
        ({"attention": "rel_pos_local", "attention_context": [-1, 3]}, "of 0 or more"),
        ({"global_tokens": 2}, "go with attention rel_pos_local"),
        ({"norm_eps": 0.0}, "norm_eps must be a number above 0"),
        ({"ff_size": 0}, "ff_size must be from 1 to"),
        ({"activation": "elu"}, "activation is 'elu'; it must be one of silu, gelu, relu, tanh"),
        ({"output_norm": 1}, "output_norm is 1; it must be true or false"),
    ],
)
def test_settings_that_do_not_go_together(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConformerConfig.from_dict({"vocab_size": 30, **setting})


@pytest.mark.parametrize(
    ("setting", "factor", "first"),
    [
        ({}, 8, 1),
        ({"subsampling_causal": True, "subsampling_factor": 4}, 4, -2),
        ({"subsampling": "conv2d", "subsampling_factor": 6}, 6, 11),
        ({"subsampling": "none", "subsampling_factor": 1, "n_mels": 144}, 1, 1),
        (
            {
                "subsampling": "waveform",
                "subsampling_factor": 10,
                "n_mels": 1,
                "waveform_layers": [[4, 10, 5], [4, 3, 2]],
            },
            10,
            20,
        ),
    ],
)
def test_output_frames_and_round_trip(setting: dict[str, Any], factor: int, first: int) -> None:
    config = ConformerConfig.from_dict({"vocab_size": 30, "attention_context": [4, 2], **setting})
    assert (config.output_frames.factor, config.first_output_frames) == (factor, first)
    assert ConformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
