"""The clock that finds audio which vanished without a flag."""

from __future__ import annotations

import numpy as np
import pytest

from edge_asr.runtime.live.loss_clock import LossClock

BLOCK_S = 0.02


def arrivals(duration_s: float, *, burst: int = 3, speed: float = 1.0, seed: int = 0) -> np.ndarray:
    """Arrival times of 20 ms blocks in bursts, late by up to 40 ms at random."""
    n = round(duration_s / BLOCK_S)
    ends = (np.arange(n) + 1) * BLOCK_S / speed
    bursts = np.ceil((np.arange(n) + 1) / burst) * burst * BLOCK_S / speed
    late = np.random.default_rng(seed).uniform(0, 0.04, n)
    return np.maximum.accumulate(np.maximum(ends, bursts) + late)


def found(times: np.ndarray) -> list[float]:
    clock = LossClock()
    return [lost for at in times if (lost := clock.observe(float(at), BLOCK_S)) > 0]


@pytest.mark.parametrize("speed", [0.9995, 1.0, 1.0005])
def test_jitter_bursts_and_a_quarter_of_an_hour_of_crystal_drift_are_no_loss(speed: float) -> None:
    assert found(arrivals(900, speed=speed)) == []


def test_a_stand_still_that_is_caught_up_is_no_loss() -> None:
    times = arrivals(20)
    frozen = (times > 8) & (times < 13)
    times[frozen] = 13 + np.linspace(0, 0.05, frozen.sum())
    assert found(times) == []


@pytest.mark.parametrize("lost_s", [0.3, 1.0, 15.0])
def test_a_hole_is_found_once_and_measured(lost_s: float) -> None:
    times = arrivals(20)
    times[times > 8] += lost_s
    assert found(times) == [pytest.approx(lost_s, abs=0.03)]


def test_two_holes_are_two_losses() -> None:
    times = arrivals(30)
    times[times > 8] += 0.5
    times[times > 20] += 2.0
    assert found(times) == [pytest.approx(0.5, abs=0.03), pytest.approx(2.0, abs=0.03)]


def test_a_loss_that_is_known_is_not_told_again() -> None:
    clock = LossClock()
    times = arrivals(20)
    times[times > 8] += 1.0
    told = False
    for at in times:
        if at > 8 and not told:
            clock.account(1.0)
            told = True
        assert clock.observe(float(at), BLOCK_S) == 0.0


def test_lateness_is_what_an_overflow_cost() -> None:
    clock = LossClock()
    for at in arrivals(5):
        clock.observe(float(at), BLOCK_S)
    assert clock.lateness_now() < 0.1
    clock.observe(5.0 + BLOCK_S + 0.7, BLOCK_S)
    assert clock.lateness_now() == pytest.approx(0.7, abs=0.05)
