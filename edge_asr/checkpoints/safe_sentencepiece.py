"""The pieces of a SentencePiece model file, in the order of their ids.

It reads the one repeated field of the protobuf that holds them, so loading a checkpoint needs no
sentencepiece package. Every length is checked against the file.
What this file does not do: segment text (training does, with the package), read settings of trainer and
normalizer.

Source: google/sentencepiece, src/sentencepiece_model.proto: ModelProto.pieces = 1 (message: piece = 1 string,
score = 2 float, type = 3 enum).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edge_asr.errors import CheckpointError

PieceKind = Literal["normal", "unknown", "control", "user_defined", "unused", "byte"]
_KINDS: dict[int, PieceKind] = {
    1: "normal",
    2: "unknown",
    3: "control",
    4: "user_defined",
    5: "unused",
    6: "byte",
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One piece: its text as stored (a word boundary is U+2581) and its kind."""

    text: str
    kind: PieceKind


def read_pieces(content: bytes, where: str) -> tuple[Piece, ...]:
    """All pieces of a model.

    Raises:
        CheckpointError: not a SentencePiece model, or one without pieces.
    """
    pieces: list[Piece] = []
    try:
        for field, value in _fields(content):
            if field == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
    except (ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where} is damaged or no SentencePiece model ({error})") from error
    if not pieces:
        raise CheckpointError(f"{where} is no SentencePiece model: it has no pieces")
    return tuple(pieces)


def _piece(content: bytes) -> Piece:
    text, kind = None, 1
    for field, value in _fields(content):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 3 and isinstance(value, int):
            kind = value
    if text is None or kind not in _KINDS:
        raise ValueError("a piece without text, or of an unknown kind")
    return Piece(text=text, kind=_KINDS[kind])


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a message; numbers of fixed size are skipped."""
    position = 0
    while position < len(content):
        tag, position = _varint(content, position)
        wire = tag & 7
        if wire == _VARINT:
            number, position = _varint(content, position)
            yield tag >> 3, number
        elif wire == _BYTES:
            length, position = _varint(content, position)
            if length > len(content) - position:
                raise ValueError("a field is longer than the file")
            yield tag >> 3, content[position : position + length]
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
            if position > len(content):
                raise ValueError("it ends inside a number")
        else:
            raise ValueError(f"wire type {wire}")


def _varint(content: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if position >= len(content):
            raise ValueError("it ends inside a number")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number of more than 64 bits")
