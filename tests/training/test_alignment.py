"""Alignments: Viterbi against brute force, spans of characters and pieces, and the labels made of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edge_asr.errors import ConfigError
from edge_asr.training.alignment import (
    REACH_S,
    align_tokens,
    labels_from_spans,
    load_spans,
    token_spans,
    write_alignment,
)
from edge_asr.training.corpus import Clip
from edge_asr.vocabulary import Vocabulary

BLANK = 2


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != BLANK]


@pytest.mark.parametrize("tokens", [[0], [0, 1], [0, 0], [1, 0, 1], [1, 1, 0]])
@pytest.mark.parametrize("seed", range(4))
def test_best_path_is_the_best_of_all_paths(tokens: list[int], seed: int) -> None:
    n_frames = 6
    scores = np.log(np.random.default_rng(seed).dirichlet(np.ones(3), n_frames)).astype(np.float32)
    fitting = [p for p in itertools.product(range(3), repeat=n_frames) if collapse(p) == tokens]
    best = max(fitting, key=lambda path: sum(scores[frame, token] for frame, token in enumerate(path)))
    expected = [f for f, token in enumerate(best) if token != BLANK and (f == 0 or best[f - 1] != token)]
    found = align_tokens(scores, np.array(tokens), BLANK)
    assert found is not None
    assert found.tolist() == expected


def test_too_little_sound_has_no_path() -> None:
    assert align_tokens(np.zeros((2, 3), np.float32), np.array([0, 0]), BLANK) is None


def test_long_clips_have_a_path() -> None:
    scores = np.log(np.random.default_rng(0).dirichlet(np.ones(3), 900)).astype(np.float32)
    found = align_tokens(scores, np.tile([0, 1], 100), BLANK)
    assert found is not None
    assert (np.diff(found) > 0).all()


PIECES = Vocabulary.from_pieces(["<unk>", "\u2581he", "l", "lo", "\u2581a"])
CHARACTERS = Vocabulary.from_characters(" aehlo")
TEXT = "hello a"
TIMES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.8], np.float32)


def test_pieces_last_from_their_first_character_to_behind_their_last() -> None:
    spans = token_spans(np.array([1, 2, 3, 4]), PIECES, TEXT, TIMES)
    expected = [[0.1, 0.2 + REACH_S], [0.3, 0.3 + REACH_S], [0.4, 0.5 + REACH_S], [0.8, 0.8 + REACH_S]]
    expected[0][1], expected[1][1] = 0.3, 0.4
    np.testing.assert_allclose(spans, expected, rtol=1e-6)


def test_characters_have_a_span_each_the_space_too() -> None:
    tokens = np.array(CHARACTERS.encode_characters(TEXT))
    spans = token_spans(tokens, CHARACTERS, TEXT, TIMES)
    assert spans is not None
    np.testing.assert_allclose(spans[:, 0], TIMES)
    assert token_spans(tokens, CHARACTERS, "hello", TIMES[:5]) is None


def test_labels_are_a_path_that_ctc_reads_as_the_text() -> None:
    tokens = np.array([1, 2, 3, 4])
    spans = token_spans(tokens, PIECES, TEXT, TIMES)
    assert spans is not None
    labels = labels_from_spans(spans, tokens, 100, frame_s=0.01, blank_id=PIECES.blank_id)
    kept = [int(token) for token, _ in itertools.groupby(labels) if token != PIECES.blank_id]
    assert PIECES.decode(kept) == TEXT
    assert set(labels[:10]) == set(labels[95:]) == {PIECES.blank_id}


def clip(name: str, text: str) -> Clip:
    return Clip(
        id=name, source="a", row=1, text=text, n_samples=16000, weight=1.0, path=Path(name), audio=None
    )


def test_spans_are_read_for_the_clips_whose_text_is_the_same(tmp_path: Path) -> None:
    with (tmp_path / "a.jsonl").open("w") as file:
        write_alignment(file, "1", TEXT, TIMES)
        write_alignment(file, "2", "hello b", TIMES)
    clips = [clip("1", TEXT), clip("2", TEXT), clip("3", TEXT)]
    targets = [np.array([1, 2, 3, 4])] * 3
    spans = load_spans(tmp_path, clips, targets, PIECES)
    assert spans[0] is not None
    assert spans[1:] == [None, None]
    with pytest.raises(ConfigError, match="no alignment of a training clip"):
        load_spans(tmp_path, clips[2:], targets[2:], PIECES)
    (tmp_path / "a.jsonl").write_text('{"id": "1", "text": "ab", "times_s": [0.1]}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl:1 is not an alignment"):
        load_spans(tmp_path, clips, targets, PIECES)
