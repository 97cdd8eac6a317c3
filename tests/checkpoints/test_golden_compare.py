"""scripts/golden: how an error of a feature is weighed, and where a fixture's checkpoint is found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.fft
from golden.compare import Result, float32_weight
from golden.fixtures import find_fixtures
from make_espnet import ESPNET, Plain, random_weights, write_espnet


def test_an_error_counts_in_full_down_to_the_epsilon_of_float32() -> None:
    log_mel = np.array([[10.0, -5.9, -10.0], [-3.0, -3.0, -3.0]], np.float32)
    weight = float32_weight(log_mel, 2.0)
    assert weight[0, :2].tolist() == [1.0, 1.0]
    assert weight[1].tolist() == [1.0, 1.0, 1.0]
    # 20 below: the amplitude of e^-20 in power, against that of 2^-23.
    assert weight[0, 2] == pytest.approx(math.exp(-10.0) / 2.0**-11.5, rel=1e-5)
    # Of a magnitude, half of it is the same power.
    np.testing.assert_allclose(float32_weight(log_mel / 2, 1.0), weight, rtol=1e-5)


def test_the_noise_of_a_float32_transform_is_level_once_weighed() -> None:
    """The premise: with tones 19 to 27 nepers above noise, the noise's error grows; weighed it stays."""
    generator = np.random.default_rng(0)
    phase = generator.uniform(0.0, 2.0 * np.pi, (2000, 10, 1))
    tones = np.cos(2.0 * np.pi * np.arange(31, 41)[:, None] * np.arange(512) / 512 + phase).sum(axis=1)
    noise = generator.normal(0.0, 0.045, (2000, 512))
    plain, weighed = [], []
    for level in (18.0, 22.0, 26.0):
        amplitude = np.exp((level - 11.0) / 2.0)
        frames = (amplitude * tones + noise).astype(np.float32)
        exact, rounded = (
            np.log(np.abs(scipy.fft.rfft(frames.astype(dtype)))[:, 100:200] ** 2 + 1e-12)
            for dtype in (np.float64, np.float32)
        )
        loudest = np.full((2000, 1), np.log((256.0 * amplitude) ** 2))
        weight = float32_weight(np.concatenate([loudest, exact], axis=1).astype(np.float32), 2.0)[:, 1:]
        plain.append(float(np.median(np.abs(rounded - exact))))
        weighed.append(float(np.median(np.abs(rounded - exact) * weight)))
    assert plain[2] > 20.0 * plain[0]
    assert max(weighed) < 1.5 * min(weighed)


def test_a_result_fails_on_the_weighed_error() -> None:
    passing = Result(feature_max=4e-4, feature_mean=1e-6, feature_unweighted=7e-3)
    assert passing.failures() == []
    failing = Result(feature_max=6e-4, feature_mean=1e-6, feature_unweighted=7e-3)
    assert failing.failures() == ["feature_max 6.0e-04 is above 5e-04"]


@pytest.mark.parametrize("inside", [".", "exp/asr_conformer", "a/exp/asr_conformer"])
def test_a_checkpoint_is_found_in_folders_of_folders(tmp_path: Path, inside: str) -> None:
    folder = write_espnet(tmp_path / "fixture" / inside, ESPNET, random_weights(Plain(attention="legacy")))
    (tmp_path / "fixture" / "golden.json").write_text(json.dumps({"family": "espnet"}), encoding="utf-8")
    (fixture,) = find_fixtures(tmp_path)
    assert fixture.checkpoint == folder
