"""Speech to text for LiveKit Agents, in their process: a plug-in with `stream()` and `recognize()`.

    session = AgentSession(stt=STT(), ...)        # or STT("bundle/"), or STT(a loaded Recognizer)

The plug-in finds the ends of utterances itself, by pauses, so no `StreamAdapter` is needed. The model never
runs in the event loop.
What this file does not do: other languages at run time, because a model has one; flush in mid-utterance.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from livekit import rtc
from livekit.agents import APIConnectOptions, APIError, stt, utils
from livekit.agents.types import DEFAULT_API_CONNECT_OPTIONS, NOT_GIVEN, NotGivenOr, TimedString

from edge_asr.integrations.listening import Listening, Model
from edge_asr.runtime import (
    EndpointConfig,
    Error,
    Final,
    Gap,
    LiveConfig,
    Partial,
    Recognizer,
    Unmatched,
)
from edge_asr.runtime.live.events import Event
from edge_asr.runtime.transcript import Word

_log = logging.getLogger(__name__)
_Type = stt.SpeechEventType


class STT(stt.STT):  # type: ignore[misc, unused-ignore]
    """The plug-in.

    Args:
        recognizer: a loaded `Recognizer` (with hotwords or a grammar, if it was loaded with them), the path
            of a bundle, or the name of a model, which is loaded by `prewarm` or when first needed.
        language: of the model.
        endpoint: "agent", "command" or "dictation": a pause of 0.2, 0.4 or 1 s ends an utterance.
        partials: whether interim transcripts are wanted.

    Raises:
        ConfigError: there is no such preset.
    """

    def __init__(
        self,
        recognizer: Recognizer | str | Path = "tiny-en",
        *,
        language: str = "en",
        endpoint: Literal["agent", "command", "dictation"] = "agent",
        partials: bool = True,
    ) -> None:
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=True, interim_results=partials, aligned_transcript="word", offline_recognize=True
            )
        )
        self._engine = Model(recognizer)
        self._language = language
        self._config = LiveConfig(endpoint=EndpointConfig.preset(endpoint), partials=partials)

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._engine.name

    @property
    def provider(self) -> str:
        """Name of this project."""
        return "edge-asr"

    def prewarm(self) -> None:
        """Load the model, such as in the `prewarm_fnc` of a worker."""
        self._engine.load()

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> SpeechStream:
        """Return a stream; `language` is that of the model whatever is given."""
        return SpeechStream(self, self._engine, self._config, self._language, conn_options)

    async def aclose(self) -> None:
        """Close the model, if it was loaded here; streams are closed by whoever opened them."""
        await asyncio.to_thread(self._engine.close)

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        frame = rtc.combine_audio_frames(buffer)
        samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)

        def work() -> stt.SpeechData:
            transcript = self._engine.load().transcribe(samples, frame.sample_rate)
            return _speech(transcript.text, 0.0, transcript.duration_s, transcript.words, self._language)

        return stt.SpeechEvent(
            type=_Type.FINAL_TRANSCRIPT,
            request_id=uuid.uuid4().hex,
            alternatives=[await asyncio.to_thread(work)],
        )


class SpeechStream(stt.RecognizeStream):  # type: ignore[misc, unused-ignore]
    """One stream; `STT.stream` makes it. For each utterance it gives a start, transcripts and an end."""

    def __init__(
        self, plugin: STT, engine: Model, config: LiveConfig, language: str, conn_options: APIConnectOptions
    ) -> None:
        super().__init__(stt=plugin, conn_options=conn_options)
        self._engine, self._config, self._language = engine, config, language
        self._request = uuid.uuid4().hex
        self._is_speaking = False
        self._heard_s = 0.0

    async def _run(self) -> None:
        """Recognize what is pushed until it ends."""
        first = await self._next_frame()
        if first is None:
            return
        self.start_time = time.time()
        listening = Listening(self._engine, sample_rate=first.sample_rate, config=self._config)

        async def hear() -> None:
            frame: rtc.AudioFrame | None = first
            while frame is not None:
                listening.push(bytes(frame.data), frame.num_channels)
                self._heard_s += frame.duration
                frame = await self._next_frame()
            listening.end()

        hearing = asyncio.create_task(hear())
        try:
            async for event in listening:
                self._show(event)
            await hearing
        finally:
            await utils.aio.cancel_and_wait(hearing)
            await listening.close()

    async def _next_frame(self) -> rtc.AudioFrame | None:
        """Return the next frame of sound, None at the end; a flush has no meaning here."""
        async for item in self._input_ch:
            if isinstance(item, rtc.AudioFrame):
                return item
        return None

    def _show(self, event: Event) -> None:
        if isinstance(event, Error):
            raise APIError(event.message, retryable=False)
        if isinstance(event, Gap):
            _log.warning("%.2f s of sound were lost: %s", event.lost_s, event.reason)
        if isinstance(event, Partial) and event.text:
            self._start()
            self._send(_Type.INTERIM_TRANSCRIPT, self._data(event.text, event.start_s, event.end_s, ()))
        elif isinstance(event, Final):
            self._start()
            self._send(
                _Type.FINAL_TRANSCRIPT, self._data(event.text, event.start_s, event.end_s, event.words)
            )
            self._end()
        elif isinstance(event, Unmatched):
            self._end()

    def _data(self, text: str, start_s: float, end_s: float, words: Sequence[Word]) -> stt.SpeechData:
        return _speech(text, start_s, end_s, words, self._language, self.start_time_offset)

    def _start(self) -> None:
        if not self._is_speaking:
            self._is_speaking = True
            self._send(_Type.START_OF_SPEECH)

    def _end(self) -> None:
        if self._is_speaking:
            self._is_speaking = False
            self._send(_Type.END_OF_SPEECH)
        usage = stt.RecognitionUsage(audio_duration=self._heard_s)
        self._heard_s = 0.0
        self._send(_Type.RECOGNITION_USAGE, recognition_usage=usage)

    def _send(self, kind: Any, *alternatives: stt.SpeechData, **fields: Any) -> None:
        self._event_ch.send_nowait(
            stt.SpeechEvent(type=kind, request_id=self._request, alternatives=list(alternatives), **fields)
        )


def _speech(
    text: str, start_s: float, end_s: float, words: Sequence[Word], language: str, offset_s: float = 0.0
) -> stt.SpeechData:
    """Return what LiveKit calls an alternative; times count from the beginning of the stream."""
    return stt.SpeechData(
        language=language,
        text=text,
        start_time=start_s + offset_s,
        end_time=end_s + offset_s,
        confidence=sum(word.confidence for word in words) / len(words) if words else 0.0,
        words=[
            TimedString(
                word.text,
                start_time=word.start_s + offset_s,
                end_time=word.end_s + offset_s,
                confidence=word.confidence,
                start_time_offset=offset_s,
            )
            for word in words
        ]
        or None,
    )
