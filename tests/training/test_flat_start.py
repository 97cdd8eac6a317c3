"""The even alignment: tokens in order over the loud part, blank in silence, whatever is joined."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge_asr.feature_config import FeatureConfig
from edge_asr.training.config import AugmentConfig, SpecAugmentConfig
from edge_asr.training.corpus import Clip
from edge_asr.training.flat_start import IGNORED, join_labels, spread_tokens, token_weights
from edge_asr.training.pipeline import BatchBuilder, FlatStart
from edge_asr.training.plan import Item, Position
from edge_asr.vocabulary import Vocabulary

HOP, RATE, BLANK = 160, 16_000, 9
WEIGHTS = np.ones(10)


def loud_between(start_s: float, end_s: float, total_s: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    waveform = 1e-4 * rng.standard_normal(int(total_s * RATE))
    waveform[int(start_s * RATE) : int(end_s * RATE)] *= 2000
    return waveform.astype(np.float32)


def test_tokens_share_the_loud_part_by_weight() -> None:
    weights = WEIGHTS.copy()
    weights[3] = 2.0
    tokens = np.array([1, 3, 1])
    labels = spread_tokens(loud_between(0.5, 1.3, 2.0), tokens, weights, hop_length=HOP, blank_id=BLANK)
    runs = [(key, len(list(group))) for key, group in itertools.groupby(labels.tolist())]
    assert [key for key, _ in runs] == [BLANK, 1, 3, 1, BLANK]
    assert [n for _, n in runs] == pytest.approx([50, 20, 40, 20, 70], abs=1)


@pytest.mark.parametrize("n_samples", [0, 100, 160, 161, 800])
def test_any_length(n_samples: int) -> None:
    waveform = np.zeros(n_samples, np.float32)
    labels = spread_tokens(waveform, np.array([1, 2]), WEIGHTS, hop_length=HOP, blank_id=BLANK)
    assert len(labels) == n_samples // HOP
    assert set(labels.tolist()) <= {1, 2, BLANK}


def test_joining_and_subsampling() -> None:
    parts = [np.array([1] * 8), np.array([2] * 8)]
    labels = join_labels(parts, [4, 20], 30, factor=4, blank_id=BLANK)
    assert labels.tolist() == [BLANK, 1, 1, BLANK, BLANK, 2, 2, BLANK]
    assert len(join_labels(parts, [0, 8], 15, factor=8, blank_id=BLANK)) == 2


def test_weights_follow_the_spelling() -> None:
    vocabulary = Vocabulary.from_pieces(["\u2581a", "ing", "\u2581there", "s"])
    assert token_weights(vocabulary)[:4].tolist() == [2.0, 3.0, 5.0, 1.0]


def test_labels_come_with_the_batch_at_the_encoder_rate() -> None:
    waveform = (loud_between(0.2, 0.8, 1.0) * 32768).astype(np.int16)
    clips = [Clip(str(n), "s", n, "x", RATE, 1.0, None, waveform) for n in range(2)]  # type: ignore[arg-type]
    builder = BatchBuilder(
        clips,
        [np.array([1, 2]), np.array([3])],
        FeatureConfig.from_preset("nemo"),
        AugmentConfig(enabled=False),
        SpecAugmentConfig(),
        np.zeros(80, np.float32),
        1,
        FlatStart(WEIGHTS, 8, BLANK),
    )
    items = [
        Item((0, 1), (1.0, 1.0), (0.0, 0.4, 0.0), (1, 0, 1, 0), 2.4),
        Item((1,), (1.0,), (0.0, 0.0), (1, 0, 1, 1), 1.0),
    ]
    batch = builder[(Position(0, 0), items)]
    assert batch.alignment is not None
    assert batch.alignment.shape == (2, 30)
    first, second = ([key for key, _ in itertools.groupby(row.tolist())] for row in batch.alignment)
    assert first == [BLANK, 1, 2, BLANK, 3, BLANK]
    assert second == [BLANK, 3, BLANK, IGNORED]
    assert (batch.alignment[1] == IGNORED).sum() == 30 - 13


def test_known_times_take_the_place_of_even_spreading() -> None:
    waveform = (loud_between(0.2, 0.8, 1.0) * 32768).astype(np.int16)
    clips = [Clip("0", "s", 0, "x", RATE, 1.0, None, waveform)]  # type: ignore[arg-type]
    spans = np.array([[0.1, 0.2], [0.6, 0.9]], np.float32)
    builder = BatchBuilder(
        clips,
        [np.array([1, 2])],
        FeatureConfig.from_preset("nemo"),
        AugmentConfig(enabled=False),
        SpecAugmentConfig(),
        np.zeros(80, np.float32),
        1,
        FlatStart(WEIGHTS, 1, BLANK, [spans]),
    )
    items = [
        Item((0,), (1.0,), (0.0, 0.0), (1, 0, 1, 0), 1.0),
        Item((0,), (0.5,), (0.5, 0.0), (1, 0, 1, 1), 2.5),
    ]
    alignment = builder[(Position(0, 0), items)].alignment
    assert alignment is not None
    for row, speed, begin in ((alignment[0], 1.0, 0), (alignment[1], 0.5, 50)):
        for token, (first, last) in zip((1, 2), spans / speed * 100, strict=True):
            found = np.flatnonzero(row == token)
            assert found[0] == pytest.approx(begin + first, abs=1)
            assert found[-1] + 1 == pytest.approx(begin + last, abs=1)
