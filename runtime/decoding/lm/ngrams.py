"""A back-off model of n-grams in memory, as it is built, read from ARPA and pruned.

What this file does not do: the file that a recognizer loads (model_file.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_asr.errors import LanguageModelError

F64Array = npt.NDArray[np.float64]
I64Array = npt.NDArray[np.int64]

UNKNOWN, BEGIN, END = 0, 1, 2
SPECIAL_WORDS = ("<unk>", "<s>", "</s>")
MAX_ORDER = 6
NEVER = -99.0
"""What an ARPA file gives for log10 of a probability that nobody asks for, that of <s>."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """All n-grams of one length, sorted by context and word.

    Attributes:
        contexts: index of all words but the last in the level below, int64 [n]; 0 for single words.
        words: id of the last word, int64 [n].
        suffixes: index of all words but the first in the level below, int64 [n]; 0 for single words.
        log_probs: natural log of the probability of the last word after the others, float64 [n].
        backoffs: natural log of what the words as a context leave to shorter ones, float64 [n].
    """

    contexts: I64Array
    words: I64Array
    suffixes: I64Array
    log_probs: F64Array
    backoffs: F64Array

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ngrams:
    """A model: what each word costs after the words before it, or after fewer of them.

    With each n-gram it has the one without the first word, and the one without the last.

    Attributes:
        words: by id: unknown words, the beginning and the end of a sentence, then all others, the short ones
            first and in the order of their bytes.
        levels: n-grams of 1, 2, ... words; each is sorted.
    """

    words: tuple[str, ...]
    levels: tuple[Level, ...]

    @property
    def order(self) -> int:
        """The most words that it looks at."""
        return len(self.levels)

    def keep(self, kept: list[npt.NDArray[np.bool_]]) -> Ngrams:
        """Return the single words and the n-grams that are marked, of which none lacks context or suffix."""
        levels = [self.levels[0]]
        renamed = np.arange(len(self.levels[0]))
        for level, mask in zip(self.levels[1:], kept[1:], strict=True):
            chosen = np.flatnonzero(mask)
            levels.append(
                Level(
                    contexts=renamed[level.contexts[chosen]],
                    words=level.words[chosen],
                    suffixes=renamed[level.suffixes[chosen]],
                    log_probs=level.log_probs[chosen],
                    backoffs=level.backoffs[chosen],
                )
            )
            renamed = np.where(mask, np.cumsum(mask) - 1, -1)
        last = len(levels) - 1
        while last and not len(levels[last]):
            last -= 1
        return replace(self, levels=tuple(levels[: last + 1]))


def sort_words(words: set[str]) -> tuple[str, ...]:
    """Return the words of a model in the order of their ids."""
    ordinary = words.difference(SPECIAL_WORDS)
    return (*SPECIAL_WORDS, *sorted(ordinary, key=lambda w: (len(w.encode()), w.encode())))


def check_order(order: int) -> None:
    """Refuse an order out of range.

    Raises:
        LanguageModelError: less than 1 or more than `MAX_ORDER`.
    """
    if not 1 <= order <= MAX_ORDER:
        raise LanguageModelError(f"order is {order}; give 1 to {MAX_ORDER}, the words that a model looks at")
