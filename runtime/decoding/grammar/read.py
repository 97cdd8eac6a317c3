"""Opens a grammar file of any form, and makes the decoder of it.

A file that begins with #JSGF is JSGF, one that is a zip archive is a compiled graph, and anything else is
plain text. What this file does not do: parse, compile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.errors import GrammarError
from edge_asr.runtime.decoding.grammar.expression import Grammar
from edge_asr.runtime.decoding.grammar.graph import TokenGraph, compile_graph
from edge_asr.runtime.decoding.grammar.jsgf import HEADER, parse_jsgf
from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder, Mode
from edge_asr.runtime.decoding.grammar.template import parse_template
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.bundle.folder import Bundle

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


def is_compiled(path: Path) -> bool:
    """Tell whether a file is a compiled grammar.

    Raises:
        GrammarError: the file cannot be read.
    """
    return _read_bytes(path, len(_ZIP)) == _ZIP


def load_graph(path: Path, vocabulary: Vocabulary) -> TokenGraph:
    """Read a grammar and compile it for a vocabulary, or load a compiled one.

    Raises:
        GrammarError: as `read_grammar`, `compile_graph` and `TokenGraph.load`.
    """
    if is_compiled(path):
        return TokenGraph.load(path, vocabulary)
    return compile_graph(read_grammar(path), vocabulary)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarFactory:
    """A `DecoderFactory` that makes the decoder of a grammar; `grammar_decoder` makes one.

    Attributes:
        path: the grammar, as text or compiled.
        threshold: what a letter of a phrase may cost; None is that of the compiled grammar, else the
        fallback.
        mode: "whole" or "spot".
        fallback: of the bundle; None is the default.
    """

    path: Path
    threshold: float | None
    mode: Mode
    fallback: float | None = None

    def for_bundle(self, bundle: Bundle) -> GrammarFactory:
        """Return the factory for a bundle, which may have a threshold of its own."""
        known = bundle.info.grammar
        return replace(self, fallback=None if known is None else getattr(known, self.mode))

    def __call__(self, vocabulary: Vocabulary) -> GrammarDecoder:
        """Read and compile the grammar, and make its decoder.

        Raises:
            ConfigError: as `GrammarDecoder`.
            GrammarError: as `load_graph`.
        """
        graph = load_graph(self.path, vocabulary)
        threshold = (
            graph.thresholds.get(self.mode, self.fallback) if self.threshold is None else self.threshold
        )
        return GrammarDecoder(graph, threshold=threshold, mode=self.mode)


def grammar_decoder(
    path: str | Path, *, threshold: float | None = None, mode: Mode = "whole"
) -> GrammarFactory:
    """Return a `DecoderFactory`: `Recognizer.load(decoder=grammar_decoder("robot.txt"))`.

    Args:
        path: the grammar, as text or compiled.
        threshold: what a letter of a phrase may cost; None is that of the compiled grammar, else of the
        bundle.
        mode: "whole": the phrase is all that was said. "spot": it may stand within other speech.
    """
    return GrammarFactory(path=Path(path), threshold=threshold, mode=mode)


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
