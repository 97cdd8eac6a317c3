"""Tokens of a CTC model: ids to text, text to ids for character models, and the token files.

One `Vocabulary` serves characters and SentencePiece pieces alike, because a piece list alone is
enough to decode: a piece that begins with U+2581 begins a word. The runtime never needs the sentencepiece
package.
What this file does not do: encode with SentencePiece (edge_asr.training.tokenizer).

The token files are those that other runtimes read (`token id` per line, blank `<blk>` last, a space
written as U+2581): sherpa-onnx reads tokens.txt, onnx-asr reads vocab.txt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_asr.errors import VocabularyError
from edge_asr.records import json_from_record, record_from_json

WORD_BOUNDARY = "\u2581"
BLANK_TOKEN = "<blk>"

VocabularyKind = Literal["char", "sentencepiece"]

_BYTE_RUN = re.compile(r"(?:<0x[0-9A-F]{2}>)+")


def join_pieces(pieces: Iterable[str]) -> str:
    """Join pieces to one text, with runs of byte pieces (`byte_fallback`) as the characters that they spell.

    Source: google/sentencepiece, src/sentencepiece_processor.cc, `Decode`. Bytes that are not UTF-8 become
        U+FFFD.
    """
    text = "".join(pieces)
    if "<0x" not in text:
        return text
    return _BYTE_RUN.sub(lambda run: _spell(run[0]), text)


def begins_word(token: str) -> bool:
    """Tell whether a token begins a word: after a space, or as a character of a script without spaces."""
    is_word = token[:1] >= "\u2e80" and not "\uac00" <= token[:1] <= "\ud7a3"
    return is_word or token.startswith((" ", WORD_BOUNDARY))


def _spell(run: str) -> str:
    """The characters of `<0xC3><0xA9>...`."""
    return bytes.fromhex(run.replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokens of a CTC model, in the order of its outputs.

    Attributes:
        kind: "char" (one character a token, or a special such as <unk>; space as U+2581) or
            "sentencepiece" (pieces).
        tokens: all tokens, blank included; `tokens[id]` is the text of output `id`.
        blank_id: index of the CTC blank; our own models put it last.
    """

    kind: VocabularyKind
    tokens: tuple[str, ...]
    blank_id: int

    def __post_init__(self) -> None:
        if self.kind not in ("char", "sentencepiece"):
            raise VocabularyError(f"vocabulary kind is {self.kind!r}; it must be 'char' or 'sentencepiece'")
        if len(self.tokens) < 2:
            raise VocabularyError(
                f"a vocabulary needs a blank and one token at least, got {len(self.tokens)} tokens"
            )
        if not 0 <= self.blank_id < len(self.tokens):
            raise VocabularyError(
                f"blank_id is {self.blank_id}, outside 0..{len(self.tokens) - 1}; it must index a token"
            )
        seen: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not token or any(c.isspace() for c in token):
                raise VocabularyError(
                    f"token {index} is {token!r}; tokens hold no white space (a space is U+2581)"
                )
            # The languages of an aggregate tokenizer may share pieces; they mean the same text.
            if token in seen and (self.kind == "char" or token == BLANK_TOKEN):
                raise VocabularyError(
                    f"token {token!r} stands at {seen[token]} and at {index}; tokens must be unique"
                )
            seen[token] = index
        if self.kind == "char":
            for index, token in enumerate(self.tokens):
                special = token.startswith("<") and token.endswith(">")
                if index != self.blank_id and len(token) != 1 and not special:
                    raise VocabularyError(
                        f"token {index} is {token!r}; a char vocabulary has one character a token"
                    )

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def from_characters(cls, characters: Iterable[str]) -> Vocabulary:
        """A char vocabulary of the given characters (a space becomes U+2581), sorted, blank last."""
        tokens = sorted({WORD_BOUNDARY if c == " " else c for c in characters})
        return cls(kind="char", tokens=(*tokens, BLANK_TOKEN), blank_id=len(tokens))

    @classmethod
    def from_pieces(cls, pieces: Sequence[str]) -> Vocabulary:
        """A SentencePiece vocabulary: the pieces in model order, blank appended last."""
        return cls(kind="sentencepiece", tokens=(*pieces, BLANK_TOKEN), blank_id=len(pieces))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids that CTC has already collapsed (blanks are skipped).

        Raises:
            VocabularyError: an id outside the vocabulary.
        """
        text = join_pieces(self.token_text(i) for i in ids if i != self.blank_id)
        return " ".join(text.split())

    def token_text(self, token_id: int) -> str:
        """Text of one token, a word boundary as a space.

        Raises:
            VocabularyError: an id outside the vocabulary.
        """
        if not 0 <= token_id < len(self.tokens):
            raise VocabularyError(f"token id {token_id} is outside 0..{len(self.tokens) - 1}")
        return self.tokens[token_id].replace(WORD_BOUNDARY, " ")

    def encode_characters(self, text: str) -> list[int]:
        """Ids of `text`, one character a token; only for kind "char".

        Raises:
            VocabularyError: another kind, or a character that is not in the vocabulary.
        """
        if self.kind != "char":
            raise VocabularyError(f"encode_characters needs a char vocabulary, this one is {self.kind!r}")
        index = {token: i for i, token in enumerate(self.tokens) if i != self.blank_id}
        normalized = WORD_BOUNDARY.join(text.split())
        unknown = sorted({c for c in normalized if c not in index})
        if unknown:
            raise VocabularyError(
                f"{''.join(unknown)!r} not in the vocabulary (text {text!r}); normalize it or retrain"
            )
        return [index[c] for c in normalized]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_dict`."""
        data: dict[str, Any] = json_from_record(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read the JSON form.

        Raises:
            VocabularyError: a missing or unknown key, a wrong type, or contradicting values.
        """
        return record_from_json(cls, data, "the vocabulary", error=VocabularyError)

    def to_token_lines(self) -> str:
        """Content of tokens.txt and vocab.txt: `token id` a line; the blank is written `<blk>`."""
        return "".join(
            f"{BLANK_TOKEN if i == self.blank_id else token} {i}\n" for i, token in enumerate(self.tokens)
        )

    @classmethod
    def read_token_file(cls, path: Path, kind: VocabularyKind) -> Vocabulary:
        """Read a token file written by `to_token_lines`.

        Raises:
            VocabularyError: not UTF-8, a line that is no `token id`, ids out of order, or no `<blk>`.
        """
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise VocabularyError(f"{path} is not UTF-8 text ({error}); copy it again") from error
        tokens: list[str] = []
        for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
            token, separator, index = line.rpartition(" ")
            if not separator or index != str(len(tokens)):
                raise VocabularyError(f"{path}, line {number} is {line!r}; expected 'token {len(tokens)}'")
            tokens.append(token)
        if BLANK_TOKEN not in tokens:
            raise VocabularyError(f"{path} has no {BLANK_TOKEN} line; a CTC vocabulary needs a blank")
        return cls(kind=kind, tokens=tuple(tokens), blank_id=tokens.index(BLANK_TOKEN))
