"""Hotwords: the automaton against counting phrases in the text, in every spelling; the file; the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from decoder_contract import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import ConfigError, VocabularyError
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.hotwords import DEFAULT_BOOST, Hotword, HotwordScorer, read_hotwords
from edge_asr.vocabulary import Vocabulary

LETTERS = Vocabulary.from_characters("abc ")
PIECES = Vocabulary.from_pieces(["▁", "a", "b", "c", "▁a", "ab", "▁ab", "b▁a", "c▁", "abc", "<0x61>", "▁▁c"])


def scorer_of(boosts: Mapping[str, float], vocabulary: Vocabulary = LETTERS) -> HotwordScorer:
    return HotwordScorer([Hotword(*item) for item in boosts.items()], vocabulary)


def score(scorer: HotwordScorer, ids: list[int]) -> tuple[list[float], float]:
    """What has been added behind each token, and the score of the whole text."""
    state, total, course = np.array([scorer.start()]), 0.0, []
    for token in ids:
        states, gains = scorer.extend(state, np.array([token]))
        state, total = states[0], total + float(gains[0, 0])
        course.append(total)
    return course, total + float(scorer.finish(state)[0])


def counted(boosts: Mapping[str, float], text: str) -> float:
    """Each phrase as often as it stands in the text as whole words."""
    words, total = text.split(), 0.0
    for phrase, boost in boosts.items():
        wanted = phrase.split()
        places = range(len(words) - len(wanted) + 1)
        n_found = sum(words[place : place + len(wanted)] == wanted for place in places)
        total += boost * len(" ".join(wanted)) * n_found
    return total


words = st.text("abc", min_size=1, max_size=3)
phrases = st.lists(words, min_size=1, max_size=3).map(" ".join)
lists = st.dictionaries(phrases, st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(boosts=lists, ids=st.lists(st.integers(0, 3), max_size=14))
def test_letters_earn_what_the_text_holds(boosts: dict[str, float], ids: list[int]) -> None:
    """Overlapping and nested phrases, words that go on, double spaces: at the end nothing else is left."""
    _, total = score(scorer_of(boosts), ids)
    assert total == pytest.approx(counted(boosts, LETTERS.decode(ids)))


@settings(max_examples=150, deadline=None)
@given(boosts=lists, ids=st.lists(st.integers(0, 11), max_size=10))
def test_pieces_earn_what_the_text_holds_however_it_is_cut(boosts: dict[str, float], ids: list[int]) -> None:
    _, total = score(scorer_of(boosts, PIECES), ids)
    assert total == pytest.approx(counted(boosts, PIECES.decode(ids)))


@settings(max_examples=100, deadline=None)
@given(boosts=lists, ids=st.lists(st.integers(0, 3), max_size=14))
def test_nothing_is_owed_for_what_was_never_given(boosts: dict[str, float], ids: list[int]) -> None:
    """What is added in advance is never below what the finished part of the text has earned."""
    course, _ = score(scorer_of(boosts), ids)
    assert all(value >= -1e-9 for value in course)


def test_every_letter_adds_and_an_unfinished_word_is_taken_back() -> None:
    scorer = scorer_of({"abc": 2.0})
    assert score(scorer, LETTERS.encode_characters("abc")) == ([2.0, 4.0, 6.0], 6.0)
    assert score(scorer, LETTERS.encode_characters("abb")) == ([2.0, 4.0, 0.0], 0.0)
    assert score(scorer, LETTERS.encode_characters("ab")) == ([2.0, 4.0], 0.0)
    assert score(scorer, LETTERS.encode_characters("abca")) == ([2.0, 4.0, 6.0, 0.0], 0.0)
    assert score(scorer, LETTERS.encode_characters("cabc")) == ([0.0, 0.0, 0.0, 0.0], 0.0)


def test_phrases_that_overlap_count_each() -> None:
    boosts = {"a b": 1.0, "b c": 1.0, "a b c": 1.0}
    assert score(scorer_of(boosts), LETTERS.encode_characters("a b c"))[1] == 3 + 3 + 5


def test_a_phrase_given_twice_has_the_higher_boost() -> None:
    scorer = HotwordScorer([Hotword("a  b", 1.0), Hotword("a b", 3.0), Hotword(" a b ", 2.0)], LETTERS)
    assert score(scorer, LETTERS.encode_characters("a b"))[1] == 9.0


def test_scripts_without_spaces() -> None:
    vocabulary = Vocabulary.from_pieces(["你", "好", "吗", "▁go"])
    scorer = scorer_of({"你好": 1.0, "go": 1.0}, vocabulary)
    assert score(scorer, [2, 0, 1, 2])[1] == 2.0  # within others
    assert score(scorer, [2, 0, 2])[1] == 0.0
    assert score(scorer, [0, 1, 3])[1] == 4.0


def test_byte_pieces_spell_what_has_no_piece() -> None:
    vocabulary = Vocabulary.from_pieces(["▁", "<0xC3>", "<0xA9>", "t"])
    scorer = scorer_of({"été": 1.0}, vocabulary)
    assert score(scorer, [0, 1, 2, 3, 1, 2])[1] == 3.0


def test_hundreds_of_phrases() -> None:
    random = np.random.default_rng(0)
    names = {"".join(random.choice(list("abcdefghij"), 8)) for _ in range(500)}
    vocabulary = Vocabulary.from_characters("abcdefghij ")
    scorer = scorer_of(dict.fromkeys(names, 1.0), vocabulary)
    assert scorer.n_states < 500 * 10
    assert all(score(scorer, vocabulary.encode_characters(name))[1] == 8.0 for name in sorted(names)[:20])


def log_probs_of(rows: list[dict[str, float]]) -> np.ndarray:
    table = np.full((len(rows), len(LETTERS)), 1e-5)
    for row, chances in zip(table, rows, strict=True):
        for token, chance in chances.items():
            row[LETTERS.blank_id if token == "_" else LETTERS.tokens.index(token)] = chance
    return np.log(table / table.sum(axis=1, keepdims=True)).astype(np.float32)


def beam_of(boosts: Mapping[str, float]) -> BeamDecoder:
    return BeamDecoder(LETTERS.blank_id, scorers=[scorer_of(boosts)])


def test_the_search_hears_a_hotword_and_no_part_of_it() -> None:
    doubtful = log_probs_of(
        [{"a": 0.9}, {"_": 0.9}, {"b": 0.7, "c": 0.2}, {"_": 0.99}, {"b": 0.9}, {"_": 0.99}]
    )
    heard = {}
    for phrase in ("acb", "aca", "acbb", "ac"):
        decoder = beam_of({phrase: 1.0})
        decoder.push(doubtful)
        best = decoder.flush()
        heard[phrase] = LETTERS.decode(best.tokens.ids)
        assert best.log_prob is not None
        assert best.score == pytest.approx(best.log_prob + (3.0 if phrase == "acb" else 0.0))
    assert heard == {"acb": "acb", "aca": "abb", "acbb": "abb", "ac": "abb"}


@settings(max_examples=60, deadline=None)
@given(boosts=lists, seed=st.integers(0, 10_000), cuts=st.lists(st.floats(0, 1), max_size=6))
def test_it_keeps_the_contract_of_a_decoder(boosts: dict[str, float], seed: int, cuts: list[float]) -> None:
    logits = np.random.default_rng(seed).normal(0, 2, (25, len(LETTERS)))
    log_probs = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    check_decoder(beam_of(boosts), log_probs, cuts)


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# names\n\nnew york\nc#:2.5  # a note\nstop : 3\n", encoding="utf-8")
    expected = (Hotword("new york", DEFAULT_BOOST), Hotword("c#", 2.5), Hotword("stop", 3.0))
    assert read_hotwords(path) == expected
    assert read_hotwords(path, boost=0.5)[0] == Hotword("new york", 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no hotwords; write a phrase a line"),
        (b"# nothing\n\n", "holds no hotwords"),
        (b"go\nstop:loud\n", "line 2: the boost 'loud' is no number; write phrase:1.5"),
        (b"stop:\n", "line 1: the boost '' is no number"),
        (b"stop:nan\n", "line 1: the boost of 'stop' is nan; give a number above 0"),
        (b"stop:-1\n", "line 1: the boost of 'stop' is -1.0"),
        (b":2\n", "line 1: a hotword is ''; give a word"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_hotwords(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt cannot be read: No such file"):
        read_hotwords(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("a xyz", "cannot spell the hotword 'xyz'; write it with the tokens of the model"),
        ("ABC", "cannot spell the hotword 'ABC'; write 'abc'"),
    ],
)
def test_words_that_cannot_be_spelled(phrase: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        scorer_of({phrase: 1.0})


def test_a_vocabulary_without_spaces_spells_no_two_words() -> None:
    vocabulary = Vocabulary.from_characters("ab")
    assert score(scorer_of({"ab": 1.0}, vocabulary), [0, 1])[1] == 2.0
    with pytest.raises(VocabularyError, match="has no space, so it cannot spell 'a b'"):
        scorer_of({"a b": 1.0}, vocabulary)


def test_no_hotwords() -> None:
    with pytest.raises(ConfigError, match="there are no hotwords"):
        HotwordScorer([], LETTERS)
