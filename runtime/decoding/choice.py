"""Which decoder: `beam_decoder` for Python, and the options of the command line as one object.

    Recognizer.load("tiny-en", decoder=beam_decoder(hotwords="words.txt"))

What this file does not do: decode. It imports a decoder when one is made, for greedy search needs none of
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import Decoder, DecoderFactory
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.runtime.decoding.hotwords import Hotword

DECODERS = ("greedy", "beam")


def beam_decoder(
    *, beam_size: int = 8, hotwords: str | Path | Iterable[Hotword | str] | None = None
) -> DecoderFactory:
    """Return what makes a prefix beam search, for `Recognizer.load(decoder=...)`.

    Args:
        beam_size: prefixes kept; more cost more time.
        hotwords: phrases to favor: a file of them (`read_hotwords`), or a list of `Hotword`s and phrases.

    Raises:
        ConfigError: a beam below 1, or hotwords that cannot be read. A word that the model cannot spell is a
            VocabularyError of `Recognizer.load`.
    """
    from edge_asr.runtime.decoding.beam import BeamDecoder, PrefixScorer
    from edge_asr.runtime.decoding.hotwords import Hotword, HotwordScorer, read_hotwords

    if beam_size < 1:
        raise ConfigError(f"beam_size is {beam_size}; give 1 or more")
    words: tuple[Hotword, ...] | None = None
    if isinstance(hotwords, (str, Path)):
        words = read_hotwords(hotwords)
    elif hotwords is not None:
        words = tuple(Hotword(word) if isinstance(word, str) else word for word in hotwords)

    def make(vocabulary: Vocabulary) -> Decoder:
        scorers: list[PrefixScorer] = [] if words is None else [HotwordScorer(words, vocabulary)]
        return BeamDecoder(vocabulary.blank_id, beam_size=beam_size, scorers=scorers)

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """What a user asks of decoding.

    Attributes:
        decoder: "greedy" or "beam"; None is beam where another option needs it, else greedy.
        beam_size: prefixes that the beam keeps; None is the default.
        hotwords: file of phrases to favor.
        grammar: file of the only phrases that may be recognized.
        grammar_threshold: what a token of a phrase may cost; None is the default.
        grammar_mode: "whole" or "spot"; None is whole.

    Raises:
        ConfigError: no such decoder, a beam below 1, greedy search with what it cannot use, or a grammar
            together with another decoder.
    """

    decoder: str | None = None
    beam_size: int | None = None
    hotwords: Path | None = None
    grammar: Path | None = None
    grammar_threshold: float | None = None
    grammar_mode: Literal["whole", "spot"] | None = None

    def __post_init__(self) -> None:
        if self.grammar is None and (self.grammar_threshold is not None or self.grammar_mode is not None):
            raise ConfigError("a threshold or mode of the grammar needs a grammar; give its file too")
        if self.grammar is not None and self._is_beam:
            raise ConfigError("a grammar has a search of its own, without beam and hotwords; leave them out")
        if self.decoder not in (None, *DECODERS):
            raise ConfigError(f"decoder is {self.decoder!r}; it must be {' or '.join(DECODERS)}")
        if self.beam_size is not None and self.beam_size < 1:
            raise ConfigError(f"beam_size is {self.beam_size}; give 1 or more")
        if self.decoder == "greedy" and (self.beam_size is not None or self.hotwords is not None):
            unused = "a beam size" if self.hotwords is None else "hotwords"
            raise ConfigError(
                f"greedy search has no use for {unused}; choose the decoder beam, or leave it out"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether greedy search decodes."""
        return not self._is_beam and self.grammar is None

    @property
    def _is_beam(self) -> bool:
        return self.decoder == "beam" or self.beam_size is not None or self.hotwords is not None

    def factory(self) -> DecoderFactory | None:
        """Return what `Recognizer.load` takes; None is greedy search.

        Raises:
            ConfigError: hotwords that cannot be read. What is wrong with a grammar is a GrammarError of
                `Recognizer.load`.
        """
        if self.is_greedy:
            return None
        if self.grammar is not None:
            from edge_asr.runtime.decoding.grammar.read import grammar_decoder
            from edge_asr.runtime.decoding.grammar.recognition import DEFAULT_THRESHOLD

            threshold = DEFAULT_THRESHOLD if self.grammar_threshold is None else self.grammar_threshold
            return grammar_decoder(self.grammar, threshold=threshold, mode=self.grammar_mode or "whole")
        from edge_asr.runtime.decoding.beam import BEAM_SIZE

        size = BEAM_SIZE if self.beam_size is None else self.beam_size
        return beam_decoder(beam_size=size, hotwords=self.hotwords)

    def to_dict(self) -> dict[str, str | int | float | None]:
        """JSON form, for a process with another working folder."""
        return {
            "decoder": self.decoder,
            "beam_size": self.beam_size,
            "hotwords": None if self.hotwords is None else str(self.hotwords.resolve()),
            "grammar": None if self.grammar is None else str(self.grammar.resolve()),
            "grammar_threshold": self.grammar_threshold,
            "grammar_mode": self.grammar_mode,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DecoderOptions:
        """Read the JSON form, the inverse of `to_dict`."""
        paths = {name: Path(data[name]) for name in ("hotwords", "grammar") if data[name] is not None}
        return cls(**{**data, **paths})

    def describe(self) -> str:
        """Say in a few words what decodes, for a report."""
        if self.is_greedy:
            return "greedy"
        if self.grammar is not None:
            return f"grammar {self.grammar.name}"
        from edge_asr.runtime.decoding.beam import BEAM_SIZE

        words = "" if self.hotwords is None else f", hotwords {self.hotwords.name}"
        return f"beam {BEAM_SIZE if self.beam_size is None else self.beam_size}{words}"
