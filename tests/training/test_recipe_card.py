"""What follows training in the recipe of tiny-en: the sample of real speech, and the model card."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner

from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.errors import ConfigError, GateError

RECIPE = Path(__file__).parents[2] / "scripts" / "recipes" / "tiny_en"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`recipe("tune")`: a program of the recipe as a module."""
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module


def write_manifest(path: Path, *rows: Mapping[str, str]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_results_are_found_once_for_the_same_models(recipe: Any, tmp_path: Path) -> None:
    tune = recipe("tune")
    calls: list[int] = []
    for models in ("a", "a", "b"):
        results = tune.Results(tmp_path / "results.json", models)
        for _ in range(2):
            assert results.once("wer", lambda: calls.append(1) or {"wer": 0.5}) == {"wer": 0.5}
    assert len(calls) == 2


def test_the_card_says_what_was_measured(recipe: Any, tmp_path: Path) -> None:
    tune = recipe("tune")
    home = EMBEDDED_MODELS / "tiny-en"
    bundle = Bundle.load("tiny-en", check_hashes=False)
    row = {"audio_filepath": "a.wav", "text": "a"}
    sets = {key: write_manifest(tmp_path / f"{key}.jsonl", row, row) for key in tune.SETS}
    rates = {key: {"wer": 0.1 + i / 10, "cer": 0.05} for i, key in enumerate(tune.SETS)}
    measured = {f"{k} {d}": rates[k] for k in rates for d in ("fp32 greedy", "int8 greedy", "int8 beam")}
    streams = {"fp32 160": {**rates, "ratio": 2.345}, "int8 640": {**rates, "ratio": 1.5}}
    values = {
        **tune.describe(bundle, home, sets, {key: [row] * 12 for key in sets}),
        **tune.error_tables(measured, streams, sets),
        "stream_costs": tune.cost_table(streams),
        "tuning": "90",
    }
    template = (RECIPE / "card.md").read_text("utf-8")
    card = tune.fill_card(template, values)
    assert "$" not in card
    assert f"| parameters | {bundle.info.n_parameters / 1e6:.2f} M |" in card
    assert f"subsampling x{bundle.info.subsampling_factor}, a frame is " in card
    assert "2 of 12 of AN4 dev" in card
    assert "| LibriSpeech dev | 2 | 20.0 %, 5.0 % | 20.0 %, 5.0 % | 20.0 % |" in card
    assert "| set | 160 ms, float32 | 640 ms, INT8 |" in card
    assert "| 160 ms, float32 | 10.0 % | 30.0 % | 160 ms | 2.35 |" in card
    with pytest.raises(ValueError, match=r"card\.md has no place for more"):
        tune.fill_card(template, {**values, "more": ""})
    with pytest.raises(KeyError):
        tune.fill_card(template, {key: value for key, value in values.items() if key != "stream"})


def test_a_folder_without_the_sets_is_named(recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    tune = recipe("tune")
    monkeypatch.setattr(tune, "restart_with_threads", lambda n: None)
    result = CliRunner().invoke(tune.main, ["--data", str(tmp_path), "--work", str(tmp_path / "work")])
    assert result.exit_code == 2
    assert f"there is no {tmp_path / 'an4_dev.jsonl'}; --data is the folder of an4_dev," in result.stderr
    result = CliRunner().invoke(tune.main, ["--data", str(tmp_path), "--every", "0"])
    assert "0 is not in the range x>=1" in result.stderr


def test_clips_become_a_sample_if_they_are_heard_right(
    recipe: Any, tmp_path: Path, sample_path: Path, sample_texts: Mapping[str, str]
) -> None:
    sample = recipe("sample")
    heard = {"audio_filepath": str(sample_path), "text": sample_texts["fp32"], "id": "go"}
    dev = write_manifest(
        tmp_path / "an4_dev.jsonl", heard, {**heard, "id": "wrong", "text": "something else"}
    )
    other = write_manifest(tmp_path / "other.jsonl", {**heard, "id": "other"})
    path = sample.make_sample(["go"], [dev, other], tmp_path / "samples")
    assert soundfile.read(path)[0].tolist() == soundfile.read(sample_path)[0].tolist()
    assert path.with_suffix(".txt").read_text() == sample_texts["fp32"] + "\n"
    assert "- go: CMU AN4 (Carnegie Mellon University; BSD-like license)" in (
        (tmp_path / "samples" / "README.md").read_text()
    )
    embedded = Bundle.load("tiny-en")
    float32 = dataclasses.replace(embedded.info, artifacts=(embedded.artifact("fp32"),), streaming=None)
    bundle = dataclasses.replace(embedded, info=float32)
    sample.check_sample(path, bundle)

    path = sample.make_sample(["go", "wrong"], [dev], tmp_path / "samples")
    n_pause = round(sample.PAUSE_S * sample.RATE)
    assert soundfile.info(path).frames == 2 * soundfile.info(sample_path).frames + n_pause
    with pytest.raises(GateError, match=r"the sample says '.*something else'; fp32 hears '.*; choose other"):
        sample.check_sample(path, bundle)
    with pytest.raises(SystemExit, match="3"):
        sample.install_sample(["wrong"], [dev], bundle, tmp_path / "installed")
    assert not (tmp_path / "installed").exists()
    sample.install_sample(["go"], [dev], bundle, tmp_path / "installed")
    names = {p.name for p in (tmp_path / "installed").iterdir()}
    assert names == {"README.md", "real_speech.flac", "real_speech.txt"}
    with pytest.raises(ConfigError, match=r"there is no clip no in an4_dev\.jsonl; give the id"):
        sample.make_sample(["no"], [dev], tmp_path)
    with pytest.raises(ConfigError, match="other is of other, whose license is not known"):
        sample.make_sample(["other"], [dev, other], tmp_path)


def test_samples_of_real_speech_are_heard_right(recipe: Any) -> None:
    """Of the ones that ship, every word; the synthesized one is in tests/runtime/test_self_test.py."""
    sample = recipe("sample")
    for path in sorted((EMBEDDED_MODELS / "samples").glob("*.flac")):
        assert path.with_suffix(".txt").is_file()
        if path.stem == sample.SAMPLE_NAME:
            sample.check_sample(path, Bundle.load("tiny-en"))
            assert path.name in (path.parent / "README.md").read_text("utf-8")
