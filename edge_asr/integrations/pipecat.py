"""Speech to text for Pipecat, in its process: audio frames in, interim and final transcriptions out.

    stt = EdgeAsrSTTService()                     # or the path of a bundle, or a loaded Recognizer
    pipeline = Pipeline([transport.input(), stt, user_aggregator, llm, tts, transport.output()])

The service finds the ends of utterances itself, by pauses; whose turn it is, is still for the pipeline's VAD
and turn strategies to decide. The model never runs in the event loop.
What this file does not do: other languages at run time, because a model has one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Literal

from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    Frame,
    InterimTranscriptionFrame,
    StartFrame,
    TranscriptionFrame,
)
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import STTService
from pipecat.transcriptions.language import Language
from pipecat.utils.time import time_now_iso8601

from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.integrations.listening import Listening, Model
from edge_asr.runtime import EndpointConfig, Error, Final, Gap, LiveConfig, Partial, Recognizer
from edge_asr.runtime.live.events import Event

_log = logging.getLogger(__name__)
_COMPUTE_S = 0.15
"""What a final takes beside the pause that ends an utterance, generously; see `ttfs_p99_latency`."""


class EdgeAsrSTTService(STTService):  # type: ignore[misc, unused-ignore]
    """A streaming STT service of Pipecat.

    A `TranscriptionFrame` is one utterance and is `finalized`; its `result` is our event as JSON, with words,
    times and confidence. Each `InterimTranscriptionFrame` replaces the one before.

    Args:
        recognizer: a loaded `Recognizer` (with hotwords or a grammar, if it was loaded with them), the path
            of a bundle, or the name of a model, which is loaded when the pipeline starts.
        language: of the model.
        endpoint: "agent", "command" or "dictation": a pause of 0.2, 0.4 or 1 s ends an utterance.
        partials: whether interim transcriptions are wanted.
        kwargs: of `STTService`. Unless `ttfs_p99_latency` is among them, it is that pause and 0.15 s.

    Raises:
        ConfigError: there is no such preset or language.
    """

    def __init__(
        self,
        recognizer: Recognizer | str | Path = "tiny-en",
        *,
        language: Language | str = Language.EN,
        endpoint: Literal["agent", "command", "dictation"] = "agent",
        partials: bool = True,
        **kwargs: Any,
    ) -> None:
        self._model = Model(recognizer)
        pauses = EndpointConfig.preset(endpoint)
        self._config = LiveConfig(endpoint=pauses, partials=partials)
        try:
            self._language = Language(language)
        except ValueError:
            raise ConfigError(
                f"language is {language!r}; give a code that Pipecat knows, such as en or pt-BR"
            ) from None
        settings = STTSettings(model=self._model.name, language=self._language)
        kwargs.setdefault("ttfs_p99_latency", pauses.pause_s + _COMPUTE_S)
        super().__init__(settings=settings, **kwargs)
        self._listening: Listening | None = None
        self._delivering: asyncio.Task[None] | None = None

    def can_generate_metrics(self) -> bool:
        """Say that the service measures itself."""
        return True

    async def start(self, frame: StartFrame) -> None:
        """Load the model, if that was not done, and begin to listen."""
        await super().start(frame)
        try:
            await asyncio.to_thread(self._model.load)
        except EdgeAsrError as error:
            await self.push_error(str(error), exception=error, force_treat_as_permanent=True)
            return
        self._listening = Listening(self._model, sample_rate=self.sample_rate, config=self._config)
        self._delivering = self.create_task(self._deliver(self._listening))

    async def stop(self, frame: EndFrame) -> None:
        """Deliver the last transcriptions, then stop."""
        if self._listening is not None and self._delivering is not None:
            self._listening.end()
            await self._delivering
        await self._close()
        await super().stop(frame)

    async def cancel(self, frame: CancelFrame) -> None:
        """Stop at once."""
        await self._close()
        await super().cancel(frame)

    async def cleanup(self) -> None:
        """Release what is left."""
        await self._close()
        await super().cleanup()

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        """Hear some sound, 16-bit mono; the transcriptions are pushed when they are there."""
        if self._listening is not None:
            self._listening.push(audio)
        yield None

    async def _close(self) -> None:
        listening, delivering = self._listening, self._delivering
        self._listening = self._delivering = None
        if delivering is not None and not delivering.done():
            await self.cancel_task(delivering)
        if listening is not None:
            await listening.close()
        await asyncio.to_thread(self._model.close)

    async def _deliver(self, listening: Listening) -> None:
        try:
            async for event in listening:
                await self._show(event)
        except Exception as error:  # noqa: BLE001 - the pipeline has its own way to report it
            await self.push_error(f"recognition failed: {error}", exception=error)

    async def _show(self, event: Event) -> None:
        if isinstance(event, Partial) and event.text:
            await self.push_frame(
                InterimTranscriptionFrame(
                    event.text, self._user_id, time_now_iso8601(), self._language, result=event.to_dict()
                )
            )
        elif isinstance(event, Final):
            await self.push_frame(
                TranscriptionFrame(
                    event.text,
                    self._user_id,
                    time_now_iso8601(),
                    self._language,
                    result=event.to_dict(),
                    finalized=True,
                )
            )
            await self.emit_stt_usage_metrics()
        elif isinstance(event, Gap):
            _log.warning("%s: %.2f s of sound were lost: %s", self, event.lost_s, event.reason)
        elif isinstance(event, Error):
            await self.push_error(event.message)
