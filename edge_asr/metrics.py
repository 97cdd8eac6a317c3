"""Word and character error rates, computed by jiwer, and similarities, with a named text normalization.

`compute_error_rates` aligns once and returns everything in one `ErrorRates`. `compute_similarities` tells how
alike the texts are, which still says something where most words are wrong.
What this file does not do: read manifests, run a recognizer.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from edge_asr.errors import ConfigError, require

_NOT_BASIC = re.compile(r"[^\w' ]|_")
_SPACES = re.compile(r"\s+")


def _normalize_none(text: str) -> str:
    return text


def _normalize_basic(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    text = _NOT_BASIC.sub(" ", _SPACES.sub(" ", text))
    return _SPACES.sub(" ", text).strip()


TEXT_NORMALIZATIONS: dict[str, Callable[[str], str]] = {"none": _normalize_none, "basic": _normalize_basic}


def normalize_text(text: str, normalization: str = "basic") -> str:
    """Apply a named normalization.

    "none" leaves the text alone. "basic" applies NFKC, lower case, keeps letters, digits and
    apostrophes, and turns everything else into single spaces.

    Raises:
        ConfigError: the name is unknown.
    """
    function = TEXT_NORMALIZATIONS.get(normalization)
    if function is None:
        known = ", ".join(TEXT_NORMALIZATIONS)
        raise ConfigError(f"unknown text normalization {normalization!r}; use one of {known}")
    return function(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class UtteranceErrors:
    """One utterance's errors in words; `alignment` is jiwer's three-line REF/HYP picture."""

    index: int
    wer: float
    n_errors: int
    n_words: int
    reference: str
    hypothesis: str
    alignment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRates:
    """Error rates over a whole set, as fractions (0.05 is 5 percent), and word counts.

    `wer` and `mer` are of words, `cer` of characters (spaces included). An utterance with an
    empty reference adds its words to the insertions. Rates are 0 when both sides are empty and
    1.0 when only the references are.
    """

    wer: float
    cer: float
    mer: float
    substitutions: int
    deletions: int
    insertions: int
    hits: int
    n_words: int
    n_characters: int
    n_utterances: int
    normalization: str

    def to_dict(self) -> dict[str, float | int | str]:
        """Return the fields, ready for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def compute_error_rates(
    references: Sequence[str], hypotheses: Sequence[str], *, normalization: str = "basic"
) -> ErrorRates:
    """Align every pair and sum the errors.

    Raises:
        ConfigError: the sequences differ in length, or the normalization is unknown.
        MissingDependencyError: jiwer is not installed.
    """
    refs, hyps = _normalized_pairs(references, hypotheses, normalization)
    extra_words = sum(len(h.split()) for r, h in zip(refs, hyps, strict=True) if not r)
    extra_chars = sum(len(h) for r, h in zip(refs, hyps, strict=True) if not r)
    kept = [(r, h) for r, h in zip(refs, hyps, strict=True) if r]
    words = _process("process_words", kept)
    chars = _process("process_characters", kept)
    insertions = words["insertions"] + extra_words
    n_words = words["hits"] + words["substitutions"] + words["deletions"]
    n_characters = chars["hits"] + chars["substitutions"] + chars["deletions"]
    word_errors = words["substitutions"] + words["deletions"] + insertions
    char_errors = chars["substitutions"] + chars["deletions"] + chars["insertions"] + extra_chars
    return ErrorRates(
        wer=_rate(word_errors, n_words),
        cer=_rate(char_errors, n_characters),
        mer=_rate(word_errors, n_words + insertions),
        substitutions=words["substitutions"],
        deletions=words["deletions"],
        insertions=insertions,
        hits=words["hits"],
        n_words=n_words,
        n_characters=n_characters,
        n_utterances=len(refs),
        normalization=normalization,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarities:
    """How alike references and hypotheses are: means over utterances, from 0 to 1 (equal).

    Attributes:
        damerau_levenshtein: 1 - distance / length of the longer text. The distance counts the fewest
            insertions, deletions, substitutions and swaps of neighbors that make one text the other, in
            characters (Damerau 1964).
        jaccard: words that both texts have, of all words in either; order and repetition do not count.
        cosine: cosine of the angle between the counts of `N_GRAM` characters in a row; order hardly counts.
    """

    damerau_levenshtein: float
    jaccard: float
    cosine: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields, ready for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


N_GRAM = 3
"""Characters in a row that `Similarities.cosine` counts; a space is added to both ends of a text."""


def compute_similarities(
    references: Sequence[str], hypotheses: Sequence[str], *, normalization: str = "basic"
) -> Similarities:
    """Compare every pair, and average; all are 1.0 without utterances.

    Raises:
        ConfigError: the sequences differ in length, or the normalization is unknown.
        MissingDependencyError: rapidfuzz is not installed.
    """
    refs, hyps = _normalized_pairs(references, hypotheses, normalization)
    similarity = require("rapidfuzz.distance", extra="eval").DamerauLevenshtein.normalized_similarity
    pairs = list(zip(refs, hyps, strict=True))
    n_pairs = max(len(pairs), 1)
    sums = [
        sum(float(measure(ref, hyp)) for ref, hyp in pairs) / n_pairs if pairs else 1.0
        for measure in (similarity, _jaccard, _cosine)
    ]
    return Similarities(damerau_levenshtein=sums[0], jaccard=sums[1], cosine=sums[2])


def _jaccard(reference: str, hypothesis: str) -> float:
    ours, theirs = set(reference.split()), set(hypothesis.split())
    return len(ours & theirs) / len(ours | theirs) if ours or theirs else 1.0


def _cosine(reference: str, hypothesis: str) -> float:
    if not reference or not hypothesis:
        return float(reference == hypothesis)
    ours, theirs = (
        Counter(padded[i : i + N_GRAM] for i in range(max(len(padded) - N_GRAM + 1, 1)))
        for padded in (f" {reference} ", f" {hypothesis} ")
    )
    norms = math.sqrt(sum(n * n for n in ours.values()) * sum(n * n for n in theirs.values()))
    return sum(count * theirs[gram] for gram, count in ours.items()) / norms


def find_worst_utterances(
    references: Sequence[str], hypotheses: Sequence[str], *, n: int, normalization: str = "basic"
) -> list[UtteranceErrors]:
    """Find the `n` utterances with the most word errors, most first (ties: higher WER, then order).

    Utterances without an error are left out.

    Raises:
        ConfigError: the sequences differ in length, or the normalization is unknown.
        MissingDependencyError: jiwer is not installed.
    """
    refs, hyps = _normalized_pairs(references, hypotheses, normalization)
    jiwer = require("jiwer", extra="eval")
    found: list[UtteranceErrors] = []
    for index, (ref, hyp) in enumerate(zip(refs, hyps, strict=True)):
        n_words = len(ref.split())
        if not ref:
            n_errors, alignment = len(hyp.split()), f"REF: (empty)\nHYP: {hyp}"
        else:
            output = jiwer.process_words(ref, hyp)
            n_errors = output.substitutions + output.deletions + output.insertions
            alignment = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False)
            # The first line is jiwer's "sentence 1" header, which is meaningless here.
            alignment = "\n".join(alignment.splitlines()[1:]).strip("\n")
        if n_errors:
            found.append(
                UtteranceErrors(
                    index=index,
                    wer=_rate(n_errors, n_words),
                    n_errors=n_errors,
                    n_words=n_words,
                    reference=ref,
                    hypothesis=hyp,
                    alignment=alignment,
                )
            )
    found.sort(key=lambda item: (-item.n_errors, -item.wer, item.index))
    return found[:n]


def find_right_words(reference: str, words: Sequence[str], *, normalization: str = "basic") -> list[bool]:
    """Tell of each recognized word whether it is right: aligned with an equal word of the reference.

    A word that the normalization makes several words is right if all of them are; one that it leaves nothing
    of is right.

    Raises:
        ConfigError: the normalization is unknown.
        MissingDependencyError: jiwer is not installed.
    """
    jiwer = require("jiwer", extra="eval")
    parts = [normalize_text(word, normalization).split() for word in words]
    said = " ".join(part for word in parts for part in word)
    expected = normalize_text(reference, normalization).strip()
    hits: set[int] = set()
    if said and expected:
        for chunk in jiwer.process_words(expected, said).alignments[0]:
            if chunk.type == "equal":
                hits.update(range(chunk.hyp_start_idx, chunk.hyp_end_idx))
    ends = accumulate(map(len, parts))
    return [hits.issuperset(range(end - len(word), end)) for word, end in zip(parts, ends, strict=True)]


def _normalized_pairs(
    references: Sequence[str], hypotheses: Sequence[str], normalization: str
) -> tuple[list[str], list[str]]:
    if len(references) != len(hypotheses):
        raise ConfigError(
            f"{len(references)} references but {len(hypotheses)} hypotheses; give one for each reference"
        )
    refs = [normalize_text(text, normalization).strip() for text in references]
    hyps = [normalize_text(text, normalization).strip() for text in hypotheses]
    return refs, hyps


def _process(function: str, pairs: list[tuple[str, str]]) -> dict[str, int]:
    jiwer = require("jiwer", extra="eval")
    if not pairs:
        return {"hits": 0, "substitutions": 0, "deletions": 0, "insertions": 0}
    output: Any = getattr(jiwer, function)([r for r, _ in pairs], [h for _, h in pairs])
    return {key: int(getattr(output, key)) for key in ("hits", "substitutions", "deletions", "insertions")}


def _rate(errors: int, total: int) -> float:
    if total == 0:
        return 1.0 if errors else 0.0
    return errors / total
