"""What the Wyoming face says of itself, and what a request may ask for.

What this file does not do: listen, talk to a client (wyoming_face.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wyoming.asr import Transcript, TranscriptStart, TranscriptStop
from wyoming.event import Eventable
from wyoming.info import AsrModel, AsrProgram, Attribution, Info

from edge_asr import __version__
from edge_asr.errors import ConfigError, RefusedError
from edge_asr.runtime import GrammarDecoder
from edge_asr.runtime.decoding.hotwords import Spelling
from edge_asr.serving.options import SessionOptions
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.spoken_names import hotwords_from_names

PROGRAM = "edge-asr"
DEFAULT_OPTIONS = SessionOptions(pause_s=0.7)
"""The pause after which Home Assistant itself, by default, takes a command for ended."""
_ENDPOINTS: Mapping[str, Mapping[str, Any]] = {
    "aggressive": {"endpoint": "agent", "pause_s": 0.3},
    "relaxed": {"endpoint": "dictation", "pause_s": 1.25},
}
"""Of `vad_sensitivity`."""


class WyomingService:
    """The model as Wyoming knows it.

    Args:
        core: the sessions.
        language: of the model, such as "en".
    """

    def __init__(self, core: Sessions, language: str) -> None:
        self.core, self.language = core, language
        base = core.recognizers.base
        self._spelling = Spelling(base.vocabulary)
        # Where only a grammar is heard, names have nothing to say.
        self._takes_names = not isinstance(base.new_decoder(), GrammarDecoder)

    def info(self) -> Info:
        """Describe the program and its model."""
        bundle = self.core.recognizers.base.bundle
        about = "Conformer-CTC"
        if bundle is not None:
            about = f"{bundle.info.family}, {bundle.info.n_parameters / 1e6:.1f} M parameters"
        made_by = Attribution(name=PROGRAM, url="")
        model = AsrModel(
            name=self.core.name,
            description=about,
            version=None if bundle is None else bundle.info.toolkit_version,
            attribution=made_by,
            installed=True,
            languages=[self.language],
        )
        program = AsrProgram(
            name=PROGRAM,
            description="Speech recognition on this machine, with its own end-pointing",
            version=__version__,
            attribution=made_by,
            installed=True,
            models=[model],
            supports_transcript_streaming=True,
            requires_external_vad=False,
        )
        return Info(asr=[program])

    def options(self, data: Mapping[str, Any]) -> SessionOptions:
        """Read what a `transcribe` asks for.

        Raises:
            RefusedError: "not_found": another model or language.
            ConfigError: names that are no list of text.
        """
        name, language = data.get("name"), data.get("language")
        if name not in (None, self.core.name):
            raise RefusedError(
                "not_found", f"there is no model {str(name)[:60]!r}; this server has {self.core.name}"
            )
        if language is not None and _primary(language) != _primary(self.language):
            raise RefusedError(
                "not_found",
                f"the language is {str(language)[:60]!r}; this server understands {self.language}",
            )
        names, terms = (_texts(data, key) for key in ("transcript_names", "transcript_terms"))
        hotwords: tuple[str, ...] = ()
        if self._takes_names:
            is_english = _primary(self.language) == "en"
            hotwords = hotwords_from_names(names, terms, self._spelling, is_english=is_english)
        endpoint = _ENDPOINTS.get(str(data.get("vad_sensitivity")), {})
        return replace(DEFAULT_OPTIONS, hotwords=hotwords, **endpoint)

    def beginning(self) -> TranscriptStart:
        """Return the event that begins an answer."""
        return TranscriptStart(language=self.language)

    def answer(self, text: str) -> tuple[Eventable, ...]:
        """Return the events that end a request."""
        return Transcript(text=text, language=self.language), TranscriptStop()


def _primary(language: Any) -> str:
    """Return the language without region: "en" of "en-US" and "en_GB"."""
    return str(language).replace("_", "-").partition("-")[0].lower()


def _texts(data: Mapping[str, Any], name: str) -> list[str]:
    texts = data.get(name) or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{name} is no list of text; send one, such as ['kitchen lamp']")
    return texts
