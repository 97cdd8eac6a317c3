"""Which decoder: `beam_decoder` and the like for Python, and the options of the command line as one object.

    Recognizer.load("tiny-en", decoder=beam_decoder(hotwords="words.txt"))
    Recognizer.load("mine", decoder=rescoring_decoder())

What this file does not do: decode. It imports a decoder when one is made, for greedy search needs none of
them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.decoder import Decoder, DecoderFactory
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.windows import WINDOW_S
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

if TYPE_CHECKING:
    from edge_asr.bundle.manifest import DecoderGraphs
    from edge_asr.runtime.decoding.attention.network import OnnxDecoder
    from edge_asr.runtime.decoding.beam import BeamDecoder
    from edge_asr.runtime.decoding.hotwords import Hotword
    from edge_asr.runtime.decoding.lm.model_file import LanguageModel

DECODERS = ("greedy", "beam", "rescoring", "attention")
BUNDLE_LM = "bundle"
"""In the place of the name of a language model: that of the bundle, if it has one."""
NO_LM = "none"
"""In its place among `DecoderOptions`: none, also if the bundle has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamFactory:
    """A `DecoderFactory` that makes a prefix beam search; `beam_decoder` makes one.

    Attributes:
        beam_size: prefixes kept; None is the default for what is known.
        hotwords: phrases to favor; None without.
        language_model: its file, or the model itself; None without.
        weights: how much it has to say; None is what its file says.
        takes_bundles: whether it takes the language model of a bundle, if that has one.
    """

    beam_size: int | None
    hotwords: tuple[Hotword, ...] | None
    language_model: Path | LanguageModel | None = None
    weights: Mapping[str, float] | None = None
    takes_bundles: bool = False

    def for_bundle(self, bundle: Bundle) -> BeamFactory:
        """Return the factory for a bundle: with its language model, if it may be taken."""
        entry = bundle.info.language_model
        if not self.takes_bundles or entry is None:
            return self
        return dataclasses.replace(self, language_model=bundle.path / entry.file, weights=entry.weights)

    def __call__(self, vocabulary: Vocabulary) -> BeamDecoder:
        """Make the decoder.

        Raises:
            LanguageModelError: the file of the language model cannot be read.
            VocabularyError: the vocabulary cannot spell a hotword.
        """
        from edge_asr.runtime.decoding.beam import BEAM_SIZE, BEAM_SIZE_LM, BeamDecoder, PrefixScorer
        from edge_asr.runtime.decoding.hotwords import HotwordScorer

        scorers: list[PrefixScorer] = []
        if self.hotwords is not None:
            scorers.append(HotwordScorer(self.hotwords, vocabulary))
        if self.language_model is not None:
            from edge_asr.runtime.decoding.lm.model_file import LanguageModel, weights_from_dict
            from edge_asr.runtime.decoding.lm.scorer import LanguageModelScorer

            found = self.language_model
            model = LanguageModel.load(found) if isinstance(found, Path) else found
            weights = None if self.weights is None else weights_from_dict(self.weights)
            scorers.append(LanguageModelScorer(model, vocabulary, weights))
        size = BEAM_SIZE if self.language_model is None else BEAM_SIZE_LM
        return BeamDecoder(vocabulary.blank_id, beam_size=self.beam_size or size, scorers=scorers)


def beam_decoder(
    *,
    beam_size: int | None = None,
    hotwords: str | Path | Iterable[Hotword | str] | None = None,
    lm: str | Path | LanguageModel | None = BUNDLE_LM,
) -> BeamFactory:
    """Return what makes a prefix beam search, for `Recognizer.load(decoder=...)`.

    Args:
        beam_size: prefixes kept; more cost more time. None is 8, or 32 with a language model.
        hotwords: phrases to favor: a file of them (`read_hotwords`), or a list of `Hotword`s and phrases.
        lm: a language model, or its file. "bundle" is that of the bundle, if it has one; None is none.

    Raises:
        ConfigError: a beam below 1, or hotwords that cannot be read. A word that the model cannot spell is a
            VocabularyError of `Recognizer.load`, a damaged language model a LanguageModelError there.
    """
    from edge_asr.runtime.decoding.hotwords import Hotword, read_hotwords

    if beam_size is not None and beam_size < 1:
        raise ConfigError(f"beam_size is {beam_size}; give 1 or more")
    words: tuple[Hotword, ...] | None = None
    if isinstance(hotwords, (str, Path)):
        words = read_hotwords(hotwords)
    elif hotwords is not None:
        words = tuple(Hotword(word) if isinstance(word, str) else word for word in hotwords)
    is_bundles = isinstance(lm, str) and lm == BUNDLE_LM
    return BeamFactory(
        beam_size=beam_size,
        hotwords=words,
        language_model=None if is_bundles else Path(lm) if isinstance(lm, str) else lm,
        takes_bundles=is_bundles,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFactory:
    """A `DecoderFactory` for the attention decoder of a bundle; `rescoring_decoder` makes one.

    Attributes:
        kind: whether it scores the texts of a beam search, or searches itself.
        beam: the beam search that finds the texts; its size is also that of the attention decoder's search.
        ctc_weight, reverse_weight: None is what the bundle says.
        length_penalty: of the attention decoder's search; None is its default.
        bundle: whose decoder it is.
        backend: name, precision and threads of what runs the encoder.
    """

    kind: Literal["rescoring", "attention"]
    beam: BeamFactory
    ctc_weight: float | None = None
    reverse_weight: float | None = None
    length_penalty: float | None = None
    bundle: Bundle | None = None
    backend: tuple[str, str, int | None] = ("cpu", "fp32", None)

    def for_bundle(self, bundle: Bundle) -> AttentionFactory:
        """Return the factory for the decoder of a bundle.

        Raises:
            BundleError: it has none.
        """
        assert bundle.decoder  # raises
        return dataclasses.replace(self, bundle=bundle, beam=self.beam.for_bundle(bundle))

    def for_backend(self, name: str, precision: str, num_threads: int | None) -> AttentionFactory:
        """Return the factory for a decoder that runs beside this backend: on CUDA, or on the CPU."""
        return dataclasses.replace(self, backend=(name, precision, num_threads))

    def __call__(self, vocabulary: Vocabulary) -> Decoder:
        """Make the decoder.

        Raises:
            ConfigError: no bundle, or a weight out of range or of a decoder that is not there.
            BackendError: the decoder cannot be loaded.
            LanguageModelError, VocabularyError: as `BeamFactory`.
        """
        from edge_asr.runtime.decoding.attention.rescoring import RescoringDecoder, ScoreWeights
        from edge_asr.runtime.decoding.attention.search import BEAM_SIZE, AttentionDecoder, SearchOptions

        bundle = self.bundle
        if bundle is None:
            raise ConfigError(f"the decoder {self.kind} needs a bundle; give it to Recognizer.load")
        info, features = bundle.decoder, bundle.info.features
        frame_s = bundle.info.subsampling_factor * features.hop_length / features.sample_rate
        segments: dict[str, Any] = {
            "boundary_id": boundary_of(vocabulary),
            "max_frames": round(WINDOW_S / frame_s),
        }
        ctc = info.ctc_weight if self.ctc_weight is None else self.ctc_weight
        if self.kind == "attention":
            options: dict[str, Any] = {"beam_size": self.beam.beam_size or BEAM_SIZE, "ctc_weight": ctc}
            if self.length_penalty is not None:
                options["length_penalty"] = self.length_penalty
            return AttentionDecoder(
                GreedyDecoder.for_vocabulary(vocabulary),
                self._open(info.left),
                SearchOptions(**options),
                blank_id=vocabulary.blank_id,
                **segments,
            )
        reverse = info.reverse_weight if self.reverse_weight is None else self.reverse_weight
        weights = ScoreWeights(ctc=ctc, reverse=reverse)
        right = None if info.right is None or reverse == 0 else self._open(info.right)
        return RescoringDecoder(
            self.beam(vocabulary), self._open(info.left), right, weights=weights, **segments
        )

    def _open(self, graphs: DecoderGraphs) -> OnnxDecoder:
        from edge_asr.runtime.decoding.attention.network import OnnxDecoder

        assert self.bundle is not None
        name, precision, num_threads = self.backend
        return OnnxDecoder.load(
            self.bundle,
            graphs,
            precision=precision if name == "cpu" else "fp32",
            device="cuda" if name == "cuda" else "cpu",
            num_threads=num_threads,
        )


def boundary_of(vocabulary: Vocabulary) -> int | None:
    """Return the token that stands between words, in a vocabulary of characters that has one."""
    if vocabulary.kind != "char" or WORD_BOUNDARY not in vocabulary.tokens:
        return None
    return vocabulary.tokens.index(WORD_BOUNDARY)


def rescoring_decoder(
    *,
    ctc_weight: float | None = None,
    reverse_weight: float | None = None,
    beam_size: int | None = None,
    hotwords: str | Path | Iterable[Hotword | str] | None = None,
    lm: str | Path | LanguageModel | None = BUNDLE_LM,
) -> AttentionFactory:
    """Return what lets the bundle's attention decoder choose among the texts of a prefix beam search.

    Args:
        ctc_weight: share of CTC in the score of a text, 0 to 1, the rest is the decoder's; None is what the
            bundle says.
        reverse_weight: share of a decoder from right to left in the decoder's score, if the bundle has one.
        beam_size, hotwords, lm: of the beam search; see `beam_decoder`.

    Raises:
        ConfigError: as `beam_decoder`. A bundle without a decoder is a BundleError of `Recognizer.load`.
    """
    beam = beam_decoder(beam_size=beam_size, hotwords=hotwords, lm=lm)
    return AttentionFactory(kind="rescoring", beam=beam, ctc_weight=ctc_weight, reverse_weight=reverse_weight)


def attention_decoder(
    *, ctc_weight: float | None = None, beam_size: int | None = None, length_penalty: float | None = None
) -> AttentionFactory:
    """Return what searches with the bundle's attention decoder, token by token.

    Args:
        ctc_weight: as `rescoring_decoder`.
        beam_size: texts that are kept; None is 8.
        length_penalty: power of the length by which the scores of texts are divided; None is 1.

    Raises:
        ConfigError: a beam below 1.
    """
    beam = beam_decoder(beam_size=beam_size, lm=None)
    return AttentionFactory(kind="attention", beam=beam, ctc_weight=ctc_weight, length_penalty=length_penalty)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """What a user asks of decoding.

    Attributes:
        decoder: one of `DECODERS`; None is beam where another option needs it, else greedy.
        beam_size: prefixes that the beam keeps; None is the default.
        ctc_weight: share of CTC in the score, for rescoring and attention; None is what the bundle says.
        reverse_weight: share of the decoder from right to left, for rescoring; None likewise.
        hotwords: file of phrases to favor.
        lm: file of a language model; "none" is none, None that of the bundle, if it has one.
        grammar: file of the only phrases that may be recognized.
        grammar_threshold: what a letter of a phrase may cost; None is that of the grammar or the bundle.
        grammar_mode: "whole" or "spot"; None is whole.

    Raises:
        ConfigError: no such decoder, a beam below 1, a decoder with what it cannot use, or a grammar together
            with another decoder.
    """

    decoder: str | None = None
    beam_size: int | None = None
    ctc_weight: float | None = None
    reverse_weight: float | None = None
    hotwords: Path | None = None
    lm: Path | None = None
    grammar: Path | None = None
    grammar_threshold: float | None = None
    grammar_mode: Literal["whole", "spot"] | None = None

    def __post_init__(self) -> None:
        if self.grammar is None and (self.grammar_threshold is not None or self.grammar_mode is not None):
            raise ConfigError("a threshold or mode of the grammar needs a grammar; give its file too")
        if self.grammar is not None and (self._is_beam or self._is_attention):
            raise ConfigError(
                "a grammar has a search of its own, without beam, hotwords and language model; leave them out"
            )
        if self.decoder not in (None, *DECODERS):
            raise ConfigError(f"decoder is {self.decoder!r}; it must be {' or '.join(DECODERS)}")
        if self.beam_size is not None and self.beam_size < 1:
            raise ConfigError(f"beam_size is {self.beam_size}; give 1 or more")
        if self.decoder == "greedy" and self._is_beam:
            unused = "a beam size" if self.beam_size is not None else "hotwords"
            unused = "a language model" if self._has_lm else unused
            raise ConfigError(
                f"greedy search has no use for {unused}; choose the decoder beam, or leave it out"
            )

        if self.decoder == "attention" and (self.hotwords is not None or self._has_lm):
            unused = "a language model" if self._has_lm else "hotwords"
            raise ConfigError(f"the decoder attention has no use for {unused}; choose beam or rescoring")
        takes = {"ctc_weight": ("rescoring", "attention"), "reverse_weight": ("rescoring",)}
        for name, decoders in takes.items():
            value = getattr(self, name)
            if value is not None and self.decoder not in decoders:
                raise ConfigError(
                    f"{name} is {value}, which belongs to the decoder {' or '.join(decoders)}; choose it, or "
                    "leave the weight out"
                )
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value}; it is a share, give 0 to 1")

    @property
    def is_greedy(self) -> bool:
        """Whether greedy search decodes."""
        return not self._is_beam and not self._is_attention and self.grammar is None

    @property
    def _is_attention(self) -> bool:
        return self.decoder in ("rescoring", "attention")

    @property
    def _has_lm(self) -> bool:
        return self.lm is not None and str(self.lm) != NO_LM

    @property
    def _is_beam(self) -> bool:
        needs_beam = self.beam_size is not None or self.hotwords is not None or self._has_lm
        return self.decoder == "beam" or needs_beam

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

            mode = self.grammar_mode or "whole"
            return grammar_decoder(self.grammar, threshold=self.grammar_threshold, mode=mode)
        lm = BUNDLE_LM if self.lm is None else self.lm if self._has_lm else None
        if self.decoder == "attention":
            return attention_decoder(ctc_weight=self.ctc_weight, beam_size=self.beam_size)
        if self.decoder == "rescoring":
            return rescoring_decoder(
                ctc_weight=self.ctc_weight,
                reverse_weight=self.reverse_weight,
                beam_size=self.beam_size,
                hotwords=self.hotwords,
                lm=lm,
            )
        return beam_decoder(beam_size=self.beam_size, hotwords=self.hotwords, lm=lm)

    def to_dict(self) -> dict[str, str | int | float | None]:
        """JSON form, for a process with another working folder."""
        return {
            "decoder": self.decoder,
            "beam_size": self.beam_size,
            "ctc_weight": self.ctc_weight,
            "reverse_weight": self.reverse_weight,
            "hotwords": None if self.hotwords is None else str(self.hotwords.resolve()),
            "lm": None if self.lm is None else str(self.lm.resolve()) if self._has_lm else NO_LM,
            "grammar": None if self.grammar is None else str(self.grammar.resolve()),
            "grammar_threshold": self.grammar_threshold,
            "grammar_mode": self.grammar_mode,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DecoderOptions:
        """Read the JSON form, the inverse of `to_dict`."""
        paths = {name: Path(data[name]) for name in ("hotwords", "lm", "grammar") if data[name] is not None}
        return cls(**{**data, **paths})

    def describe(self) -> str:
        """Say in a few words what decodes, for a report."""
        if self.is_greedy:
            return "greedy"
        if self.grammar is not None:
            return f"grammar {self.grammar.name}"
        words = "" if self.hotwords is None else f", hotwords {self.hotwords.name}"
        words += "" if self.lm is None else f", lm {self.lm.name}"
        for name, value in (("ctc", self.ctc_weight), ("reverse", self.reverse_weight)):
            words += "" if value is None else f", {name} {value:g}"
        kind = self.decoder if self._is_attention else "beam"
        return f"{kind}{'' if self.beam_size is None else f' {self.beam_size}'}{words}"
