"""The grammar decoder against a search that tries every phrase in every spelling, and the contract."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from decoder_contract import check_decoder
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import ConfigError, GrammarError
from edge_asr.runtime.decoding.decoder import PhraseMatch
from edge_asr.runtime.decoding.grammar import search
from edge_asr.runtime.decoding.grammar.graph import TokenGraph, compile_graph
from edge_asr.runtime.decoding.grammar.jsgf import parse_jsgf
from edge_asr.runtime.decoding.grammar.read import load_graph
from edge_asr.runtime.decoding.grammar.recognition import (
    DEFAULT_THRESHOLDS,
    PHRASE_COST,
    GrammarDecoder,
    allowed_cost,
)
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]

CHARACTERS = Vocabulary.from_characters("abc ")
PIECES = Vocabulary.from_pieces(["\u2581", "a", "b", "c", "ab", "\u2581a", "\u2581ab", "bc", "a"])
TEXT = "ab [ba] {x}\n(a|aa|ab) c\nabc\n{x} = c | cc a | b"
PHRASES = [
    *(f"ab {ba}{x}" for ba in ("", "ba ") for x in ("c", "cc a", "b")),
    *("a c", "aa c", "ab c", "abc"),
]
WIDE = 50.0  # a threshold at which everything matches


def random_log_probs(n_frames: int, n_tokens: int, seed: int, peak: float = 3.0) -> F32Array:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 1.0, (n_frames, n_tokens))
    logits[np.arange(n_frames), rng.integers(0, n_tokens, n_frames)] += peak
    normalized = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.asarray(normalized, np.float32)


def spoken(text: str, vocabulary: Vocabulary, *, frames: int = 2, certain: float = 6.0) -> F32Array:
    """Log-probs of a character model that hears `text`."""
    path: list[int] = [vocabulary.blank_id]
    for token in vocabulary.encode_characters(text):
        path += [token] * frames + [vocabulary.blank_id]
    logits = np.zeros((len(path), len(vocabulary)))
    logits[np.arange(len(path)), path] = certain
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)


def spellings(phrase: str, vocabulary: Vocabulary) -> set[tuple[int, ...]]:
    """Every sequence of ids whose text is the phrase, by trying all of them."""
    if vocabulary.kind == "char":
        edge = vocabulary.tokens.index("\u2581")
        ids = tuple(vocabulary.encode_characters(phrase))
        return {(*before, *ids, *after) for before in ((), (edge,)) for after in ((), (edge,))}
    text = "\u2581" + phrase.replace(" ", "\u2581")
    found: set[tuple[int, ...]] = set()
    stack: list[tuple[str, tuple[int, ...]]] = [(text, ())]
    while stack:
        rest, ids = stack.pop()
        if not rest:
            found.add(ids)
        for index, token in enumerate(vocabulary.tokens[:-1]):
            if rest.startswith(token):
                stack.append((rest[len(token) :], (*ids, index)))
    return found


def ctc_viterbi(log_probs: F32Array, ids: tuple[int, ...], blank: int) -> float:
    """The best CTC path of one token sequence (Graves et al. 2006, section 4.1, max for sum), in float64."""
    states = [blank]
    for token in ids:
        states += [token, blank]
    scores = np.full(len(states), -np.inf)
    scores[0] = 0.0
    for index, frame in enumerate(log_probs.astype(np.float64)):
        before = scores.copy()
        for s, token in enumerate(states):
            best = before[s]
            if s >= 1 and (index > 0 or s == 1):
                best = max(best, before[s - 1])
            if s >= 2 and token != blank and token != states[s - 2] and index > 0:
                best = max(best, before[s - 2])
            scores[s] = best + frame[token]
    return float(max(scores[-1], scores[-2]))


def best_of_all(log_probs: F32Array, vocabulary: Vocabulary) -> tuple[float, set[str]]:
    """The best score less the greedy path's, and the phrases that have it."""
    greedy = float(log_probs.max(axis=1).astype(np.float64).sum())
    scores = {
        phrase: max(ctc_viterbi(log_probs, ids, vocabulary.blank_id) for ids in spellings(phrase, vocabulary))
        for phrase in PHRASES
    }
    best = max(scores.values())
    return best - greedy, {phrase for phrase, score in scores.items() if score > best - 1e-3}


def match_of(decoder: GrammarDecoder, log_probs: F32Array) -> PhraseMatch:
    decoder = decoder.fork()
    decoder.push(log_probs)
    match = decoder.flush().match
    assert match is not None
    return match


@pytest.mark.parametrize("vocabulary", [CHARACTERS, PIECES], ids=["characters", "pieces"])
@settings(max_examples=40, deadline=None)
@given(n_frames=st.integers(3, 30), seed=st.integers(0, 10_000))
def test_it_finds_the_best_of_all_phrases_and_spellings(
    vocabulary: Vocabulary, n_frames: int, seed: int
) -> None:
    log_probs = random_log_probs(n_frames, len(vocabulary), seed)
    decoder = GrammarDecoder(compile_graph(parse_template(TEXT), vocabulary), threshold=WIDE)
    expected, phrases = best_of_all(log_probs, vocabulary)
    decoder.push(log_probs)
    hypothesis = decoder.flush()
    match = hypothesis.match
    assert match is not None
    if not len(match.heard) or math.isinf(expected):
        assert not match.matched
        return
    assert match.matched
    assert match.phrase in phrases
    runs = hypothesis.tokens
    assert vocabulary.decode(runs.ids.tolist()) == match.phrase
    path = decoder._search.best()
    assert path is not None
    # float32 sums of up to 30 frames
    assert path.score == pytest.approx(expected, abs=1e-4)
    n_letters = len(match.phrase)
    assert (match.n_letters, match.score) == (n_letters, pytest.approx(expected / n_letters, abs=1e-4))
    # The path scores what it claims: its frames say so themselves.
    total, previous = 0.0, 0
    for node, begin, end in zip(path.nodes.tolist(), path.first_frames, path.last_frames, strict=True):
        total += log_probs[previous:begin, vocabulary.blank_id].sum(dtype=np.float64)
        total += log_probs[begin : end + 1, decoder.graph.token[node]].sum(dtype=np.float64)
        previous = int(end) + 1
    total += log_probs[previous:, vocabulary.blank_id].sum(dtype=np.float64)
    assert total - log_probs.max(axis=1).sum(dtype=np.float64) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["whole", "spot"])
@pytest.mark.parametrize("threshold", [0.3, 2.0, WIDE])
@settings(max_examples=15, deadline=None)
@given(n_frames=st.integers(0, 40), seed=st.integers(0, 10_000), cuts=st.lists(st.floats(0, 1), max_size=8))
def test_it_keeps_the_contract_of_a_decoder(
    mode: str, threshold: float, n_frames: int, seed: int, cuts: list[float]
) -> None:
    graph = compile_graph(parse_template(TEXT), CHARACTERS)
    decoder = GrammarDecoder(graph, threshold=threshold, mode=mode)  # type: ignore[arg-type]
    check_decoder(decoder, random_log_probs(n_frames, len(CHARACTERS), seed), cuts)


@settings(max_examples=15, deadline=None)
@given(n_frames=st.integers(3, 60), seed=st.integers(0, 10_000))
def test_dropping_paths_loses_nothing(n_frames: int, seed: int) -> None:
    """A threshold only decides; below it nothing is found, above it the same as without bounds."""
    graph = compile_graph(parse_template(TEXT), CHARACTERS)
    log_probs = random_log_probs(n_frames, len(CHARACTERS), seed, peak=1.0)
    free = match_of(GrammarDecoder(graph, threshold=1000.0), log_probs)
    for threshold in (0.2, 0.7, 1.5, 4.0):
        match = match_of(GrammarDecoder(graph, threshold=threshold), log_probs)
        assert match.matched == is_allowed(free, threshold)
        if match.matched:
            assert (match.phrase, match.score) == (free.phrase, free.score)


def is_allowed(match: PhraseMatch, threshold: float) -> bool:
    if match.score is None:
        return False
    return -match.score * match.n_letters <= allowed_cost(threshold, np.float32(match.n_letters)) + 1e-5


def test_what_is_no_phrase_is_rejected_with_what_was_heard() -> None:
    decoder = GrammarDecoder(compile_graph(parse_template(TEXT), CHARACTERS), threshold=0.5)
    assert match_of(decoder, spoken("ab c", CHARACTERS)).matched
    decoder.push(spoken("cb cb cb", CHARACTERS))
    hypothesis = decoder.flush()
    match = hypothesis.match
    assert match is not None
    assert not match.matched
    assert (len(hypothesis.tokens), match.phrase, match.confidence, match.score) == (0, "", 0.0, None)
    assert CHARACTERS.decode(match.heard.ids.tolist()) == "cb cb cb"


def test_silence_is_no_phrase() -> None:
    decoder = GrammarDecoder(compile_graph(parse_template("a"), CHARACTERS), threshold=WIDE)
    silence = np.full((50, len(CHARACTERS)), -0.1, np.float32)
    silence[:, CHARACTERS.blank_id] = -0.05
    assert not match_of(decoder, silence).matched
    assert not match_of(decoder, silence[:0]).matched


def test_slots_and_numbers_come_with_the_phrase() -> None:
    letters = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz ")
    text = "{what} = left | right arm\nturn [the] {what} {angle 0..360} degrees"
    decoder = GrammarDecoder(compile_graph(parse_template(text), letters))
    match = match_of(decoder, spoken("turn right arm one hundred and five degrees", letters))
    assert [(s.name, s.value, s.number, s.first_word, s.last_word) for s in match.slots] == [
        ("what", "right arm", None, 1, 2),
        ("angle", "one hundred and five", 105, 3, 6),
    ]
    assert match.confidence == pytest.approx(math.exp(match.score or 0.0))


def test_tags_repetition_and_weights_of_jsgf() -> None:
    text = """#JSGF V1.0;
    grammar test;
    <x> = (a {first})+ | /* none */ b {second};
    public <p> = c <x> {end};
    public <q> = /9/ c b {likely} | /1/ c b {unlikely};"""
    decoder = GrammarDecoder(compile_graph(parse_jsgf(text), CHARACTERS))
    match = match_of(decoder, spoken("c a a a", CHARACTERS))
    assert match.tags == ("first", "first", "first", "end")
    assert [(s.name, s.value) for s in match.slots] == [("x", "a a a")]
    # The same words in three readings: without a weight nothing is lost, so that one is the likeliest.
    assert match_of(decoder, spoken("c b", CHARACTERS)).tags == ("second", "end")


def test_a_phrase_is_spotted_within_other_speech() -> None:
    graph = compile_graph(parse_template("ab ca\nab ca ac"), CHARACTERS)
    sound = spoken("ca cb ab ca ac cb", CHARACTERS)
    assert not match_of(GrammarDecoder(graph), sound).matched
    decoder = GrammarDecoder(graph, mode="spot")
    decoder.push(sound)
    hypothesis = decoder.flush()
    assert hypothesis.match is not None
    assert hypothesis.match.phrase == "ab ca ac"  # the longer of the two
    whole = CHARACTERS.encode_characters("ca cb ab ca ac cb")
    # Two frames and a blank a token, after one blank: its place tells its frames.
    assert hypothesis.tokens.ids.tolist() == whole[6:14]
    assert hypothesis.tokens.first_frames[0] == 1 + 3 * 6
    nothing = spoken("cb cc ca", CHARACTERS)
    assert not match_of(GrammarDecoder(graph, mode="spot"), nothing).matched


@pytest.mark.parametrize(
    ("said", "is_found"),
    [
        ("abca", True),
        ("c abca c", True),
        ("abcab", False),
        ("cabca", False),
        ("c abcac c", False),
        ("c cabca c", False),
        ("cc abca", True),
        ("abca cc", True),
    ],
)
def test_a_spotted_phrase_is_whole_words(said: str, is_found: bool) -> None:
    graph = compile_graph(parse_template("abca"), CHARACTERS)
    for frames in (1, 3):
        sound = spoken(said, CHARACTERS, frames=frames)
        assert match_of(GrammarDecoder(graph, mode="spot"), sound).matched == is_found


def test_silence_is_a_border_of_words_too() -> None:
    graph = compile_graph(parse_template("abca"), CHARACTERS)
    for n_frames, is_found in ((3, False), (9, True)):
        pause = np.tile(spoken("a", CHARACTERS)[:1], (n_frames, 1))
        parts = [spoken("cc", CHARACTERS), pause, spoken("abca", CHARACTERS), pause, spoken("b", CHARACTERS)]
        match = match_of(GrammarDecoder(graph, mode="spot"), np.concatenate(parts))
        assert match.matched == is_found


@pytest.mark.parametrize(
    ("pieces", "is_found"),
    [
        (["\u2581ab", "ca"], True),
        (["\u2581c", "\u2581ab", "ca", "\u2581b"], True),
        (["\u2581c", "\u2581ab", "ca", "b"], False),
        (["\u2581c", "ab", "ca"], False),
        (["c", "\u2581", "ab", "ca"], True),
    ],
)
def test_pieces_begin_words(pieces: list[str], is_found: bool) -> None:
    vocabulary = Vocabulary.from_pieces(["\u2581", "ab", "\u2581ab", "ca", "c", "\u2581c", "b", "\u2581b"])
    path = [vocabulary.blank_id]
    for piece in pieces:
        path += [vocabulary.tokens.index(piece), vocabulary.blank_id]
    logits = np.zeros((len(path), len(vocabulary)))
    logits[np.arange(len(path)), path] = 9.0
    sound = np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), np.float32)
    graph = compile_graph(parse_template("abca"), vocabulary)
    assert match_of(GrammarDecoder(graph, mode="spot"), sound).matched == is_found


@pytest.mark.parametrize("n_silent", [2, 8])
@settings(max_examples=40, deadline=None)
@given(n_frames=st.integers(3, 24), seed=st.integers(0, 10_000), threshold=st.sampled_from([2.0, 3.0, 4.0]))
def test_spotting_finds_the_best_of_all_places(
    n_silent: int, n_frames: int, seed: int, threshold: float
) -> None:
    """Every phrase between every two borders of greedy search, one after the other, in float64."""
    log_probs = random_log_probs(n_frames, len(CHARACTERS), seed)
    greedy = [CHARACTERS.tokens[i] for i in log_probs.argmax(axis=1).tolist()]
    blank = CHARACTERS.tokens[CHARACTERS.blank_id]
    relative = log_probs - log_probs.max(axis=1, keepdims=True)

    def is_border(heard: list[str], after: str) -> bool:
        """Whether a border of words is between what was heard and the token after it."""
        spoken = [token for token in heard if token != blank]
        silent = len(heard) >= n_silent and all(token == blank for token in heard[-n_silent:])
        return after == "\u2581" or silent or not spoken or spoken[-1] == "\u2581"

    begins = [t for t in range(n_frames) if is_border(greedy[:t], greedy[t])]
    ends = [
        t
        for t in range(1, n_frames + 1)
        if t == n_frames
        or greedy[t] == "\u2581"
        or all(token == blank for token in greedy[t:])
        or (t >= n_silent and all(token == blank for token in greedy[t - n_silent : t]))
    ]
    best = max(
        threshold * len(phrase)
        - PHRASE_COST
        + ctc_viterbi(relative[begin:end], tuple(CHARACTERS.encode_characters(phrase)), CHARACTERS.blank_id)
        for phrase in PHRASES
        for begin in begins
        for end in ends
        if end > begin
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SILENT_FRAMES", n_silent)
        decoder = GrammarDecoder(
            compile_graph(parse_template(TEXT), CHARACTERS), threshold=threshold, mode="spot"
        )
        decoder.push(log_probs)
        match = decoder.flush().match
    assert match is not None
    if best > 1e-3 and len(match.heard):
        assert match.matched
        assert match.score is not None
        net = (threshold + match.score) * match.n_letters - PHRASE_COST
        assert net == pytest.approx(best, abs=1e-3)
    elif best < -1e-3:
        assert not match.matched


def test_case_follows_the_model() -> None:
    capitals = Vocabulary.from_characters("ABC ")
    match = match_of(
        GrammarDecoder(compile_graph(parse_template("ab [c]"), capitals)), spoken("AB", capitals)
    )
    assert match.phrase == "ab"


def test_characters_without_word_boundaries() -> None:
    """Models of Chinese spell words without anything between them."""
    vocabulary = Vocabulary.from_characters("开关灯门")
    graph = compile_graph(parse_template("(开|关) {what}\n{what} = 灯 | 门"), vocabulary)
    match = match_of(GrammarDecoder(graph), spoken("关灯", vocabulary))
    assert (match.phrase, [s.value for s in match.slots]) == ("关 灯", ["灯"])


def test_the_graph_is_minimal() -> None:
    """Of 3 * 3 phrases a deterministic automaton needs a word's letters once where it can share them."""
    graph = compile_graph(parse_template("{x} c {x}\n{x} = aa | ab | bb"), CHARACTERS)
    naive = sum(len(f"{x} c {y}") for x, y in itertools.product(["aa", "ab", "bb"], repeat=2))
    assert len(graph) < naive / 3
    followers = [
        [int(graph.token[t]) for t in graph.out_target[graph.out_start[i] : graph.out_start[i + 1]]]
        for i in range(len(graph))
    ]
    assert all(len(tokens) == len(set(tokens)) for tokens in followers)  # deterministic


def test_a_saved_graph_decodes_alike_and_is_checked(tmp_path: Path) -> None:
    graph = compile_graph(parse_template(TEXT, "x.txt"), CHARACTERS)
    path = tmp_path / "x.npz"
    graph.save(path)
    loaded = load_graph(path, CHARACTERS)
    sound = spoken("ab cc a", CHARACTERS)
    first, second = (match_of(GrammarDecoder(g), sound) for g in (graph, loaded))
    assert first.phrase == second.phrase == "ab cc a"
    assert first.slots == second.slots
    with pytest.raises(GrammarError, match=r"compiled for a model with other tokens; compile x\.txt again"):
        load_graph(path, PIECES)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GrammarError, match="is no compiled grammar or is damaged"):
        load_graph(path, CHARACTERS)
    broken = tmp_path / "broken.npz"
    TokenGraph(
        **{name: getattr(graph, name) for name in graph.__slots__} | {"out_target": graph.out_target + 1000}
    ).save(broken)
    with pytest.raises(GrammarError, match="an index points outside the graph"):
        load_graph(broken, CHARACTERS)


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.inf, math.nan])
def test_a_threshold_is_a_positive_number(threshold: float) -> None:
    graph = compile_graph(parse_template("a"), CHARACTERS)
    with pytest.raises(ConfigError, match="it must be a positive number"):
        GrammarDecoder(graph, threshold=threshold)
    with pytest.raises(ConfigError, match="whole or spot"):
        GrammarDecoder(graph, mode="half")  # type: ignore[arg-type]


def test_a_short_phrase_must_fit_better() -> None:
    """What a letter may cost grows with the phrase; even the shortest may cost something."""
    shares = [float(allowed_cost(1.5, np.float32(n))) / n for n in (1, 2, 4, 8, 16, 32)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.25 * 1.5)
    assert shares[-1] == pytest.approx(1.5 - PHRASE_COST / 32)


def test_a_compiled_grammar_may_have_its_own_thresholds(tmp_path: Path) -> None:
    graph = replace(compile_graph(parse_template("ab ca"), CHARACTERS), thresholds={"whole": 0.7})
    graph.save(tmp_path / "x.npz")
    loaded = load_graph(tmp_path / "x.npz", CHARACTERS)
    assert GrammarDecoder(loaded).threshold == 0.7
    assert GrammarDecoder(loaded, mode="spot").threshold == DEFAULT_THRESHOLDS["spot"]
    assert GrammarDecoder(loaded, threshold=2.0).threshold == 2.0
    replace(graph, thresholds={"whole": -1.0}).save(tmp_path / "y.npz")
    with pytest.raises(GrammarError, match="a threshold is no positive number"):
        load_graph(tmp_path / "y.npz", CHARACTERS)


def test_nothing_is_pushed_behind_the_end() -> None:
    decoder = GrammarDecoder(compile_graph(parse_template("a"), CHARACTERS))
    decoder.flush()
    with pytest.raises(ConfigError, match="was flushed"):
        decoder.push(np.zeros((1, len(CHARACTERS)), np.float32))
