"""Language models as they are built, read, written and pruned, against KenLM and against brute force.

tests/data/language_model was made by scripts/golden/make/kenlm_model.py: models of a text by lmplz.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from edge_asr.errors import LanguageModelError
from edge_asr.runtime.decoding.lm.arpa import read_arpa, write_arpa
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.ngrams import BEGIN, Ngrams
from edge_asr.runtime.decoding.lm.pruning import prune, prune_to_size
from edge_asr.runtime.decoding.lm.text import read_sentences

GOLDEN = Path(__file__).parent.parent / "data/language_model"
SENTENCES = [line.split() for line in (GOLDEN / "text.txt").read_text().splitlines()]
Table = dict[tuple[str, ...], tuple[float, float]]


def table_of(model: Ngrams) -> Table:
    """Log-probability and back-off weight of each n-gram; that of <s> alone says nothing."""
    found: Table = {}
    spelled: list[tuple[str, ...]] = [()]
    for level in model.levels:
        pairs = zip(level.contexts.tolist(), level.words.tolist(), strict=True)
        spelled = [(*spelled[context], model.words[word]) for context, word in pairs]
        values = zip(level.log_probs.tolist(), level.backoffs.tolist(), strict=True)
        found.update(zip(spelled, values, strict=True))
    found["<s>",] = (0.0, found["<s>",][1])
    return found


def probability(table: Table, context: tuple[str, ...], word: str) -> float:
    """By the definition of a back-off model."""
    if (*context, word) in table:
        return math.exp(table[(*context, word)][0])
    return math.exp(table.get(context, (0.0, 0.0))[1]) * probability(table, context[1:], word)


@pytest.mark.parametrize(("name", "order", "cutoffs"), [("order3", 3, ()), ("order4_cut", 4, (0, 0, 1))])
def test_it_is_the_model_of_lmplz(name: str, order: int, cutoffs: tuple[int, ...]) -> None:
    """Each n-gram, to the digits that lmplz prints (float32, 7 digits of log10)."""
    built = table_of(build_ngrams(SENTENCES, order, cutoffs=cutoffs))
    expected = table_of(read_arpa(GOLDEN / f"{name}.arpa"))
    assert built.keys() == expected.keys()
    for gram, values in expected.items():
        assert built[gram] == pytest.approx(values, abs=2e-6), gram


@pytest.mark.parametrize("options", [{}, {"cutoffs": (0, 1)}, {"vocabulary_size": 12}])
def test_the_words_behind_each_context_have_all_the_probability(options: dict[str, object]) -> None:
    model = build_ngrams(SENTENCES, 3, **options)  # type: ignore[arg-type]
    for smaller in (model, prune(model, 1e-4), prune_to_size(model, 9000)):
        table = table_of(smaller)
        outcomes = [word for word in smaller.words if word != "<s>"]
        contexts = [gram for gram in table if len(gram) < 3 and gram[-1] != "</s>"]
        assert len(contexts) > 12
        for context in [(), *contexts]:
            assert sum(probability(table, context, word) for word in outcomes) == pytest.approx(1, abs=1e-6)


def test_few_words_and_few_sentences() -> None:
    model = build_ngrams([["a"], ["a", "b"]], 3)
    assert model.words == ("<unk>", "<s>", "</s>", "a", "b")
    assert probability(table_of(model), ("<s>",), "a") > 0.5
    assert build_ngrams([["a"]], 6).order == 3  # <s> a </s> is all there is
    assert build_ngrams([["a"]], 1).order == 1


def test_rare_words_are_unknown_in_a_small_vocabulary() -> None:
    counts = Counter(word for sentence in SENTENCES for word in sentence)
    model = build_ngrams(SENTENCES, 2, vocabulary_size=10)
    assert len(model.words) == 13
    assert min(counts[word] for word in model.words[3:]) >= sorted(counts.values())[-10]
    assert all("<unk>" not in gram for gram in table_of(model) if len(gram) > 1)
    assert probability(table_of(model), (), "<unk>") > 0.05


@pytest.mark.parametrize(
    ("sentences", "options", "message"),
    [
        ([], {}, "the text has no words"),
        ([["a"]], {"order": 0}, "order is 0; give 1 to 6"),
        ([["a"]], {"order": 7}, "order is 7; give 1 to 6"),
        ([["a"]], {"vocabulary_size": 0}, "a vocabulary of 0 words is none"),
        ([["a"]], {"cutoffs": (0, 2, 1)}, "the cut-offs are 0,2,1; give 0 for single words, then numbers"),
        ([["a"]], {"cutoffs": (1,)}, "the cut-offs are 1; give 0"),
    ],
)
def test_what_cannot_be_built(sentences: list[list[str]], options: dict[str, int], message: str) -> None:
    with pytest.raises(LanguageModelError, match=message):
        build_ngrams(sentences, **options)  # type: ignore[arg-type]


def relative_change(table: Table, lost: tuple[str, ...], outcomes: list[str]) -> float:
    """How much the perplexity rises without one n-gram, by the definition: D(p || p') over its context."""
    context = lost[:-1]
    smaller = dict(table)
    del smaller[lost]
    kept = [gram[-1] for gram in smaller if gram[:-1] == context]
    left = 1 - sum(probability(table, context, w) for w in kept)
    weight = left / (1 - sum(probability(table, context[1:], w) for w in kept))
    smaller[context] = (smaller[context][0], math.log(weight))
    often = 1.0
    for end in range(len(context)):
        asked = "</s>" if context[end] == "<s>" else context[end]
        often *= probability(table, context[:end], asked)
    divergence = sum(
        probability(table, context, w)
        * math.log(probability(table, context, w) / probability(smaller, context, w))
        for w in outcomes
    )
    return math.expm1(often * divergence)


def test_pruning_leaves_out_what_changes_least() -> None:
    """Each n-gram that goes changes the perplexity by less than the threshold; what stays alone, by more."""
    model, threshold = build_ngrams(SENTENCES, 2), 3e-4
    table, smaller = table_of(model), table_of(prune(model, threshold))
    outcomes = [word for word in model.words if word != "<s>"]
    n_lost = 0
    for gram in table:
        if len(gram) == 2:
            change = relative_change(table, gram, outcomes)
            if abs(change - threshold) > 1e-7:
                assert (gram in smaller) == (change > threshold), (gram, change)
            n_lost += gram not in smaller
    assert 50 < n_lost < 450


def test_what_stays_keeps_its_context_suffix_and_probability() -> None:
    model = build_ngrams(SENTENCES, 4)
    table, smaller = table_of(model), table_of(prune(model, 1e-4))
    assert len(smaller) < 0.8 * len(table)
    assert any(len(gram) == 4 for gram in smaller)
    for gram, (log_prob, _) in smaller.items():
        assert log_prob == pytest.approx(table[gram][0])
        assert len(gram) == 1 or (gram[:-1] in smaller and gram[1:] in smaller)
    assert prune(model, 0.0) is model
    assert prune(model, np.inf).order == 1
    with pytest.raises(LanguageModelError, match="threshold of pruning is nan; give 0 or more"):
        prune(model, float("nan"))


def test_arpa_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = build_ngrams([*SENTENCES, ["caf\u00e9", "\u4e2d"]], 3)
    write_arpa(tmp_path / "a.arpa", model)
    again = read_arpa(tmp_path / "a.arpa")
    assert again.words == model.words
    for level, other in zip(model.levels, again.levels, strict=True):
        for name in ("contexts", "words", "suffixes"):
            assert np.array_equal(getattr(level, name), getattr(other, name))
        assert np.allclose(np.delete(level.log_probs, BEGIN), np.delete(other.log_probs, BEGIN), atol=1e-6)
        assert np.allclose(level.backoffs, other.backoffs, atol=1e-6)


def test_missing_suffixes_are_added(tmp_path: Path) -> None:
    """SRILM prunes "b c" although "a b c" stays; a line may end in blanks or tabs."""
    path = tmp_path / "a.arpa"
    path.write_text(
        "made by hand\n\\data\\\nngram 1=5\nngram 2=1\nngram 3=1\n\n\\1-grams:\n-1 a -0.5\n"
        "-1\tb\t-0.25\n-0.5 c\n"
        "-99 <s> -0.1 \n-1 </s>\n\n\\2-grams:\n-0.3 a b -0.2\n\n\\3-grams:\n-0.1 a b c\n\n\\end\\\n"
    )
    table = table_of(read_arpa(path))
    assert table["b", "c"][0] == pytest.approx((-0.25 - 0.5) * math.log(10))
    assert ("<unk>",) in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no model", "is no ARPA text"),
        ("\\data\\\nngram 2=1\n", "expected ngram 1=COUNT"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nx a\n", "line 5 is 'x a'; expected log10, 1 words"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\nnan a\n", "line 5 is 'nan a'"),
        ("\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n-1 a\n", "has 1 different 1-grams and promises 2"),
        ("\\data\\\nngram 1=1\n\n\\1-grams:\n-1 a\n", r"has '' where \\end\\ belongs"),
        (
            "\\data\\\nngram 1=1\nngram 2=1\n\n\\1-grams:\n-1 a\n\n\\2-grams:\n-1 a b\n\\end\\\n",
            "has 'a b' but not 'b' alone",
        ),
    ],
)
def test_damaged_arpa_text(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.arpa"
    path.write_text(text)
    with pytest.raises(LanguageModelError, match=message):
        read_arpa(path)


def test_text_is_files_and_manifests_without_what_is_excluded(tmp_path: Path) -> None:
    text, manifest, test_set = (tmp_path / name for name in ("a.txt", "b.jsonl", "test.jsonl"))
    text.write_text("\ufeffIt\u2019s ONE, two!\n\n  \nThree four\n\u4f60\u597d ok\n", encoding="utf-8")
    manifest.write_text('{"audio_filepath": "a.wav", "text": "Five six."}\n')
    test_set.write_text('{"audio_filepath": "b.wav", "text": "three  FOUR"}\n')
    found = list(read_sentences([text, manifest], exclude=[test_set]))
    assert found == [["it's", "one", "two"], ["\u4f60", "\u597d", "ok"], ["five", "six"]]
    assert next(read_sentences([text], normalization="none"))[1] == "ONE,"
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(LanguageModelError, match="is not UTF-8 text"):
        list(read_sentences([text]))
    with pytest.raises(LanguageModelError, match=r"the text .*none.txt cannot be read: No such file"):
        list(read_sentences([tmp_path / "none.txt"]))


def test_its_pairs_are_those_of_the_text() -> None:
    model = table_of(build_ngrams(SENTENCES, 2))
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in SENTENCES:
        for first, second in zip(["<s>", *sentence], [*sentence, "</s>"], strict=True):
            counts[first][second] += 1
    assert {gram for gram in model if len(gram) == 2} == {(a, b) for a, row in counts.items() for b in row}
