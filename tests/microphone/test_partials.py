"""Partial text within a bounded window; the audio history. The recognizer is the fake of tones.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import RATE, WORDS, ToneRecognizer, speak

from edge_asr.errors import ConfigError
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialHypothesis, WindowedDecoder
from edge_asr.runtime.transcript import Token, Transcript


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), st.integers(0, 30_000))
def test_a_long_utterance_keeps_every_word_once_at_a_bounded_cost(words: list[str], lead: int) -> None:
    """Up to 22 s through a window of 4 s, with a fake recognizer."""
    recognizer = ToneRecognizer()
    decoder = WindowedDecoder(recognizer, window_s=4.0)
    history = AudioHistory()
    history.append(np.zeros(lead, np.float32))
    decoder.begin(lead)
    audio = speak(words)
    for piece in np.array_split(audio, max(1, len(audio) // 4800)):
        history.append(piece)
        hypothesis = decoder.decode(history)
    assert hypothesis.text.split() == words
    assert max(recognizer.lens_s) <= 4.0
    starts = [token.start_s for token in hypothesis.tokens]
    assert starts == sorted(starts)
    assert starts[0] == pytest.approx(lead / RATE, abs=0.05)


@pytest.mark.parametrize("gap_s", [0.3, 5.0, 9.0])
def test_words_that_lie_back_are_kept_and_none_is_lost(gap_s: float) -> None:
    """A transcriber that hears a word each 0.4 s, with the number of the call for its text."""

    class Fickle:
        n_calls = 0

        def transcribe(self, waveform: np.ndarray, sample_rate: int) -> Transcript:
            self.n_calls += 1
            starts = np.arange(0, len(waveform) / RATE - 0.2, 0.4)
            tokens = tuple(token(f" {self.n_calls}", start, start + 0.2) for start in starts.tolist())
            return Transcript(text="", tokens=tokens, words=(), segments=(), duration_s=0.0)

    decoder, history = WindowedDecoder(Fickle()), AudioHistory()
    decoder.begin(0)
    history.append(np.zeros(4 * RATE, np.float32))
    decoder.decode(history)
    history.append(np.zeros(round(gap_s * RATE), np.float32))
    tokens = decoder.decode(history).tokens
    texts = [t.text.strip() for t in tokens]
    assert texts == sorted(texts), "kept ones come first"
    starts = np.array([t.start_s for t in tokens])
    assert starts[0] == 0
    if gap_s < 8:  # a window of 8 s reaches back to what is kept
        assert np.all(np.diff(starts) < 0.85)
    kept = starts[np.array(texts) == "1"]
    assert kept.max() == pytest.approx({0.3: 2.6, 5.0: 3.0, 9.0: 3.6}[gap_s], abs=0.7)


def test_a_window_under_two_seconds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"window_s is 1\.0"):
        WindowedDecoder(ToneRecognizer(), window_s=1.0)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20_000)), max_size=30))
def test_history_gives_back_what_was_appended(steps: list[tuple[int, int]]) -> None:
    total = sum(n for n, _ in steps)
    stream = np.arange(total, dtype=np.float32)
    history = AudioHistory()
    for n, back in steps:
        history.append(stream[history.end : history.end + n])
        before = history.start
        history.discard_before(history.end - back)
        assert before <= history.start <= max(before, history.end - back)
        assert history.end - history.start < back + n + RATE + 1
        np.testing.assert_array_equal(
            history.read(history.start, history.end), stream[history.start : history.end]
        )


def token(text: str, start_s: float, end_s: float) -> Token:
    return Token(text=text, id=0, start_s=start_s, end_s=end_s, confidence=1.0)


def test_word_gaps_of_pieces_and_of_characters() -> None:
    pieces = (token(" go", 0.1, 0.2), token("ing", 0.4, 0.5), token(" on", 0.9, 1.0))
    assert PartialHypothesis(pieces, 0).word_gaps() == [(8000, 14_400)]
    characters = (token("g", 0.1, 0.2), token("o", 0.4, 0.5), token(" ", 0.6, 0.7), token("u", 0.9, 1.0))
    assert PartialHypothesis(characters, 0).word_gaps() == [(8000, 14_400)]
    assert PartialHypothesis(characters, 0).text == "go u"
    assert PartialHypothesis(characters[:3], 0).last_token_end == 8000
    assert PartialHypothesis((), 0).last_token_end is None


@pytest.mark.parametrize(
    ("tokens", "end_s", "settled"),
    [
        ([], 1.0, ""),
        ([token("go", 0.2, 0.4)], 0.45, ""),
        ([token("go", 0.2, 0.4)], 0.6, "go"),
        ([token("go", 0.2, 0.34), token(" ", 0.4, 0.44), token("n", 0.5, 0.54)], 0.6, "go"),
        ([token("g", 0.2, 0.24), token("o", 1.5, 1.54), token("o", 1.6, 1.64)], 1.65, "go"),
        ([token(" go", 0.2, 0.24), token(" no", 0.5, 0.54), token("rth", 0.6, 0.64)], 0.7, "go"),
        ([token(" go", 0.2, 0.24), token(" no", 0.5, 0.54), token("rth", 0.6, 0.64)], 0.9, "go north"),
        ([token("你", 0.2, 0.24), token("好", 0.5, 0.54)], 0.6, "你"),
    ],
)
def test_a_word_is_shown_when_there_is_sound_behind_it(
    tokens: list[Token], end_s: float, settled: str
) -> None:
    assert PartialHypothesis(tuple(tokens), round(end_s * RATE)).settled_text == settled


@pytest.mark.parametrize(
    ("pieces", "n_fixed", "settled"),
    [
        ([" go", " nor", "th"], 0, "go"),
        ([" go", " nor", "th"], 2, "go nor"),
        ([" go", " nor", "th"], 3, "go north"),
        ([" go", " no", "rth"], 2, "go"),
        (["g", "o", " ", "n", "o", "r"], 3, "go"),
        (["g", "o", " ", "n", "o", "r"], 5, "go"),
        (["g", "o", " ", "n", "o", "r"], 6, "go nor"),
    ],
)
def test_the_beginning_of_a_word_that_cannot_change_is_shown_from_three_letters_on(
    pieces: list[str], n_fixed: int, settled: str
) -> None:
    times = [(0.2, 0.24), *((0.53 + 0.01 * k, 0.54 + 0.01 * k) for k in range(len(pieces) - 1))]
    tokens = [token(piece, *at) for piece, at in zip(pieces, times, strict=True)]
    assert PartialHypothesis(tuple(tokens), round(0.6 * RATE), n_fixed).settled_text == settled
