"""WER, CER and MER against counts done by hand and an independent edit distance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import ConfigError
from edge_asr.metrics import compute_error_rates, find_worst_utterances, normalize_text


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
