"""NeMo's tokens: SentencePiece, aggregates, bare labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from make_nemo import changed, load

from edge_asr.errors import CheckpointError


def sentencepiece_model(pieces: list[str]) -> bytes:
    """A ModelProto with these pieces (fields written by hand; all are shorter than 128 bytes)."""
    content = b""
    for piece in pieces:
        text = piece.encode()
        body = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x00\x00" + b"\x18\x01"
        content += b"\x0a" + bytes([len(body)]) + body
    return content


def bpe(**sections: Any) -> dict[str, Any]:
    return changed(target="nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE", **sections)


def test_sentencepiece_and_aggregate_tokens(tmp_path: Path) -> None:
    english, german = ["<unk>", "▁a", "b"], ["<unk>", "▁a"]
    files = {
        "./x_tokenizer.model": sentencepiece_model(english),
        "y_tokenizer.model": sentencepiece_model(german),
    }
    config = bpe(
        decoder={"vocabulary": english, "num_classes": -1},
        tokenizer={"type": "bpe", "dir": "/gone", "model_path": "nemo:x_tokenizer.model"},
    )
    checkpoint = load(tmp_path, config, files=files)
    assert checkpoint.vocabulary.tokens == ("<unk>", "▁a", "b", "<blk>")
    assert checkpoint.tokenizer_model == files["./x_tokenizer.model"]
    config = bpe(
        decoder={"vocabulary": english + german, "num_classes": 5},
        tokenizer={
            "type": "agg",
            "langs": {
                "en": {"type": "bpe", "model_path": "nemo:x_tokenizer.model"},
                "de": {"type": "bpe", "model_path": "nemo:y_tokenizer.model"},
            },
        },
    )
    checkpoint = load(tmp_path, config, files=files)
    assert checkpoint.vocabulary.tokens == (*english, *german, "<blk>")
    assert checkpoint.vocabulary.decode([4, 2]) == "ab"


def test_a_tokenizer_type_in_capitals(tmp_path: Path) -> None:
    pieces = ["<unk>", "▁a", "b"]
    config = bpe(
        decoder={"vocabulary": pieces, "num_classes": -1},
        tokenizer={"type": "BPE", "dir": "/gone", "model_path": "nemo:x_tokenizer.model"},
    )
    files = {"x_tokenizer.model": sentencepiece_model(pieces)}
    assert load(tmp_path, config, files=files).vocabulary.tokens == (*pieces, "<blk>")


@pytest.mark.parametrize(
    ("labels", "tokens", "kind"),
    [
        ([" ", "A", "é", "-"], ("▁", "A", "é", "-"), "char"),
        (["\u00a0", "a", "\t", "b"], ("▁", "a", "▁", "b"), "sentencepiece"),
        ([" ", "▁", "a", "b"], ("▁", "▁", "a", "b"), "sentencepiece"),
        ([" ", "<unk>", "ch", "e\u0301"], ("▁", "<unk>", "ch", "e\u0301"), "sentencepiece"),
    ],
)
def test_labels_of_any_kind(tmp_path: Path, labels: list[str], tokens: tuple[str, ...], kind: str) -> None:
    vocabulary = load(tmp_path, changed(decoder={"vocabulary": labels})).vocabulary
    assert (vocabulary.tokens[:-1], vocabulary.kind) == (tokens, kind)


def test_a_wordpiece_tokenizer_is_refused(tmp_path: Path) -> None:
    config = bpe(tokenizer={"type": "wpe", "dir": "/x", "vocab_path": "nemo:vocab.txt"})
    with pytest.raises(CheckpointError, match="type is 'wpe'; edge-asr takes bpe"):
        load(tmp_path, config)
