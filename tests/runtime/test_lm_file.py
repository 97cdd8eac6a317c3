"""The file of a language model: its queries against KenLM's, its size, and what damage does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edge_asr.errors import LanguageModelError
from edge_asr.runtime.decoding.lm.arpa import read_arpa
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.model_file import (
    MAGIC,
    LanguageModel,
    LmWeights,
    file_bytes,
    read_header,
    set_weights,
    write_model,
)
from edge_asr.runtime.decoding.lm.ngrams import END, UNKNOWN, Ngrams
from edge_asr.runtime.decoding.lm.pruning import prune_to_size

GOLDEN = Path(__file__).parent.parent / "data/language_model"
SENTENCES = [line.split() for line in (GOLDEN / "text.txt").read_text().splitlines()]


def score(model: LanguageModel, sentence: list[str]) -> float:
    """The natural log of a sentence with its end."""
    numbers = {word: number for number, word in enumerate(model.words())}
    context, total = model.start, 0.0
    for word in sentence:
        log_prob, context = model.score(context, numbers.get(word, UNKNOWN))
        total += log_prob
    return total + model.score(context, END)[0]


def load(path: Path, model: Ngrams) -> LanguageModel:
    write_model(path, model)
    return LanguageModel.load(path)


@pytest.mark.parametrize("name", ["order3", "order4_cut"])
def test_sentences_cost_what_kenlm_says(tmp_path: Path, name: str) -> None:
    """Of the same ARPA text. Each word is off by what 8 bits leave: a step between two codes."""
    golden = json.loads((GOLDEN / "scores.json").read_text())
    model = load(tmp_path / "lm.bin", read_arpa(GOLDEN / f"{name}.arpa"))
    for text, expected in zip(golden["sentences"], golden["scores"][name], strict=True):
        assert score(model, text.split()) == pytest.approx(expected, abs=0.01 * (1 + len(text.split())))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_contexts_are_as_long_as_the_order_allows(tmp_path: Path, order: int) -> None:
    """Against the definition, in n-grams and back-off weights."""
    built = build_ngrams(SENTENCES, order)
    model = load(tmp_path / "lm.bin", built)
    assert model.words() == built.words
    table: dict[tuple[str, ...], tuple[float, float]] = {}
    spelled: list[tuple[str, ...]] = [()]
    for level in built.levels:
        pairs = zip(level.contexts.tolist(), level.words.tolist(), strict=True)
        spelled = [(*spelled[context], built.words[word]) for context, word in pairs]
        values = zip(level.log_probs.tolist(), level.backoffs.tolist(), strict=True)
        table.update(zip(spelled, values, strict=True))

    def cost(context: tuple[str, ...], word: str) -> float:
        if (*context, word) in table:
            return table[(*context, word)][0]
        return table.get(context, (0.0, 0.0))[1] + cost(context[1:], word)

    for sentence in [s[::-1] for s in SENTENCES[:50]] + SENTENCES[50:100]:
        words = ("<s>", *sentence, "</s>")
        expected = sum(cost(words[max(0, i - order + 1) : i], words[i]) for i in range(1, len(words)))
        assert score(model, sentence) == pytest.approx(expected, abs=0.03 * len(words))


def test_the_words_of_any_script(tmp_path: Path) -> None:
    words = ["a", "ab", "abc", "b", "caf\u00e9", "\u4f60", "\u597d", "\u0435\u0449\u0451", "x" * 300]
    model = load(tmp_path / "lm.bin", build_ngrams([words], 2))
    assert set(model.words()[3:]) == set(words)
    assert model.header.case == "lower"
    assert load(tmp_path / "b.bin", build_ngrams([["AB", "\u00c9"]], 2)).header.case == "upper"
    assert load(tmp_path / "c.bin", build_ngrams([["Ab", "c"]], 2)).header.case == "mixed"


def test_a_size_is_kept(tmp_path: Path) -> None:
    model = build_ngrams(SENTENCES, 4)
    whole = write_model(tmp_path / "a.bin", model).counts
    n_whole = (tmp_path / "a.bin").stat().st_size
    assert n_whole <= file_bytes(whole, model.words) <= n_whole + 1024
    for limit in (n_whole - 1000, 11_000):
        smaller = prune_to_size(model, limit)
        write_model(tmp_path / "b.bin", smaller)
        assert limit - 1500 < (tmp_path / "b.bin").stat().st_size <= limit
    assert prune_to_size(model, n_whole + 2000) is model
    with pytest.raises(
        LanguageModelError, match=r"62 words alone take 0.00 MB, more than 0.0001 MB; allow more"
    ):
        prune_to_size(model, 100)


def test_weights_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "lm.bin"
    before = load(path, build_ngrams(SENTENCES, 3))
    set_weights(path, LmWeights(alpha=0.25, beta=-2.5))
    after = LanguageModel.load(path)
    assert (after.header.weights.alpha, after.header.weights.beta) == (0.25, -2.5)
    assert score(after, ["aa", "adn"]) == score(before, ["aa", "adn"])
    for values, message in (
        ({"alpha": -1.0}, "alpha is -1.0; give 0 or more"),
        ({"beta": math.nan}, "beta is nan; it must be a number"),
        ({"alpha": "x"}, "alpha"),
    ):
        with pytest.raises(LanguageModelError, match=message):
            LmWeights(**values)  # type: ignore[arg-type]


def test_other_files_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "lm.bin"
    load(path, build_ngrams(SENTENCES, 3))
    whole = path.read_bytes()
    _, begin = read_header(path)
    for place in (begin, begin + 1500, len(whole) - 9):
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])
        with pytest.raises(LanguageModelError, match="is damaged; copy the language model again or build it"):
            LanguageModel.load(path)
    for content, message in (
        (whole[:-1], "is damaged"),
        (whole + bytes(8), "is damaged"),
        (whole[:begin], "is damaged"),
        (b"", "is no language model of edge-asr"),
        (
            (GOLDEN / "order3.arpa").read_bytes(),
            "is no language model of edge-asr; make one of ARPA text with",
        ),
        (MAGIC + b"{}\n", "the header of .*lm.bin"),
        (MAGIC + b'{"counts": [3, 1', "the header of .*lm.bin"),
        (whole.replace(b'"counts": [6', b'"counts": [9', 1), "is damaged"),
        (whole.replace(b'"counts": [', b'"counts": [0, ', 1), "are no language model"),
    ):
        path.write_bytes(content)
        with pytest.raises(LanguageModelError, match=message):
            LanguageModel.load(path)
    with pytest.raises(LanguageModelError, match=r"none.bin cannot be read: No such file"):
        LanguageModel.load(tmp_path / "none.bin")
