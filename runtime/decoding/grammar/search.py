"""Viterbi search over a token graph with CTC's topology: exact, vectorized, a frame at a time.

Each node of the graph stands for two states: within its token, and in the blank after it. A frame costs what
its token has less than the best token of that frame, so the unconstrained (greedy) path costs nothing, costs
only grow along a path, and a path that has cost more than the phrases it can become are allowed to (`floors`)
is dropped without loss. Only nodes that are left are looked at; what a frame leaves behind is
kept as it is, so forks share it and the path is found afterwards without pointers.

A phrase within other speech (`SpotPrice`) begins and ends where greedy search has a border of words: at the
edge of the utterance, at the token for it, where a piece begins a word, or after `SILENT_FRAMES` of blank.
What is around it is greedy's own path and costs nothing. A path is dropped when all that it may still earn
cannot make it worth more than nothing, or more than the best phrase so far, so this search is exact too.
What this file does not do: choose the floors, accept or reject (recognition.py).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.grammar.graph import TokenGraph
from edge_asr.vocabulary import WORD_BOUNDARY, begins_word

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

MAX_LONGEST = 500
"""Tokens of the longest phrase; beyond, phrases count as endless."""

ENDLESS = 1e6
"""Letters of a phrase without end."""

SILENT_FRAMES = 8
"""Frames of blank that are a pause between words even where the model writes no border."""

_NEVER = np.float32(-np.inf)
_ROUNDING = 1e-3
#: Nodes in order, and the score of each within its token and in the blank after it.
_Column = tuple[I64Array, F32Array, F32Array]


#: What greedy search hears in a frame: silence, the token between words, a token that begins a word, another.
_BLANK, _BORDER, _BEGINS, _INSIDE = range(4)


@dataclass(frozen=True, slots=True)
class SpotPrice:
    """What a phrase within other speech earns for each of its letters, and what it costs to begin with."""

    letter: float
    phrase: float


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
        letters: of each node; a token for a border of words counts as one.
        kinds: of each token of the vocabulary, what it is to borders of words.
        has_borders: whether the vocabulary separates words; if not, every token is one.
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
        tokens = graph.vocabulary.tokens
        self._sizes = np.array([1 if t.startswith("<0x") else len(t) for t in tokens], np.int64)
        self._sizes[graph.vocabulary.blank_id] = 0
        self.letters = self._sizes[graph.token].astype(np.float32)
        self.kinds = np.array([_kind(token) for token in tokens], np.int8)
        self.kinds[graph.vocabulary.blank_id] = _BLANK
        self.has_borders = any(WORD_BOUNDARY in tokens[i] for i in graph.token)
        # Within other speech, borders around a phrase belong to what is around it.
        is_border = self.kinds[graph.token] == _BORDER
        is_char = graph.vocabulary.kind == "char"
        self.is_end = graph.is_final & ~is_border if is_char else graph.is_final
        self.in_edge = (self.in_source == 0) & np.repeat(is_border & is_char, self.in_count)
        #: What a piece that begins the phrase has too much: its mark.
        self.mark = int(self.has_borders and not is_char)

    def count_letters(self, ids: I64Array) -> int:
        """Count the letters of a phrase and the borders within it, but none around it."""
        return int(self._sizes[ids].sum()) - self.mark

    @cached_property
    def left(self) -> F32Array:
        """Count the letters that may still follow each node, at most; `ENDLESS` if phrases have no end."""
        source = np.repeat(np.arange(len(self.letters)), self.out_count)
        target = self.out_target
        ends = np.where(self.graph.is_final, np.float32(0.0), _NEVER)
        return _farthest(ends, target, source, self.letters[target])

    @cached_property
    def longest(self) -> F32Array:
        """Count the letters of the longest phrase through each node, likewise."""
        source = np.repeat(np.arange(len(self.letters)), self.out_count)
        begin = np.full(len(self.letters), _NEVER)
        begin[0] = 0.0
        return _farthest(begin, source, self.out_target, self.letters[self.out_target]) + self.left


class Search:
    """The search through one utterance.

    Args:
        plan: of the graph.
        floors: [n] paths that score less, for each node, are dropped.
        price: None to have the phrase take the whole utterance. Else a phrase may stand within other speech;
            its path is scored with what it earns and costs, and the floors are not used.
    """

    def __init__(self, plan: SearchPlan, floors: F32Array, price: SpotPrice | None = None) -> None:
        self._floors = floors
        self._plan = plan
        self._price = price
        if price is not None:
            self._bonus = np.float32(price.letter) * plan.letters
            self._entry = np.full(1, -price.phrase - price.letter * plan.mark, np.float32)
            self._hope = np.float32(price.letter) * plan.left
        zero, never = np.zeros(1, np.float32), np.full(1, _NEVER)  # the start is in its blank
        self._frames: list[_Column] = [(np.zeros(1, np.int64), never, zero)]
        self._last, self._n_silent = _BORDER, 0  # what greedy search heard last, and the blanks since
        self._rows: list[F32Array] = []
        self._scratch: tuple[F32Array, F32Array, F32Array] | None = None
        self._best_end = (float(_NEVER), -1, -1)  # score, frame, node of a phrase within other speech

    def fork(self) -> Search:
        """Return a search that has seen the same frames."""
        twin = copy.copy(self)
        twin._frames, twin._rows, twin._scratch = list(self._frames), list(self._rows), None
        return twin

    def push(self, relative: F32Array, heard: I64Array) -> None:
        """Take frames.

        Args:
            relative: [t, n_columns] log-probs of the plan's columns, less the best of each frame; kept.
            heard: [t] the best token of each frame.
        """
        if self._scratch is None:
            n = len(self._plan.graph) + 1  # one more, which stays as it is: the node before the start
            self._scratch = (np.full(n, _NEVER), np.full(n, _NEVER), np.full(n, _NEVER))
        for row, kind in zip(relative, self._plan.kinds[heard].tolist(), strict=True):
            if self._price is not None:
                self._pass_border(kind)
            self._rows.append(row)
            self._frames.append(self._next(row, *self._frames[-1]))

    def best(self) -> FoundPath | None:
        """Find the best path to the end of a phrase; None if all of them were dropped."""
        score, frame, node = self._end()
        if self._price is not None and self._best_end[0] >= score:
            score, frame, node = self._best_end
        if not np.isfinite(score):
            return None
        _, in_token, in_blank = self._frames[frame]
        place = np.searchsorted(self._frames[frame][0], node)
        return self._trace(score, frame, node, in_token=bool(in_token[place] >= in_blank[place]))

    def _end(self) -> tuple[float, int, int]:
        """Return the best score at the end of a phrase after the last frame, that frame, and the node."""
        nodes, in_token, in_blank = self._frames[-1]
        final = (self._plan.graph.is_final if self._price is None else self._plan.is_end)[nodes]
        if not final.any():
            return float(_NEVER), -1, -1
        scores = np.where(final, np.maximum(in_token, in_blank), _NEVER)
        best = int(np.argmax(scores))
        return float(scores[best]), len(self._rows), int(nodes[best])

    def _pass_border(self, kind: int) -> None:
        """Note the best phrase that may end before a frame, and whether one may begin with it."""
        is_pause = self._n_silent >= SILENT_FRAMES or not self._plan.has_borders
        if (kind in (_BORDER, _BEGINS) or is_pause) and (end := self._end())[0] > self._best_end[0]:
            self._best_end = end
        # A letter follows its border; a piece is one itself, and what follows it is not.
        last = (
            kind if kind in (_BORDER, _BEGINS) or (kind == _INSIDE and self._last != _BORDER) else self._last
        )
        nodes, in_token, in_blank = self._frames[-1]
        if is_pause or last != _INSIDE:
            self._frames[-1] = (nodes, in_token, np.concatenate([self._entry, in_blank[1:]]))
        self._n_silent = self._n_silent + 1 if kind == _BLANK else 0
        self._last = self._last if kind == _BLANK else kind

    def _next(self, row: F32Array, nodes: I64Array, in_token: F32Array, in_blank: F32Array) -> _Column:
        if not len(nodes):
            return nodes, in_token, in_blank
        plan = self._plan
        assert self._scratch is not None
        either, blank, token = self._scratch
        either[nodes] = np.maximum(in_token, in_blank)
        blank[nodes], token[nodes] = in_blank, in_token
        targets = plan.out_target[_ranges(plan.out_start[nodes], plan.out_count[nodes])[0]]
        reached = np.sort(np.concatenate((nodes, targets)))
        reached = reached[np.append(True, reached[1:] != reached[:-1])]

        arcs, first_arcs = _ranges(plan.in_start[reached], plan.in_count[reached])
        sources = plan.in_source[arcs]
        offered = either[sources]
        same = plan.in_same[arcs].nonzero()[0]
        offered[same] = blank[sources[same]]
        if self._price is not None:
            offered[plan.in_edge[arcs]] = _NEVER
        entered = np.maximum.reduceat(offered, first_arcs)
        if self._price is not None:
            entered = entered + self._bonus[reached]
        new_token = np.maximum(entered, token[reached]) + row[plan.column[reached]]
        new_blank = either[reached] + row[plan.blank]
        either[nodes] = blank[nodes] = token[nodes] = _NEVER
        best = np.maximum(new_token, new_blank)
        if self._price is None:
            is_left = best >= self._floors[reached]
        else:
            is_left = best + self._hope[reached] >= max(0.0, self._best_end[0]) - _ROUNDING
            is_left[0] = True  # the start: at the next border it is as good as new
        return reached[is_left], new_token[is_left], new_blank[is_left]

    def _trace(self, score: float, frame: int, node: int, *, in_token: bool) -> FoundPath:
        """Walk back from a state after `frame` frames, by asking each time who offered the most."""
        plan = self._plan
        runs: list[tuple[int, int, int]] = []
        last = frame - 1
        while frame > 0:
            before = self._frames[frame - 1]
            stay_token, stay_blank = _lookup(before, np.array([node]))
            if not in_token:
                if node == 0 and self._price is not None:
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
            if self._price is not None:
                offered = np.where(plan.in_edge[arcs], _NEVER, offered) + self._bonus[node]
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


def _kind(token: str) -> int:
    """Tell what a token is to borders of words."""
    if token == WORD_BOUNDARY:
        return _BORDER
    return _BEGINS if begins_word(token) else _INSIDE


def _farthest(values: F32Array, source: I64Array, target: I64Array, lengths: F32Array) -> F32Array:
    """Add to each node the longest way to it, along arcs with these lengths; all `ENDLESS` in a circle."""
    for _ in range(MAX_LONGEST):
        more = values.copy()
        np.maximum.at(more, target, values[source] + lengths)
        if np.array_equal(more, values):
            return values
        values = more
    return np.full(len(values), ENDLESS, np.float32)
