"""The language model in the beam search: what texts cost by it, for every way to cut words into tokens."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from decoder_contract import check_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.hotwords import Hotword, HotwordScorer
from edge_asr.runtime.decoding.lm import scorer as scorer_module
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.model_file import LanguageModel, LmWeights, write_model
from edge_asr.runtime.decoding.lm.ngrams import END
from edge_asr.runtime.decoding.lm.scorer import LanguageModelScorer
from edge_asr.vocabulary import Vocabulary

SENTENCES = ["the cat sat", "the cat ran", "a cart ran", "the car sat there", "cats sat", "it's a cat"]
LETTERS = Vocabulary.from_characters("abcdefghinrst' ")
PIECES = Vocabulary.from_pieces(
    ["▁the", "▁", "▁c", "at", "a", "c", "t", "r", "s", "▁s", "n", "car", "▁ca", "e"]
)
WEIGHTS = LmWeights(alpha=0.7, beta=0.4, unknown_word=-6.0, unknown_letter=-1.5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return make_model(tmp_path_factory.mktemp("lm") / "lm.bin", SENTENCES)


def make_model(path: Path, sentences: list[str]) -> LanguageModel:
    write_model(path, build_ngrams([sentence.split() for sentence in sentences], 3), WEIGHTS)
    return LanguageModel.load(path)


def expected_score(model: LanguageModel, words: list[str]) -> float:
    """By the definition: each word in its context, and the end."""
    numbers = {word: number for number, word in enumerate(model.words())}
    context, total = model.start, 0.0
    for word in words:
        if word in numbers:
            log_prob, context = model.score(context, numbers[word])
        else:
            log_prob, context = WEIGHTS.unknown_word + WEIGHTS.unknown_letter * len(word), 0
        total += WEIGHTS.alpha * log_prob + WEIGHTS.beta
    return total + WEIGHTS.alpha * model.score(context, END)[0]


def walk(scorer: LanguageModelScorer, tokens: list[int]) -> float:
    """The sum of what the search is given."""
    states, total = np.array([scorer.start()]), 0.0
    for token in tokens:
        longer, added = scorer.extend(states, np.array([token]))
        states, total = longer[:, 0], total + float(added[0, 0])
    return total + float(scorer.finish(states)[0])


@pytest.mark.parametrize(
    "text",
    ["the cat sat", "cat", "cats", "ca", "zebras sat there", "the the the", "", "it's a tin", "cartridges"],
)
def test_a_text_costs_what_its_words_cost(model: LanguageModel, text: str) -> None:
    vocabulary = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz' ")
    scorer = LanguageModelScorer(model, vocabulary)
    expected = pytest.approx(expected_score(model, text.split()), abs=1e-9)
    tokens = vocabulary.encode_characters(text)
    space = vocabulary.tokens.index("▁")
    assert walk(scorer, tokens) == expected
    assert walk(scorer, [space, space, *tokens, space]) == expected


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.integers(0, len(PIECES) - 2), max_size=12))
def test_pieces_are_the_words_that_they_spell(model: LanguageModel, tokens: list[int]) -> None:
    expected = expected_score(model, PIECES.decode(tokens).split())
    assert walk(LanguageModelScorer(model, PIECES), tokens) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prefixes=st.lists(st.lists(st.integers(0, len(PIECES) - 2), max_size=5), min_size=1, max_size=6))
def test_all_beams_and_tokens_at_once(model: LanguageModel, prefixes: list[list[int]]) -> None:
    scorer = LanguageModelScorer(model, PIECES)
    states = []
    for prefix in prefixes:
        state = np.array([scorer.start()])
        for token in prefix:
            state = scorer.extend(state, np.array([token]))[0][:, 0]
        states.append(int(state[0]))
    tokens = np.arange(len(PIECES) - 1)
    longer, added = scorer.extend(np.array(states), tokens)
    for row, column in itertools.product(range(len(states)), range(len(tokens))):
        one, gain = scorer.extend(np.array(states[row : row + 1]), tokens[column : column + 1])
        assert (one[0, 0], gain[0, 0]) == (longer[row, column], added[row, column])


def test_a_beginning_has_the_score_of_its_best_word(model: LanguageModel) -> None:
    """ "ca" may become "cat": it costs no more than "cat" on its own, and "cax" no less than unknown."""
    scorer = LanguageModelScorer(model, LETTERS)
    states, total = np.array([scorer.start()]), 0.0
    for token in LETTERS.encode_characters("ca"):
        longer, added = scorer.extend(states, np.array([token]))
        states, total = longer[:, 0], total + float(added[0, 0])
    numbers = {word: number for number, word in enumerate(model.words())}
    best = max(model.unigrams()[numbers[word]] for word in ("cat", "cart", "car", "cats"))
    assert total == pytest.approx(WEIGHTS.alpha * best + WEIGHTS.beta)


def test_case_signs_and_scripts_without_spaces(tmp_path: Path, model: LanguageModel) -> None:
    capitals = Vocabulary(kind="char", tokens=(*"ABCDEFGHINRST'", "▁", ",", "<blk>"), blank_id=16)
    expected = pytest.approx(expected_score(model, ["the", "cat", "it's"]))
    tokens = capitals.encode_characters("THE CAT, IT'S")
    assert walk(LanguageModelScorer(model, capitals), tokens) == expected
    chinese = make_model(tmp_path / "zh.bin", ["\u4f60 \u597d", "\u4f60 \u4eec \u597d ok"])
    units = Vocabulary.from_pieces(["\u4f60", "\u597d", "\u4eec\u597d", "▁ok", "\u4eec"])
    for tokens in ([0, 4, 1, 3], [0, 2, 3]):
        expected = pytest.approx(expected_score(chinese, ["\u4f60", "\u4eec", "\u597d", "ok"]))
        assert walk(LanguageModelScorer(chinese, units), tokens) == expected
    spelled = "\u4f60".encode()
    byte_pieces = Vocabulary.from_pieces([*(f"<0x{byte:02X}>" for byte in sorted(set(spelled))), "▁"])
    ids = [byte_pieces.tokens.index(f"<0x{byte:02X}>") for byte in spelled]
    assert walk(LanguageModelScorer(chinese, byte_pieces), ids) == pytest.approx(
        expected_score(chinese, ["\u4f60"])
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n_frames=st.integers(0, 25), seed=st.integers(0, 9999), cuts=st.lists(st.floats(0, 1), max_size=5))
def test_any_cutting_gives_the_same(
    model: LanguageModel, n_frames: int, seed: int, cuts: list[float]
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, (n_frames, len(PIECES)))
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    scorers = [LanguageModelScorer(model, PIECES), HotwordScorer([Hotword("cat")], PIECES)]
    check_decoder(BeamDecoder(PIECES.blank_id, scorers=scorers), log_probs, cuts)


def test_it_decides_where_the_sound_does_not(model: LanguageModel) -> None:
    """ "cat" and "cas" sound the same; a hotword outweighs the language model."""
    log_probs = np.full((11, len(LETTERS)), -12.0, np.float32)
    for frame, token in enumerate(LETTERS.encode_characters("the cas sat")):
        log_probs[frame, token] = np.log(0.49)
    log_probs[6, LETTERS.tokens.index("t")] = np.log(0.48)

    def hear(*scorers: object) -> str:
        decoder = BeamDecoder(LETTERS.blank_id, scorers=scorers)  # type: ignore[arg-type]
        decoder.push(log_probs)
        return LETTERS.decode(decoder.flush().tokens.ids.tolist())

    scorer = LanguageModelScorer(model, LETTERS)
    assert hear() == "the cas sat"
    assert hear(scorer) == "the cat sat"
    assert hear(scorer, HotwordScorer([Hotword("cas", 4.0)], LETTERS)) == "the cas sat"
    assert hear(LanguageModelScorer(model, LETTERS, LmWeights(alpha=0.0, beta=0.0))) == "the cas sat"


def test_full_tables_and_threads(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that begin anew all the time give the same, in threads that share them too."""
    rng = np.random.default_rng(5)
    texts = [[int(t) for t in rng.integers(0, len(PIECES) - 1, 10)] for _ in range(60)]
    expected = [walk(LanguageModelScorer(model, PIECES), text) for text in texts]
    monkeypatch.setattr(scorer_module, "MAX_ENDED", 3)
    scorer = LanguageModelScorer(model, PIECES)
    scorer._max_rows = 2
    found: dict[int, list[float]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: [walk(scorer, text) for text in texts]}))  # type: ignore[misc]
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[i] == expected for i in range(4))
