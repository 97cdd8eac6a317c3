"""Random models have the sizes of the models they stand for; one is exported and runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_asr.benchmark.random_models import KNOWN_SIZES, NAMES, export_random, random_config, save_random
from edge_asr.errors import ConfigError, MissingDependencyError
from edge_asr.model import PRESETS, ConformerConfig, ConformerCTC
from edge_asr.runtime.recognizer import Recognizer


# Millions of parameters as their authors give them: NeMo's tables (conformer_ctc_bpe.yaml: 13, 30, 121;
# fast-conformer_ctc_bpe.yaml: 120 and 616 for the large and XLarge, the latter with a transducer's decoder).
@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        ("conformer-ctc-s", 13, 0.03),
        ("conformer-ctc-m", 30, 0.03),
        ("conformer-ctc-l", 121, 0.03),
        ("fastconformer-l", 115, 0.05),
        ("parakeet-ctc-0.6b", 608, 0.02),
    ],
)
def test_known_sizes(name: str, millions: float, tolerance: float) -> None:
    config = random_config(name)
    assert config.vocab_size == 1025
    with torch.device("meta"):
        model = ConformerCTC(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=tolerance)


@pytest.mark.parametrize("name", ["conformer-ctc-s", "fastconformer-l", "parakeet-ctc-0.6b"])
def test_known_sizes_run_on_shapes_alone(name: str) -> None:
    config = random_config(name)
    with torch.device("meta"):
        model = ConformerCTC(config).eval()
        log_probs = model(torch.empty(2, 100, 80), torch.tensor([100, 60]))[0]
    assert log_probs.shape == (2, -(-100 // config.subsampling_factor), 1025)


def test_names_are_presets_and_known_sizes_and_others_are_refused() -> None:
    assert set(NAMES) == {*PRESETS, *KNOWN_SIZES}
    for name in PRESETS:
        assert random_config(name) == ConformerConfig.from_preset(name, vocab_size=129)
    with pytest.raises(ConfigError, match=r"parakeet-ctc-0\.6b"):
        random_config("gigantic")


def test_without_torch_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"edge-asr\[export\]"):
        save_random("tiny", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "transformer"])
def test_a_random_bundle_is_proven_and_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    little = {**PRESETS[preset], "d_model": 32, "n_layers": 1, "subsampling_channels": 8}
    monkeypatch.setitem(KNOWN_SIZES, "little", little)
    (tmp_path / "a").mkdir()
    bundle = export_random("little", tmp_path / "a")
    assert bundle.info.verified
    with Recognizer.load(bundle.path) as recognizer:
        assert recognizer.transcribe(np.zeros(16_000, np.float32), 16_000).duration_s == 1.0
    assert bundle.info.name == "random-little"
    assert [a.precision for a in bundle.info.artifacts] == ["fp32"]
    again = save_random("little", tmp_path / "b")
    assert (again / "model.safetensors").read_bytes() == (
        tmp_path / "a" / "checkpoint" / "model.safetensors"
    ).read_bytes()
