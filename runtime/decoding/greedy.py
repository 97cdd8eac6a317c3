"""Greedy CTC: log-probs to tokens and words, with times and confidences, in one go or in pieces.

A run is a stretch of frames with the same best token that is not blank. Each run is one token
(Graves et al. 2006, section 3.2, with best path decoding): its time is that of its frames, its
confidence the highest probability within the run (the spike; a run's other frames say how long the
model hesitated, not how sure it is). A word is as sure as its least sure token.

What this file does not do: beam search, language models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary, join_pieces

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRuns:
    """Decoded runs, four arrays of one length [n].

    Attributes:
        ids: token ids, int64, never blank.
        first_frames, last_frames: first and last output frame of each run, int64.
        confidences: highest probability in the run, float32 in (0, 1].
    """

    ids: I64Array
    first_frames: I64Array
    last_frames: I64Array
    confidences: F32Array

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def concatenate(cls, parts: Iterable[TokenRuns]) -> TokenRuns:
        """Runs in order, as one."""
        runs = [part for part in parts if len(part)]
        if len(runs) < 2:
            return runs[0] if runs else EMPTY_RUNS
        return cls(
            ids=np.concatenate([r.ids for r in runs]),
            first_frames=np.concatenate([r.first_frames for r in runs]),
            last_frames=np.concatenate([r.last_frames for r in runs]),
            confidences=np.concatenate([r.confidences for r in runs]),
        )

    def select(self, which: slice) -> TokenRuns:
        """Some of the runs, in order."""
        return TokenRuns(
            ids=self.ids[which],
            first_frames=self.first_frames[which],
            last_frames=self.last_frames[which],
            confidences=self.confidences[which],
        )


EMPTY_RUNS = TokenRuns(
    ids=np.zeros(0, np.int64),
    first_frames=np.zeros(0, np.int64),
    last_frames=np.zeros(0, np.int64),
    confidences=np.zeros(0, np.float32),
)


def greedy_decode(log_probs: F32Array, blank_id: int) -> TokenRuns:
    """Tokens of a whole utterance.

    Args:
        log_probs: [T', V] float32, natural log.
        blank_id: index of blank on the last axis.
    """
    decoder = GreedyDecoder(blank_id)
    return TokenRuns.concatenate([decoder.push(log_probs), decoder.flush()])


class GreedyDecoder:
    """Greedy decoding of log-probs that arrive in pieces; any cutting gives the same runs.

    The run at the end of what was pushed is still open, for the next piece may prolong it: `peek`
    shows it, `flush` ends it. One thread at a time.

    Args:
        blank_id: index of blank.
        first_frame: number of the first frame to come.
    """

    def __init__(self, blank_id: int, first_frame: int = 0) -> None:
        self.blank_id = blank_id
        self.next_frame = first_frame
        self._open = EMPTY_RUNS

    def push(self, log_probs: F32Array) -> TokenRuns:
        """Take [t, V] more log-probs; return the runs that ended in them."""
        n_frames = len(log_probs)
        if n_frames == 0:
            return EMPTY_RUNS
        best = np.argmax(log_probs, axis=1)  # (t,)
        changes = np.flatnonzero(best[1:] != best[:-1]) + 1
        starts = np.concatenate([[0], changes])
        ends = np.concatenate([changes, [n_frames]]) - 1
        spoken = best[starts] != self.blank_id
        peaks = np.maximum.reduceat(log_probs[np.arange(n_frames), best], starts)[spoken]
        fresh = TokenRuns(
            ids=best[starts[spoken]],
            first_frames=starts[spoken] + self.next_frame,
            last_frames=ends[spoken] + self.next_frame,
            # Rounding can leave a log-probability a little above 0.
            confidences=np.exp(np.minimum(peaks, np.float32(0.0))),
        )
        runs = self._join(fresh, continues=int(best[0]))
        self.next_frame += n_frames
        n_closed = len(runs) - (1 if best[-1] != self.blank_id else 0)
        self._open = runs.select(slice(n_closed, None))
        return runs.select(slice(0, n_closed))

    def peek(self) -> TokenRuns:
        """The open run (none or one), as if it ended now."""
        return self._open

    def flush(self) -> TokenRuns:
        """End the open run and return it; a following equal token is then a new one."""
        runs, self._open = self._open, EMPTY_RUNS
        return runs

    def _join(self, fresh: TokenRuns, continues: int) -> TokenRuns:
        """The open run before `fresh`, merged with its first when the token goes on."""
        if len(self._open) == 0 or len(fresh) == 0 or continues != int(self._open.ids[0]):
            return TokenRuns.concatenate([self._open, fresh])
        merged = TokenRuns(
            ids=self._open.ids,
            first_frames=self._open.first_frames,
            last_frames=fresh.last_frames[:1],
            confidences=np.maximum(self._open.confidences, fresh.confidences[:1]),
        )
        return TokenRuns.concatenate([merged, fresh.select(slice(1, None))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token and when it was spoken.

    Attributes:
        text: as written, a word boundary as a space (" go", "o", " ").
        id: index in the vocabulary.
        start_s, end_s: from the first to behind the last frame of its run, seconds.
        confidence: highest probability in the run, 0 to 1.
    """

    text: str
    id: int
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word: from its first token's start to its last token's end; its lowest token confidence."""

    text: str
    start_s: float
    end_s: float
    confidence: float


def tokens_from_runs(
    runs: TokenRuns,
    vocabulary: Vocabulary,
    frame_s: float,
    *,
    offset_s: float = 0.0,
    end_s: float | None = None,
) -> tuple[Token, ...]:
    """Runs as tokens.

    Args:
        runs: decoded runs.
        vocabulary: of the model.
        frame_s: length of an output frame: hop_length * subsampling_factor / sample_rate.
        offset_s: time of frame 0.
        end_s: no time is later than this (an output frame can reach past the audio).
    """
    limit = float("inf") if end_s is None else end_s

    def seconds(frames: I64Array) -> list[float]:
        times: list[float] = np.round(np.minimum(offset_s + frames * frame_s, limit), 6).tolist()
        return times

    rows = zip(
        runs.ids.tolist(),
        seconds(runs.first_frames),
        seconds(runs.last_frames + 1),
        runs.confidences.tolist(),
        strict=True,
    )
    return tuple(
        Token(
            text=vocabulary.token_text(token_id), id=token_id, start_s=start, end_s=end, confidence=confidence
        )
        for token_id, start, end, confidence in rows
    )


def words_from_tokens(tokens: Sequence[Token], vocabulary: Vocabulary) -> tuple[Word, ...]:
    """Tokens as words: a word boundary (U+2581, or a space in the text) begins a new one.

    Joined by spaces, the words are `vocabulary.decode` of the ids.
    """
    words: list[Word] = []
    pieces: list[tuple[str, Token]] = []

    def close() -> None:
        text = " ".join(join_pieces(text for text, _ in pieces).split())
        if text:
            words.append(
                Word(
                    text=text,
                    start_s=pieces[0][1].start_s,
                    end_s=pieces[-1][1].end_s,
                    confidence=min(token.confidence for _, token in pieces),
                )
            )
        pieces.clear()

    for token in tokens:
        for index, part in enumerate(vocabulary.tokens[token.id].split(WORD_BOUNDARY)):
            if index > 0:
                close()
            if part:
                pieces.append((part, token))
    close()
    return tuple(words)
