"""Opens a grammar file of any form, and makes the decoder of it.

A file that begins with #JSGF is JSGF, one that is a zip archive is a compiled graph, and anything else is
plain text. What this file does not do: parse, compile.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar
from edge_asr.runtime.decoding.grammar.graph import TokenGraph, compile_graph
from edge_asr.runtime.decoding.grammar.jsgf import HEADER, parse_jsgf
from edge_asr.runtime.decoding.grammar.recognition import DEFAULT_THRESHOLD, GrammarDecoder, Mode
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.vocabulary import Vocabulary

_ZIP = b"PK\x03\x04"
MAX_BYTES = 50_000_000


def read_grammar(path: Path) -> Grammar:
    """Read a grammar in plain text or JSGF.

    Raises:
        GrammarError: the file cannot be read or is no grammar; the message names the line.
    """
    text = _read_text(path)
    if not text.startswith(HEADER):
        return parse_template(text, path.name)

    def read_import(name: str) -> tuple[str, str]:
        for suffix in (".jsgf", ".gram", ".jsgf.txt"):
            file = path.parent / (name + suffix)
            if file.is_file():
                return file.name, _read_text(file)
        raise GrammarError(f"there is no {name}.jsgf or {name}.gram beside {path.name}")

    return parse_jsgf(text, path.name, read_import)


def load_graph(path: Path, vocabulary: Vocabulary) -> TokenGraph:
    """Read a grammar and compile it for a vocabulary, or load a compiled one.

    Raises:
        GrammarError: as `read_grammar`, `compile_graph` and `TokenGraph.load`.
    """
    if _read_bytes(path, len(_ZIP)) == _ZIP:
        return TokenGraph.load(path, vocabulary)
    return compile_graph(read_grammar(path), vocabulary)


def grammar_decoder(
    path: str | Path, *, threshold: float = DEFAULT_THRESHOLD, mode: Mode = "whole"
) -> Callable[[Vocabulary], GrammarDecoder]:
    """Return a `DecoderFactory`: `Recognizer.load(decoder=grammar_decoder("robot.txt"))`."""

    def make(vocabulary: Vocabulary) -> GrammarDecoder:
        return GrammarDecoder(load_graph(Path(path), vocabulary), threshold=threshold, mode=mode)

    return make


def _read_text(path: Path) -> str:
    content = _read_bytes(path, MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise GrammarError(
            f"{path} has more than {MAX_BYTES // 1_000_000} MB; a grammar is a small text file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GrammarError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def _read_bytes(path: Path, n_bytes: int) -> bytes:
    if not path.is_file():
        raise GrammarError(
            f"there is no grammar file {path}; give a text file with one phrase a line, or JSGF"
        )
    try:
        with path.open("rb") as file:
            return file.read(n_bytes)
    except OSError as error:
        raise GrammarError(f"{path} cannot be read: {error.strerror}") from error
