"""Greedy CTC against the definition, in one go and in pieces, with frames and confidences."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import numpy.typing as npt
import pytest
from decoder_contract import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.greedy import GreedyDecoder, greedy_decode

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
def test_it_keeps_the_contract_of_a_decoder(path: list[int], cuts: list[float]) -> None:
    check_decoder(GreedyDecoder(3), log_probs_of(path, 4), cuts)


@given(path=paths)
def test_peek_completes_what_was_pushed(path: list[int]) -> None:
    decoder = GreedyDecoder(3)
    for end in range(len(path)):
        decoder.push(log_probs_of(path, 4)[end : end + 1])
        assert decoder.peek().tokens.ids.tolist() == [t for t, _ in groupby(path[: end + 1]) if t != 3]
    assert decoder.n_frames == len(path)


def test_nothing_is_pushed_behind_the_end() -> None:
    decoder = GreedyDecoder(3)
    decoder.push(log_probs_of([1, 1], 4))
    decoder.flush()
    with pytest.raises(ConfigError, match="was flushed; take a fork of one that has heard nothing"):
        decoder.push(log_probs_of([1], 4))


def test_float_rounding_never_gives_a_confidence_above_one() -> None:
    log_probs = np.array([[1e-6, -20.0]], np.float32)
    assert greedy_decode(log_probs, 1).confidences.tolist() == [1.0]
