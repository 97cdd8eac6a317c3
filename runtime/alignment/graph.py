"""A text as a graph of tokens for alignment: positions, and arcs between them that carry a token each.

The positions between written words are borders. Every reading and every segmentation of a word is a way of
its own from one border to the next. Every arc goes to a later position, so a stretch of text is a slice.
In a model of characters the token between words may be left out: after other sound it is not always heard.
What this file does not do: search (search.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.alignment.text import WrittenWord
from edge_asr.runtime.decoding.grammar.spelling import Speller
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

I64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGraph:
    """All ways to say a text. Positions count from 0; arcs are in the order of `target`.

    Attributes:
        columns: token ids that occur, and blank, in order; `token` and `blank` are indexes into them.
        token, source, target: [n_arcs] of each arc.
        word: [n_arcs] the written word that an arc belongs to.
        is_separator: [n_arcs] whether the token is nothing but a word boundary.
        first_arc: [n_positions + 1] first arc into each position; all but position 0 have one.
        border: [n_words + 1] positions before, between and after the words.
        n_tokens: [n_words] fewest tokens of each word.
        repeats: arcs whose token is that of an arc before them, so that a blank must come between.
        other_start, other: the arcs before repeat i whose token differs are
            other[other_start[i]:other_start[i + 1]], and `n_arcs`, which is no arc.
    """

    columns: I64Array
    blank: int
    token: I64Array
    source: I64Array
    target: I64Array
    word: I64Array
    is_separator: BoolArray
    first_arc: I64Array
    border: I64Array
    n_tokens: I64Array
    repeats: I64Array
    other_start: I64Array
    other: I64Array

    @property
    def n_positions(self) -> int:
        """Count the positions."""
        return len(self.first_arc) - 1

    @property
    def n_words(self) -> int:
        """Count the written words."""
        return len(self.n_tokens)


def build_graph(words: Sequence[WrittenWord], vocabulary: Vocabulary, speller: Speller) -> TextGraph:
    """Build the graph of at least one word."""
    made: dict[WrittenWord, I64Array] = {}
    arcs, begin = [], 0
    border, n_tokens = [0], []
    for index, word in enumerate(words):
        if word not in made:
            made[word] = _word_arcs(word, vocabulary, speller)
        local = made[word]
        fresh = np.empty((len(local), 5), np.int64)
        fresh[:, 0] = local[:, 0]
        fresh[:, 1:3] = local[:, 1:3] + begin
        fresh[:, 3] = index
        fresh[:, 4] = local[:, 3]
        arcs.append(fresh)
        begin += int(local[-1, 2])
        border.append(begin)
        n_tokens.append(_shortest(local))
    token_id, source, target, word_index, is_separator = np.concatenate(arcs).T
    columns = np.unique(np.append(token_id, vocabulary.blank_id))
    token = np.searchsorted(columns, token_id)
    first_arc = np.searchsorted(target, np.arange(begin + 2))
    repeats, other_start, other = _repeats(token, source, first_arc)
    return TextGraph(
        columns=columns,
        blank=int(np.searchsorted(columns, vocabulary.blank_id)),
        token=token,
        source=source,
        target=target,
        word=word_index,
        is_separator=is_separator.astype(np.bool_),
        first_arc=first_arc,
        border=np.array(border),
        n_tokens=np.array(n_tokens),
        repeats=repeats,
        other_start=other_start,
        other=other,
    )


def graph_of_tokens(ids: I64Array, blank_id: int) -> TextGraph:
    """Build the graph of at least one token that can only be said as it is; it counts as one word."""
    n = len(ids)
    columns = np.unique(np.append(ids, blank_id))
    token, places = np.searchsorted(columns, ids), np.arange(n + 1)
    first_arc = np.searchsorted(places[1:], np.arange(n + 2))
    repeats, other_start, other = _repeats(token, places[:-1], first_arc)
    return TextGraph(
        columns=columns,
        blank=int(np.searchsorted(columns, blank_id)),
        token=token,
        source=places[:-1],
        target=places[1:],
        word=np.zeros(n, np.int64),
        is_separator=np.zeros(n, np.bool_),
        first_arc=first_arc,
        border=np.array([0, n]),
        n_tokens=np.array([n]),
        repeats=repeats,
        other_start=other_start,
        other=other,
    )


def _word_arcs(word: WrittenWord, vocabulary: Vocabulary, speller: Speller) -> I64Array:
    """List the arcs of a word by target: token, source, target, is_separator; from 0 to the last position."""
    rows: set[tuple[int, int, int, bool]] = set()
    n_positions, end = 1, -1
    for reading in word.readings:
        here = 0
        for number, spelling in enumerate(reading, start=1):
            last, reached = len(spelling.lattice), {0}
            for position, ways in enumerate(spelling.lattice):
                if position in reached:
                    reached |= {target for _, target in ways}
            place = {0: here}
            for position in sorted(reached - {0}):
                is_end = position == last and number == len(reading)
                place[position] = end if is_end else n_positions
                n_positions += not is_end
            for position, ways in enumerate(spelling.lattice):
                for token, target in ways if position in place else ():
                    is_separator = vocabulary.tokens[token] == WORD_BOUNDARY
                    rows.add((token, place[position], place[target], is_separator))
                    if token == speller.boundary and position == 0:
                        rows |= {(t, here, place[p], False) for t, p in spelling.lattice[target]}
            here = place[last]
    final = n_positions
    table = np.array([(t, s, final if e == end else e, b) for t, s, e, b in rows], np.int64)
    return table[np.lexsort((table[:, 0], table[:, 1], table[:, 2]))]


def _shortest(arcs: I64Array) -> int:
    """Count the tokens of the shortest way through a word."""
    fewest = {0: 0}
    for _, source, target, _ in arcs.tolist():
        fewest[target] = min(fewest.get(target, len(arcs)), fewest[source] + 1)
    return fewest[int(arcs[-1, 2])]


def _repeats(token: I64Array, source: I64Array, first_arc: I64Array) -> tuple[I64Array, I64Array, I64Array]:
    """Find `repeats`, `other_start` and `other` of a graph."""
    counts = (first_arc[1:] - first_arc[:-1])[source]
    ends = np.cumsum(counts)
    after = np.repeat(np.arange(len(token)), counts)
    before = np.arange(len(after)) + np.repeat(first_arc[source] - (ends - counts), counts)
    same = token[before] == token[after]
    repeats = np.unique(after[same])
    kept = ~same & np.isin(after, repeats)
    # One that is no arc ends each list, so that none is empty.
    owners = np.concatenate((after[kept], repeats))
    order = np.argsort(owners, kind="stable")
    other = np.concatenate((before[kept], np.full(len(repeats), len(token))))[order]
    return repeats, np.searchsorted(owners[order], np.append(repeats, len(token))), other
