"""Vocabulary: validation, decoding, character encoding and the token files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import VocabularyError
from edge_asr.vocabulary import BLANK_TOKEN, Vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz' "


def test_pieces_decode_to_words() -> None:
    vocabulary = Vocabulary.from_pieces(["<unk>", "▁go", "▁st", "op", "▁"])
    assert vocabulary.blank_id == 5
    assert vocabulary.tokens[5] == BLANK_TOKEN
    assert vocabulary.decode([1, 5, 2, 3]) == "go stop"
    assert vocabulary.decode([4, 4]) == ""
    assert vocabulary.token_text(1) == " go"


@given(st.text(alphabet=LETTERS, max_size=40))
def test_characters_round_trip(text: str) -> None:
    vocabulary = Vocabulary.from_characters(LETTERS)
    assert vocabulary.decode(vocabulary.encode_characters(text)) == " ".join(text.split())


def test_json_and_token_file_round_trip(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_characters(LETTERS)
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    file = tmp_path / "tokens.txt"
    file.write_text(vocabulary.to_token_lines(), encoding="utf-8")
    assert Vocabulary.read_token_file(file, "char") == vocabulary


@pytest.mark.parametrize(
    ("tokens", "blank_id", "message"),
    [
        (("a",), 0, "one token at least"),
        (("a", BLANK_TOKEN), 2, "outside 0..1"),
        (("a", "a", BLANK_TOKEN), 2, "unique"),
        (("a", " ", BLANK_TOKEN), 2, "white space"),
        (("a", "bc", BLANK_TOKEN), 2, "one character"),
    ],
)
def test_contradictions_are_refused(tokens: tuple[str, ...], blank_id: int, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(kind="char", tokens=tokens, blank_id=blank_id)


def test_text_outside_the_vocabulary_is_named() -> None:
    with pytest.raises(VocabularyError, match="é"):
        Vocabulary.from_characters(LETTERS).encode_characters("café")


def test_unknown_key_is_an_error() -> None:
    data = Vocabulary.from_characters("ab").to_dict() | {"extra": 1}
    with pytest.raises(VocabularyError, match="extra"):
        Vocabulary.from_dict(data)


@pytest.mark.parametrize("content", ["a 0\nb 2\n<blk> 3\n", "a\n", "a 0\nb 1\n"])
def test_broken_token_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.txt"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"tokens\.txt"):
        Vocabulary.read_token_file(file, "char")


def test_byte_pieces_spell_characters() -> None:
    """As sentencepiece decodes a model with byte_fallback; "\xff" begins no UTF-8 character."""
    pieces = ("▁na", "<0xC3>", "<0xAF>", "ve", "<0xFF>", "<0xc3>")
    vocabulary = Vocabulary.from_pieces(pieces)
    assert vocabulary.decode([0, 1, 2, 3]) == "naïve"
    assert vocabulary.decode([0, 4, 3]) == "na\ufffdve"
    assert vocabulary.decode([0, 5]) == "na<0xc3>"  # capitals only, as sentencepiece writes them
