"""A `PrefixScorer` that knows a language model of words, for every vocabulary.

A token is the bytes that it stands for, which walk through the trie of the model's words; so every way to
cut a word into pieces is the same word. A word is scored when it ends: at a space, or at the end of the
utterance. Until then a beginning of a word has the score of the most probable word that begins so, by
frequency alone, which is taken back at the end; without it, the beam would lose good words to bad ones that
have not paid yet. A word that the model does not know costs `unknown_word`, and `unknown_letter` for each
letter, so no name is impossible.

- Case is that of the language model: a model that writes capital letters is heard in small ones, if the
  language model has no others.
- Signs that no word of the language model has (a comma) are not heard at all.
- In scripts without spaces (Chinese, Thai) each character is a word.

What a token does inside a word depends on the node of the trie alone. It is computed for all tokens when a
node is first met, and kept in a table; what the end of a word costs, in a dictionary.
What this file does not do: read the model (model_file.py), search (beam.py).
"""

from __future__ import annotations

import threading
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.beam import F64Array
from edge_asr.runtime.decoding.decoder import I64Array
from edge_asr.runtime.decoding.hotwords import bytes_of_token
from edge_asr.runtime.decoding.lm.model_file import N_SPECIAL, LanguageModel, LmWeights
from edge_asr.runtime.decoding.lm.ngrams import END, UNKNOWN
from edge_asr.runtime.decoding.lm.text import space_unspaced
from edge_asr.vocabulary import Vocabulary

MAX_TABLE_BYTES = 16 << 20
"""Of the table of nodes; when it is full, it begins anew."""
MAX_ENDED = 1 << 16
"""Most ends of words that are remembered, likewise."""

_SHIFT, _MASK = 32, (1 << 32) - 1
_ROOT = 0


class LanguageModelScorer:
    """See the top of the file. It is made once and shared by forks and threads.

    Args:
        model: the language model.
        vocabulary: the recognizer's.
        weights: None takes those of the model's file.
    """

    def __init__(
        self, model: LanguageModel, vocabulary: Vocabulary, weights: LmWeights | None = None
    ) -> None:
        self._model = model
        self._weights = weights or model.header.weights
        self._lock = threading.Lock()
        self._prepare_trie()
        texts = [_heard_text(token, model) for token in map(bytes_of_token, vocabulary.tokens)]
        texts[vocabulary.blank_id] = b""
        self._texts = texts
        self._begins = np.array([text.startswith(b" ") for text in texts])
        first = [text.lstrip(b" ").split(b" ")[0] for text in texts]
        # Tokens with a space inside are rare, and take the slow way.
        self._is_long = np.array([b" " in text.strip(b" ") or text.endswith(b" ") for text in texts])
        self._is_long &= np.array([text.strip(b" ") != b"" for text in texts])
        self._lens = np.array([len(part) for part in first], np.int64)
        self._letters = np.zeros((len(texts), max(1, int(self._lens.max()))), np.int64)
        for row, part in zip(self._letters, first, strict=True):
            row[: len(part)] = np.frombuffer(part, np.uint8)
        self._max_rows = max(1024, MAX_TABLE_BYTES // (16 * len(texts)))
        self._rows: dict[int, int] = {}
        self._next = np.zeros((0, len(texts)), np.int64)
        self._gain = np.zeros((0, len(texts)))
        self._ended: dict[int, tuple[int, float]] = {}

    def start(self) -> int:
        """See `PrefixScorer.start`."""
        return self._model.start << _SHIFT

    def extend(self, states: I64Array, tokens: I64Array) -> tuple[I64Array, F64Array]:
        """See `PrefixScorer.extend`."""
        listed = states.tolist()
        with self._lock:
            places = self._places([state & _MASK for state in listed])[:, None] * len(self._texts) + tokens
            reached, gains = self._next.take(places), self._gain.take(places)
        begins = self._begins[tokens]
        ended = [self._end(state) for state in listed] if begins.any() else [(0, 0.0)] * len(listed)
        behind = np.array([state for state, _ in ended], np.int64)
        added = np.array([gain for _, gain in ended])
        reached += np.where(begins, behind[:, None], (states >> _SHIFT << _SHIFT)[:, None])
        gains += np.where(begins, added[:, None], 0.0)
        if self._is_long[tokens].any():
            self._extend_slowly(listed, tokens, reached, gains)
        return reached, gains

    def finish(self, states: I64Array) -> F64Array:
        """See `PrefixScorer.finish`."""
        gains = np.zeros(len(states))
        for index, state in enumerate(states.tolist()):
            behind, gain = self._end(state)
            log_prob, _ = self._model.score(behind >> _SHIFT, END)
            gains[index] = gain + self._weights.alpha * log_prob
        return gains

    def _prepare_trie(self) -> None:
        """Compute from the trie what a step through it takes."""
        n_children, letters, is_word = (array.astype(np.int64) for array in self._model.trie)
        n_nodes = len(n_children)
        parents = np.repeat(np.arange(n_nodes), n_children)  # of nodes 1, 2, ...
        # Sorted, because nodes are numbered level by level: child i + 1 is at key i.
        self._keys = parents * 256 + letters[1:]
        self._word_of = np.where(is_word, np.cumsum(is_word) + (N_SPECIAL - 1), UNKNOWN)
        weights = self._weights
        depths = np.zeros(n_nodes, np.int64)
        for first, last in _levels(n_children):
            depths[first:last] = depths[parents[first - 1 : last - 1]] + _begins_letter(letters[first:last])
        best = np.where(is_word, self._model.unigrams()[self._word_of], -np.inf)
        best = np.maximum(best, weights.unknown_word + weights.unknown_letter * depths)
        for first, last in reversed(_levels(n_children)):
            np.maximum.at(best, parents[first - 1 : last - 1], best[first:last])
        self._pending = weights.alpha * best + weights.beta
        self._pending[_ROOT] = 0.0
        self._depths = depths
        self._n_nodes = n_nodes

    def _unknown(self, n_letters: I64Array) -> F64Array:
        """Return what unknown words of so many letters cost, with the bonus of a word."""
        weights = self._weights
        costs = weights.unknown_word + weights.unknown_letter * n_letters.astype(np.float64)
        return weights.alpha * costs + weights.beta

    def _places(self, nodes: list[int]) -> I64Array:
        """Return the rows of nodes in the table, and compute those that are missing."""
        rows = self._rows
        try:
            return np.array([rows[node] for node in nodes], np.int64)
        except KeyError:
            pass
        if len(rows) + len(nodes) > self._max_rows:
            rows.clear()
        for node in nodes:
            if node not in rows:
                if len(rows) >= len(self._next):
                    n_rows = min(max(256, 2 * len(rows)), self._max_rows)
                    self._next = np.resize(self._next, (n_rows, len(self._texts)))
                    self._gain = np.resize(self._gain, (n_rows, len(self._texts)))
                place = len(rows)
                self._next[place], self._gain[place] = self._walk(node)
                rows[node] = place
        return np.array([rows[node] for node in nodes], np.int64)

    def _walk(self, node: int) -> tuple[I64Array, F64Array]:
        """Return the nodes that the tokens lead to from a node, those with a space from the root."""
        nodes = np.where(self._begins, _ROOT, node)
        before = self._pending_at(nodes)
        for column in range(self._letters.shape[1]):
            alive = np.flatnonzero(column < self._lens)
            nodes[alive] = self._step(nodes[alive], self._letters[alive, column])
        # What the word before had pending is settled where it ends.
        return nodes, self._pending_at(nodes) - before

    def _step(self, nodes: I64Array, letters: I64Array) -> I64Array:
        """Return the children by a byte; behind the trie there are the lengths of unknown words."""
        keys = nodes * 256 + letters
        places = np.minimum(self._keys.searchsorted(keys), len(self._keys) - 1)
        found = (nodes < self._n_nodes) & (self._keys[places] == keys) if len(self._keys) else nodes < 0
        lengths = np.where(
            nodes < self._n_nodes, self._depths.take(nodes, mode="clip"), nodes - self._n_nodes
        )
        return np.where(found, places + 1, self._n_nodes + lengths + _begins_letter(letters))

    def _pending_at(self, nodes: I64Array) -> F64Array:
        """What the words that begin so have in their score before they end."""
        known = self._pending.take(nodes, mode="clip")
        unknown: F64Array = np.where(nodes < self._n_nodes, known, self._unknown(nodes - self._n_nodes))
        return unknown

    def _end(self, state: int) -> tuple[int, float]:
        """Return the state behind the end of a word, and what the end adds to the score."""
        found = self._ended.get(state)
        if found is not None:
            return found
        context, node = state >> _SHIFT, state & _MASK
        if node == _ROOT:
            found = (state, 0.0)  # a second space is none
        elif node < self._n_nodes and self._word_of[node] != UNKNOWN:
            log_prob, behind = self._model.score(context, int(self._word_of[node]))
            score = self._weights.alpha * log_prob + self._weights.beta
            found = (behind << _SHIFT, score - float(self._pending[node]))
        else:
            place = np.array([node])
            n_letters = self._depths[place] if node < self._n_nodes else place - self._n_nodes
            found = (0, float((self._unknown(n_letters) - self._pending_at(place))[0]))
        if len(self._ended) >= MAX_ENDED:
            self._ended = {}
        self._ended[state] = found
        return found

    def _extend_slowly(self, states: list[int], tokens: I64Array, reached: I64Array, gains: F64Array) -> None:
        """Correct what tokens with a space inside or behind do: the words within them end as well."""
        for column in np.flatnonzero(self._is_long[tokens]).tolist():
            parts = self._texts[tokens[column]].split(b" ")[1 if self._begins[tokens[column]] else 0 :]
            for row in range(len(states)):
                state, gain = int(reached[row, column]), float(gains[row, column])
                for part in parts[1:]:
                    state, added = self._end(state)
                    node = np.array([state & _MASK])
                    before = float(self._pending_at(node)[0])
                    for letter in part:
                        node = self._step(node, np.array([letter]))
                    gain += added + float(self._pending_at(node)[0]) - before
                    state = (state >> _SHIFT << _SHIFT) + int(node[0])
                reached[row, column], gains[row, column] = state, gain


def _levels(n_children: npt.NDArray[Any]) -> list[tuple[int, int]]:
    """Return first and last node (exclusive) of each level of a trie but the root's."""
    levels: list[tuple[int, int]] = []
    first, last = 0, 1
    while True:
        n_next = int(n_children[first:last].sum())
        if not n_next:
            return levels
        first, last = last, last + n_next
        levels.append((first, last))


def _begins_letter(byte: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which bytes of UTF-8 begin a character."""
    begins: npt.NDArray[np.bool_] = (byte & 0xC0) != 0x80
    return begins


def _heard_text(token: bytes, model: LanguageModel) -> bytes:
    """Return the bytes of a token as the language model spells it."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return token  # a byte piece
    if model.header.case != "mixed":
        text = text.lower() if model.header.case == "lower" else text.upper()
    known = set(model.header.characters)
    kept = (c for c in text if c in known or c == " " or unicodedata.category(c)[0] in "LMN")
    return space_unspaced("".join(kept)).encode()
