"""Viterbi search over a token graph with CTC's topology: exact, vectorized, a frame at a time.

Each node of the graph stands for two states: within its token, and in the blank after it. A frame costs what
its token has less than the best token of that frame, so the unconstrained (greedy) path costs nothing, costs
only grow along a path, and a path that has cost more than `bound` can be dropped without loss as long as
nothing so expensive is wanted. Only nodes that are left are looked at; what a frame leaves behind is
kept as it is, so forks share it and the path is found afterwards without pointers.
What this file does not do: choose the bound, accept or reject (recognition.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.grammar.graph import TokenGraph

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

MAX_LONGEST = 500

_NEVER = np.float32(-np.inf)
#: Nodes in order, and the score of each within its token and in the blank after it.
_Column = tuple[I64Array, F32Array, F32Array]


@dataclass(frozen=True, slots=True)
class FoundPath:
    """The best path to the end of a phrase.

    Attributes:
        score: the sum of its frames (and bonuses), at most 0 without bonus.
        nodes, first_frames, last_frames: of each token, in order.
    """

    score: float
    nodes: I64Array
    first_frames: I64Array
    last_frames: I64Array


class SearchPlan:
    """A token graph laid out for the search; made once, shared by all searches.

    Attributes:
        graph: the compiled grammar.
        columns: the tokens that the graph has, and blank, in order: the columns of what `push` takes.
        longest: tokens of the longest phrase; None if phrases have no end, or one beyond `MAX_LONGEST`.
    """

    def __init__(self, graph: TokenGraph) -> None:
        self.graph = graph
        self.columns = np.unique(graph.token).astype(np.int64)  # the start's token is blank
        self.column = np.searchsorted(self.columns, graph.token)  # of each node
        self.blank = int(np.searchsorted(self.columns, graph.vocabulary.blank_id))
        self.out_start = graph.out_start[:-1].astype(np.int64)
        self.out_count = np.diff(graph.out_start).astype(np.int64)
        self.out_target = graph.out_target.astype(np.int64)
        self.in_start = graph.in_start[:-1].astype(np.int64)
        self.in_count = np.diff(graph.in_start).astype(np.int64)
        self.in_source = graph.in_source.astype(np.int64)
        token = np.append(graph.token, -1)
        # A blank must stand between two tokens that are the same.
        self.in_same = token[self.in_source] == np.repeat(graph.token, self.in_count)
        self.longest = self._longest()

    def _longest(self) -> int | None:
        """Count the tokens of the longest phrase; None beyond `MAX_LONGEST`, or without end."""
        nodes = np.zeros(1, np.int64)
        for length in range(MAX_LONGEST):
            arcs = _ranges(self.out_start[nodes], self.out_count[nodes])[0]
            nodes = np.unique(self.out_target[arcs])
            if not len(nodes):
                return length
        return None


class Search:
    """The search through one utterance.

    Args:
        plan: of the graph.
        bound: paths that score less than -bound are dropped.
        bonus: None to have the phrase take the whole utterance. Else a phrase may begin and end anywhere,
            what is around it costs nothing, and each token of the phrase earns the bonus.
    """

    def __init__(self, plan: SearchPlan, bound: float, bonus: float | None = None) -> None:
        self.bound = bound
        self._plan = plan
        self._bonus = None if bonus is None else np.float32(bonus)
        zero, never = np.zeros(1, np.float32), np.full(1, _NEVER)
        self._frames: list[_Column] = [(np.zeros(1, np.int64), never, zero)]
        self._rows: list[F32Array] = []
        self._scratch: tuple[F32Array, F32Array, F32Array, npt.NDArray[np.bool_]] | None = None
        self._best_end = (float(_NEVER), -1, -1)  # score, frame, node of a phrase within other speech

    def fork(self) -> Search:
        """Return a search that has seen the same frames."""
        twin = Search(self._plan, self.bound, None if self._bonus is None else float(self._bonus))
        twin._frames, twin._rows = list(self._frames), list(self._rows)
        twin._best_end = self._best_end
        return twin

    def push(self, relative: F32Array) -> None:
        """Take frames.

        Args:
            relative: [t, n_columns] log-probs of the plan's columns, less the best of each frame; kept.
        """
        if self._scratch is None:
            n = len(self._plan.graph) + 1  # one more, which stays as it is: the node before the start
            self._scratch = (
                np.full(n, _NEVER),
                np.full(n, _NEVER),
                np.full(n, _NEVER),
                np.zeros(n, np.bool_),
            )
        for row in relative:
            self._rows.append(row)
            self._frames.append(self._next(row, *self._frames[-1]))
            if self._bonus is not None:
                self._note_end()

    def restart(self, bound: float) -> Search:
        """Return a search through the same frames with another bound."""
        fresh = Search(self._plan, bound, None if self._bonus is None else float(self._bonus))
        if self._rows:
            fresh.push(np.stack(self._rows))
        return fresh

    def best(self) -> FoundPath | None:
        """Find the best path to the end of a phrase; None if all of them were dropped."""
        if self._bonus is not None:
            score, frame, node = self._best_end
            return None if frame < 0 else self._trace(score, frame, node, in_token=True)
        nodes, in_token, in_blank = self._frames[-1]
        final = self._plan.graph.is_final[nodes]
        scores = np.where(final, np.maximum(in_token, in_blank), _NEVER)
        if not len(scores) or (best := int(np.argmax(scores))) < 0 or not np.isfinite(scores[best]):
            return None
        ends_in_token = bool(in_token[best] >= in_blank[best])
        return self._trace(float(scores[best]), len(self._rows), int(nodes[best]), in_token=ends_in_token)

    def _next(self, row: F32Array, nodes: I64Array, in_token: F32Array, in_blank: F32Array) -> _Column:
        plan = self._plan
        assert self._scratch is not None
        either, blank, token, is_reached = self._scratch
        either[nodes] = np.maximum(in_token, in_blank)
        blank[nodes], token[nodes] = in_blank, in_token
        is_reached[nodes] = True
        is_reached[plan.out_target[_ranges(plan.out_start[nodes], plan.out_count[nodes])[0]]] = True
        reached = np.flatnonzero(is_reached)
        is_reached[reached] = False

        arcs, first_arcs = _ranges(plan.in_start[reached], plan.in_count[reached])
        sources = plan.in_source[arcs]
        offered = np.where(plan.in_same[arcs], blank[sources], either[sources])
        if len(reached):
            entered = np.maximum.reduceat(offered, first_arcs)
        else:
            entered = offered
        if self._bonus is not None:
            entered = entered + self._bonus
        new_token = np.maximum(entered, token[reached]) + row[plan.column[reached]]
        new_blank = either[reached] + row[plan.blank]
        either[nodes] = blank[nodes] = token[nodes] = _NEVER
        if self._bonus is not None:
            new_blank[0] = 0.0  # the start, which is never dropped: a phrase may begin at any frame
        is_left = np.maximum(new_token, new_blank) >= -self.bound
        return reached[is_left], new_token[is_left], new_blank[is_left]

    def _note_end(self) -> None:
        nodes, in_token, _ = self._frames[-1]
        scores = np.where(self._plan.graph.is_final[nodes], in_token, _NEVER)
        best = int(np.argmax(scores))
        if scores[best] > self._best_end[0]:
            self._best_end = (float(scores[best]), len(self._rows), int(nodes[best]))

    def _trace(self, score: float, frame: int, node: int, *, in_token: bool) -> FoundPath:
        """Walk back from a state after `frame` frames, by asking each time who offered the most."""
        plan = self._plan
        runs: list[tuple[int, int, int]] = []
        last = frame - 1
        while frame > 0:
            before = self._frames[frame - 1]
            stay_token, stay_blank = _lookup(before, np.array([node]))
            if not in_token:
                if node == 0 and self._bonus is not None:
                    break
                in_token = bool(stay_token[0] > stay_blank[0])
                last = frame - 2
                frame -= 1
                continue
            begin = plan.in_start[node]
            arcs = slice(begin, begin + plan.in_count[node])
            sources = plan.in_source[arcs]
            tokens, blanks = _lookup(before, sources)
            tokens = np.where(plan.in_same[arcs], _NEVER, tokens)
            offered = np.maximum(tokens, blanks)
            if self._bonus is not None:
                offered = offered + self._bonus
            best = int(np.argmax(offered))
            if stay_token[0] < offered[best]:
                runs.append((node, frame - 1, last))
                node = int(sources[best])
                in_token = bool(tokens[best] > blanks[best])
                last = frame - 2
            frame -= 1
        table = np.array(runs[::-1], np.int64).reshape(-1, 3)
        return FoundPath(score, table[:, 0], table[:, 1], table[:, 2])


def _ranges(starts: I64Array, counts: I64Array) -> tuple[I64Array, I64Array]:
    """Join the ranges [start, start + count); also where each begins in the result."""
    ends = np.cumsum(counts)
    begins = ends - counts
    n = int(ends[-1]) if len(ends) else 0
    return np.arange(n) + np.repeat(starts - begins, counts), begins


def _lookup(column: _Column, nodes: I64Array) -> tuple[F32Array, F32Array]:
    """Return the two scores of some nodes; minus infinity for those that were dropped."""
    kept, in_token, in_blank = column
    if not len(kept):
        never = np.full(len(nodes), _NEVER)
        return never, never
    place = np.minimum(np.searchsorted(kept, nodes), len(kept) - 1)
    is_there = kept[place] == nodes
    return np.where(is_there, in_token[place], _NEVER), np.where(is_there, in_blank[place], _NEVER)
