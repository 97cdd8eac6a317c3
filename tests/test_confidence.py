"""Calibration of confidences: against known probabilities, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edge_asr.confidence import MAX_KNOTS, calibration_error, cross_validate, fit_monotone, reliability
from edge_asr.errors import ConfigError


def words(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Words that are right with the cube of their confidence."""
    rng = np.random.default_rng(seed)
    confidences = rng.random(n)
    return confidences, rng.random(n) < confidences**3


def test_the_error_is_the_mean_distance_of_bins() -> None:
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.25, 0.25, 0.0, 1.0])
    is_right = np.array([1, 1, 1, 0, 1, 0, 0, 1], np.bool_)
    found = [(one.low, one.n_words, one.confidence, one.right) for one in reliability(confidences, is_right)]
    assert found == [(0.0, 1, 0.0, 0.0), (0.2, 2, 0.25, 0.5), (0.9, 5, pytest.approx(0.96), 0.8)]
    assert calibration_error(confidences, is_right) == pytest.approx((2 * 0.25 + 5 * 0.16) / 8)
    assert calibration_error(np.zeros(0), np.zeros(0, np.bool_)) == 0


def test_knots_are_monotone_and_follow_the_truth() -> None:
    raw, shares = fit_monotone(*words(20_000))
    assert len(raw) <= MAX_KNOTS
    assert (np.diff(raw) > 0).all()
    assert (np.diff(shares) >= 0).all()
    at = np.linspace(0.05, 0.95, 19)
    # 1000 words a knot: 0.016 of standard error at most, and lines between knots of a cube.
    assert np.abs(np.interp(at, raw, shares) - at**3).max() < 0.05


@pytest.mark.parametrize("n_words", [1, 2, 14, 40])
@pytest.mark.parametrize("value", [0.3, None])
def test_few_or_equal_confidences_make_a_table_too(n_words: int, value: float | None) -> None:
    confidences, is_right = words(n_words)
    raw, shares = fit_monotone(confidences if value is None else np.full(n_words, value), is_right)
    assert 1 <= len(raw) == len(shares)
    assert (shares > 0).all()
    assert (shares < 1).all()
    assert (np.diff(raw) > 0).all()


def test_confidence_that_falls_where_words_are_right_becomes_one_share() -> None:
    confidences = np.linspace(0, 1, 600)
    _, shares = fit_monotone(confidences, confidences < 0.5)
    assert shares == pytest.approx([0.5], abs=0.01)


def test_words_held_out_are_corrected() -> None:
    confidences, is_right = words(4000)
    speakers = [f"speaker {index % 9}" for index in range(4000)]
    corrected = cross_validate(confidences, is_right, speakers)
    assert calibration_error(confidences, is_right) > 0.2
    assert calibration_error(corrected, is_right) < 0.03


def test_no_speaker_is_in_both_halves() -> None:
    """Words of one speaker are all right, of the other all wrong: a table that knew them would be perfect."""
    confidences = np.tile(np.linspace(0, 1, 300), 2)
    is_right = np.repeat([True, False], 300)
    corrected = cross_validate(confidences, is_right, ["a"] * 300 + ["b"] * 300)
    assert corrected[:300].max() < 0.1
    assert corrected[300:].min() > 0.9


def test_too_little_speech_is_refused() -> None:
    confidences, is_right = words(499)
    with pytest.raises(ConfigError, match="only 499 words were recognized, and a calibration needs 500"):
        cross_validate(confidences, is_right, ["a", *["b"] * 498])
    confidences, is_right = words(500)
    with pytest.raises(ConfigError, match="all words are of one clip"):
        cross_validate(confidences, is_right, ["a"] * 500)
