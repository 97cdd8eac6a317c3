"""Finds the best path of a recording through a text: CTC's Viterbi search, exact within a band.

A path is, in each frame, within the token of an arc, in blank at a position, or in the filler at a border,
which stands for sound that the text lacks. A frame costs what the path's token has less than the best token
of that frame (the filler costs a constant). Words may be skipped, at a cost for each token. So every
path exists, and what the sound or the text lacks does not move the words around it.

Memory is bounded: log-probs and, every `BLOCK` frames, the state of the search go to temporary files; the
path is read backward a block at a time, by searching the block again. Short recordings are searched whole.
Long ones within a band: the positions that cost at most `band` more than the best one, and what can be
reached from them in a block. If the path that is found came near the edge of the band or has a jump that
may hide a better one, the search is repeated with a band four times as wide.
What this file does not do: run models, read texts, times in seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.alignment.graph import TextGraph

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]
I64Array = npt.NDArray[np.int64]

FILLER_COST = 1.0
"""Of a frame of sound that the text lacks, natural log."""
SKIP_COST = 3.0
"""Of each token of a word that the sound lacks. With less, words that a poor model misheard are skipped; with
more, words that are not there are found (docs/log.md)."""
BAND = 400.0
WHOLE = 3e8
"""Frames times positions that are searched without a band."""
BLOCK = 64
_REACH = 4 * BLOCK  # positions beyond the band; speech passes fewer in a block
_LOWEST = np.float32(-30.0)
_NEVER = np.float32(-np.inf)

BLANK, FILLER = -1, -2


@dataclass(frozen=True, slots=True, kw_only=True)
class BestPath:
    """The best path of a recording through a text.

    Attributes:
        arcs: [n_frames] the arc of each frame, or `BLANK` or `FILLER`.
        cost: of the whole path, natural log.
        band: what it was searched with; infinite if everything was searched.
    """

    arcs: I64Array
    cost: float
    band: float


class LogProbStore:
    """Keeps the log-probs that a text needs in a temporary file, in half precision, less the best of each.

    Attributes:
        columns: the token ids that are kept.
        n_frames: frames added so far.
    """

    def __init__(self, columns: I64Array) -> None:
        self.columns = columns
        self.n_frames = 0
        self._best: list[F32Array] = []
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def add(self, log_probs: F32Array) -> None:
        """Append frames [t, V]."""
        best = log_probs.max(axis=1)
        relative = np.maximum(log_probs[:, self.columns] - best[:, None], _LOWEST)
        self._file.write(relative.astype(np.float16).tobytes())
        self._best.append(best)
        self.n_frames += len(log_probs)

    def read(self, begin: int, end: int) -> F32Array:
        """Return frames [begin, end) of the columns, less the best token of each frame, at least -30."""
        self._file.seek(begin * len(self.columns) * 2)
        data = self._file.read((end - begin) * len(self.columns) * 2)
        return np.frombuffer(data, np.float16).astype(np.float32).reshape(-1, len(self.columns))

    @property
    def best(self) -> F32Array:
        """Return the log-prob of the best token of each frame, [n_frames]."""
        return np.concatenate(self._best) if self._best else np.zeros(0, np.float32)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()

    def __enter__(self) -> LogProbStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_path(
    graph: TextGraph, store: LogProbStore, *, filler_cost: float = FILLER_COST, skip_cost: float = SKIP_COST
) -> BestPath:
    """Find the best path of all frames of a store, at least one."""
    whole = store.n_frames * graph.n_positions <= WHOLE
    band = np.inf if whole else BAND
    while True:
        search = _Search(graph, store, band, filler_cost, skip_cost)
        with tempfile.TemporaryFile() as file:
            is_complete = search.forward(file)
            if is_complete:
                path = search.backward(file)
                if search.covers_all or search.is_safe(path):
                    return path
        band *= 4


@dataclass(slots=True)
class _State:
    """The scores of a slice of the text: of its arcs, of blank at its positions, of filler at its borders."""

    first: int  # position, at a border
    token: F32Array
    blank: F32Array
    filler: F32Array


class _Slice:
    """The part of a graph from a border to another, with indexes of its own."""

    def __init__(self, graph: TextGraph, first_word: int, end_word: int, skip: F64Array) -> None:
        self.first_word, self.end_word = first_word, end_word
        self.first, last = int(graph.border[first_word]), int(graph.border[end_word])
        self.n_positions = last - self.first + 1
        a, b = int(graph.first_arc[self.first + 1]), int(graph.first_arc[last + 1])
        self.first_arc, self.n_arcs = a, b - a
        self.token = graph.token[a:b]
        self.source = graph.source[a:b] - self.first
        self.into = graph.first_arc[self.first + 1 : last + 1] - a
        self.border = graph.border[first_word : end_word + 1] - self.first
        self.skip = skip[first_word : end_word + 1] - skip[first_word]
        low, high = np.searchsorted(graph.repeats, (a, b))
        self.repeats = graph.repeats[low:high] - a
        begin, end = graph.other_start[low], graph.other_start[high]
        other = graph.other[begin:end] - a
        self.other = np.where((other < 0) | (other >= self.n_arcs), self.n_arcs, other)
        self.other_start = graph.other_start[low:high] - begin
        self.repeat_source = self.source[self.repeats]


class _Search:
    """One search with one band."""

    def __init__(
        self, graph: TextGraph, store: LogProbStore, band: float, filler_cost: float, skip_cost: float
    ) -> None:
        self.graph, self.store, self.band = graph, store, band
        self.filler_cost = np.float32(filler_cost)
        self.skip = np.append(0.0, np.cumsum(graph.n_tokens * skip_cost))
        self.covers_all = True
        self._offset = 0.0  # what was taken off all scores, so that float32 stays exact
        self._places: list[tuple[int, int, int]] = []  # in the file: byte, first and end word of a block

    def forward(self, file: IO[bytes]) -> bool:
        """Search all blocks, writing down the state before each; tell whether the end was reached."""
        graph = self.graph
        state = _State(
            0, np.full(0, _NEVER, np.float32), np.zeros(1, np.float32), np.full(1, _NEVER, np.float32)
        )
        part = _Slice(graph, 0, 0, self.skip)
        for begin in range(0, self.store.n_frames, BLOCK):
            part, state = self._move(part, state)
            self._places.append((file.tell(), part.first_word, part.end_word))
            for scores in (state.token, state.blank, state.filler):
                file.write(scores.tobytes())
            rows = self.store.read(begin, min(begin + BLOCK, self.store.n_frames))
            for _ in self._steps(part, state, rows):
                pass
        self._end = (part, state)
        return part.end_word == graph.n_words

    def _move(self, part: _Slice, state: _State) -> tuple[_Slice, _State]:
        """Choose the slice of the next block, and take the scores over."""
        graph = self.graph
        alive = np.maximum(state.blank, self._reached(part, state))
        alive[part.border] = np.maximum(alive[part.border], state.filler)
        best = alive.max()
        self._offset += float(best)
        if np.isinf(self.band):
            first_word, end_word = 0, graph.n_words
        else:
            kept = np.flatnonzero(alive >= best - self.band) + part.first
            # A border with nothing alive before it, and one that is out of reach.
            first_word = max(int(np.searchsorted(graph.border, kept[0], "left")) - 1, part.first_word)
            last = min(int(kept[-1]) + _REACH, graph.n_positions - 1)
            end_word = int(np.searchsorted(graph.border, last, "left"))
            self.covers_all &= first_word == 0 and end_word == graph.n_words
        fresh = _Slice(graph, first_word, end_word, self.skip)
        token = np.full(fresh.n_arcs, _NEVER, np.float32)
        blank = np.full(fresh.n_positions, _NEVER, np.float32)
        filler = np.full(len(fresh.border), _NEVER, np.float32)
        for new, old, shift in (
            (token, state.token, part.first_arc - fresh.first_arc),
            (blank, state.blank, part.first - fresh.first),
            (filler, state.filler, part.first_word - fresh.first_word),
        ):
            begin, end = max(shift, 0), min(shift + len(old), len(new))
            new[begin:end] = old[begin - shift : end - shift] - best
        return fresh, _State(fresh.first, token, blank, filler)

    @staticmethod
    def _reached(part: _Slice, state: _State) -> F32Array:
        """Return the best score within an arc into each position."""
        ends = np.full(part.n_positions, _NEVER, np.float32)
        if part.n_arcs:
            ends[1:] = np.maximum.reduceat(state.token, part.into)
        return ends

    def _steps(self, part: _Slice, state: _State, rows: F32Array) -> Iterator[tuple[F32Array, ...]]:
        """Take frames, changing `state`; yield before each what it takes to walk back over it.

        Yields:
            Scores within tokens, in blank and in filler before the frame; of positions and borders, before
            words are skipped.
        """
        emissions = rows[:, part.token]
        blanks = rows[:, self.graph.blank]
        padded = np.full(part.n_arcs + 1, _NEVER, np.float32)
        for row, blank_row in zip(emissions, blanks, strict=True):
            token, blank, filler = state.token, state.blank, state.filler
            here = blank.copy()
            if part.n_arcs:
                np.maximum(here[1:], np.maximum.reduceat(token, part.into), out=here[1:])
            at_border = np.maximum(here[part.border], filler)
            yield token, blank, filler, here, at_border
            after = (np.maximum.accumulate(at_border + part.skip) - part.skip).astype(np.float32)
            here[part.border] = after
            entered = here[part.source]
            if len(part.repeats):
                padded[:-1] = token
                without = blank.copy()
                without[part.border] = np.maximum(without[part.border], filler)
                others = np.maximum.reduceat(padded[part.other], part.other_start)
                entered[part.repeats] = np.maximum(others, without[part.repeat_source])
            state.token = np.maximum(token, entered) + row
            state.blank = here + blank_row
            state.filler = after - self.filler_cost

    def backward(self, file: IO[bytes]) -> BestPath:
        """Read the best path, from the last block to the first."""
        graph, store = self.graph, self.store
        part, state = self._end
        here = np.maximum(state.blank, self._reached(part, state))
        at_border = np.maximum(here[part.border], state.filler)
        word = len(at_border) - 1
        after = np.maximum.accumulate(at_border + part.skip) - part.skip
        cost = -(self._offset + float(after[-1]))
        self._edge = 0.0
        kind, index = self._leave_border(part, state.token, state.blank, state.filler, at_border, word)
        arcs = np.full(store.n_frames, BLANK)
        # Indexes are of the whole graph between blocks.
        kind_index = (kind, self._whole(part, kind, index))
        for number in range(len(self._places) - 1, -1, -1):
            place, first_word, end_word = self._places[number]
            part = _Slice(graph, first_word, end_word, self.skip)
            sizes = (part.n_arcs, part.n_positions, len(part.border))
            file.seek(place)
            scores = [np.frombuffer(file.read(4 * n), np.float32).copy() for n in sizes]
            state = _State(part.first, *scores)
            begin = number * BLOCK
            rows = store.read(begin, min(begin + BLOCK, store.n_frames))
            kept = list(self._steps(part, state, rows))
            kind, index = kind_index[0], self._local(part, *kind_index)
            for offset in range(len(kept) - 1, -1, -1):
                arcs[begin + offset] = part.first_arc + index if kind == "token" else self._code(kind)
                kind, index = self._before(part, kept[offset], kind, index)
            score = {"token": kept[0][0], "blank": kept[0][1], "filler": kept[0][2]}[kind][index]
            self._edge = max(self._edge, -float(score))
            kind_index = (kind, self._whole(part, kind, index))
        return BestPath(arcs=arcs, cost=cost, band=self.band)

    def is_safe(self, path: BestPath) -> bool:
        """Tell whether the path stayed away from the edge of the band, and has no long jump."""
        limit = self.band / 2
        if self._edge > limit:
            return False
        is_filler = np.append(path.arcs == FILLER, False)
        ends = np.flatnonzero(~is_filler)
        longest = int(np.diff(np.append(-1, ends)).max()) - 1
        if longest * float(self.filler_cost) > limit:
            return False
        words = np.unique(self.graph.word[path.arcs[path.arcs >= 0]])
        found = np.concatenate(([-1], words, [self.graph.n_words]))
        jumps = self.skip[found[1:]] - self.skip[found[:-1] + 1]
        return bool(jumps.max() <= limit)

    @staticmethod
    def _code(kind: str) -> int:
        return BLANK if kind == "blank" else FILLER

    @staticmethod
    def _whole(part: _Slice, kind: str, index: int) -> int:
        return index + {"token": part.first_arc, "blank": part.first, "filler": part.first_word}[kind]

    @staticmethod
    def _local(part: _Slice, kind: str, index: int) -> int:
        return index - {"token": part.first_arc, "blank": part.first, "filler": part.first_word}[kind]

    def _before(self, part: _Slice, kept: tuple[F32Array, ...], kind: str, index: int) -> tuple[str, int]:
        """Return the state before a frame, given the one in it, by asking which one offered the most."""
        token, blank, filler, here, at_border = kept
        if kind == "filler":
            return self._leave_border(part, token, blank, filler, at_border, index)
        if kind == "blank":
            return self._leave_position(part, kept, index)
        source = int(part.source[index])
        repeat = int(np.searchsorted(part.repeats, index))
        if repeat < len(part.repeats) and part.repeats[repeat] == index:
            ends = (*part.other_start[repeat : repeat + 2].tolist(), len(part.other))
            others = part.other[ends[0] : ends[1]]
            others = others[others < part.n_arcs]
            candidates = [(float(token[arc]), "token", int(arc)) for arc in others]
            candidates.append((float(blank[source]), "blank", source))
            word = int(np.searchsorted(part.border, source))
            if word < len(part.border) and part.border[word] == source:
                candidates.append((float(filler[word]), "filler", word))
            score, from_kind, from_index = max(candidates)
            return ("token", index) if token[index] >= score else (from_kind, from_index)
        word = int(np.searchsorted(part.border, source))
        if word < len(part.border) and part.border[word] == source:
            entered = (at_border[: word + 1] + part.skip[: word + 1]).max() - part.skip[word]
        else:
            entered = here[source]
        return ("token", index) if token[index] >= entered else self._leave_position(part, kept, source)

    def _leave_position(self, part: _Slice, kept: tuple[F32Array, ...], position: int) -> tuple[str, int]:
        """Return the state from which a position was left."""
        token, blank, filler, _, at_border = kept
        word = int(np.searchsorted(part.border, position))
        if word < len(part.border) and part.border[word] == position:
            return self._leave_border(part, token, blank, filler, at_border, word)
        return self._best_at(part, token, blank, position)

    def _leave_border(
        self,
        part: _Slice,
        token: F32Array,
        blank: F32Array,
        filler: F32Array,
        at_border: F32Array,
        word: int,
    ) -> tuple[str, int]:
        """Return the state from which a border was left, perhaps over words that were skipped."""
        offers = at_border[: word + 1] + part.skip[: word + 1]
        best = len(offers) - 1 - int(np.argmax(offers[::-1]))
        position = int(part.border[best])
        kind, index = self._best_at(part, token, blank, position)
        score = token[index] if kind == "token" else blank[index]
        return ("filler", best) if filler[best] > score else (kind, index)

    @staticmethod
    def _best_at(part: _Slice, token: F32Array, blank: F32Array, position: int) -> tuple[str, int]:
        if position == 0:
            return "blank", 0
        begin = int(part.into[position - 1])
        end = int(part.into[position]) if position < len(part.into) else part.n_arcs
        best = begin + int(np.argmax(token[begin:end]))
        return ("blank", position) if blank[position] > token[best] else ("token", best)
