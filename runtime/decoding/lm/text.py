"""Reads the text that a language model is built from: files with a sentence a line, or manifests.

What this file does not do: count (kneser_ney.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from edge_asr.errors import LanguageModelError
from edge_asr.manifest import read_manifest
from edge_asr.metrics import normalize_text
from edge_asr.runtime.decoding.hotwords import is_unspaced


def read_sentences(
    paths: Iterable[Path], *, exclude: Iterable[Path] = (), normalization: str = "basic"
) -> Iterator[list[str]]:
    """Yield the words of each sentence that has some.

    Args:
        paths: text in UTF-8, a sentence a line, or manifests (`.jsonl`, or a folder).
        exclude: the same, of what must not be learned; whole sentences are compared.
        normalization: see `edge_asr.metrics.normalize_text`.

    Raises:
        LanguageModelError: a file that cannot be read, or is no text in UTF-8.
        ManifestError: a manifest that cannot be read.
        ConfigError: an unknown normalization.
    """

    def words_of(line: str) -> list[str]:
        return space_unspaced(normalize_text(line, normalization)).split()

    excluded = {tuple(words_of(line)) for path in exclude for line in _lines(path)}
    for path in paths:
        for line in _lines(path):
            words = words_of(line)
            if words and tuple(words) not in excluded:
                yield words


def space_unspaced(text: str) -> str:
    """Put a space before each character of a script without spaces."""
    if text.isascii():
        return text
    return "".join(f" {c}" if is_unspaced(c) else c for c in text)


def _lines(path: Path) -> Iterator[str]:
    if path.is_dir() or path.suffix == ".jsonl":
        for utterance in read_manifest(path).utterances:
            yield utterance.text
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise LanguageModelError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise LanguageModelError(f"the text {path} cannot be read: {error.strerror}") from error
