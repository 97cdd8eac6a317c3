"""The tokens of a NeMo model, in the order of its outputs: labels, SentencePiece pieces, or aggregates.

It finds the hashed files that the configuration names inside the archive. vocab.txt is not used, because it
lists pieces in another notation.
What this file does not do: encode text.

Source: nemo/collections/asr/parts/mixins/mixins.py,
nemo/collections/common/tokenizers/aggregate_tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_asr.checkpoints.safe_sentencepiece import read_pieces
from edge_asr.checkpoints.safe_yaml import Settings
from edge_asr.errors import CheckpointError
from edge_asr.vocabulary import WORD_BOUNDARY, VocabularyKind

_PREFIX = "nemo:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens without the blank.

    Attributes:
        pieces: in the order of the outputs.
        kind: that of the vocabulary.
        model: the SentencePiece model, when there is exactly one.
        notes: for people.
    """

    pieces: tuple[str, ...]
    kind: VocabularyKind
    model: bytes | None = None
    notes: list[str] = field(default_factory=list)


def read_tokens(
    values: Mapping[str, Any], labels: Any, members: Mapping[str, bytes], where: str, *, bpe: bool
) -> Tokens:
    """The tokens of a model.

    Args:
        values: the whole configuration.
        labels: the decoder's vocabulary, or None.
        members: files of the archive by base name.
        where: the configuration, for messages.
        bpe: whether the model class has a tokenizer.

    Raises:
        CheckpointError: no tokens, a file that is missing, or another kind of tokenizer.
    """
    if not bpe:
        labels = labels or values.get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise CheckpointError(f"{where} has no labels; a character model needs them")
        # " " and U+2581 are one text; characters must differ, pieces need not.
        texts = {WORD_BOUNDARY if label.isspace() else label for label in labels}
        characters = len(texts) == len(labels) and all(len(label) == 1 for label in labels)
        return Tokens(pieces=tuple(labels), kind="char" if characters else "sentencepiece")
    settings = Settings(values, where).section("tokenizer")
    if str(settings.take("type", "bpe")).lower() == "agg":  # NeMo takes capitals too
        languages = settings.section("langs")
        pieces: list[str] = []
        names = list(Settings(values, where).section("tokenizer").take("langs"))
        for name in names:
            pieces += _pieces(languages.section(name), members)[0]
        note = f"An aggregate of the tokenizers of {', '.join(map(str, names))}; ids follow in that order."
        return Tokens(pieces=tuple(pieces), kind="sentencepiece", notes=[note])
    settings = Settings(values, where).section("tokenizer")
    listed, model = _pieces(settings, members)
    return Tokens(pieces=tuple(listed), kind="sentencepiece", model=model)


def _pieces(settings: Settings, members: Mapping[str, bytes]) -> tuple[list[str], bytes]:
    kind = settings.take("type", "bpe")
    if str(kind).lower() != "bpe":
        raise settings.refusal("type", kind, "bpe (SentencePiece), agg, or a character model")
    name = str(settings.take("model_path", "") or "")
    file = name.removeprefix(_PREFIX).rpartition("/")[2]
    if not file or file not in members:
        raise CheckpointError(f"{settings.where}.model_path is {name!r}, which the archive does not hold")
    return [piece.text for piece in read_pieces(members[file], file)], members[file]
