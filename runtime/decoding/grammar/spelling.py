"""Spells words in the tokens of a model: every way of cutting a word into tokens.

Characters leave one way. A SentencePiece vocabulary leaves many ("stop" may be st-op, s-to-p or stop), and a
bundle has its pieces without their scores or merges, so which way the tokenizer of the training chose is not
known here; besides, CTC spreads its probability over several. So all of them are in the graph, as one lattice
a word, and the best one is found by the search. Ids that share a piece (aggregate tokenizers) are all taken.
What this file does not do: join words to phrases (graph.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

#: Where one can go from each position of a spelling: (token, next position).
Lattice = tuple[tuple[tuple[int, int], ...], ...]


@dataclass(frozen=True, slots=True)
class Spelling:
    """A word in tokens.

    Attributes:
        text: the word as the tokens spell it, with the word boundary first where the vocabulary has one.
        lattice: one entry for each position before the end of `text`.
    """

    text: str
    lattice: Lattice


class Speller:
    """Spells words in the tokens of one vocabulary.

    Attributes:
        boundary: the token between words of a character model, which has its place before every word; None
            where pieces carry it, or words are not separated.
        has_boundary: whether spellings begin with a word boundary.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids: dict[str, list[int]] = {}
        for index, token in enumerate(vocabulary.tokens):
            if index != vocabulary.blank_id:
                self._ids.setdefault(token, []).append(index)
        self._longest = max((len(token) for token in self._ids), default=1)
        self.has_boundary = vocabulary.kind == "sentencepiece" or WORD_BOUNDARY in self._ids
        is_char = vocabulary.kind == "char"
        self.boundary = self._ids[WORD_BOUNDARY][0] if is_char and WORD_BOUNDARY in self._ids else None

    def spell(self, word: str) -> Spelling | None:
        """Spell a word as it is, else in lower case, else in upper case; None if no way ends."""
        for form in dict.fromkeys((word, word.lower(), word.upper())):
            text = WORD_BOUNDARY + form if self.has_boundary else form
            lattice = self._lattice(text)
            if lattice is not None:
                return Spelling(text, lattice)
        return None

    def missing(self, word: str) -> str:
        """Return the characters of a word that no token holds, for messages."""
        text = {c for token in self._ids for c in token}
        return "".join(dict.fromkeys(c for c in word if not {c, c.lower(), c.upper()} & text))

    def _lattice(self, text: str) -> Lattice | None:
        """Return all ways through `text`, without those that do not reach its end."""
        n = len(text)
        reaches_end = [False] * n + [True]
        lattice: list[tuple[tuple[int, int], ...]] = [()] * n
        for position in range(n - 1, -1, -1):
            arcs = [
                (token, end)
                for end in range(position + 1, min(n, position + self._longest) + 1)
                if reaches_end[end]
                for token in self._ids.get(text[position:end], ())
            ]
            reaches_end[position] = bool(arcs)
            lattice[position] = tuple(arcs)
        return tuple(lattice) if reaches_end[0] else None
