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
        ({"n_layers": 0}, "n_layers must be a whole number of at least 1, got 0"),
        ({"n_layers": True}, "n_layers must be a whole number"),
        ({"d_model": 144.0}, "d_model must be a whole number"),
        ({"d_model": 145}, "d_model must be even and a multiple of n_heads, got 145 with 4 heads"),
        ({"attention": "flash"}, "attention must be one of rel_pos, linear, .*, got 'flash'"),
        ({"block_order": "sideways"}, "block_order must be one of attention_first"),
        ({"head": "rnnt"}, "head must be one of linear, lstm"),
        ({"conv_norm": "instance_norm"}, "conv_norm must be one of"),
        ({"subsampling": "vggnet"}, "subsampling must be one of"),
        ({"subsampling_factor": 3}, "subsampling_factor must be 2, 4, 8 or 16, got 3"),
        ({"conv_kernel_size": 32}, "conv_kernel_size must be odd with a symmetric context, got 32"),
        ({"conv_context": [4, 5]}, r"add up to conv_kernel_size - 1 = 8, got \[4, 5\]"),
        ({"conv_context": "future"}, "conv_context must be"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"cmvn": "yes"}, "cmvn must be true or false"),
        ({"size": 3}, "size must be a text label"),
        ({"intermediate_ctc_layers": [10]}, "whole numbers from 1 to 9"),
        ({"intermediate_ctc_layers": [4, 2]}, "must rise without repeats"),
        ({"colour": "red"}, "Unknown model setting 'colour'"),
    ],
)
def test_bad_settings_name_the_field_and_the_value(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConformerConfig.from_dict({"vocab_size": 30, **setting})


def test_vocab_size_has_no_default() -> None:
    with pytest.raises(ConfigError, match="lack vocab_size"):
        ConformerConfig.from_dict({})


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="'huge'; choose one of tiny, small, medium, large, paper-s"):
        ConformerConfig.from_preset("huge", vocab_size=30)


def test_configuration_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edge_asr.model import ConformerConfig\n"
        "ConformerConfig.from_preset('tiny', vocab_size=30)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
