"""A hypothesis as tokens with times, and tokens as words."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.runtime.decoding.decoder import TokenRuns
from edge_asr.runtime.transcript import shift_tokens, tokens_from_runs, words_from_tokens
from edge_asr.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    kind="sentencepiece", tokens=("\u2581turn", "\u2581le", "ft", "\u2581", "a\u2581b", "<blk>"), blank_id=5
)


def test_times_confidences_and_words() -> None:
    runs = TokenRuns(
        ids=np.array([0, 1, 2]),
        first_frames=np.array([1, 4, 5]),
        last_frames=np.array([2, 4, 5]),
        confidences=np.array([0.5, 0.9, 0.8], np.float32),
    )
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


def test_tokens_of_a_segment_in_the_time_of_their_stream() -> None:
    runs = TokenRuns(
        ids=np.array([0]), first_frames=np.array([1]), last_frames=np.array([2]), confidences=np.ones(1)
    )
    tokens = tokens_from_runs(runs, VOCABULARY, 0.08)
    (shifted,) = shift_tokens(tokens, 10.0)
    assert (shifted.text, shifted.start_s, shifted.end_s) == (" turn", 10.08, 10.24)
