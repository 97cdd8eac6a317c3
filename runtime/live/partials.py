"""Decodes the utterance in progress, at a bounded cost.

`PartialDecoder` is the seam. `WindowedDecoder` works with any model: it encodes the last seconds of the
utterance again at each call, and keeps what it decided about older audio. `StreamingDecoder`
(streaming_decoder.py) needs a streaming graph and encodes only what is new.
What this file does not do: decode finals (they are transcribed whole), decide when to decode or when an
utterance ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.errors import ConfigError
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.transcript import Token, Transcript, shift_tokens
from edge_asr.vocabulary import begins_word, join_pieces

# Steps of whole output frames, for any subsampling up to x8 of a 10 ms hop.
_ALIGN_SAMPLES = 1280

_SETTLING_SAMPLES = round(0.08 * STREAM_SAMPLE_RATE)
"""With less sound behind it, a word often changes (docs/streaming.md)."""
_MAX_WORD_SAMPLES = STREAM_SAMPLE_RATE
"""Of a last word that began earlier, only the end is held back."""
_MIN_BEGINNING = 3
"""Letters from which the beginning of a word is shown, where no later sound changes it."""
_KEPT_SAMPLES = STREAM_SAMPLE_RATE
"""The seam of two windows lies between once and twice as far back."""


class Transcriber(Protocol):
    """The part of `Recognizer` that live recognition uses."""

    def transcribe(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> Transcript:
        """Transcribe a waveform f32 [S]."""
        ...


@dataclass(frozen=True, slots=True)
class PartialHypothesis:
    """Tokens of the utterance so far.

    Attributes:
        tokens: with stream times.
        end: one past the last sample decoded.
        n_fixed: how many of the first tokens no later sound changes.
    """

    tokens: tuple[Token, ...]
    end: int
    n_fixed: int = 0

    @property
    def text(self) -> str:
        """Return the text, with spaces normalized as by `Vocabulary.decode`."""
        return " ".join(join_pieces(token.text for token in self.tokens).split())

    @property
    def settled_text(self) -> str:
        """Return the text without a last word that ends so late that more sound may change it.

        Of such a word the fixed beginning is kept, which can only grow.
        """
        n_late = sum(token.end_s * STREAM_SAMPLE_RATE > self.end - _SETTLING_SAMPLES for token in self.tokens)
        n_kept = len(self.tokens) - n_late
        for index in range(n_kept, -1, -1) if n_late else ():
            token = self.tokens[index]
            if token.end_s * STREAM_SAMPLE_RATE < self.end - _MAX_WORD_SAMPLES:
                break  # in a script without spaces, or very slow speech: what is old enough is shown
            if index == 0 or begins_word(token.text):
                n_kept = index
                break
        begins = [i for i, token in enumerate(self.tokens[: self.n_fixed]) if begins_word(token.text)]
        begin = begins[-1] if begins else 0
        beginning = PartialHypothesis(self.tokens[begin : self.n_fixed], self.end).text
        n_fixed = self.n_fixed if len(beginning) >= _MIN_BEGINNING else begin
        return PartialHypothesis(self.tokens[: max(n_kept, n_fixed)], self.end).text

    @property
    def last_token_end(self) -> int | None:
        """Return the sample where the last token ends; None without tokens."""
        end_s = next((token.end_s for token in reversed(self.tokens) if token.text.strip()), None)
        return None if end_s is None else round(end_s * STREAM_SAMPLE_RATE)

    def word_gaps(self) -> list[tuple[int, int]]:
        """Return the stretches [start, end) in samples between one word and the next."""
        gaps: list[tuple[int, int]] = []
        word_end: float | None = None
        at_boundary = False
        for token in self.tokens:
            at_boundary = at_boundary or token.text.startswith(" ")
            if not token.text.strip():
                continue
            if at_boundary and word_end is not None and token.start_s > word_end:
                gaps.append((round(word_end * STREAM_SAMPLE_RATE), round(token.start_s * STREAM_SAMPLE_RATE)))
            word_end = token.end_s
            at_boundary = token.text.endswith(" ")
        return gaps


class PartialDecoder(Protocol):
    """Follows one utterance after the other."""

    def begin(self, start: int) -> None:
        """Begin a new utterance at this sample."""
        ...

    def decode(self, history: AudioHistory) -> PartialHypothesis:
        """Decode the utterance from its beginning to the end of `history`."""
        ...

    def follow(self, history: AudioHistory, interval: int) -> PartialHypothesis | None:
        """Decode what is worth it now, if anything is; called whenever sound has come.

        Args:
            history: the sound.
            interval: samples from one hypothesis to the next where each costs a run of its own.
        """
        ...


class WindowedDecoder:
    """Encodes at most the last `window_s` of the utterance at each call.

    Tokens that lie more than one or two seconds back are kept as they were, because a model with unlimited
    context changes words of any age. Kept and new ones are joined in the widest gap between tokens.

    Args:
        transcriber: a `Recognizer`.
        window_s: longest stretch to encode, at least 2 s.

    Raises:
        ConfigError: the window is shorter.
    """

    def __init__(self, transcriber: Transcriber, window_s: float = 8.0) -> None:
        if not window_s >= 2:
            raise ConfigError(f"window_s is {window_s}; partial text needs a window of at least 2 s")
        self._transcriber = transcriber
        self._window = round(window_s * STREAM_SAMPLE_RATE)
        self.begin(0)

    def begin(self, start: int) -> None:
        """Forget the last utterance; the next begins at sample `start`."""
        self._start = self._end = start
        self._tokens: tuple[Token, ...] = ()

    def follow(self, history: AudioHistory, interval: int) -> PartialHypothesis | None:
        """Decode when an interval is over."""
        return self.decode(history) if history.end - self._end >= interval else None

    def decode(self, history: AudioHistory) -> PartialHypothesis:
        """Encode the window that ends at the end of `history`."""
        end = history.end
        excess = max(0, end - self._start - self._window)
        start = self._start + -(-excess // _ALIGN_SAMPLES) * _ALIGN_SAMPLES
        transcript = self._transcriber.transcribe(history.read(start, end), STREAM_SAMPLE_RATE)
        seam_s = self._seam_s(start, end)
        new = shift_tokens(transcript.heard, start / STREAM_SAMPLE_RATE)
        self._tokens = (
            *(token for token in self._tokens if token.start_s < seam_s),
            *(token for token in new if token.start_s >= seam_s),
        )
        self._end = end
        return PartialHypothesis(self._tokens, end)

    def _seam_s(self, start: int, end: int) -> float:
        """Choose where the kept tokens end and those of the window [start, end) take over."""
        last = min(end - _KEPT_SAMPLES, self._end - _KEPT_SAMPLES // 2)
        first = last - min(_KEPT_SAMPLES, self._window // 4)
        if first < start:
            return start / STREAM_SAMPLE_RATE
        first_s, last_s = first / STREAM_SAMPLE_RATE, last / STREAM_SAMPLE_RATE
        inside = [t for t in self._tokens if first_s <= t.start_s <= last_s]
        edges = [first_s, *(edge for t in inside for edge in (t.start_s, t.end_s)), last_s]
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        widest = max(spans, key=lambda span: span[1] - span[0])
        return (widest[0] + widest[1]) / 2
