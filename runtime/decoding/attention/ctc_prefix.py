"""CTC's probability that a text begins with given tokens, for a search that grows texts by one token.

The probability of all paths whose tokens begin with h is that of the paths that reach the last token of h for
the first time in some frame (Watanabe et al. 2017, "Hybrid CTC/attention", algorithm 2; ESPnet,
espnet/nets/ctc_prefix_score.py). All frames are handled at once: each recursion over time is a sum of
log-probabilities along the path, so it becomes `logaddexp.accumulate` after the path's own log-probability
was taken off.
What this file does not do: search (search.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.decoder import F32Array, I64Array

F64Array = npt.NDArray[np.float64]
_NEVER = -np.inf
_FLOOR = -1e4  # instead of -inf, whose differences are NaN


@dataclass(frozen=True, slots=True)
class PrefixState:
    """What is known of some beginnings of a text.

    Attributes:
        spoken, blank: [B, T] log-probability of all paths that have spoken them by frame t and end in their
            last token, or in blank.
        scores: [B] log-probability that the text begins so.
    """

    spoken: F64Array
    blank: F64Array
    scores: F64Array

    def select(self, beams: npt.NDArray[np.intp]) -> PrefixState:
        """Return some of the beginnings."""
        return PrefixState(self.spoken[beams], self.blank[beams], self.scores[beams])


class CtcPrefixScorer:
    """Scores beginnings of the text of one utterance.

    Args:
        log_probs: [T, V] of the utterance, T >= 1.
        blank_id: index of blank.
    """

    def __init__(self, log_probs: F32Array, blank_id: int) -> None:
        emissions = np.maximum(log_probs, np.float32(_FLOOR)).astype(np.float64)
        self._emissions = np.ascontiguousarray(emissions.T)  # (V, T)
        self._blanks = np.cumsum(emissions[:, blank_id])

    def start(self) -> PrefixState:
        """Return the state of the empty text."""
        blank = self._blanks[None]
        return PrefixState(np.full_like(blank, _NEVER), blank, np.zeros(1))

    def finish(self, state: PrefixState) -> F64Array:
        """Return the log-probability of each beginning as the whole text, [B]."""
        total: F64Array = np.logaddexp(state.spoken[:, -1], state.blank[:, -1])
        return total

    def extend(self, state: PrefixState, last: I64Array, tokens: I64Array) -> PrefixState:
        """Grow beginning b by token b.

        Args:
            state: of B beginnings.
            last: [B] their last tokens; -1 of the empty one.
            tokens: [B] with which they grow, ids of CTC, never blank.
        """
        rows = self._emissions[tokens]  # (B, T)
        before: F64Array = np.logaddexp(state.spoken, state.blank)
        # The last token once more needs a blank between.
        before = np.where((last == tokens)[:, None], state.blank, before)
        entering = np.empty_like(before)  # paths that were complete before frame t
        entering[:, 0] = np.where(last < 0, 0.0, _NEVER)
        entering[:, 1:] = before[:, :-1]
        along = np.cumsum(rows, axis=1)
        spoken = along + np.logaddexp.accumulate(entering - along + rows, axis=1)
        blank = np.full_like(spoken, _NEVER)
        blank[:, 1:] = self._blanks[1:] + np.logaddexp.accumulate(spoken[:, :-1] - self._blanks[:-1], axis=1)
        return PrefixState(spoken, blank, np.logaddexp.reduce(entering + rows, axis=1))
