"""Codecs keep length and time, and change what they should."""

from __future__ import annotations

import numpy as np
import pytest

from edge_asr.training.codecs import CODECS, apply_codec
from edge_asr.training.config import AugmentConfig

RATE = 16_000


@pytest.mark.parametrize("codec", CODECS)
def test_codec_keeps_length_and_place(codec: str) -> None:
    rng = np.random.default_rng(0)
    time = np.arange(RATE + 123) / RATE
    # Bursts of a tone within the telephone's band: their places show a delay.
    waveform = (0.3 * np.sin(2 * np.pi * 700 * time) * (np.sin(2 * np.pi * 3 * time) > 0.5)).astype(
        np.float32
    )
    received = apply_codec(waveform, codec, RATE, rng)
    assert received.shape == waveform.shape
    assert received.dtype == np.float32
    assert np.corrcoef(waveform, received)[0, 1] > 0.8  # GSM is a rough codec; a delay would give about 0
    assert np.abs(received - waveform).max() > 1e-4


@pytest.mark.parametrize("codec", ["mu_law", "gsm"])
def test_telephones_have_no_high_frequencies(codec: str) -> None:
    noise = (0.1 * np.random.default_rng(1).standard_normal(RATE)).astype(np.float32)
    power = np.abs(np.fft.rfft(apply_codec(noise, codec, RATE, np.random.default_rng(0)))) ** 2
    assert power[5000:].mean() < 1e-3 * power[500:3000].mean()


def test_very_short_sound_is_left() -> None:
    click = np.ones(10, np.float32)
    np.testing.assert_array_equal(apply_codec(click, "gsm", RATE, np.random.default_rng(0)), click)


def test_names_of_the_configuration_are_those_of_the_codecs() -> None:
    assert AugmentConfig(codecs=CODECS).codecs == CODECS
