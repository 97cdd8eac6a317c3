"""Hotwords: phrases of the application that the beam search favors, and the file that lists them.

Phrases are matched by letters, not by tokens: one automaton (Aho and Corasick 1975) over the UTF-8 bytes of
the text, through which every token walks with the bytes it stands for. So every way to cut a word into pieces
gets the same boost, byte pieces included, and one file serves every model.

A phrase counts where it stands as whole words. Each letter of it adds its boost as soon as it is spelled, or
the beam would lose the word before its end; what was added is taken back when the text goes on otherwise,
when the last word goes on, or when the utterance ends before the phrase does. So a finished text has the
boosts of the phrases in it and nothing else, each as often as it stands there, also within a longer one. In
scripts that put no space between words a phrase counts wherever it stands.
What this file does not do: search (beam.py).
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_asr.errors import ConfigError, VocabularyError
from edge_asr.runtime.decoding.beam import F64Array
from edge_asr.runtime.decoding.decoder import I64Array
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

DEFAULT_BOOST = 1.0
"""What each letter of a phrase adds to the score, natural log, if nothing else is said (docs/log.md)."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = 0x20
#: Thai to Lao, Burmese, Khmer, Chinese and Japanese (not Korean).
_UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0xA4CF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True, slots=True)
class Hotword:
    """A phrase to favor.

    Attributes:
        phrase: one or more words, as the model writes them.
        boost: what each of its letters adds to the score of a text with it, natural log, above 0.

    Raises:
        ConfigError: no word, or a boost that is not a number above 0.
    """

    phrase: str
    boost: float = DEFAULT_BOOST

    def __post_init__(self) -> None:
        if not self.phrase.split():
            raise ConfigError(f"a hotword is {self.phrase!r}; give a word or a phrase")
        if not (math.isfinite(self.boost) and self.boost > 0):
            raise ConfigError(f"the boost of {self.phrase!r} is {self.boost}; give a number above 0")


def read_hotwords(path: str | Path, *, boost: float = DEFAULT_BOOST) -> tuple[Hotword, ...]:
    """Read a file of hotwords: a phrase a line, `:boost` behind it if wanted, # begins a comment.

    Args:
        path: text in UTF-8.
        boost: of the phrases that name none.

    Raises:
        ConfigError: no such file, not UTF-8, no phrase, or a boost that is no number; it names the line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"the hotwords {path} cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if content:
            found.append(_hotword_of(content, boost, f"{path}, line {number}"))
    if not found:
        raise ConfigError(f"{path} holds no hotwords; write a phrase a line, such as: stop the robot:1.5")
    return tuple(found)


def _hotword_of(content: str, boost: float, place: str) -> Hotword:
    phrase, separator, number = content.rpartition(":")
    if not separator:
        return Hotword(content, boost)
    try:
        value = float(number)
    except ValueError:
        raise ConfigError(f"{place}: the boost {number!r} is no number; write phrase:1.5") from None
    try:
        return Hotword(phrase.strip(), value)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error


class HotwordScorer:
    """A `PrefixScorer` that knows phrases. It is made once and shared.

    Args:
        hotwords: of a phrase that is given twice, the higher boost counts.
        vocabulary: the model's.

    Attributes:
        n_states: of the automaton.

    Raises:
        ConfigError: no hotwords.
        VocabularyError: a word that no tokens spell.
    """

    def __init__(self, hotwords: Iterable[Hotword], vocabulary: Vocabulary) -> None:
        boosts: dict[str, float] = {}
        for hotword in hotwords:
            phrase = " ".join(hotword.phrase.split())
            boosts[phrase] = max(hotword.boost, boosts.get(phrase, 0.0))
        if not boosts:
            raise ConfigError("there are no hotwords; give one at least, or leave them out")
        spelling = Spelling(vocabulary)
        for phrase in boosts:
            spelling.check(phrase)
        spelled = spelling.tokens
        trie = _Trie()
        for phrase, boost in boosts.items():
            trie.add(phrase, boost)
        # Bytes that no phrase has are one class; class 0 is the padding behind the bytes of a token.
        classes = np.full(256, trie.n_classes - 1, np.int64)
        for byte, number in trie.classes.items():
            classes[byte] = number
        self._lens = np.array([len(token) for token in spelled], np.int64)
        self._symbols = np.zeros((len(spelled), max(1, int(self._lens.max()))), np.int64)
        for row, token in zip(self._symbols, spelled, strict=True):
            row[: len(token)] = classes[np.frombuffer(token, np.uint8)]
        self._next, self._gain, self._finish = trie.compile()
        self.n_states = len(self._finish)

    def start(self) -> int:
        """See `PrefixScorer.start`."""
        return _Trie.WORD_START

    def extend(self, states: I64Array, tokens: I64Array) -> tuple[I64Array, F64Array]:
        """See `PrefixScorer.extend`."""
        symbols = self._symbols[tokens]  # (k, L)
        n_classes = self._next.shape[1]
        # Flat places in the tables: several times faster than pairs of indexes.
        places = (states * n_classes)[:, None] + symbols[:, 0]
        reached, gains = self._next.take(places), self._gain.take(places)
        longest = 1 if symbols.shape[1] == 1 else int(self._lens[tokens].max(initial=1))
        for column in range(1, longest):
            places = reached * n_classes + symbols[:, column]
            reached, gains = self._next.take(places), gains + self._gain.take(places)
        return reached, gains

    def finish(self, states: I64Array) -> F64Array:
        """See `PrefixScorer.finish`."""
        ended: F64Array = self._finish[states]
        return ended


class _Trie:
    """The phrases as a trie of byte classes, compiled to tables of the automaton.

    A phrase is entered with the space before it and the space behind it, so that the search of Aho and
    Corasick finds it as whole words only. A text begins in the state behind a space, and ends as if one came.
    """

    ROOT, WORD_START = 0, 1
    PADDING, SPACE = 0, 1

    def __init__(self) -> None:
        self.classes = {_SPACE: self.SPACE}
        self.children: list[dict[int, int]] = [{self.SPACE: self.WORD_START}, {}]
        self.ends_in_space = [False, True]
        self.reward = [0.0, 0.0]  # of the phrases that end in a state
        self.pending = [0.0, 0.0]  # the most that a phrase which is not finished there has earned

    @property
    def n_classes(self) -> int:
        """Count the classes of bytes, with padding and that of all other bytes."""
        return len(self.classes) + 2

    def add(self, phrase: str, boost: float) -> None:
        """Add a phrase whose words are parted by one space each."""
        before = b"" if is_unspaced(phrase[0]) else b" "
        behind = b"" if is_unspaced(phrase[-1]) else b" "
        text = before + phrase.encode() + behind
        state, n_letters = self.ROOT, -len(before)
        for index, byte in enumerate(text):
            symbol = self.classes.setdefault(byte, len(self.classes) + 1)
            if symbol not in self.children[state]:
                self.children[state][symbol] = len(self.children)
                self.children.append({})
                self.ends_in_space.append(byte == _SPACE)
                self.reward.append(0.0)
                self.pending.append(0.0)
            state = self.children[state][symbol]
            n_letters += (byte & 0xC0) != 0x80  # a character begins
            if index < len(text) - 1:
                self.pending[state] = max(self.pending[state], boost * max(n_letters, 0))
        self.reward[state] += boost * len(phrase)

    def compile(self) -> tuple[I64Array, F64Array, F64Array]:
        """Return next states and gains, both [states, classes], and what the end adds, [states]."""
        n_states, n_classes = len(self.children), self.n_classes
        step = np.zeros((n_states, n_classes), np.int64)
        reward, pending = np.array(self.reward), np.array(self.pending)
        failure = np.zeros(n_states, np.int64)
        waiting = deque([self.ROOT])
        while waiting:  # by depth: what a state falls back to is complete before
            state = waiting.popleft()
            if state != self.ROOT:
                step[state] = step[failure[state]]
                reward[state] += reward[failure[state]]
                pending[state] = max(pending[state], pending[failure[state]])
            for symbol, child in self.children[state].items():
                failure[child] = step[state, symbol] if state != self.ROOT else self.ROOT
                step[state, symbol] = child
                waiting.append(child)
        gain = reward[step] + pending[step] - pending[:, None]
        # A second space is none; nor is padding anything.
        spaced = np.flatnonzero(self.ends_in_space)
        for states, symbol in ((np.arange(n_states), self.PADDING), (spaced, self.SPACE)):
            step[states, symbol] = states
            gain[states, symbol] = 0.0
        earned = np.where(self.ends_in_space, 0.0, reward[step[:, self.SPACE]])
        return step, gain, earned - pending


def bytes_of_token(token: str) -> bytes:
    """Return the bytes of a token as text, a word boundary as a space."""
    piece = _BYTE_PIECE.fullmatch(token)
    if piece:
        return bytes.fromhex(piece[1])
    return token.replace(WORD_BOUNDARY, " ").encode()


def is_unspaced(character: str) -> bool:
    """Return whether a character is of a script that puts no space between words."""
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


class Spelling:
    """Tells which words the tokens of a vocabulary can spell.

    Attributes:
        tokens: the bytes of each token, a word boundary as a space; those of the blank are empty.
        has_spaces: whether a text can have several words.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = [bytes_of_token(token) for token in vocabulary.tokens]
        self.tokens[vocabulary.blank_id] = b""
        self.has_spaces = any(b" " in token for token in self.tokens)
        self._known = set(self.tokens) - {b""}
        self._longest = max(map(len, self._known), default=0)

    def can_spell(self, word: str) -> bool:
        """Return whether some tokens spell this word."""
        return self._reaches_end(f" {word}".encode()) or self._reaches_end(word.encode())

    def check(self, phrase: str) -> None:
        """Refuse a phrase with a word that cannot be spelled.

        Raises:
            VocabularyError: it has one.
        """
        words = phrase.split()
        for word in words:
            if not self.can_spell(word):
                folded = next((w for w in (word.lower(), word.upper()) if self.can_spell(w)), None)
                advice = f"write {folded!r}" if folded else "write it with the tokens of the model"
                raise VocabularyError(f"the vocabulary cannot spell the hotword {word!r}; {advice}")
        if len(words) > 1 and not self.has_spaces:
            raise VocabularyError(
                f"the vocabulary has no space, so it cannot spell {phrase!r}; write it without spaces"
            )

    def _reaches_end(self, text: bytes) -> bool:
        reached = [True] + [False] * len(text)
        for end in range(1, len(text) + 1):
            begins = range(max(0, end - self._longest), end)
            reached[end] = any(reached[begin] and text[begin:end] in self._known for begin in begins)
        return reached[-1]
