"""What a client may ask of a session or of the transcription of a recording.

Options come as JSON, or as the text of a URL's query or of a form. Nothing in them is the name of a file on
the server: a grammar is its text, hotwords are the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE, check_sample_rate
from edge_asr.errors import AudioError, ConfigError
from edge_asr.records import check_fields, record_from_json
from edge_asr.runtime import EndpointConfig, Hotword
from edge_asr.serving.uploads import MAX_CHANNELS, MAX_SAMPLE_RATE

MAX_GRAMMAR_CHARACTERS = 64_000
MAX_HOTWORDS = 1_000
MAX_HOTWORD_CHARACTERS = 200

_DTYPES = {"s16le": "<i2", "f32le": "<f4"}
_SWITCHES = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """How text is found. With all at their defaults, it is found as the server was told when it was started.

    Attributes:
        hotwords: phrases to favor, `phrase:boost` if wanted.
        language_model: whether the bundle's language model is used; None leaves it to the server, or with
            hotwords means yes.
        grammar: the only phrases that may be recognized, as text or JSGF.
        grammar_mode: "whole": the phrase is all that was said. "spot": it may stand within other speech.

    Raises:
        ConfigError: too much of something, or options that contradict each other.
    """

    hotwords: tuple[str, ...] = ()
    language_model: bool | None = None
    grammar: str | None = None
    grammar_mode: Literal["whole", "spot"] = "whole"

    def __post_init__(self) -> None:
        check_fields(self, "the options")
        if len(self.hotwords) > MAX_HOTWORDS:
            raise ConfigError(f"{len(self.hotwords)} hotwords were given; at most {MAX_HOTWORDS} are taken")
        for word in self.hotwords:
            if len(word) > MAX_HOTWORD_CHARACTERS:
                raise ConfigError(
                    f"a hotword has {len(word)} characters; at most {MAX_HOTWORD_CHARACTERS} are taken"
                )
            hotword_from_text(word)
        if self.grammar is not None and (self.hotwords or self.language_model):
            raise ConfigError("a grammar takes neither hotwords nor a language model; leave them out")
        if self.grammar is not None and len(self.grammar) > MAX_GRAMMAR_CHARACTERS:
            raise ConfigError(
                f"the grammar has {len(self.grammar)} characters; at most {MAX_GRAMMAR_CHARACTERS} are taken "
                "from a client: start the server with --grammar"
            )

    @property
    def decoding(self) -> DecodingOptions:
        """The options of decoding alone, by which decoders are kept."""
        return DecodingOptions(
            hotwords=self.hotwords,
            language_model=self.language_model,
            grammar=self.grammar,
            grammar_mode=self.grammar_mode,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions(DecodingOptions):
    """What a client may ask of a live session.

    Attributes:
        sample_rate: of its sound, in Hz.
        format: what its samples are, or "ogg" for an Ogg (Opus, Vorbis) or FLAC stream, which says its own
            rate and channels.
        channels: how many are interleaved; their mean is heard.
        endpoint: "command", "dictation" or "agent"; None is a pause of 0.6 s.
        pause_s: how long it must be quiet to end an utterance, instead of the preset's time.
        partials: whether the utterance in progress is shown.
        digits: write English numbers with digits.
        overflow: what happens to sound that recognition has no time for: the client has to "wait" to send
            more, or the server "drop"s it and says so with a gap.
    """

    sample_rate: int = STREAM_SAMPLE_RATE
    format: Literal["s16le", "f32le", "ogg"] = "s16le"
    channels: int = 1
    endpoint: Literal["command", "dictation", "agent"] | None = None
    pause_s: float | None = None
    partials: bool = True
    digits: bool = False
    overflow: Literal["wait", "drop"] = "wait"

    def __post_init__(self) -> None:
        DecodingOptions.__post_init__(self)
        if check_sample_rate(self.sample_rate) > MAX_SAMPLE_RATE:
            raise ConfigError(f"sample_rate is {self.sample_rate}; give at most {MAX_SAMPLE_RATE}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ConfigError(f"channels is {self.channels}; give 1 to {MAX_CHANNELS}")
        if self.pause_s is not None and not 0.1 <= self.pause_s <= 10:
            raise ConfigError(f"pause_s is {self.pause_s}; give 0.1 to 10 seconds")
        self.endpoint_config()

    def endpoint_config(self, *, vad: bool = False) -> EndpointConfig:
        """Return the settings of endpointing.

        Raises:
            ConfigError: `pause_s` does not go with the preset.
        """
        if self.endpoint is None:
            config = EndpointConfig(vad=vad)
        else:
            config = EndpointConfig.preset(self.endpoint, vad=vad)
        if self.pause_s is None:
            return config
        pause_s = self.pause_s
        return replace(
            config,
            pause_s=pause_s,
            tail_s=min(config.tail_s, pause_s),
            blank_pause_s=max(config.blank_pause_s, pause_s),
            max_utterance_s=max(config.max_utterance_s, config.cut_search_s + pause_s),
        )

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return np.dtype(_DTYPES[self.format]).itemsize * self.channels

    def samples_from_bytes(self, data: bytes) -> npt.NDArray[Any]:
        """Return the samples of a block, [n] or [n, channels].

        Raises:
            AudioError: the block ends within a sample.
        """
        dtype, frame = np.dtype(_DTYPES[self.format]), self.frame_bytes
        if len(data) % frame:
            raise AudioError(
                f"a block has {len(data)} bytes; send whole samples, a multiple of {frame} bytes "
                f"({self.channels} x {self.format})"
            )
        samples = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
        return samples if self.channels == 1 else samples.reshape(-1, self.channels)


def session_options_from_json(data: Any) -> SessionOptions:
    """Read the options of a session from decoded JSON.

    Raises:
        ConfigError, AudioError: an unknown key, or a value that is not taken.
    """
    return record_from_json(SessionOptions, data, "the options")


def json_from_text(values: Mapping[str, str]) -> dict[str, Any]:
    """Return what the query of a URL says, where every value is text, as JSON; hotwords have commas.

    Raises:
        ConfigError: no number, or neither true nor false, where one belongs.
    """
    data: dict[str, Any] = dict(values)
    for name in ("sample_rate", "channels", "pause_s"):
        if name in values:
            data[name] = _number(name, values[name], whole=name != "pause_s")
    for name in ("partials", "digits", "language_model"):
        if name in values:
            data[name] = switch_from_text(name, values[name])
    if "hotwords" in values:
        data["hotwords"] = hotwords_from_text(values["hotwords"])
    return data


def hotwords_from_text(text: str) -> list[str]:
    """Split hotwords that are separated by commas."""
    return [word for part in text.split(",") if (word := part.strip())]


def switch_from_text(name: str, text: str) -> bool:
    """Read true or false.

    Raises:
        ConfigError: it is neither.
    """
    if text.lower() not in _SWITCHES:
        raise ConfigError(f"{name} is {text[:40]!r}; give true or false")
    return _SWITCHES[text.lower()]


def hotword_from_text(text: str) -> Hotword:
    """Read `phrase` or `phrase:boost`.

    Raises:
        ConfigError: no word, or a boost that is not a number above 0.
    """
    phrase, separator, boost = text.rpartition(":")
    if not separator:
        return Hotword(text)
    try:
        return Hotword(phrase.strip(), float(boost))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the boost of the hotword {text!r} is no number; write phrase:1.5") from None


def _number(name: str, text: str, *, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ConfigError(f"{name} is {text[:40]!r}; give a {'whole ' if whole else ''}number") from None
