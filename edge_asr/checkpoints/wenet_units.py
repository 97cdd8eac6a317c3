"""WeNet's units.txt (`token id` a line) as a `Vocabulary`.

What this file does not do: read tokenizers; text is assembled from the units.

Source: wenet/utils/file_utils.py (read_symbol_table), wenet/text/{char,bpe}_tokenizer.py.
"""

from __future__ import annotations

from pathlib import Path

from edge_asr.checkpoints.espnet import character_kind
from edge_asr.checkpoints.safe_archive import read_file
from edge_asr.checkpoints.safe_yaml import MAX_BYTES
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.errors import CheckpointError
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

UNITS_NAMES = ("units.txt", "words.txt", "lang_char.txt")
"""Of WeNet's recipes and published models."""


def vocabulary_from_units(path: Path, blank_id: int, tokenizer: str | None) -> Vocabulary:
    """The units of a file in the order of their ids, blank last.

    Args:
        path: the file.
        blank_id: the blank's id.
        tokenizer: "char", "bpe", or None where the settings are too old to say.

    Raises:
        CheckpointError: a line that is no `token id`, ids that are not 0, 1, ..., or no vocabulary.
    """
    try:
        text = read_file(path, limit=MAX_BYTES, what="the units").decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error})") from error
    units: dict[int, str] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or int(words[1]) in units:
            raise CheckpointError(f"{path}, line {number} is {line!r}; expected 'token id', each id once")
        units[int(words[1])] = words[0]
    if sorted(units) != list(range(len(units))):
        raise CheckpointError(f"{path} has {len(units)} units whose ids are not 0 to {len(units) - 1}")
    tokens = [units[i] for i in range(len(units))]
    kind = "sentencepiece" if tokenizer == "bpe" else character_kind(tokens)
    if tokenizer is None and any(token[:1] == WORD_BOUNDARY and len(token) > 1 for token in tokens):
        kind = "sentencepiece"
    return vocabulary_from_tokens(tokens, blank_id, kind, str(path))
