"""Tokens as other runtimes print them, and how far two sequences are apart."""

from __future__ import annotations

from edge_asr.vocabulary import Vocabulary


def ids_of(tokens: list[str], vocabulary: Vocabulary) -> list[int]:
    """Ids of tokens that a runtime printed, a word boundary as a space."""
    index = {token.replace("\u2581", " "): i for i, token in enumerate(vocabulary.tokens)}
    return [index[token.replace("\u2581", " ")] for token in tokens]


def edit_distance(given: list[int], expected: list[int]) -> int:
    """Insertions, deletions and substitutions (Levenshtein)."""
    row = list(range(len(expected) + 1))
    for i, token in enumerate(given, start=1):
        previous, row[0] = row[0], i
        for j, other in enumerate(expected, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (token != other))
    return row[-1]
