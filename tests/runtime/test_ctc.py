"""Greedy CTC against the definition, in pieces, with times, confidences and words."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.runtime.decoding.greedy import (
    GreedyDecoder,
    TokenRuns,
    greedy_decode,
    tokens_from_runs,
    words_from_tokens,
)
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]


def log_probs_of(path: list[int], n_classes: int, seed: int = 0) -> F32Array:
    """Random log-probs whose best path is `path`."""
    logits = np.random.default_rng(seed).normal(0, 1, (len(path), n_classes))
    logits[np.arange(len(path)), path] = 6.0
    normalized = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.asarray(normalized.astype(np.float32)).reshape(len(path), n_classes)


paths = st.lists(st.integers(0, 3), max_size=40)


@given(path=paths, blank=st.integers(0, 3))
def test_collapse_is_the_definition(path: list[int], blank: int) -> None:
    """Merge repeats, then drop blanks (Graves et al. 2006, the map B)."""
    expected = [token for token, _ in groupby(path) if token != blank]
    assert greedy_decode(log_probs_of(path, 4), blank).ids.tolist() == expected


@given(path=paths)
def test_runs_say_where_and_how_sure(path: list[int]) -> None:
    log_probs = log_probs_of(path, 4)
    runs = greedy_decode(log_probs, 3)
    for index in range(len(runs)):
        first, last = int(runs.first_frames[index]), int(runs.last_frames[index])
        token = int(runs.ids[index])
        assert path[first : last + 1] == [token] * (last + 1 - first)
        assert first == 0 or path[first - 1] != token
        assert last == len(path) - 1 or path[last + 1] != token
        assert runs.confidences[index] == pytest.approx(np.exp(log_probs[first : last + 1, token].max()))


@settings(max_examples=200)
@given(path=paths, cuts=st.lists(st.floats(0, 1), max_size=10))
def test_pieces_give_the_same_runs(path: list[int], cuts: list[float]) -> None:
    log_probs = log_probs_of(path, 4)
    decoder = GreedyDecoder(3)
    pieces = np.split(log_probs, sorted(int(cut * len(path)) for cut in cuts))
    pieced = TokenRuns.concatenate([*[decoder.push(piece) for piece in pieces], decoder.flush()])
    whole = greedy_decode(log_probs, 3)
    for name in ("ids", "first_frames", "last_frames", "confidences"):
        assert np.array_equal(getattr(pieced, name), getattr(whole, name))


@given(path=paths)
def test_peek_completes_what_was_pushed(path: list[int]) -> None:
    decoder = GreedyDecoder(3)
    seen: list[TokenRuns] = []
    for end in range(len(path)):
        seen.append(decoder.push(log_probs_of(path, 4)[end : end + 1]))
        now = TokenRuns.concatenate([*seen, decoder.peek()])
        assert now.ids.tolist() == [token for token, _ in groupby(path[: end + 1]) if token != 3]


def test_flush_ends_a_run() -> None:
    decoder = GreedyDecoder(3, first_frame=100)
    decoder.push(log_probs_of([1, 1], 4))
    assert decoder.flush().first_frames.tolist() == [100]
    decoder.push(log_probs_of([1], 4))
    assert decoder.flush().first_frames.tolist() == [102]


def test_float_rounding_never_gives_a_confidence_above_one() -> None:
    log_probs = np.array([[1e-6, -20.0]], np.float32)
    assert greedy_decode(log_probs, 1).confidences.tolist() == [1.0]


VOCABULARY = Vocabulary(
    kind="sentencepiece", tokens=("\u2581turn", "\u2581le", "ft", "\u2581", "a\u2581b", "<blk>"), blank_id=5
)


def test_times_confidences_and_words() -> None:
    runs = greedy_decode(log_probs_of([5, 0, 0, 5, 1, 2, 5, 5], 6), 5)
    tokens = tokens_from_runs(runs, VOCABULARY, 0.08, offset_s=10.0, end_s=10.45)
    assert [(t.text, t.start_s, t.end_s) for t in tokens] == [
        (" turn", 10.08, 10.24),
        (" le", 10.32, 10.40),
        ("ft", 10.40, 10.45),
    ]
    words = words_from_tokens(tokens, VOCABULARY)
    assert [(w.text, w.start_s, w.end_s) for w in words] == [("turn", 10.08, 10.24), ("left", 10.32, 10.45)]
    assert words[1].confidence == min(tokens[1].confidence, tokens[2].confidence)


@given(ids=st.lists(st.integers(0, 4), max_size=20))
def test_words_joined_are_the_decoded_text(ids: list[int]) -> None:
    runs = TokenRuns(
        ids=np.array(ids, np.int64),
        first_frames=np.arange(len(ids)),
        last_frames=np.arange(len(ids)),
        confidences=np.ones(len(ids), np.float32),
    )
    words = words_from_tokens(tokens_from_runs(runs, VOCABULARY, 0.08), VOCABULARY)
    assert " ".join(word.text for word in words) == VOCABULARY.decode(ids)
    assert all(word.text for word in words)
