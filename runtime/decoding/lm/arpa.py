"""Reads and writes language models as ARPA text, the format that SRILM, KenLM and others share.

Source: the ngram-format(5) page of SRILM. Probabilities there are log10. What this file does not do: read
KenLM's binary files, whose arrays are not documented.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from edge_asr.atomic import writing_file
from edge_asr.errors import LanguageModelError
from edge_asr.runtime.decoding.lm.ngrams import (
    BEGIN,
    MAX_ORDER,
    NEVER,
    SPECIAL_WORDS,
    UNKNOWN,
    Level,
    Ngrams,
    sort_words,
)

_LN10 = math.log(10.0)
_Grams = dict[tuple[str, ...], tuple[float, float]]


def write_arpa(path: Path, model: Ngrams) -> None:
    """Write a model.

    Raises:
        OSError: it cannot be written.
    """
    spelled: list[str] = []
    with writing_file(path) as file:
        file.write(b"\\data\\\n")
        for n, level in enumerate(model.levels, start=1):
            file.write(f"ngram {n}={len(level)}\n".encode())
        for n, level in enumerate(model.levels, start=1):
            file.write(f"\n\\{n}-grams:\n".encode())
            last = [model.words[word] for word in level.words.tolist()]
            if n == 1:
                spelled = last
            else:
                pairs = zip(level.contexts.tolist(), last, strict=True)
                spelled = [f"{spelled[context]} {word}" for context, word in pairs]
            probs, backoffs = level.log_probs / _LN10, level.backoffs / _LN10
            if n == 1:
                probs = probs.copy()
                probs[BEGIN] = NEVER
            for text, prob, backoff in zip(spelled, probs.tolist(), backoffs.tolist(), strict=True):
                behind = f"\t{backoff:.7g}" if n < model.order else ""
                file.write(f"{prob:.7g}\t{text}{behind}\n".encode())
        file.write(b"\n\\end\\\n")


def read_arpa(path: Path) -> Ngrams:
    """Read a model.

    Raises:
        LanguageModelError: no such file, not ARPA text, or n-grams without their context; it names the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            grams = _read(file, str(path))
    except UnicodeDecodeError as error:
        raise LanguageModelError(f"{path} is not UTF-8 text ({error}); give ARPA text") from error
    except OSError as error:
        raise LanguageModelError(f"the language model {path} cannot be read: {error.strerror}") from error
    _add_missing(grams, str(path))
    words = sort_words({gram[0] for gram in grams[0]})
    numbers = {word: number for number, word in enumerate(words)}
    places: dict[tuple[str, ...], int] = {(): 0}
    levels = []
    for level in grams:
        rows = sorted((places[gram[:-1]], numbers[gram[-1]], gram) for gram in level)
        below = places
        places = {gram: place for place, (_, _, gram) in enumerate(rows)}
        values = np.array([level[gram] for _, _, gram in rows]).reshape(-1, 2) * _LN10
        levels.append(
            Level(
                contexts=np.array([context for context, _, _ in rows], np.int64),
                words=np.array([word for _, word, _ in rows], np.int64),
                suffixes=np.array([below[gram[1:]] for _, _, gram in rows], np.int64),
                log_probs=values[:, 0],
                backoffs=values[:, 1],
            )
        )
    return Ngrams(words=words, levels=tuple(levels))


def _read(lines: Iterator[str], name: str) -> list[_Grams]:
    """Return the n-grams of each length, with log10 of probability and back-off weight."""
    numbered = enumerate(lines, start=1)
    counts = _read_counts(numbered, name)
    grams: list[_Grams] = []
    for n, count in enumerate(counts, start=1):
        found: _Grams = {}
        for number, line in islice(numbered, count):
            fields = line.split()
            try:
                if len(fields) not in (n + 1, n + 2):
                    raise ValueError
                values = (float(fields[0]), float(fields[n + 1]) if len(fields) == n + 2 else 0.0)
                if not all(map(math.isfinite, values)):
                    raise ValueError
            except ValueError:
                raise LanguageModelError(
                    f"{name}, line {number} is {line.strip()[:60]!r}; expected log10, {n} words, and log10 "
                    f"of a back-off weight or nothing"
                ) from None
            found[tuple(fields[1 : n + 1])] = values
        if len(found) != count:
            raise LanguageModelError(f"{name} has {len(found)} different {n}-grams and promises {count}")
        grams.append(found)
        title = next((line.strip() for _, line in numbered if line.strip()), "")
        expected = f"\\{n + 1}-grams:" if n < len(counts) else "\\end\\"
        if title != expected:
            raise LanguageModelError(f"{name} has {title[:60]!r} where {expected} belongs; it is damaged")
    return grams


def _read_counts(numbered: Iterator[tuple[int, str]], name: str) -> list[int]:
    """Return how many n-grams of each length there are, and go on to those of one word."""
    counts: list[int] = []
    is_arpa = False
    for _, line in numbered:
        text = line.strip()
        if text == "\\data\\":
            is_arpa = True
        elif text.startswith("ngram ") and is_arpa:
            n, separator, count = text[6:].partition("=")
            if not separator or n.strip() != str(len(counts) + 1) or not count.strip().isdecimal():
                raise LanguageModelError(f"{name} has {text[:60]!r}; expected ngram {len(counts) + 1}=COUNT")
            counts.append(int(count))
        elif text == "\\1-grams:" and counts:
            while len(counts) > 1 and not counts[-1]:
                counts.pop()
            if len(counts) > MAX_ORDER:
                raise LanguageModelError(f"{name} looks at {len(counts)} words; at most {MAX_ORDER} are read")
            return counts
        elif text and is_arpa:
            break
    raise LanguageModelError(f"{name} is no ARPA text; it has no \\data\\ and \\1-grams:")


def _add_missing(grams: list[_Grams], name: str) -> None:
    """Add what other n-grams need: words of the format, and suffixes that pruning took (as KenLM does)."""
    for word, values in zip(SPECIAL_WORDS, ((NEVER, 0.0), (NEVER, 0.0), (NEVER, 0.0)), strict=True):
        grams[UNKNOWN].setdefault((word,), values)
    for n in range(len(grams) - 1, 0, -1):
        for gram in grams[n]:
            for part in (gram[:-1], gram[1:]):
                if part not in grams[n - 1]:
                    if n == 1:
                        raise LanguageModelError(f"{name} has {' '.join(gram)!r} but not {part[0]!r} alone")
                    grams[n - 1][part] = (_backed_off(grams, part), 0.0)


def _backed_off(grams: list[_Grams], gram: tuple[str, ...]) -> float:
    """Return log10 of the probability of a last word that shorter n-grams give."""
    found = grams[len(gram) - 1].get(gram)
    if found is not None:
        return found[0]
    if len(gram) == 1:
        return NEVER
    context = grams[len(gram) - 2].get(gram[:-1], (0.0, 0.0))
    return context[1] + _backed_off(grams, gram[1:])
