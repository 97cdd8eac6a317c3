"""The training YAML: every key documented, typos named, values checked, paths resolved."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_asr.errors import ConfigError
from edge_asr.training import config as config_module
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import (
    config_from_dict,
    config_to_dict,
    describe_keys,
    dump_config,
    format_default_config,
    load_config,
)

SECTIONS = [
    item
    for item in vars(config_module).values()
    if isinstance(item, type)
    and dataclasses.is_dataclass(item)
    and item.__module__.startswith("edge_asr.training")
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda item: item.__name__)
def test_every_key_is_documented(section: type) -> None:
    keys = {item.name for item in dataclasses.fields(section)}
    docs = describe_keys(section)
    assert set(docs) == keys
    assert all(len(text) >= 5 for text in docs.values())


def test_printed_default_is_the_default() -> None:
    text = format_default_config()
    values = yaml.safe_load(text)
    values["data"]["train"], values["data"]["dev"] = [], []
    assert config_from_dict(values) == TrainConfig()
    assert text.count("#") > 80


def test_dump_and_read_back() -> None:
    config = config_from_dict({"seed": 9, "data": {"train": [{"path": "x.jsonl", "weight": 2}]}})
    assert config_from_dict(yaml.safe_load(dump_config(config))) == config
    assert config_to_dict(config)["data"]["train"][0]["weight"] == 2.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sead": 1}, ["the training config has the unknown key 'sead' (value 1", "'seed'"]),
        ({"optim": {"learning": 1.0}}, ["optim has the unknown key 'learning'"]),
        (
            {"data": {"train": [{"path": "x", "wieght": 2}]}},
            ["data.train[0] has the unknown key 'wieght'", "'weight'"],
        ),
        ({"optim": {"optimizer": "sgd"}}, ["optimizer must be adamw or muon, got 'sgd'"]),
        ({"optim": {"lr": "fast"}}, ["optim.lr is 'fast'; it must be a number"]),
        ({"optim": {"max_steps": 1.5}}, ["optim.max_steps", "a whole number"]),
        ({"optim": {"max_steps": True}}, ["optim.max_steps", "a whole number"]),
        ({"augment": {"speeds": 1.0}}, ["augment.speeds", "list"]),
        ({"augment": {"gain_db": [3.0, 1.0]}}, ["gain_db", "lowest"]),
        ({"augment": {"gain_db": [3.0]}}, ["gain_db is [3.0]; it must be a list of 2"]),
        ({"augment": {"noise_kinds": ["red"]}}, ["red", "pink"]),
        ({"augment": {"noise_prob": 1.5}}, ["noise_prob", "1.5"]),
        ({"augment": {"noise_kinds": ["recorded"]}}, ["recorded", "noise_manifest"]),
        ({"augment": {"codecs": ["speex"]}}, ["speex", "mu_law"]),
        ({"augment": {"vtlp_range": [0.1, 1.0]}}, ["vtlp_range", "0.5"]),
        ({"augment": {"room_distance_m": [0.0, 1.0]}}, ["room_distance_m", "0.05"]),
        ({"optim": {"lr": -1.0}}, ["lr", "-1"]),
        ({"optim": {"max_steps": None}}, ["max_steps"]),
        ({"optim": {"schedule": "cosine", "decay_over": "minutes"}}, ["max_minutes"]),
        ({"run": {"precision": "int8"}}, ["precision", "int8"]),
        ({"data": []}, ["data is []; it must be an object"]),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values)
    for word in words:
        assert word in str(caught.value)


def test_paths_are_relative_to_the_file_and_overrides_win(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("run_dir: out\ndata:\n  train:\n    - path: ../m.jsonl\noptim:\n  lr: 1e-3\n")
    config = load_config(file, {"optim.max_steps": 7, "tokenizer.kind": "char"})
    assert config.run_dir == str(tmp_path / "out")
    assert config.data.train[0].path == str(tmp_path.parent / "m.jsonl")
    assert (config.optim.lr, config.optim.max_steps, config.tokenizer.kind) == (1e-3, 7, "char")


@pytest.mark.parametrize("text", ["a: [", "- 1", "", "[" * 100_000, "seed: " + "9" * 5000])
def test_unusable_files(text: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(text)
    if text == "":
        assert load_config(file).seed == TrainConfig().seed
        return
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_config(file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")
