"""Phrases that sound alike: edit distances against the textbook, samples of phrases against the grammar."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_asr.runtime.decoding.grammar.check import check_grammar, edit_distances, sample_phrases
from edge_asr.runtime.decoding.grammar.jsgf import parse_jsgf
from edge_asr.runtime.decoding.grammar.network import build_network
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.vocabulary import Vocabulary

LETTERS = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz ")
sequences = st.lists(st.integers(0, 3), max_size=8)


def levenshtein(one: list[int], other: list[int]) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        levenshtein(one[1:], other) + 1,
        levenshtein(one, other[1:]) + 1,
        levenshtein(one[1:], other[1:]) + (one[0] != other[0]),
    )


@given(
    one=sequences.filter(lambda s: len(s) <= 5), others=st.lists(sequences.map(lambda s: s[:5]), max_size=4)
)
def test_edit_distances_are_the_definition(one: list[int], others: list[list[int]]) -> None:
    assert edit_distances(one, others).tolist() == [levenshtein(one, other) for other in others]


def test_the_nearest_phrases_come_first() -> None:
    report = check_grammar(parse_template("go left\ngo lift\nturn right\nstop"), LETTERS)
    assert (report.n_words, report.n_compared, report.is_complete) == (6, 4, True)
    assert [(pair.distance, pair.first, pair.second) for pair in report.alike[:1]] == [
        (1, "go left", "go lift")
    ]
    assert [pair.distance for pair in report.alike] == sorted(pair.distance for pair in report.alike)


def test_pieces_count_as_one() -> None:
    vocabulary = Vocabulary.from_pieces(["\u2581", *"golefti", "\u2581go", "\u2581left", "\u2581lift"])
    report = check_grammar(parse_template("go left\ngo go"), vocabulary)
    assert report.alike[0].distance == 1


def test_a_large_grammar_is_sampled() -> None:
    network = build_network(parse_template("{n 0..9000} {n 0..9000}"))
    phrases, is_complete = sample_phrases(network, 50)
    assert (len(phrases), is_complete) == (50, False)
    endless = build_network(parse_jsgf("#JSGF V1.0;\ngrammar g;\npublic <a> = (a | b)+;"))
    phrases, is_complete = sample_phrases(endless, 20)
    assert not is_complete
    assert len(set(phrases)) == len(phrases) == 20


def test_unspelled_words_are_all_named() -> None:
    report = check_grammar(parse_template("go\nna\u00efve 42"), LETTERS)
    assert [(w.word, w.line, w.missing) for w in report.unspelled] == [
        ("na\u00efve", 2, "\u00ef"),
        ("42", 2, "42"),
    ]
