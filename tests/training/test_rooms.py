"""Simulated rooms decay as asked, and say where the talker is."""

from __future__ import annotations

import numpy as np
import pytest

from edge_asr.training.config import AugmentConfig
from edge_asr.training.rooms import SPEED_OF_SOUND, build_rooms, simulate_room

RATE = 16_000
SIZE = np.array([6.0, 5.0, 2.8])


def decay_s(response: np.ndarray) -> float:
    """Reverberation time from the slope between -5 and -25 dB of Schroeder's backward integral."""
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    level = 10 * np.log10(energy / energy[0] + 1e-12)
    return float(3 * (np.argmax(level < -25) - np.argmax(level < -5)) / RATE)


def room(distance_m: float, rt60_s: float, seed: int = 0) -> np.ndarray:
    microphone = np.array([2.0, 2.2, 1.2])
    source = microphone + np.array([distance_m, 0.0, 0.0])
    return simulate_room(SIZE, source, microphone, rt60_s, RATE, np.random.default_rng(seed))


@pytest.mark.parametrize("rt60_s", [0.25, 0.5, 0.9])
def test_sound_decays_in_the_time_asked_for(rt60_s: float) -> None:
    assert decay_s(room(2.0, rt60_s)) == pytest.approx(rt60_s, rel=0.35)


def test_direct_sound_comes_first_and_fades_with_distance() -> None:
    shares = []
    for distance_m in (0.5, 1.5, 3.5):
        response = room(distance_m, 0.4)
        assert np.argmax(np.abs(response)) == 0
        assert response[0] == pytest.approx(1.0, abs=0.1)
        shares.append(float(np.sum(response[:16] ** 2) / np.sum(response[16:] ** 2)))
    assert shares[0] > 3 * shares[1] > 3 * shares[2]


def test_first_echo_is_that_of_the_nearest_wall() -> None:
    # The floor: 1.2 m below both, 1 m apart.
    echo_m = np.hypot(1.0, 2.4)
    delay = round((echo_m - 1.0) / SPEED_OF_SOUND * RATE)
    response = room(1.0, 0.4)
    assert np.abs(response[8 : delay - 5]).max() < 0.1  # only what the high-pass leaves behind
    assert response[delay - 4 : delay + 6].max() > 0.15


def test_bank_of_rooms_is_repeatable() -> None:
    config = AugmentConfig(n_rooms=5)
    first, second, other = (build_rooms(config, RATE, seed) for seed in (1, 1, 2))
    assert len(first) == 5
    for a, b, c in zip(first, second, other, strict=True):
        assert a.dtype == np.float32
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)
        assert len(a) != len(c) or (a != c).any()
