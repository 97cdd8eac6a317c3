"""`GrammarDecoder`: one of the phrases of a grammar, or none of them.

The cost of a phrase is how much less probable its best path is than the best path of all, natural log, over
the whole utterance. Each letter of the phrase pays for `threshold` of it, less `PHRASE_COST` for having a
phrase at all: a few letters are found in anything, so a short phrase must fit better than a long one. What
costs more is rejected: its text is empty, and what greedy search heard is given beside. The search drops what
has cost more than is allowed. That loses no phrase that is allowed, but perhaps a cheaper one that is not;
then there is no phrase either, so one look follows whether a cheaper one exists. It is letters that count,
not frames, for silence and noise have many frames that cost nothing (docs/log.md).
What this file does not do: compile grammars (graph.py), search (search.py).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import F32Array, Hypothesis, PhraseMatch, SlotValue, TokenRuns
from edge_asr.runtime.decoding.grammar.graph import TokenGraph
from edge_asr.runtime.decoding.grammar.network import Reading
from edge_asr.runtime.decoding.grammar.search import FoundPath, Search, SearchPlan, SpotPrice
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.vocabulary import WORD_BOUNDARY

Mode = Literal["whole", "spot"]
MODES: tuple[Mode, ...] = ("whole", "spot")

DEFAULT_THRESHOLDS: dict[Mode, float] = {"whole": 1.5, "spot": 1.1}
"""Where neither the caller nor the compiled grammar nor the bundle has one (docs/decoding.md)."""

PHRASE_COST = 4.0
"""Natural log. With it, one threshold serves grammars of 40 to 1000 phrases (docs/log.md)."""

ROUNDING = 1e-3


def allowed_cost(threshold: float, n_letters: F32Array) -> F32Array:
    """Return what phrases of the whole utterance may cost; at least a quarter of what their letters pay."""
    pay = np.float32(threshold) * n_letters
    allowed: F32Array = np.maximum(pay - np.float32(PHRASE_COST), np.float32(0.25) * pay)
    return allowed


class GrammarDecoder:
    """A `Decoder` that recognizes the phrases of a grammar.

    Args:
        graph: the compiled grammar.
        threshold: what a letter pays for, natural log, positive; None is the graph's own, or the default.
        mode: "whole": the phrase is all that was said. "spot": it may stand within other speech, as
            whole words; the one is taken that pays for the most more than it costs, the first among equals.

    Raises:
        ConfigError: a threshold that is not positive, or an unknown mode.
    """

    def __init__(self, graph: TokenGraph, *, threshold: float | None = None, mode: Mode = "whole") -> None:
        if threshold is None:
            threshold = graph.thresholds.get(mode, DEFAULT_THRESHOLDS.get(mode, 1.0))
        if not 0.0 < threshold < math.inf:
            raise ConfigError(f"the threshold of the grammar is {threshold}; it must be a positive number")
        if mode not in MODES:
            raise ConfigError(f"the mode of the grammar is {mode!r}; it must be {' or '.join(MODES)}")
        self.threshold = threshold
        self.mode: Mode = mode
        self._plan = SearchPlan(graph)
        price = SpotPrice(threshold, PHRASE_COST) if mode == "spot" else None
        # What the longest phrase through a node may cost is what a path may cost there.
        floors = -ROUNDING - allowed_cost(threshold, np.maximum(self._plan.longest, 0.0))
        self._search = Search(self._plan, floors, price)
        self._greedy = GreedyDecoder(graph.vocabulary.blank_id)
        self._best: list[F32Array] = []  # log-probs of the best token, piece by piece
        self._relative: list[F32Array] = []  # what the search was given
        self._is_flushed = False

    @property
    def graph(self) -> TokenGraph:
        """The compiled grammar."""
        return self._plan.graph

    def push(self, log_probs: F32Array) -> None:
        """See `Decoder.push`."""
        if self._is_flushed:
            raise ConfigError("this decoder was flushed; take a fork of one that has heard nothing")
        if len(log_probs) == 0:
            return
        self._greedy.push(log_probs)
        best = log_probs.max(axis=1)
        relative = log_probs[:, self._plan.columns] - best[:, None]
        self._best.append(best)
        self._relative.append(relative)
        self._search.push(relative, log_probs.argmax(axis=1))

    def peek(self) -> Hypothesis:
        """See `Decoder.peek`."""
        heard = self._greedy.peek().tokens
        path = self._search.best()
        if path is None or not len(heard):  # where greedy search hears silence there is no phrase either
            return self._rejected(heard)
        runs = self._without_edges(self._runs(path))
        n_letters = self._plan.count_letters(runs.ids)
        paid = self.threshold * n_letters - PHRASE_COST if self.mode == "spot" else 0.0
        cost = max(paid - path.score, 0.0)
        if cost > (paid if self.mode == "spot" else allowed_cost(self.threshold, np.float32(n_letters))):
            return self._rejected(heard)
        if self.mode == "whole" and self._has_cheaper(path):
            return self._rejected(heard)
        reading = self.graph.read(runs.ids.tolist())
        assert reading is not None, "a path through the graph is a phrase of its grammar"
        match = PhraseMatch(
            matched=True,
            phrase=" ".join(reading.words),
            slots=_slot_values(reading),
            tags=reading.tags,
            score=-cost / n_letters,
            n_letters=n_letters,
            confidence=math.exp(-cost / n_letters),
            heard=heard,
        )
        return Hypothesis(tokens=runs, match=match)

    def flush(self) -> Hypothesis:
        """See `Decoder.flush`."""
        self._is_flushed = True
        return self.peek()

    def fork(self) -> GrammarDecoder:
        """See `Decoder.fork`."""
        twin = object.__new__(GrammarDecoder)
        twin.threshold, twin.mode, twin._plan = self.threshold, self.mode, self._plan
        twin._search, twin._greedy = self._search.fork(), self._greedy.fork()
        twin._best, twin._relative = list(self._best), list(self._relative)
        twin._is_flushed = self._is_flushed
        return twin

    def _has_cheaper(self, path: FoundPath) -> bool:
        """Tell whether another phrase costs less."""
        floors = np.full(len(self.graph), path.score + ROUNDING, np.float32)
        rival = Search(self._plan, floors)
        relative = np.concatenate(self._relative)
        rival.push(relative, np.zeros(len(relative), np.int64))
        return rival.best() is not None

    def _rejected(self, heard: TokenRuns) -> Hypothesis:
        match = PhraseMatch(
            matched=False, phrase="", slots=(), tags=(), score=None, n_letters=0, confidence=0.0, heard=heard
        )
        return Hypothesis(tokens=heard.select(slice(0, 0)), match=match)

    def _runs(self, path: FoundPath) -> TokenRuns:
        """Turn a path into tokens; their confidence is the highest probability, as in greedy search."""
        relative, best = np.concatenate(self._relative), np.concatenate(self._best)
        columns = self._plan.column[path.nodes]
        peaks = [
            (relative[first : last + 1, column] + best[first : last + 1]).max()
            for first, last, column in zip(
                path.first_frames.tolist(), path.last_frames.tolist(), columns.tolist(), strict=True
            )
        ]
        # Rounding can leave a log-probability above 0, and the exponential can end at 0.
        limited = np.clip(np.array(peaks, np.float32), np.float32(-80.0), np.float32(0.0))
        return TokenRuns(
            ids=self.graph.token[path.nodes].astype(np.int64),
            first_frames=path.first_frames,
            last_frames=path.last_frames,
            confidences=np.exp(limited),
        )

    def _without_edges(self, runs: TokenRuns) -> TokenRuns:
        """Leave out word boundaries of character models before and behind the phrase."""
        spoken = [self.graph.vocabulary.tokens[i] != WORD_BOUNDARY for i in runs.ids.tolist()]
        if not all(spoken) and self.graph.vocabulary.kind == "char":
            inside = np.flatnonzero(spoken)
            return runs.select(slice(int(inside[0]), int(inside[-1]) + 1))
        return runs


def _slot_values(reading: Reading) -> tuple[SlotValue, ...]:
    return tuple(
        SlotValue(
            name=slot.name,
            value=" ".join(reading.words[slot.first : slot.last]),
            number=slot.number,
            first_word=slot.first,
            last_word=slot.last - 1,
        )
        for slot in reading.slots
    )
