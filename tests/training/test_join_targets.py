"""Joined clips keep their texts apart: else a model learns to run utterances into one word."""

from __future__ import annotations

import numpy as np
import pytest

from edge_asr.training.pipeline import join_targets, word_separator
from edge_asr.vocabulary import Vocabulary


@pytest.mark.parametrize(
    "vocabulary",
    [Vocabulary.from_characters(" gosp"), Vocabulary.from_pieces(["▁go", "▁st", "op", "▁s"])],
    ids=["char", "sentencepiece"],
)
def test_two_texts_stay_two_words(vocabulary: Vocabulary) -> None:
    if vocabulary.kind == "char":
        parts = [np.array(vocabulary.encode_characters(text)) for text in ("go", "so")]
        expected = "go so"
    else:
        parts = [np.array([0]), np.array([1, 2])]
        expected = "go stop"
    joined = join_targets(parts, word_separator(vocabulary))
    assert vocabulary.decode(joined.tolist()) == expected


def test_one_text_stays_as_it_is() -> None:
    assert join_targets([np.array([3, 1])], (9,)).tolist() == [3, 1]
