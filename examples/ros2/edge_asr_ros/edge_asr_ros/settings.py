"""The parameters of the node: names, defaults, what they mean, what they may be. No ROS here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from edge_asr.audio import MAX_CHANNELS, check_sample_rate
from edge_asr.errors import ConfigError
from edge_asr.records import check_fields, record_from_json
from edge_asr.serving.options import hotword_from_text

MAX_THREADS = 256

ABOUT: dict[str, str] = {
    "model": "folder of a bundle, or the name of an embedded model",
    "precision": "precision of the model; auto takes the best that was proven",
    "provider": "what runs the model; auto takes a TensorRT engine that fits, else CUDA, else the CPU",
    "threads": "threads of the CPU provider; 0 lets it choose",
    "source": "microphone: one of this machine; topic: audio_common_msgs on the topic audio",
    "device": "microphone by index or part of its name; empty is the default input",
    "wait": "start without the microphone, and wait for it",
    "audio_type": "message type of the topic, of the package audio_common_msgs",
    "sample_rate": "Hz of audio messages that do not say theirs",
    "channels": "interleaved channels of audio messages that do not say theirs",
    "sample_format": "what the bytes of AudioData of ros-drivers are",
    "detect_loss": "report sound that is missing from the topic, by the clock; false for a topic that pauses",
    "endpoint": "pause that ends an utterance: command 0.4 s, agent 0.2 s, dictation 1 s, default 0.6 s",
    "vad": "ask a neural detector of speech too, so that noise gives no words; needs edge-asr[vad]",
    "partials": "how the utterance in progress is followed",
    "grammar": "file of the only phrases to recognize; empty is any speech",
    "grammar_mode": "whole: the phrase is all that was said; spot: it may stand within other speech",
    "hotwords": "phrases to favor, phrase:boost if wanted; blank ones are left out",
    "locale": "language of the model for LiveSpeech, such as en_US; empty says nothing",
    "frame_id": "frame_id of the messages",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the parameters say; `ABOUT` has what each one means.

    Raises:
        ConfigError, AudioError: a value that is not taken, in one sentence that says what is.
    """

    model: str = "tiny-en"
    precision: Literal["auto", "fp32", "fp16", "int8"] = "auto"
    provider: Literal["auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu"] = "auto"
    threads: int = 0
    source: Literal["microphone", "topic"] = "microphone"
    device: str = ""
    wait: bool = False
    audio_type: Literal["AudioStamped", "Audio", "AudioData", "AudioDataStamped"] = "AudioStamped"
    sample_rate: int = 16_000
    channels: int = 1
    sample_format: Literal["s16le", "s32le", "f32le"] = "s16le"
    detect_loss: bool = True
    endpoint: Literal["default", "command", "dictation", "agent"] = "default"
    vad: bool = False
    partials: Literal["auto", "streaming", "windowed", "off"] = "auto"
    grammar: str = ""
    grammar_mode: Literal["whole", "spot"] = "whole"
    hotwords: tuple[str, ...] = ()
    locale: str = "en_US"
    frame_id: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "")
        if not self.model:
            raise ConfigError("model is empty; give the folder of a bundle or the name of an embedded model")
        if not 0 <= self.threads <= MAX_THREADS:
            raise ConfigError(f"threads is {self.threads}; give 1 to {MAX_THREADS}, or 0 for a choice")
        check_sample_rate(self.sample_rate)
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise ConfigError(f"channels is {self.channels}; give 1 to {MAX_CHANNELS}")
        for word in self.hotwords:
            hotword_from_text(word)
        if self.grammar and self.hotwords:
            raise ConfigError(
                f"grammar is {self.grammar!r} and hotwords are {list(self.hotwords)}; a grammar takes no "
                "hotwords, so leave one of them out"
            )
        if self.locale and not re.fullmatch(r"[a-z]{2,3}(_[A-Z]{2})?", self.locale):
            raise ConfigError(f"locale is {self.locale!r}; write a language and a region, such as en_US")


def settings_from_values(values: Mapping[str, Any]) -> Settings:
    """Make the settings of some parameters, the others at their defaults; raises as `Settings`."""
    given = dict(values)
    if isinstance(given.get("hotwords"), list | tuple):
        given["hotwords"] = [word for word in given["hotwords"] if not isinstance(word, str) or word.strip()]
    return record_from_json(Settings, given, "")


def defaults() -> dict[str, Any]:
    """Return name and default of each parameter; no hotwords are [""]: ROS has no type for []."""
    found = {field.name: field.default for field in fields(Settings)}
    assert MISSING not in found.values()
    return {**found, "hotwords": [""]}


def constraint(name: str) -> str:
    """Say which values a parameter may have, for people who look at its descriptor; empty if any."""
    choices = [value for value in get_args(get_type_hints(Settings)[name]) if isinstance(value, str)]
    if choices:
        return f"one of {', '.join(choices)}"
    ranges = {"threads": f"0 to {MAX_THREADS}", "channels": f"1 to {MAX_CHANNELS}"}
    return ranges.get(name, "")
