"""Summaries against numpy and against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.benchmark.statistics import four_digits, summarize
from edge_asr.errors import ConfigError

SAMPLES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=60)


def test_worked_out_by_hand() -> None:
    found = summarize([4.0, 1.0, 3.0, 2.0])
    assert (found.n, found.min, found.mean, found.p50, found.max) == (4, 1.0, 2.5, 2.5, 4.0)
    assert found.p90 == pytest.approx(3.7)  # rank 2.7 of 0..3: 3 + 0.7 * (4 - 3)
    assert found.jitter == pytest.approx((3 + 2 + 1) / 3)


def test_jitter_is_of_neighbors_in_time_and_not_of_spread() -> None:
    rising = summarize([1.0, 2.0, 3.0, 4.0])
    shuffled = summarize([1.0, 4.0, 2.0, 3.0])
    assert (rising.p50, rising.p99) == (shuffled.p50, shuffled.p99)
    assert rising.jitter == 1.0
    assert shuffled.jitter == pytest.approx(2.0)
    assert summarize([5.0]).jitter == 0.0
    assert summarize([5.0, 5.0, 5.0]).jitter == 0.0


@given(SAMPLES)
def test_percentiles_are_numpys(samples: list[float]) -> None:
    found = summarize(samples)
    expected = np.percentile(samples, [0, 50, 90, 95, 99, 100])
    given_ = [found.min, found.p50, found.p90, found.p95, found.p99, found.max]
    assert given_ == pytest.approx(expected.tolist())
    assert found.mean == pytest.approx(np.mean(samples))


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_to_summarize_is_an_error(samples: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        summarize(samples)


def test_four_digits() -> None:
    assert [four_digits(v) for v in (123456.0, 0.00123456, 0.0)] == [123500.0, 0.001235, 0.0]
