"""Builds a language model from text: interpolated modified Kneser-Ney smoothing.

Source: Chen and Goodman 1998, section 3 and equation 26; Heafield et al. 2013, section 3 (what counts at the
beginning of a sentence, and that a cut-off gives the mass of what it drops to shorter contexts). The figures
are those of KenLM's `lmplz`.
What this file does not do: read files of text (text.py), make a model smaller (pruning.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.errors import LanguageModelError
from edge_asr.runtime.decoding.lm.ngrams import (
    BEGIN,
    END,
    NEVER,
    SPECIAL_WORDS,
    UNKNOWN,
    F64Array,
    I64Array,
    Level,
    Ngrams,
    check_order,
    sort_words,
)

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""Where a text is too small or too regular to tell (the default of lmplz's --discount_fallback)."""


def build_ngrams(
    sentences: Iterable[Sequence[str]],
    order: int = 3,
    *,
    vocabulary_size: int | None = None,
    cutoffs: Sequence[int] = (),
) -> Ngrams:
    """Build a model.

    Args:
        sentences: the words of each.
        order: the most words that it looks at.
        vocabulary_size: only the most frequent words; all others are unknown. None takes all.
        cutoffs: of each length from 1 on, n-grams that occur as often or less are left out, but for single
            words; the last one counts for all longer ones.

    Raises:
        LanguageModelError: no words, or a value out of range.
    """
    check_order(order)
    if vocabulary_size is not None and vocabulary_size < 1:
        raise LanguageModelError(f"a vocabulary of {vocabulary_size} words is none; give 1 or more")
    if any(c < 0 for c in cutoffs) or list(cutoffs) != sorted(cutoffs) or (cutoffs and cutoffs[0]):
        raise LanguageModelError(
            f"the cut-offs are {','.join(map(str, cutoffs))}; give 0 for single words, then numbers that do "
            "not fall, such as 0,0,1"
        )
    words, stream = _number_words(sentences, vocabulary_size)
    counts = _count(stream, len(words), order)
    levels = [_unigrams(counts, len(words))]
    for n in range(2, order + 1):
        if len(counts[n - 1].words) == 0:
            break  # no sentence is as long
        cutoff = cutoffs[min(n, len(cutoffs)) - 1] if cutoffs else 0
        below, level = _interpolate(levels[-1], counts, n, cutoff)
        levels[-1] = below
        levels.append(level)
    model = Ngrams(words=words, levels=tuple(levels))
    kept = [np.ones(len(level), np.bool_) for level in levels]
    for n in range(2, len(levels) + 1):
        cutoff = cutoffs[min(n, len(cutoffs)) - 1] if cutoffs else 0
        kept[n - 1] = (counts[n - 1].raw > cutoff) & ~counts[n - 1].has_unknown
    return model.keep(kept)


def _number_words(
    sentences: Iterable[Sequence[str]], vocabulary_size: int | None
) -> tuple[tuple[str, ...], I64Array]:
    """Return the words by id, and all ids of the text in one row, each sentence with its ends."""
    seen = {word: number for number, word in enumerate(SPECIAL_WORDS)}
    row: list[int] = []
    for sentence in sentences:
        if sentence:
            row.append(BEGIN)
            row.extend([seen.setdefault(word, len(seen)) for word in sentence])
            row.append(END)
    if not row:
        raise LanguageModelError("the text has no words; give text with a sentence a line")
    stream = np.array(row, np.int64)
    spelled = list(seen)
    if vocabulary_size is not None and vocabulary_size < len(seen) - len(SPECIAL_WORDS):
        often = Counter(stream.tolist())
        rest = range(len(SPECIAL_WORDS), len(seen))
        chosen = sorted(rest, key=lambda i: (-often[i], spelled[i]))[:vocabulary_size]
        words = sort_words({spelled[i] for i in chosen})
    else:
        words = sort_words(set(seen))
    numbers = {word: number for number, word in enumerate(words)}
    renumbered = np.array([numbers.get(word, UNKNOWN) for word in spelled], np.int64)
    return words, renumbered[stream]


class _Counts:
    """How often the n-grams of one length occur."""

    __slots__ = ("adjusted", "begins", "contexts", "has_unknown", "raw", "suffixes", "words")

    def __init__(
        self,
        contexts: I64Array,
        words: I64Array,
        suffixes: I64Array,
        raw: I64Array,
        begins: npt.NDArray[np.bool_],
        has_unknown: npt.NDArray[np.bool_],
    ) -> None:
        self.contexts, self.words, self.suffixes, self.raw = contexts, words, suffixes, raw
        self.begins = begins  # whether the first word is <s>
        self.has_unknown = has_unknown
        #: In how many contexts it occurs; where it begins a sentence or is of full length, how often.
        self.adjusted = raw


def _count(stream: I64Array, n_words: int, order: int) -> list[_Counts]:
    """Count the n-grams of all lengths."""
    none = np.zeros(n_words, np.int64)
    ids = np.arange(n_words)
    raw = np.bincount(stream, minlength=n_words)
    levels = [_Counts(none, ids, none, raw, ids == BEGIN, ids == UNKNOWN)]
    row, places = stream, np.arange(len(stream))  # n-gram at each place, and where one begins
    for n in range(2, order + 1):
        below = levels[-1]
        inside = places[: np.searchsorted(places, len(stream) - n + 1)]
        inside = inside[stream[inside + n - 2] != END]
        keys, found, raw = np.unique(
            row[inside] * n_words + stream[inside + n - 1], return_inverse=True, return_counts=True
        )
        contexts, words = keys // n_words, keys % n_words
        suffixes = np.zeros(len(keys), np.int64)
        suffixes[found] = row[inside + 1]
        has_unknown = below.has_unknown[contexts] | (words == UNKNOWN)
        levels.append(_Counts(contexts, words, suffixes, raw, below.begins[contexts], has_unknown))
        n_before = np.bincount(suffixes, minlength=len(below.words))
        below.adjusted = np.where(below.begins, below.raw, n_before)
        row = np.zeros(len(stream), np.int64)
        row[inside] = found
        places = inside
    return levels


def _discounts(adjusted: I64Array) -> F64Array:
    """Return what is taken from counts of 0, 1, 2, and 3 or more."""
    t = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(np.float64)
    if t[1:4].all():
        y = t[1] / (t[1] + 2 * t[2])
        taken = np.array([0.0, *(j - (j + 1) * y * t[j + 1] / t[j] for j in (1, 2, 3))])
        if (taken >= 0).all() and (taken <= np.arange(4)).all():
            return taken
    return np.array([0.0, *FALLBACK_DISCOUNTS])


def _unigrams(counts: list[_Counts], n_words: int) -> Level:
    """Return the single words, interpolated with a uniform distribution over all but <s>."""
    adjusted = counts[0].adjusted.copy()
    adjusted[BEGIN] = 0
    taken = _discounts(adjusted)[np.minimum(adjusted, 3)]
    total = adjusted.sum()
    probs = (adjusted - taken) / total + taken.sum() / total / (n_words - 1)
    probs[BEGIN] = 10.0**NEVER
    none = np.zeros(n_words, np.int64)
    return Level(
        contexts=none,
        words=np.arange(n_words),
        suffixes=none,
        log_probs=np.log(probs),
        backoffs=np.zeros(n_words),
    )


def _interpolate(below: Level, counts: list[_Counts], n: int, cutoff: int) -> tuple[Level, Level]:
    """Return the level below with its back-off weights, and that of `n` words."""
    grams = counts[n - 1]
    n_contexts = len(below)
    taken = _discounts(grams.adjusted)[np.minimum(grams.adjusted, 3)]
    total = np.bincount(grams.contexts, grams.adjusted, minlength=n_contexts)
    kept = (grams.raw > cutoff) & ~grams.has_unknown
    left = np.bincount(grams.contexts, np.where(kept, taken, grams.adjusted), minlength=n_contexts)
    weights = np.where(total > 0, left / np.maximum(total, 1), 1.0)
    probs = (grams.adjusted - taken) / total[grams.contexts]
    probs += weights[grams.contexts] * np.exp(below.log_probs[grams.suffixes])
    new_below = Level(
        contexts=below.contexts,
        words=below.words,
        suffixes=below.suffixes,
        log_probs=below.log_probs,
        backoffs=np.log(weights),
    )
    return new_below, Level(
        contexts=grams.contexts,
        words=grams.words,
        suffixes=grams.suffixes,
        log_probs=np.log(probs),
        backoffs=np.zeros(len(grams.words)),
    )
