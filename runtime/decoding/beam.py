"""CTC prefix beam search: the most probable tokens, all ways to spell them in frames summed.

A beam is a prefix with two log-probabilities, of all paths that end in blank and of all that do not (Graves
2012, section 7.5; Hannun et al. 2014, algorithm 1). In each frame every beam stays, or grows by one token.
All beams and tokens of a frame are handled at once in numpy; the loops here are over frames and surviving
beams.

- Tokens below `min_log_prob`, and those behind the `top_k` best, are not tried.
- A frame that is blank with a probability of at least `skip_blank` only closes the tokens before it. That
  leaves out paths of probability 1 - `skip_blank`, and most of silence costs nothing.
- What an application knows (hotwords, a language model) is a `PrefixScorer`: it adds to the score of a
  prefix, never to its probabilities, so that paths which meet again agree on it.

The frames of a token are those of the paths that dominate its prefix: it begins where most of the probability
entered, and lasts while more of it stays than goes into blank. Its confidence is the highest probability in
these frames, as in greedy search. What this file does not do: know words (hotwords.py), read options
(choice.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import EMPTY_RUNS, F32Array, Hypothesis, I64Array, TokenRuns

F64Array = npt.NDArray[np.float64]

BEAM_SIZE = 8
BEAM_SIZE_LM = 32
"""With a language model a larger beam is worth its time (docs/log.md); without one it is not."""
TOP_K = 24
"""Tokens tried in a frame at most; 5 were enough on all speech tried (docs/log.md)."""
MIN_LOG_PROB = -10.0
SKIP_BLANK = 0.999
"""Blank of this probability ends a frame at once: the text was the same on all speech tried (docs/log.md)."""

_FLOOR = -1e4  # instead of -inf, so that a frame never leaves a search without beams
_NEVER = -math.inf

#: The tokens of a prefix from the last to the first, shared among beams and never changed: those before, the
#: token, its first and last frame, the log of its highest probability.
_Path = tuple["_Path | None", int, int, int, float]


class PrefixScorer(Protocol):
    """Adds to the scores of prefixes what the acoustic model does not know. Shared by forks and threads.

    What it remembers of a prefix is one integer, its state; a score is in natural log.
    """

    def start(self) -> int:
        """Return the state of the empty prefix."""
        ...

    def extend(self, states: I64Array, tokens: I64Array) -> tuple[I64Array, F64Array]:
        """Score each state grown by each token.

        Args:
            states: [B] of prefixes.
            tokens: [k] token ids, never blank.

        Returns:
            The states of the longer prefixes, and what each token adds to the score, both [B, k].
        """
        ...

    def finish(self, states: I64Array) -> F64Array:
        """Return what the end of the utterance adds, [B]; the search may go on from the same states."""
        ...


class BeamDecoder:
    """A `Decoder` that searches for the best prefix.

    Args:
        blank_id: index of blank.
        beam_size: prefixes kept.
        top_k: tokens tried in a frame at most.
        min_log_prob: tokens below are not tried, but for the best one.
        skip_blank: see above; None skips no frame.
        scorers: of prefixes; their scores are added.

    Attributes:
        kind: names what its confidences mean, for `edge_asr.bundle.confidence`.
        n_frames: frames pushed so far.

    Raises:
        ConfigError: a value out of range.
    """

    kind = "beam"

    def __init__(
        self,
        blank_id: int,
        *,
        beam_size: int = BEAM_SIZE,
        top_k: int = TOP_K,
        min_log_prob: float = MIN_LOG_PROB,
        skip_blank: float | None = SKIP_BLANK,
        scorers: Iterable[PrefixScorer] = (),
    ) -> None:
        if beam_size < 1 or top_k < 1:
            raise ConfigError(f"beam_size is {beam_size} and top_k {top_k}; give 1 or more")
        if not min_log_prob <= 0:
            raise ConfigError(f"min_log_prob is {min_log_prob}; give a logarithm, at most 0")
        if skip_blank is not None and not 0.5 < skip_blank <= 1:
            raise ConfigError(f"skip_blank is {skip_blank}; give a probability above 0.5, or None")
        self.blank_id = blank_id
        self.beam_size = beam_size
        self.top_k = top_k
        self.min_log_prob = min_log_prob
        self.skip_blank = skip_blank
        self.n_frames = 0
        self._scorers = tuple(scorers)
        self._is_flushed = False
        # All of the following is replaced and never changed in place, so that forks can share it.
        # One entry a beam: log-probabilities of its paths by their end, their sum, and the scorers' sum.
        self._blank = np.zeros(1)
        self._spoken = np.full(1, _NEVER)
        self._total = np.zeros(1)
        self._bonus = np.zeros(1)
        self._states = np.array([[scorer.start()] for scorer in self._scorers], np.int64).reshape(-1, 1)
        self._paths: list[_Path | None] = [None]
        # Last token, name of the prefix and of the prefix before; a name is a hash of 64 bits.
        self._names = np.array([[-1], [1], [0]], np.int64)
        self._is_closed = True  # whether no path ends in a token
        self._skipped = 0.0  # log-probability of the skipped frames, common to all beams

    def push(self, log_probs: F32Array) -> None:
        """See `Decoder.push`."""
        if self._is_flushed:
            raise ConfigError("this decoder was flushed; take a fork of one that has heard nothing")
        if len(log_probs) == 0:
            return
        emissions = np.maximum(log_probs, np.float32(_FLOOR)).astype(np.float64)  # (t, V)
        blanks = emissions[:, self.blank_id].copy()
        skip = blanks >= (math.inf if self.skip_blank is None else math.log(self.skip_blank))
        rows, tokens = self._select_tokens(emissions, skip)
        ends = np.searchsorted(rows, np.arange(len(log_probs)), side="right").tolist()
        values = emissions[rows, tokens]
        begin = 0
        for index, (is_skipped, end) in enumerate(zip(skip.tolist(), ends, strict=True)):
            if is_skipped:
                self._skip(float(blanks[index]))
            else:
                self._step(self.n_frames, emissions[index], tokens[begin:end], values[begin:end])
            begin = end
            self.n_frames += 1

    def peek(self) -> Hypothesis:
        """See `Decoder.peek`."""
        return self.n_best(1)[0]

    def flush(self) -> Hypothesis:
        """See `Decoder.flush`."""
        self._is_flushed = True
        return self.peek()

    def fork(self) -> BeamDecoder:
        """See `Decoder.fork`."""
        twin = object.__new__(BeamDecoder)
        twin.__dict__.update(self.__dict__)
        return twin

    def n_best(self, n: int | None = None) -> list[Hypothesis]:
        """Return the best hypotheses, as `peek` would, the best one first.

        Args:
            n: how many at most; None is all that are left, at most `beam_size`.
        """
        scores = self._total + self._bonus
        for scorer, states in zip(self._scorers, self._states, strict=True):
            scores = scores + scorer.finish(states)
        order = np.argsort(-scores, kind="stable")[:n].tolist()
        return [
            Hypothesis(
                tokens=_runs_of(self._paths[i]),
                score=float(scores[i]) + self._skipped,
                log_prob=float(self._total[i]) + self._skipped,
            )
            for i in order
        ]

    def _select_tokens(
        self, emissions: F64Array, skip: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.intp], I64Array]:
        """Return which tokens to try in which rows, by rows; none in rows that are skipped."""
        n_rows, n_classes = emissions.shape
        ranked = emissions.copy()
        ranked[:, self.blank_id] = _NEVER
        floors = np.full(n_rows, max(self.min_log_prob, _FLOOR))
        if self.top_k < n_classes - 1:
            place = n_classes - self.top_k
            floors = np.maximum(floors, np.partition(ranked, place, axis=1)[:, place])
        floors = np.minimum(floors, ranked.max(axis=1))
        floors[skip] = math.inf
        rows, tokens = (ranked >= floors[:, None]).nonzero()
        return rows, tokens

    def _skip(self, blank: float) -> None:
        """Take a frame that holds nothing but blank."""
        if not self._is_closed:
            self._blank, self._spoken = self._total, np.full(len(self._total), _NEVER)
            self._is_closed = True
        self._skipped += blank

    def _step(self, frame: int, emissions: F64Array, tokens: I64Array, values: F64Array) -> None:
        """Take a frame.

        Args:
            frame: its index.
            emissions: [V] log-probs.
            tokens, values: [k] tokens to try, with their log-probs.
        """
        blank, spoken, total = self._blank, self._spoken, self._total
        last, names, parents = self._names
        n_beams, k = len(total), len(tokens)

        # Each beam stays: by blank, or by its last token once more.
        repeated = emissions[last]  # anything for the empty prefix, which has no such paths
        stay_blank = total + emissions[self.blank_id]
        stay_spoken = spoken + repeated
        lasting = (stay_spoken > stay_blank).nonzero()[0].tolist()
        # Or it grows; by its own last token only over a blank.
        grown = np.where(last[:, None] == tokens, blank[:, None], total[:, None]) + values  # (B, k)

        # What a beam grows into may be there already: then the paths join those that stay there.
        joining, joined = (names[:, None] == parents).nonzero()
        entering: list[tuple[int, int]] = []
        if len(joining):
            pairs, columns = (last[joined][:, None] == tokens).nonzero()
            joining, joined = joining[pairs], joined[pairs]
            mass = grown[joining, columns]
            grown[joining, columns] = _NEVER
            here = stay_spoken[joined]
            entered = (mass > np.maximum(here, stay_blank[joined])).nonzero()[0]
            stay_spoken[joined] = np.logaddexp(here, mass)
            if len(entered):
                entering = list(zip(joined[entered].tolist(), joining[entered].tolist(), strict=True))

        all_spoken = np.concatenate((stay_spoken, grown.ravel()))
        all_total = all_spoken.copy()
        all_total[:n_beams] = np.logaddexp(stay_blank, stay_spoken)
        scores = all_total
        if self._scorers:
            all_states, all_bonus = self._score(tokens)
            scores = all_total + all_bonus
        chosen = self._choose(scores, n_beams)
        if self._scorers:
            self._states, self._bonus = all_states[:, chosen], all_bonus[chosen]
        else:
            self._bonus = np.zeros(len(chosen))
        self._spoken, self._total = all_spoken[chosen], all_total[chosen]
        all_spoken[:n_beams] = stay_blank
        all_spoken[n_beams:] = _NEVER
        self._blank = all_spoken[chosen]
        self._is_closed = False

        paths = self._paths
        stayed = paths
        if lasting or entering:
            stayed = paths.copy()
            peaks = repeated.tolist()
            for beam in lasting:
                path = paths[beam]
                assert path is not None
                before, token, first, _, peak = path
                stayed[beam] = (before, token, first, frame, max(peak, peaks[beam]))
            for beam, origin in entering:
                stayed[beam] = (paths[origin], int(last[beam]), frame, frame, peaks[beam])
        self._name(chosen.tolist(), k, frame, stayed, tokens.tolist(), values.tolist())

    def _score(self, tokens: I64Array) -> tuple[I64Array, F64Array]:
        """Return states and scores of all beams as they are, then of all grown by each token."""
        bonus = self._bonus[:, None]
        rows = []
        for scorer, states in zip(self._scorers, self._states, strict=True):
            longer, added = scorer.extend(states, tokens)
            rows.append(np.concatenate((states, longer.ravel())))
            bonus = bonus + added
        all_states = rows[0][None] if len(rows) == 1 else np.stack(rows)
        return all_states, np.concatenate((self._bonus, bonus.ravel()))

    def _choose(self, scores: F64Array, n_beams: int) -> npt.NDArray[np.intp]:
        """Return the places of the best scores, in no order, and none that is impossible."""
        if len(scores) > self.beam_size:
            chosen = np.argpartition(scores, len(scores) - self.beam_size)[-self.beam_size :]
        else:
            chosen = np.arange(len(scores))
        # Staying is always possible, so a full beam has nothing impossible among its best.
        return chosen if n_beams == self.beam_size else chosen[scores[chosen] > _NEVER]

    def _name(
        self,
        chosen: Sequence[int],
        k: int,
        frame: int,
        stayed: Sequence[_Path | None],
        tokens: Sequence[int],
        values: Sequence[float],
    ) -> None:
        """Write down the names and paths of the beams that were chosen."""
        old_last, old_names, old_parents = self._names.tolist()
        old_paths, n_beams = self._paths, len(old_names)
        last, names, parents, paths = [], [], [], []
        for place in chosen:
            if place < n_beams:
                last.append(old_last[place])
                names.append(old_names[place])
                parents.append(old_parents[place])
                paths.append(stayed[place])
            else:
                beam, column = divmod(place - n_beams, k)
                token, name = tokens[column], old_names[beam]
                last.append(token)
                names.append(hash((name, token)))  # of integers: the same in every process
                parents.append(name)
                paths.append((old_paths[beam], token, frame, frame, values[column]))
        self._names = np.array((last, names, parents), np.int64)
        self._paths = paths


def _runs_of(path: _Path | None) -> TokenRuns:
    """The tokens of a path in order of time."""
    rows = []
    while path is not None:
        rows.append(path[1:])
        path = path[0]
    if not rows:
        return EMPTY_RUNS
    ids, first_frames, last_frames, peaks = zip(*reversed(rows), strict=True)
    tiny = np.finfo(np.float32).tiny
    return TokenRuns(
        ids=np.array(ids, np.int64),
        first_frames=np.array(first_frames, np.int64),
        last_frames=np.array(last_frames, np.int64),
        # Rounding can leave a log-probability a little above 0.
        confidences=np.clip(np.exp(peaks), tiny, 1.0).astype(np.float32),
    )
