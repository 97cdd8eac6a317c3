"""The tokens of a Wav2Vec2CTCTokenizer: vocab.json, added tokens, the word delimiter, lower case.

It gives every output the text that transformers decodes it to, grouped by the CTC rule. Vocabularies of
several languages (MMS) and phoneme tokenizers are refused.

Source: transformers, models/wav2vec2/tokenization_wav2vec2.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_asr.checkpoints.safe_yaml import Settings, load_json
from edge_asr.checkpoints.vocabularies import vocabulary_from_tokens
from edge_asr.errors import CheckpointError
from edge_asr.vocabulary import Vocabulary

_CLASSES = ("Wav2Vec2CTCTokenizer", "Wav2Vec2Tokenizer")


def load_vocabulary(path: Path, vocab_size: int, blank_id: int) -> tuple[Vocabulary, list[str]]:
    """The vocabulary of a folder, blank last, and notes on it.

    Args:
        path: the folder.
        vocab_size: outputs of the model.
        blank_id: the model's padding token.

    Raises:
        CheckpointError: a file that is missing or damaged, or a tokenizer that edge-asr does not have.
    """
    where = f"{path.name}/vocab.json"
    by_id = _tokens_by_id(load_json(path / "vocab.json", where), where)
    values: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).is_file():
            values.update(load_json(path / name, f"{path.name}/{name}"))
    settings = Settings(values, f"{path.name}/tokenizer_config.json")
    settings.expect("tokenizer_class", (*_CLASSES, None), _CLASSES[0])
    settings.expect("target_lang", (None,), None)
    lower = settings.flag("do_lower_case", False)
    delimited = values.get("word_delimiter_token", "|") is not None  # null: no token is a space
    delimiter = _text(settings, "word_delimiter_token", "|")
    space = _text(settings, "replace_word_delimiter_char", " ")
    unknown = _text(settings, "unk_token", "<unk>")
    padding = _text(settings, "pad_token", "<pad>")
    added = _added_tokens(settings)
    if (path / "added_tokens.json").is_file():
        name = f"{path.name}/added_tokens.json"
        added = {**_tokens_by_id(load_json(path / "added_tokens.json", name), name), **added}
    notes = []
    unreachable = [index for index in added if index >= vocab_size and index not in by_id]
    if unreachable:
        # The tokenizer adds <s> and </s> behind its vocabulary even where the model has no outputs for them.
        notes.append(f"{len(unreachable)} added tokens have no output of the model and were left out.")
    by_id.update((index, token) for index, token in added.items() if index not in unreachable)
    above = sorted(index for index in by_id if not 0 <= index < vocab_size)
    if above:
        raise CheckpointError(
            f"{where} has the token {by_id[above[0]]!r} at {above[0]}, but the model has {vocab_size} "
            "outputs; use the tokenizer and weights of one checkpoint"
        )
    if by_id.get(blank_id, padding) != padding:
        raise CheckpointError(
            f"{path.name}/config.json.pad_token_id is {blank_id}, which is the token {by_id[blank_id]!r}, "
            f"but the tokenizer's padding token, which is the CTC blank, is {padding!r}; correct one"
        )
    unnamed = [index for index in range(vocab_size) if index not in by_id and index != blank_id]
    if unnamed:
        notes.append(f"{len(unnamed)} outputs have no token and decode as {unknown}.")
    tokens = []
    for index in range(vocab_size):
        token = by_id.get(index, unknown)
        token = space if delimited and token == delimiter else token.lower() if lower else token
        tokens.append(token if token or index == blank_id else unknown)
    if values.get("clean_up_tokenization_spaces"):
        notes.append(
            "transformers also removes spaces in front of punctuation and contractions; edge-asr does not."
        )
    try:
        return vocabulary_from_tokens(tokens, blank_id, "char", where), notes
    except CheckpointError:
        # Tokens of several characters, or repeated ones.
        return vocabulary_from_tokens(tokens, blank_id, "sentencepiece", where), notes


def _tokens_by_id(values: dict[str, Any], where: str) -> dict[int, str]:
    if any(isinstance(value, dict) for value in values.values()):
        raise CheckpointError(
            f"{where} has a vocabulary for each of several languages; edge-asr takes one vocabulary, "
            '{"token": id, ...}'
        )
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values.values()):
        raise CheckpointError(f'{where} must hold {{"token": id, ...}}; copy it again')
    return {index: token for token, index in values.items()}


def _added_tokens(settings: Settings) -> dict[int, str]:
    entries = settings.take("added_tokens_decoder", None) or {}
    try:
        return {int(index): str(entry["content"]) for index, entry in entries.items()}
    except (AttributeError, TypeError, ValueError, KeyError):
        raise settings.refusal("added_tokens_decoder", entries, '{"id": {"content": text}}') from None


def _text(settings: Settings, key: str, default: str) -> str:
    value = settings.take(key, default)
    if isinstance(value, dict):  # an added token, as transformers 4 writes them
        value = value.get("content")
    if value is None:
        return default
    if not isinstance(value, str):
        raise settings.refusal(key, value, "a token")
    return value
