"""Prefix beam search against the sum over all paths, in one go and in pieces, with frames and confidences."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pytest
from decoder_contract import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.greedy import greedy_decode

F32Array = npt.NDArray[np.float32]
BLANK = 0


def random_log_probs(n_frames: int, n_classes: int, seed: int, spread: float = 2.0) -> F32Array:
    logits = np.random.default_rng(seed).normal(0, spread, (n_frames, n_classes))
    normalized = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.asarray(normalized.astype(np.float32)).reshape(n_frames, n_classes)


def sum_over_paths(log_probs: F32Array) -> dict[tuple[int, ...], float]:
    """The probability of every token sequence, by every path (Graves et al. 2006, equation 3)."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        tokens = tuple(token for token, _ in itertools.groupby(path) if token != BLANK)
        found[tokens] += float(np.exp(log_probs[np.arange(len(path)), path].astype(np.float64).sum()))
    return found


def exhaustive(**options: float | None) -> BeamDecoder:
    return BeamDecoder(BLANK, beam_size=10_000, min_log_prob=-np.inf, skip_blank=None, **options)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(n_frames=st.integers(0, 5), n_classes=st.integers(2, 4), seed=st.integers(0, 10_000))
def test_every_hypothesis_has_the_sum_of_its_paths(n_frames: int, n_classes: int, seed: int) -> None:
    log_probs = random_log_probs(n_frames, n_classes, seed)
    expected = sum_over_paths(log_probs)
    decoder = exhaustive()
    decoder.push(log_probs)
    found = decoder.n_best()
    assert {tuple(h.tokens.ids.tolist()) for h in found} == set(expected)
    assert len(found) == len(expected)
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    for hypothesis in found:
        assert hypothesis.score == hypothesis.log_prob
        assert np.exp(hypothesis.score) == pytest.approx(expected[tuple(hypothesis.tokens.ids.tolist())])


def test_a_small_beam_finds_the_best_of_all_paths() -> None:
    """Never with more probability than it has, and nearly always the best one, even on random log-probs."""
    n_best = 0
    for seed in range(40):
        log_probs = random_log_probs(6, 4, seed, spread=4.0)
        expected = sum_over_paths(log_probs)
        decoder = BeamDecoder(BLANK, beam_size=8)
        decoder.push(log_probs)
        best = decoder.flush()
        tokens = tuple(best.tokens.ids.tolist())
        assert best.score is not None
        assert 0.9 * expected[tokens] <= np.exp(best.score) <= expected[tokens] * (1 + 1e-6)
        assert expected[tokens] >= 0.9 * max(expected.values())
        n_best += tokens == max(expected, key=lambda t: expected[t])
    assert n_best >= 38


def test_sums_win_where_the_best_path_loses() -> None:
    """Two frames, blank 0.6 and a 0.4: the best path says nothing (0.36), all paths of `a` have 0.64."""
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], np.float32))
    assert len(greedy_decode(log_probs, BLANK)) == 0
    decoder = BeamDecoder(BLANK)
    decoder.push(log_probs)
    best = decoder.flush()
    assert best.tokens.ids.tolist() == [1]
    assert np.exp(best.score) == pytest.approx(0.64)


@settings(max_examples=100, deadline=None)
@given(
    n_frames=st.integers(0, 30),
    seed=st.integers(0, 10_000),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    top_k=st.integers(1, 4),
    skip_blank=st.sampled_from([None, 0.6, 0.999]),
)
def test_it_keeps_the_contract_of_a_decoder(
    n_frames: int, seed: int, cuts: list[float], top_k: int, skip_blank: float | None
) -> None:
    decoder = BeamDecoder(BLANK, beam_size=5, top_k=top_k, skip_blank=skip_blank)
    check_decoder(decoder, random_log_probs(n_frames, 5, seed, spread=3.0), cuts)


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_scores_do_not_depend_on_cuts(seed: int, cuts: list[int]) -> None:
    log_probs = random_log_probs(30, 5, seed, spread=4.0)
    whole, pieced = BeamDecoder(BLANK, skip_blank=0.9), BeamDecoder(BLANK, skip_blank=0.9)
    whole.push(log_probs)
    for piece in np.split(log_probs, sorted(cuts)):
        pieced.push(piece)
    assert [h.score for h in whole.n_best()] == [h.score for h in pieced.n_best()]


paths = st.lists(st.integers(0, 3), max_size=40)


@settings(deadline=None)
@given(path=paths)
def test_certain_log_probs_give_what_greedy_search_gives(path: list[int]) -> None:
    """Tokens, frames and confidences."""
    log_probs = np.full((len(path), 4), np.log(0.01), np.float32)
    log_probs[np.arange(len(path)), path] = np.log(0.97)
    decoder = BeamDecoder(BLANK)
    decoder.push(log_probs)
    found, expected = decoder.flush().tokens, greedy_decode(log_probs, BLANK)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.first_frames.tolist() == expected.first_frames.tolist()
    assert found.last_frames.tolist() == expected.last_frames.tolist()
    assert found.confidences == pytest.approx(expected.confidences)


def test_a_token_begins_where_most_of_it_entered() -> None:
    log_probs = np.log(np.array([[0.6, 0.4], [0.1, 0.9], [0.95, 0.05]], np.float32))
    decoder = BeamDecoder(BLANK)
    decoder.push(log_probs)
    runs = decoder.flush().tokens
    assert (runs.first_frames.tolist(), runs.last_frames.tolist()) == ([1], [1])
    assert runs.confidences == pytest.approx([0.9])


def test_skipped_frames_part_equal_tokens() -> None:
    """A blank between two frames of one token makes them two, skipped or not."""
    log_probs = np.full((5, 3), -12.0, np.float32)
    log_probs[np.arange(5), [1, 0, 1, 1, 0]] = -1e-5
    for skip_blank in (None, 0.999):
        decoder = BeamDecoder(BLANK, skip_blank=skip_blank)
        decoder.push(log_probs)
        assert decoder.flush().tokens.ids.tolist() == [1, 1]
    assert decoder.peek().score == pytest.approx(-5e-5, abs=1e-4)


def test_impossible_frames_leave_beams() -> None:
    log_probs = np.full((3, 4), -np.inf, np.float32)
    decoder = BeamDecoder(BLANK)
    decoder.push(log_probs)
    assert (decoder.flush().tokens.confidences > 0).all()


def test_n_best_are_different_and_no_more_than_asked_for() -> None:
    decoder = BeamDecoder(BLANK, beam_size=6)
    decoder.push(random_log_probs(40, 5, 3))
    assert len(decoder.n_best()) == 6
    assert len({tuple(h.tokens.ids.tolist()) for h in decoder.n_best()}) == 6
    assert [h.score for h in decoder.n_best(2)] == [h.score for h in decoder.n_best()][:2]
    assert decoder.n_frames == 40


def test_nothing_is_pushed_behind_the_end() -> None:
    decoder = BeamDecoder(BLANK)
    decoder.flush()
    with pytest.raises(ConfigError, match="was flushed; take a fork of one that has heard nothing"):
        decoder.push(random_log_probs(1, 3, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size is 0"),
        ({"top_k": 0}, "top_k 0"),
        ({"min_log_prob": 0.5}, "min_log_prob is 0.5; give a logarithm"),
        ({"skip_blank": 0.2}, "skip_blank is 0.2; give a probability above 0.5"),
    ],
)
def test_values_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BeamDecoder(BLANK, **options)  # type: ignore[arg-type]
