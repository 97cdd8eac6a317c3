"""Tokenizers: what is encoded decodes to itself; every spelled letter is one piece."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import ConfigError, TrainingError, VocabularyError
from edge_asr.training.config import TokenizerConfig
from edge_asr.training.tokenizer import (
    SentencePieceTokenizer,
    tokenizer_from_vocabulary,
    train_tokenizer,
)

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "stop and turn to the left then go back to the door",
    "zero one two three four five six seven eight nine",
    "robots don't wait for anyone in the quiet kitchen",
] * 5


@pytest.fixture(scope="module")
def pieces() -> SentencePieceTokenizer:
    config = TokenizerConfig(vocab_size=90)
    tokenizer = train_tokenizer(config, SENTENCES, [1.0] * len(SENTENCES))
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return tokenizer


def test_every_letter_word_is_one_piece(pieces: SentencePieceTokenizer) -> None:
    for letter in string.ascii_lowercase:
        assert len(pieces.encode(letter)) == 1, letter
    spelled = " ".join(string.ascii_lowercase)
    assert len(pieces.encode(spelled)) == 26
    assert len(pieces.vocabulary) == 91
    assert pieces.vocabulary.tokens[-1] == "<blk>"
    assert not {"<s>", "</s>", "<pad>"} & set(pieces.vocabulary.tokens)


def test_without_letter_words_they_are_not_forced() -> None:
    config = TokenizerConfig(vocab_size=60, letters_as_words=False)
    tokenizer = train_tokenizer(config, SENTENCES, [1.0] * len(SENTENCES))
    assert max(len(tokenizer.encode(letter)) for letter in string.ascii_lowercase) == 2


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=8), min_size=1, max_size=6))
def test_decode_inverts_encode(pieces: SentencePieceTokenizer, words: list[str]) -> None:
    text = " ".join(words)
    ids = pieces.encode(text)
    assert pieces.vocabulary.decode(ids) == text
    assert pieces.vocabulary.blank_id not in ids


def test_unknown_characters(pieces: SentencePieceTokenizer) -> None:
    with pytest.raises(VocabularyError, match="\u00e9"):
        pieces.encode("caf\u00e9")
    chars = train_tokenizer(TokenizerConfig(kind="char"), ["ab c"], [1.0])
    assert chars.vocabulary.decode(chars.encode("c ab")) == "c ab"
    with pytest.raises(VocabularyError, match="z"):
        chars.encode("abz")


def test_from_a_checkpoint(pieces: SentencePieceTokenizer) -> None:
    again = tokenizer_from_vocabulary(pieces.vocabulary, pieces.model)
    assert again.encode("the quick robot") == pieces.encode("the quick robot")
    with pytest.raises(TrainingError, match=r"tokenizer\.model"):
        tokenizer_from_vocabulary(pieces.vocabulary, None)
    other = train_tokenizer(TokenizerConfig(vocab_size=80), SENTENCES, [1.0] * len(SENTENCES))
    with pytest.raises(VocabularyError, match="disagree"):
        tokenizer_from_vocabulary(other.vocabulary, pieces.model)


def test_sizes_that_cannot_be() -> None:
    weights = [1.0] * len(SENTENCES)
    with pytest.raises(ConfigError, match="vocab_size"):
        train_tokenizer(TokenizerConfig(vocab_size=5000), SENTENCES, weights)
    with pytest.raises(ConfigError, match=r"vocab_size.* 40"):
        train_tokenizer(TokenizerConfig(vocab_size=40), SENTENCES, weights)
    with pytest.raises(ConfigError, match="no usable training text"):
        train_tokenizer(TokenizerConfig(), [], [])


def test_weights_and_extra_text_shape_the_pieces() -> None:
    config = TokenizerConfig(vocab_size=60, letters_as_words=False)
    texts = ["the quick brown fox jumps over the lazy dog", "zebra zebra zebra"]
    light = train_tokenizer(config, texts, [30.0, 1.0])
    heavy = train_tokenizer(config, texts, [1.0, 30.0])
    assert len(heavy.encode("zebra")) < len(light.encode("zebra"))
    extra = train_tokenizer(config, texts, [30.0, 1.0], ["zebra zebra"] * 60)
    assert len(extra.encode("zebra")) < len(light.encode("zebra"))
