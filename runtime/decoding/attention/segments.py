"""Cuts an utterance of any length into segments for decoders that look at whole ones, in bounded memory.

An attention decoder sees all frames of a text at once. So frames wait until the utterance ends or
`max_frames` are exceeded; then the longest pause in the second half of those ends a segment, which is
decoded. The cut depends on the frames alone, never on how they arrived. What fits into a window of the
encoder (24 s) is one segment.
What this file does not do: decode a segment (rescoring.py, search.py).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TypeVar

import numpy as np

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import (
    EMPTY_RUNS,
    Decoder,
    Emissions,
    F32Array,
    Hypothesis,
    TokenRuns,
)

_Self = TypeVar("_Self", bound="SegmentDecoder")


class SegmentDecoder:
    """The part of an `EncodedDecoder` that keeps frames and joins what is found in segments.

    Args:
        blank_id: index of blank.
        boundary_id: the token of a word boundary that stands between words, not at their beginning; None in
            models that have none.
        max_frames: longest segment, at least 2.

    Attributes:
        n_frames: frames pushed so far.
    """

    kind: str | None = None

    def __init__(self, blank_id: int, *, boundary_id: int | None, max_frames: int) -> None:
        self.blank_id = blank_id
        self.boundary_id = boundary_id
        self.max_frames = max(max_frames, 2)
        self.n_frames = 0
        self._begin = 0
        # Neither list is changed in place, so that forks can share them.
        self._waiting: tuple[Emissions, ...] = ()
        self._found: tuple[Hypothesis, ...] = ()
        self._is_flushed = False

    def decode_segment(self, log_probs: F32Array, encoded: F32Array) -> Hypothesis:
        """Decode a whole segment.

        Args:
            log_probs, encoded: [T, V] and [T, D], T >= 1.
        """
        raise NotImplementedError

    def first_pass(self) -> Decoder:
        """See `EncodedDecoder`."""
        raise NotImplementedError

    def push(self, log_probs: F32Array) -> None:
        """Refuse log-probs alone.

        Raises:
            ConfigError: always, but for no frames.
        """
        if len(log_probs):
            raise ConfigError("this decoder needs the frames of the encoder too; call push_encoded")

    def push_encoded(self, log_probs: F32Array, encoded: F32Array) -> None:
        """See `EncodedDecoder`."""
        if self._is_flushed:
            raise ConfigError("this decoder was flushed; take a fork of one that has heard nothing")
        if len(encoded) != len(log_probs):
            raise ConfigError(
                f"there are {len(log_probs)} frames of log-probs and {len(encoded)} of the encoder; give as "
                "many of both"
            )
        if len(log_probs) == 0:
            return
        self._waiting = (*self._waiting, Emissions(log_probs, encoded).copy())
        self.n_frames += len(log_probs)
        while self.n_frames - self._begin > self.max_frames:
            frames = self._join()
            cut = find_pause(frames.log_probs[: self.max_frames], self.blank_id)
            self._found = (*self._found, self._decode(frames[:cut]))
            self._begin += cut
            self._waiting = (frames[cut:].copy(),)

    def peek(self) -> Hypothesis:
        """See `Decoder.peek`."""
        found = self._found
        if self._waiting:
            found = (*found, self._decode(self._join()))
        if len(found) < 2:
            return found[0] if found else Hypothesis(tokens=EMPTY_RUNS)
        scores = [hypothesis.score or 0.0 for hypothesis in found]
        log_probs = [hypothesis.log_prob or 0.0 for hypothesis in found]
        return Hypothesis(tokens=self._concatenate(found), score=sum(scores), log_prob=sum(log_probs))

    def flush(self) -> Hypothesis:
        """See `Decoder.flush`."""
        hypothesis = self.peek()
        self._waiting, self._found, self._begin = (), (hypothesis,), self.n_frames
        self._is_flushed = True
        return hypothesis

    def fork(self: _Self) -> _Self:
        """See `Decoder.fork`."""
        return copy.copy(self)

    def _join(self) -> Emissions:
        self._waiting = (Emissions.join(self._waiting),)
        return self._waiting[0]

    def _decode(self, segment: Emissions) -> Hypothesis:
        """Decode the segment that begins at `_begin`."""
        assert segment.encoded is not None
        hypothesis = self.decode_segment(segment.log_probs, segment.encoded)
        runs = hypothesis.tokens
        moved = dataclasses.replace(
            runs, first_frames=runs.first_frames + self._begin, last_frames=runs.last_frames + self._begin
        )
        return dataclasses.replace(hypothesis, tokens=moved)

    def _concatenate(self, found: tuple[Hypothesis, ...]) -> TokenRuns:
        """Join the tokens, with a word boundary where two segments meet."""
        parts: list[TokenRuns] = []
        for hypothesis in found:
            runs = hypothesis.tokens
            if not len(runs):
                continue
            if self.boundary_id is not None and parts:
                before = int(parts[-1].last_frames[-1])
                is_apart = self.boundary_id in (int(parts[-1].ids[-1]), int(runs.ids[0]))
                if not is_apart and int(runs.first_frames[0]) > before + 1:
                    parts.append(_boundary(self.boundary_id, before + 1))
            parts.append(runs)
        return TokenRuns.concatenate(parts)


def _boundary(token: int, frame: int) -> TokenRuns:
    return TokenRuns(
        ids=np.array([token]),
        first_frames=np.array([frame]),
        last_frames=np.array([frame]),
        confidences=np.ones(1, np.float32),
    )


def find_pause(log_probs: F32Array, blank_id: int) -> int:
    """Return the middle of the longest stretch of blank in the second half of frames [T, V], T >= 2.

    It lies from T // 2 to T - 1, and at least at 1. Where no frame is most likely blank, it is the frame that
    comes closest to it.
    """
    begin = max(len(log_probs) // 2, 1)
    late = log_probs[begin:]
    is_blank = late.argmax(axis=1) == blank_id
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_blank, [False]]).astype(np.int8)))
    if not len(edges):
        return begin + int(np.argmax(late[:, blank_id]))
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return begin + int(starts[longest] + ends[longest]) // 2
