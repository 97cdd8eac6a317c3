"""WER, CER and MER against counts done by hand and an independent edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.metrics import (
    compute_error_rates,
    compute_similarities,
    find_worst_utterances,
    normalize_text,
)


def edit_distance(a: list[str], b: list[str]) -> int:
    """Levenshtein, the textbook recurrence."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_by_hand() -> None:
    rates = compute_error_rates(["go to the door", "stop"], ["go two door now", "stop"])
    # the -> (deleted), to -> two, now inserted: or as many errors in another alignment.
    assert rates.substitutions + rates.deletions + rates.insertions == 3
    assert (rates.n_words, rates.n_utterances) == (5, 2)
    assert rates.wer == pytest.approx(3 / 5)
    assert rates.mer == pytest.approx(3 / (5 + rates.insertions))


def test_empty_sides() -> None:
    rates = compute_error_rates(["", "a b"], ["x y", ""])
    assert (rates.insertions, rates.deletions, rates.n_words) == (2, 2, 2)
    assert rates.wer == pytest.approx(2.0)
    assert compute_error_rates([""], [""]).wer == 0.0
    assert compute_error_rates([""], ["word"]).wer == 1.0
    assert compute_error_rates([], []).n_utterances == 0


words = st.lists(st.sampled_from(["a", "bb", "abc"]), min_size=1, max_size=6)


@given(
    st.lists(
        st.tuples(words, st.lists(st.sampled_from(["a", "bb", "abc"]), max_size=6)), min_size=1, max_size=4
    )
)
def test_equals_the_textbook(pairs: list[tuple[list[str], list[str]]]) -> None:
    refs = [" ".join(r) for r, _ in pairs]
    hyps = [" ".join(h) for _, h in pairs]
    rates = compute_error_rates(refs, hyps, normalization="none")
    n_errors = sum(edit_distance(r, h) for r, h in pairs)
    n_chars = sum(edit_distance(list(r), list(h)) for r, h in zip(refs, hyps, strict=True))
    assert rates.wer == pytest.approx(n_errors / sum(len(r) for r, _ in pairs))
    assert rates.cer == pytest.approx(n_chars / sum(len(r) for r in refs))
    assert rates.to_dict()["hits"] == rates.n_words - rates.substitutions - rates.deletions


@pytest.mark.parametrize(
    ("text", "basic"),
    [
        ("Hello, World!", "hello world"),
        ("don\u2019t  STOP", "don't stop"),
        ("a-b_c 4.5", "a b c 4 5"),
        ("\u00c9t\u00e9", "\u00e9t\u00e9"),
        (" \n", ""),
    ],
)
def test_normalization(text: str, basic: str) -> None:
    assert normalize_text(text, "basic") == basic
    assert normalize_text(basic, "basic") == basic
    assert normalize_text(text, "none") == text


def test_normalization_counts() -> None:
    assert compute_error_rates(["Go!"], ["go"]).wer == 0.0
    assert compute_error_rates(["Go!"], ["go"], normalization="none").wer == 1.0
    with pytest.raises(ConfigError, match="basic"):
        compute_error_rates(["a"], ["a"], normalization="english")
    with pytest.raises(ConfigError, match="2 references"):
        compute_error_rates(["a", "b"], ["a"])


def test_worst_first() -> None:
    worst = find_worst_utterances(["one two", "three", "four five six"], ["one", "three", "seven"], n=5)
    assert [item.index for item in worst] == [2, 0]
    assert worst[0].n_errors == 3
    assert "REF:" in worst[0].alignment
    assert "HYP:" in worst[0].alignment
    assert len(find_worst_utterances(["a", "b"], ["x", "y"], n=1)) == 1


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("go left", "Go left!", (1.0, 1.0, 1.0)),
        ("", "", (1.0, 1.0, 1.0)),
        ("", "go", (0.0, 0.0, 0.0)),
        ("go", "", (0.0, 0.0, 0.0)),
        # Two neighbors swapped are one step of five. " ab" and "abc" are two of five.
        ("abcde", "abced", (0.8, 0.0, 2 / 5)),
        ("ab", "ba", (0.5, 0.0, 0.0)),
        # Order counts for the characters alone: {one, two} on both sides.
        ("one two", "two one", (1 - 6 / 7, 1.0, 6 / 7)),
        # {a, b, c} and {a, c, d}: two of four words.
        ("a b c", "a c d", (1 - 2 / 5, 0.5, 2 / 5)),
    ],
)
def test_similarities_by_hand(reference: str, hypothesis: str, expected: tuple[float, ...]) -> None:
    found = compute_similarities([reference], [hypothesis])
    assert (found.damerau_levenshtein, found.jaccard, found.cosine) == pytest.approx(expected)


def test_similarities_are_means_over_utterances() -> None:
    found = compute_similarities(["go", "stop"], ["go", ""])
    assert found.to_dict() == {"damerau_levenshtein": 0.5, "jaccard": 0.5, "cosine": 0.5}
    assert compute_similarities([], []).jaccard == 1.0
    with pytest.raises(ConfigError, match="1 references but 0 hypotheses"):
        compute_similarities(["a"], [])


@given(st.text("abc ", max_size=12), st.text("abc ", max_size=12))
def test_similarities_are_symmetric_fractions(a: str, b: str) -> None:
    ours, theirs = compute_similarities([a], [b]).to_dict(), compute_similarities([b], [a]).to_dict()
    assert ours == pytest.approx(theirs)
    assert all(0 <= value <= 1 + 1e-12 for value in ours.values())
