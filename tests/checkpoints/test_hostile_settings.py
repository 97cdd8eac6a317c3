"""Settings of any kind and size: a checkpoint is loaded, or refused in words, and memory is not filled."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import test_parakeet
import test_wav2vec2
from make_nemo import changed, random_weights, write_nemo
from safetensors.torch import save_file

from edge_asr.checkpoints import load_any
from edge_asr.errors import CheckpointError

HUGE = (10**12, 10**30, 1e308)
WRONG: tuple[Any, ...] = (None, "", "x", -1, 0, *HUGE, float("nan"), True, [], {}, [[]], ["a"], {"a": 1})


def refuse_or_load(path: Path) -> None:
    """Any other error fails the test that calls this."""
    with contextlib.suppress(CheckpointError):
        load_any(path)


def keys_of(values: dict[str, Any]) -> list[tuple[str, ...]]:
    """The paths of all settings, those of sections too."""
    found: list[tuple[str, ...]] = []
    for key, value in values.items():
        found.append((key,))
        if isinstance(value, dict):
            found += [(key, *rest) for rest in keys_of(value)]
    return found


def replaced(values: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    result = copy.deepcopy(values)
    section = result
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return result


NEMO = changed(
    encoder={
        "self_attention_model": "rel_pos_local_attn",
        "att_context_size": [4, 2],
        "conv_context_size": [2, 2],
        "conv_norm_type": "batch_norm",
        "causal_downsampling": False,
        "global_tokens": 0,
        "subsampling_conv_chunking_factor": 1,
    },
    preprocessor={
        "preemph": 0.97,
        "lowfreq": 0,
        "highfreq": None,
        "mag_power": 2.0,
        "log_zero_guard_value": 1e-7,
        "normalize": {"fixed_mean": [0.0] * 16, "fixed_std": [1.0] * 16},
    },
)


@pytest.mark.parametrize("path", keys_of(NEMO), ids=".".join)
def test_nemo(tmp_path: Path, path: tuple[str, ...]) -> None:
    weights = random_weights(changed())
    for value in WRONG:
        refuse_or_load(write_nemo(tmp_path / "model.nemo", replaced(NEMO, path, value), weights))


@pytest.mark.parametrize("size", [[10**9, 1], [1, 10**12], [-1, 10**30], [10**30, 10**30]])
@pytest.mark.parametrize("model", ["rel_pos", "rel_pos_local_attn"])
def test_contexts_of_any_size(tmp_path: Path, model: str, size: list[int]) -> None:
    config = changed(encoder={"self_attention_model": model, "att_context_size": size})
    refuse_or_load(write_nemo(tmp_path / "model.nemo", config, random_weights(changed())))


def write_folder(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("value", [*HUGE, -1, "x", [], None])
def test_parakeet_sizes(tmp_path: Path, value: Any) -> None:
    files = {
        "config.json": test_parakeet.CONFIG,
        "processor_config.json": {"feature_extractor": {**test_parakeet.EXTRACTOR, "n_fft": 512}},
        "tokenizer.json": test_parakeet.TOKENS,
    }
    save_file(test_parakeet.hf_weights(random_weights(changed())), tmp_path / "model.safetensors")
    for name, content in files.items():
        for path in keys_of(content):
            if path != ("architectures",):
                refuse_or_load(write_folder(tmp_path, {**files, name: replaced(content, path, value)}))


@pytest.mark.parametrize("value", [*HUGE, -1, "x", [], None])
def test_wav2vec2_sizes(tmp_path: Path, value: Any) -> None:
    files = {
        "config.json": test_wav2vec2.CONFIG,
        "preprocessor_config.json": test_wav2vec2.EXTRACTOR,
        "tokenizer_config.json": {**test_wav2vec2.TOKENIZER, "added_tokens_decoder": {}},
        "vocab.json": test_wav2vec2.TOKENS,
    }
    save_file(test_wav2vec2.random_weights(test_wav2vec2.CONFIG), tmp_path / "model.safetensors")
    for name, content in files.items():
        for path in keys_of(content):
            if path != ("architectures",):
                refuse_or_load(write_folder(tmp_path, {**files, name: replaced(content, path, value)}))
