"""Greedy CTC: the best token of each frame, with times and confidences, in one go or in pieces.

A run is a stretch of frames with the same best token that is not blank. Each run is one token
(Graves et al. 2006, section 3.2, with best path decoding): its time is that of its frames, and its
confidence is the highest probability within the run (the spike; the other frames of a run show how long the
model hesitated, not how certain it is).
What this file does not do: beam search, language models.
"""

from __future__ import annotations

import numpy as np

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import F32Array, Hypothesis, TokenRuns
from edge_asr.vocabulary import Vocabulary


def greedy_decode(log_probs: F32Array, blank_id: int) -> TokenRuns:
    """Decode a whole utterance.

    Args:
        log_probs: [T', V] float32, natural log.
        blank_id: index of blank on the last axis.
    """
    decoder = GreedyDecoder(blank_id)
    decoder.push(log_probs)
    return decoder.flush().tokens


class GreedyDecoder:
    """A `Decoder` that takes the best token of each frame.

    Args:
        blank_id: index of blank.

    Attributes:
        kind: names what its confidences mean, for `edge_asr.bundle.confidence`.
        n_frames: frames pushed so far.
    """

    kind = "greedy"

    def __init__(self, blank_id: int) -> None:
        self.blank_id = blank_id
        self.n_frames = 0
        self._parts: list[TokenRuns] = []  # none is empty, and none is changed in place
        self._is_open = False  # whether the next frame may prolong the last run
        self._is_flushed = False

    @classmethod
    def for_vocabulary(cls, vocabulary: Vocabulary) -> GreedyDecoder:
        """Make the decoder of a model: a `DecoderFactory`."""
        return cls(vocabulary.blank_id)

    @property
    def n_tokens(self) -> int:
        """Count the tokens found so far; later frames can only prolong the last."""
        return sum(map(len, self._parts))

    def push(self, log_probs: F32Array) -> None:
        """See `Decoder.push`."""
        if self._is_flushed:
            raise ConfigError("this decoder was flushed; take a fork of one that has heard nothing")
        n_frames = len(log_probs)
        if n_frames == 0:
            return
        best = np.argmax(log_probs, axis=1)  # (t,)
        changes = np.flatnonzero(best[1:] != best[:-1]) + 1
        starts = np.concatenate([[0], changes])
        ends = np.concatenate([changes, [n_frames]]) - 1
        spoken = best[starts] != self.blank_id
        peaks = np.maximum.reduceat(log_probs[np.arange(n_frames), best], starts)[spoken]
        fresh = TokenRuns(
            ids=best[starts[spoken]],
            first_frames=starts[spoken] + self.n_frames,
            last_frames=ends[spoken] + self.n_frames,
            # Rounding can leave a log-probability a little above 0.
            confidences=np.exp(np.minimum(peaks, np.float32(0.0))),
        )
        if self._is_open and best[0] == self._parts[-1].ids[-1]:
            fresh = self._prolong(fresh)
        if len(fresh):
            self._parts.append(fresh)
        self._is_open = bool(best[-1] != self.blank_id)
        self.n_frames += n_frames

    def peek(self) -> Hypothesis:
        """See `Decoder.peek`."""
        if len(self._parts) > 1:
            self._parts = [TokenRuns.concatenate(self._parts)]
        return Hypothesis(tokens=TokenRuns.concatenate(self._parts))

    def flush(self) -> Hypothesis:
        """See `Decoder.flush`."""
        self._is_flushed = True
        return self.peek()

    def fork(self) -> GreedyDecoder:
        """See `Decoder.fork`."""
        twin = GreedyDecoder(self.blank_id)
        twin.n_frames = self.n_frames
        twin._parts = list(self._parts)
        twin._is_open, twin._is_flushed = self._is_open, self._is_flushed
        return twin

    def _prolong(self, fresh: TokenRuns) -> TokenRuns:
        """Merge the first run of `fresh` with the open run before it, which is removed from the parts."""
        part = self._parts.pop()
        before, open_run = part.select(slice(0, -1)), part.select(slice(-1, None))
        if len(before):
            self._parts.append(before)
        peak = np.maximum(open_run.confidences, fresh.confidences[:1])
        return TokenRuns(
            ids=fresh.ids,
            first_frames=np.concatenate([open_run.first_frames, fresh.first_frames[1:]]),
            last_frames=fresh.last_frames,
            confidences=np.concatenate([peak, fresh.confidences[1:]]),
        )
