"""Alignment: the search against all paths there are, the text, borders, and recordings with known words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import read_audio
from edge_asr.errors import AudioError, ConfigError, VocabularyError
from edge_asr.runtime.alignment import search
from edge_asr.runtime.alignment.aligner import Aligner
from edge_asr.runtime.alignment.graph import TextGraph, build_graph
from edge_asr.runtime.alignment.result import Alignment
from edge_asr.runtime.alignment.search import BLANK, FILLER, BestPath, LogProbStore, find_path
from edge_asr.runtime.alignment.spoken import say
from edge_asr.runtime.alignment.text import read_text
from edge_asr.runtime.decoding.grammar.spelling import Speller
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]

CHARACTERS = Vocabulary.from_characters("ab ")
PIECES = Vocabulary.from_pieces(["▁a", "a", "b", "ab", "▁", "▁ab"])
ENGLISH = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz' ")


def graph_of(text: str, vocabulary: Vocabulary) -> TextGraph:
    speller = Speller(vocabulary)
    words, unspelled = read_text(text, speller)
    assert not unspelled
    return build_graph(words, vocabulary, speller)


def path_of(graph: TextGraph, log_probs: F32Array) -> BestPath:
    with LogProbStore(graph.columns) as store:
        store.add(log_probs)
        return find_path(graph, store, filler_cost=0.5, skip_cost=1.5)


def random_log_probs(rng: np.random.Generator, n_frames: int, n_tokens: int) -> F32Array:
    scores = rng.normal(size=(n_frames, n_tokens)) * 2
    log_probs: F32Array = (scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))).astype(np.float32)
    return log_probs


def segmentations(word: str, vocabulary: Vocabulary) -> list[list[str]]:
    """All ways to cut a word into tokens; the token between words may be missing in a character model."""
    if vocabulary.kind == "char":
        return [["▁", *word], list(word)]
    pieces = [token for i, token in enumerate(vocabulary.tokens) if i != vocabulary.blank_id]

    def cut(rest: str) -> list[list[str]]:
        if not rest:
            return [[]]
        return [[p, *more] for p in pieces if rest.startswith(p) for more in cut(rest[len(p) :])]

    return cut("▁" + word)


def brute_force(words: Sequence[str], log_probs: F32Array, vocabulary: Vocabulary) -> float:
    """The lowest cost of all sequences of tokens, blank (_) and filler (*) that are the text."""
    letters = {token: chr(ord("A") + i) for i, token in enumerate(vocabulary.tokens)}
    letters[vocabulary.tokens[vocabulary.blank_id]] = "_"
    relative = log_probs - log_probs.max(axis=1, keepdims=True)
    costs = [
        {letters[token]: -float(np.float16(row[i])) for i, token in enumerate(vocabulary.tokens)} | {"*": 0.5}
        for row in relative
    ]
    fewest = [min(len(way) for way in segmentations(word, vocabulary)) for word in words]
    patterns = []
    for kept in itertools.product((True, False), repeat=len(words)):
        skipped = sum(1.5 * n for n, is_kept in zip(fewest, kept, strict=True) if not is_kept)
        for ways in itertools.product(
            *(segmentations(w, vocabulary) for w, k in zip(words, kept, strict=True) if k)
        ):
            pattern, last = "[_*]*", ""
            for way in ways:
                for place, token in enumerate(way):
                    if place:
                        pattern += "_+" if token == last else "_*"
                    elif token == last:
                        pattern = pattern[:-1] + "+"
                    pattern += letters[token] + "+"
                    last = token
                pattern += "[_*]*"
            patterns.append((re.compile(pattern), skipped))
    best = np.inf
    for labels in itertools.product(costs[0], repeat=len(log_probs)):
        cost = sum(frame[label] for frame, label in zip(costs, labels, strict=True))
        if cost < best:
            text = "".join(labels)
            extra = min((skip for pattern, skip in patterns if pattern.fullmatch(text)), default=np.inf)
            best = min(best, cost + extra)
    return best


@settings(max_examples=12, deadline=None)
@given(
    text=st.lists(st.sampled_from(["a", "b", "ab", "aa", "ba"]), min_size=1, max_size=2),
    n_frames=st.integers(1, 4),
    seed=st.integers(0, 1000),
    is_char=st.booleans(),
)
def test_the_path_is_the_best_of_all(text: list[str], n_frames: int, seed: int, is_char: bool) -> None:
    vocabulary = CHARACTERS if is_char else PIECES
    log_probs = random_log_probs(np.random.default_rng(seed), n_frames, len(vocabulary))
    path = path_of(graph_of(" ".join(text), vocabulary), log_probs)
    # Half precision in both; sums of a few frames.
    assert path.cost == pytest.approx(brute_force(text, log_probs, vocabulary), abs=2e-3)


def spoken_log_probs(
    text: str, vocabulary: Vocabulary, rng: np.random.Generator, doubt: float = 0.0
) -> tuple[F32Array, list[int]]:
    """What a good model gives for a text, blank after each token; and the frame of each word."""
    ids, starts = [vocabulary.blank_id] * 3, []
    for word in text.split():
        tokens = segmentations(word, vocabulary)[0]
        starts.append(len(ids) + 2 * (tokens[0] == "▁"))
        for token in tokens:
            ids += [vocabulary.tokens.index(token), vocabulary.blank_id]
    log_probs = np.full((len(ids), len(vocabulary)), -8.0, np.float32)
    log_probs += rng.normal(size=log_probs.shape).astype(np.float32)
    log_probs[np.arange(len(ids)), ids] = -0.05 - doubt * rng.random(len(ids))
    return log_probs, starts


def cost_of(graph: TextGraph, path: BestPath, log_probs: F32Array) -> float:
    """Add up the cost of a path, after checking that it is one."""
    relative = log_probs - log_probs.max(axis=1, keepdims=True)
    cost, words = 0.0, set()
    position = 0
    for frame, arc in enumerate(path.arcs.tolist()):
        if arc >= 0:
            cost -= float(relative[frame, graph.columns[graph.token[arc]]])
            words.add(int(graph.word[arc]))
            assert graph.target[arc] >= position
            position = int(graph.target[arc])
        else:
            cost += 0.5 if arc == FILLER else -float(relative[frame, graph.columns[graph.blank]])
            assert arc == BLANK or position in graph.border or position == 0
    return cost + 1.5 * sum(int(n) for word, n in enumerate(graph.n_tokens) if word not in words)


@pytest.mark.parametrize("vocabulary", [CHARACTERS, PIECES], ids=["characters", "pieces"])
def test_a_band_finds_what_a_whole_search_finds(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    text = " ".join(rng.choice(["a", "b", "ab", "aab", "ba"], size=120))
    graph = graph_of(text, vocabulary)
    log_probs, _ = spoken_log_probs(text, vocabulary, rng, doubt=12.0)
    whole = path_of(graph, log_probs)
    assert whole.band == np.inf
    assert cost_of(graph, whole, log_probs) == pytest.approx(whole.cost, rel=2e-3)
    monkeypatch.setattr(search, "WHOLE", 0)
    monkeypatch.setattr(search, "BAND", 60.0)
    monkeypatch.setattr(search, "_REACH", 100)
    banded = path_of(graph, log_probs)
    assert banded.band < np.inf
    assert banded.cost == pytest.approx(whole.cost, rel=1e-5)
    assert np.mean(banded.arcs == whole.arcs) > 0.99  # rounding may choose between equal paths


def align(text: str, log_probs: F32Array, vocabulary: Vocabulary = ENGLISH) -> Alignment:
    with Aligner(text, vocabulary) as aligner:
        for begin in range(0, len(log_probs), 37):
            aligner.push(log_probs[begin : begin + 37])
        return aligner.finish(0.04, 0.04 * len(log_probs))


def test_words_are_where_they_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text, most of it in order: a chapter is missing in the sound, another one in the text."""
    rng = np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, size=rng.integers(2, 8))) for _ in range(900)]
    log_probs, starts = spoken_log_probs(" ".join(words[:300] + words[500:]), ENGLISH, rng)
    monkeypatch.setattr(search, "WHOLE", 0)
    alignment = align(" ".join(words[:700] + words[850:]), log_probs)
    found = [word.found for word in alignment.words]
    assert found == [True] * 300 + [False] * 200 + [True] * 250
    expected = np.array(starts[:500] + starts[650:]) * 0.04
    begins = np.array([word.start_s for word in alignment.words if word.start_s is not None])
    assert np.abs(begins - expected).max() < 0.15  # a lag of the spikes is taken off
    assert all(w.score == 0 and w.start_s is None and w.end_s is None for w in alignment.words[300:500])
    assert min(w.score for w in alignment.found) > 0.9
    ends = [word.end_s for word in alignment.found if word.end_s is not None]
    assert (np.array(ends[:-1]) <= begins[1:]).all()
    assert (np.array(ends) > begins).all()
    assert len(alignment.tokens) == sum(len(w.text) for w in alignment.found)


def test_nothing_of_the_text_is_said() -> None:
    log_probs, _ = spoken_log_probs("come home now my friend", ENGLISH, np.random.default_rng(0))
    alignment = align("jump", log_probs)
    assert [(w.found, w.start_s, w.end_s, w.score) for w in alignment.words] == [(False, None, None, 0.0)]
    assert (alignment.found, alignment.tokens) == ((), ())


def test_written_words_keep_their_spelling() -> None:
    log_probs, _ = spoken_log_probs(
        "it cost two hundred and five dollars at ten thirty in the cafe said mister",
        ENGLISH,
        np.random.default_rng(0),
    )
    text = "“It cost $205” — at 10:30, in the Café, said Mister."
    alignment = align(text, log_probs)
    assert [w.text for w in alignment.words] == [
        "“It", "cost", "$205” —", "at", "10:30,", "in", "the", "Café,", "said", "Mister.",
    ]  # fmt: skip
    assert all(word.found for word in alignment.words)


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("23", "twenty three"),
        ("105", "one hundred and five"),
        ("1984", "nineteen eighty four"),
        ("2005", "two thousand five"),
        ("1,250", "one thousand two hundred fifty"),
        ("3.14", "three point one four"),
        ("-5", "minus five"),
        ("22nd", "twenty second"),
        ("1990s", "nineteen nineties"),
        ("$5.50", "five dollars and fifty cents"),
        ("£1", "one pound"),
        ("10:30", "ten thirty"),
        ("2:05", "two oh five"),
        ("90%", "ninety percent"),
        ("007", "zero zero seven"),
        ("twenty-three", "twenty three"),
        ("AT&T", "AT and T"),
        ("1000000", "one million"),
        ("don't", "don't"),
    ],
)
def test_english_is_said(written: str, spoken: str) -> None:
    assert spoken.split() in say(written)


def test_what_has_no_sound_is_not_said() -> None:
    assert say("—...") == []


@pytest.mark.parametrize("text", ["", "  \n", "— ... !"])
def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="has no word to align; give what is said"):
        Aligner(text, ENGLISH)


def test_a_word_that_cannot_be_spelled_is_named() -> None:
    with pytest.raises(VocabularyError) as caught:
        Aligner("Naïve people say привет and мир", ENGLISH)
    assert str(caught.value) == (
        "the model cannot spell 'привет', word 4 of the text (and 1 more words): no token has 'привет'; "
        "write it in the model's letters, or leave it out"
    )


@pytest.mark.parametrize("n_frames", [0, 9])
def test_more_text_than_sound_is_refused(n_frames: int) -> None:
    log_probs = random_log_probs(np.random.default_rng(0), 10, len(ENGLISH))[:n_frames]
    with pytest.raises(
        AudioError, match=r"the text has 10 tokens, which take 0\.4 s at least, and the sound has"
    ):
        align("hello there", log_probs)


def test_a_recording_is_aligned(sample_path: Path) -> None:
    samples = read_audio(sample_path)
    padded = np.concatenate([np.zeros(16000, np.float32), samples, np.zeros(16000, np.float32)])
    with Recognizer.load("tiny-en") as recognizer:
        heard = recognizer.transcribe(padded, 16000)
        alignment = recognizer.align(padded, 16000, heard.text.upper() + ".")
        longer = recognizer.align(padded, 16000, f"nobody says this {heard.text}")
        with pytest.raises(VocabularyError, match="the model cannot spell 'привет', word 1 of the text: no"):
            recognizer.align(padded, 16000, "привет")
    assert " ".join(w.text for w in alignment.words) == heard.text.upper() + "."
    for aligned, word in zip(alignment.words, heard.words, strict=True):
        assert aligned.start_s is not None
        assert aligned.end_s is not None
        assert word.start_s - 0.2 < aligned.start_s <= word.start_s < aligned.end_s < word.end_s + 0.7
    assert [w.found for w in longer.words] == [False] * 3 + [True] * len(heard.words)
