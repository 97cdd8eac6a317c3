"""A grammar as a network of words, and the reading of a phrase: which slots and tags it has.

States are numbers, 0 is the first one. An arc has a word, or nothing said and an action (a slot begins or
ends, a tag, the value of a number). The token graph (graph.py) is made of the words alone. What a phrase
means is looked up here afterwards, among all its readings: the likeliest by weights, then the first written.
What this file does not do: spell words in tokens, decode.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import (
    Choice,
    Expression,
    Grammar,
    Reference,
    Repeat,
    Sequence,
    Slot,
    Tag,
    Word,
)

I32Array = npt.NDArray[np.int32]

MAX_ARCS = 5_000_000
"""Rules are copied to every place that refers to them; a short text can so describe an endless network."""

ActionKind = Literal["begin", "end", "tag", "value"]


@dataclass(frozen=True, slots=True)
class SlotReading:
    """A slot of a phrase.

    Attributes:
        name: of the slot.
        first, last: the words of the phrase that are its value, [first, last).
        number: the value of a number in words; None for other slots.
    """

    name: str
    first: int
    last: int
    number: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a phrase means: its words as the grammar writes them, slots and tags, in order."""

    words: tuple[str, ...]
    slots: tuple[SlotReading, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)  # no slots: `arcs_of` is kept once made
class WordNetwork:
    """All phrases of a grammar as arcs between states; the arrays have one entry an arc, in written order.

    Attributes:
        words: every word once, as written.
        lines: where each was first written.
        actions: (kind, text) of each action.
        n_states: the last state, n_states - 1, is the end of all phrases.
        source, target: of each arc.
        word: index in `words`, -1 where nothing is said.
        action: index in `actions`, or -1.
        cost: negative log of the weight.
    """

    words: tuple[str, ...]
    lines: tuple[int, ...]
    actions: tuple[tuple[ActionKind, str], ...]
    n_states: int
    source: I32Array
    target: I32Array
    word: I32Array
    action: I32Array
    cost: npt.NDArray[np.float32]

    @cached_property
    def arcs_of(self) -> list[list[int]]:
        """The arcs that leave each state."""
        leaving: list[list[int]] = [[] for _ in range(self.n_states)]
        for arc, state in enumerate(self.source.tolist()):
            leaving[state].append(arc)
        return leaving

    def read(self, text: str, spellings: SequenceABC[str]) -> Reading | None:
        """Find the meaning of a phrase.

        Args:
            text: the phrase as the spellings of its words, one after the other.
            spellings: of each word.

        Returns:
            The likeliest reading, the first written among equals; None if the phrase is not in the grammar.
        """
        targets, words, costs = self.target.tolist(), self.word.tolist(), self.cost.tolist()
        start, end = (0, 0), (len(text), self.n_states - 1)
        best: dict[tuple[int, int], float] = {start: 0.0}
        came_by: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
        # Costs are not negative: Dijkstra. The counter lets the first written win among equals.
        queue: list[tuple[float, int, tuple[int, int]]] = [(0.0, 0, start)]
        n_queued = 0
        while queue:
            cost, _, place = heapq.heappop(queue)
            if place == end:
                break
            if cost > best[place]:
                continue
            position, state = place
            for arc in self.arcs_of[state]:
                spelling = "" if words[arc] < 0 else spellings[words[arc]]
                if not text.startswith(spelling, position):
                    continue
                reached = (position + len(spelling), targets[arc])
                total = cost + costs[arc]
                if total < best.get(reached, math.inf):
                    best[reached] = total
                    came_by[reached] = (place, arc)
                    n_queued += 1
                    heapq.heappush(queue, (total, n_queued, reached))
        if end not in best:
            return None
        path: list[int] = []
        place = end
        while place != start:
            place, arc = came_by[place]
            path.append(arc)
        return self._reading(path[::-1])

    def _reading(self, path: list[int]) -> Reading:
        said: list[str] = []
        slots: list[SlotReading] = []
        tags: list[str] = []
        open_slots: list[int] = []
        for arc in path:
            if self.word[arc] >= 0:
                said.append(self.words[self.word[arc]])
            if self.action[arc] < 0:
                continue
            kind, text = self.actions[self.action[arc]]
            if kind == "tag":
                tags.append(text)
            elif kind == "begin":
                open_slots.append(len(slots))
                slots.append(SlotReading(text, len(said), len(said)))
            elif kind == "value":
                slot = slots[open_slots[-1]]
                slots[open_slots[-1]] = SlotReading(slot.name, slot.first, slot.last, int(text))
            else:
                index = open_slots.pop()
                slot = slots[index]
                slots[index] = SlotReading(slot.name, slot.first, len(said), slot.number)
        return Reading(tuple(said), tuple(s for s in slots if s.last > s.first), tuple(tags))


def build_network(grammar: Grammar, *, max_arcs: int = MAX_ARCS) -> WordNetwork:
    """Make the network of a grammar; rules are copied to where they are referred to.

    Raises:
        GrammarError: the network would have more than `max_arcs` arcs.
    """
    return _Builder(grammar, max_arcs).build()


class _Builder:
    def __init__(self, grammar: Grammar, max_arcs: int) -> None:
        self._grammar = grammar
        self._max_arcs = max_arcs
        self._words: dict[str, int] = {}
        self._lines: list[int] = []
        self._actions: dict[tuple[ActionKind, str], int] = {}
        self._arcs: list[tuple[int, int, int, int, float]] = []
        self._n_states = 1

    def build(self) -> WordNetwork:
        ends = [self._add(phrase.body, 0) for phrase in self._grammar.phrases]
        last = self._state()
        for end in ends:
            self._arc(end, last)
        table = list(zip(*self._arcs, strict=True))
        return WordNetwork(
            words=tuple(self._words),
            lines=tuple(self._lines),
            actions=tuple(self._actions),
            n_states=self._n_states,
            source=np.array(table[0], np.int32),
            target=np.array(table[1], np.int32),
            word=np.array(table[2], np.int32),
            action=np.array(table[3], np.int32),
            cost=np.array(table[4], np.float32),
        )

    def _state(self) -> int:
        self._n_states += 1
        return self._n_states - 1

    def _arc(self, source: int, target: int, *, word: int = -1, action: int = -1, cost: float = 0.0) -> None:
        if len(self._arcs) >= self._max_arcs:
            raise GrammarError(
                f"{self._grammar.source} describes a network of more than {self._max_arcs} arcs; use smaller "
                "ranges and fewer rules within rules"
            )
        self._arcs.append((source, target, word, action, cost))

    def _act(self, source: int, kind: ActionKind, text: str) -> int:
        target = self._state()
        self._arc(source, target, action=self._actions.setdefault((kind, text), len(self._actions)))
        return target

    def _add(self, expression: Expression, start: int) -> int:
        """Add the arcs of an expression that begins at `start`; no arc enters `start`. Return its end."""
        if isinstance(expression, Word):
            if expression.text not in self._words:
                self._words[expression.text] = len(self._words)
                self._lines.append(expression.line)
            end = self._state()
            self._arc(start, end, word=self._words[expression.text])
            return end
        if isinstance(expression, Sequence):
            for item in expression.items:
                start = self._add(item, start)
            return start
        if isinstance(expression, Choice):
            return self._add_choice(expression, start)
        if isinstance(expression, Repeat):
            again = self._state()
            self._arc(start, again)
            # The loop enters `again`, so the item begins at a state of its own.
            begin = self._state()
            self._arc(again, begin)
            end = self._add(expression.item, begin)
            self._arc(end, again)
            after = self._state()
            self._arc(end if expression.at_least_once else again, after)
            return after
        if isinstance(expression, (Slot, Reference)):
            if isinstance(expression, Slot):
                body = expression.item
            else:
                body = self._grammar.rules[expression.name].body
            end = self._add(body, self._act(start, "begin", expression.name))
            return self._act(end, "end", expression.name)
        kind: ActionKind = "tag" if isinstance(expression, Tag) else "value"
        return self._act(
            start, kind, expression.text if isinstance(expression, Tag) else str(expression.number)
        )

    def _add_choice(self, choice: Choice, start: int) -> int:
        weights = choice.weights or (1.0,) * len(choice.items)
        total = sum(weights) if choice.weights else 1.0
        ends: list[int] = []
        for item, weight in zip(choice.items, weights, strict=True):
            begin = self._state()
            self._arc(start, begin, cost=-math.log(weight / total))
            ends.append(self._add(item, begin))
        after = self._state()
        for end in ends:
            self._arc(end, after)
        return after
