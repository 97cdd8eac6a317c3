"""Confidence of words: how far it is from the share of words that are right, and a table that corrects it.

A confidence is calibrated if, of the words with a confidence of 0.8, 80 % are right. What a decoder gives is
not: it is the probability of the least certain token. A monotone table keeps the order of words and makes it
so: isotonic regression (Ayer et al. 1955; pool adjacent violators), in few knots, linear in between.
What this file does not do: recognize, decide which words are right (metrics.py), keep tables
(`edge_asr.bundle.confidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

N_BINS = 10
_APART = 2e-6  # knots of a file have six digits
MAX_KNOTS = 20
MIN_KNOT_WORDS = 15
MIN_WORDS = 500
"""Fewer recognized words make no table: of 500 in two halves, a knot has about 15."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Words whose confidence is from `low` to `high`: how many, their mean confidence, the share right."""

    low: float
    high: float
    n_words: int
    confidence: float
    right: float


def reliability(confidences: FloatArray, is_right: BoolArray) -> tuple[ReliabilityBin, ...]:
    """Group words by confidence, in ten bins of equal width; empty ones are left out."""
    place = np.minimum((confidences * N_BINS).astype(np.int64), N_BINS - 1)
    found = []
    for index in range(N_BINS):
        inside = place == index
        if inside.any():
            found.append(
                ReliabilityBin(
                    low=index / N_BINS,
                    high=(index + 1) / N_BINS,
                    n_words=int(inside.sum()),
                    confidence=float(confidences[inside].mean()),
                    right=float(is_right[inside].mean()),
                )
            )
    return tuple(found)


def calibration_error(confidences: FloatArray, is_right: BoolArray) -> float:
    """Compute the expected calibration error: the mean of |confidence - right| of the bins, by words."""
    bins = reliability(confidences, is_right)
    n_words = sum(one.n_words for one in bins)
    return sum(one.n_words * abs(one.confidence - one.right) for one in bins) / max(n_words, 1)


def fit_monotone(confidences: FloatArray, is_right: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Fit a monotone function from confidences to shares of words that are right.

    Args:
        confidences: [n] of words, n >= 1.
        is_right: [n].

    Returns:
        Knots, from left to right: confidences, increasing, and shares, not decreasing, of one length, at most
        `MAX_KNOTS`. What is outside takes the value of the nearest one.
    """
    order = np.argsort(confidences, kind="stable")
    # The most confident words get knots of their own: what is best is told apart where it matters.
    n_groups = min(MAX_KNOTS - 3, max(len(order) // MIN_KNOT_WORDS, 1))
    groups = np.array_split(order, n_groups)
    groups = [*groups[:-1], *np.array_split(groups[-1], min(4, max(len(groups[-1]) // MIN_KNOT_WORDS, 1)))]
    blocks: list[list[float]] = []  # sum of confidences, words right, words
    for group in groups:
        blocks.append([float(confidences[group].sum()), float(is_right[group].sum()), float(len(group))])
        # The lower block of two may not have the higher share; nor may they have the same confidence.
        while len(blocks) > 1 and (
            blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]
            or blocks[-2][0] / blocks[-2][2] >= blocks[-1][0] / blocks[-1][2] - _APART
        ):
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    sums = np.array(blocks)
    # Half a word more on either side: no share is 0 or 1 for sure (Jeffreys's prior).
    shares = np.maximum.accumulate((sums[:, 1] + 0.5) / (sums[:, 2] + 1))
    return sums[:, 0] / sums[:, 2], shares


def cross_validate(confidences: FloatArray, is_right: BoolArray, speakers: Sequence[str]) -> FloatArray:
    """Correct each word by a table that was fitted without its speaker: two halves of the speakers in turn.

    Args:
        confidences, is_right: [n] of words.
        speakers: of each word; with one speaker in all, give clips.

    Raises:
        ConfigError: there are fewer than `MIN_WORDS` words, or all are of one speaker.
    """
    names, counts = np.unique(np.array(speakers), return_counts=True)
    if len(confidences) < MIN_WORDS:
        raise ConfigError(
            f"only {len(confidences)} words were recognized, and a calibration needs {MIN_WORDS}; give more "
            "speech"
        )
    if len(names) < 2:
        raise ConfigError("all words are of one clip, and half of them must be held out; give several clips")
    halves: tuple[set[str], set[str]] = (set(), set())
    sizes = [0, 0]
    for place in np.argsort(-counts, kind="stable"):
        smaller = int(sizes[1] < sizes[0])
        halves[smaller].add(str(names[place]))
        sizes[smaller] += int(counts[place])
    is_first = np.array([speaker in halves[0] for speaker in speakers])
    corrected = np.empty(len(confidences))
    for held_out in (is_first, ~is_first):
        knots = fit_monotone(confidences[~held_out], is_right[~held_out])
        corrected[held_out] = np.interp(confidences[held_out], *knots)
    return corrected
