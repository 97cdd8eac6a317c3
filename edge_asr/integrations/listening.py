"""Live recognition for asyncio: sound is pushed in, events come out, and the model runs in other threads.

What this file does not do: know a framework.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np

from edge_asr.audio import check_sample_rate
from edge_asr.errors import BackendError
from edge_asr.runtime import LiveConfig, LiveRecognizer, QueueSource, Recognizer
from edge_asr.runtime.live.events import Event

_QUEUE_S = 30.0
_CLOSE_S = 30.0


class Model:
    """A recognizer that is loaded when it is first needed, unless it is there already.

    Args:
        given: a loaded `Recognizer`, which stays its owner's, or the path of a bundle or the name of a model.

    Attributes:
        name: of the model.
    """

    def __init__(self, given: Recognizer | str | Path) -> None:
        self._given = given
        self._lock = threading.Lock()
        self._loaded = given if isinstance(given, Recognizer) else None
        if isinstance(given, Recognizer):
            self.name = given.bundle.info.name if given.bundle is not None else "edge-asr"
        else:
            self.name = Path(given).name

    def load(self) -> Recognizer:
        """Return the recognizer; this may take a second, so not in an event loop.

        Raises:
            EdgeAsrError: it cannot be loaded.
        """
        with self._lock:
            if self._loaded is None:
                assert not isinstance(self._given, Recognizer)
                self._loaded = Recognizer.load(self._given)
            return self._loaded

    def close(self) -> None:
        """Close what was loaded here."""
        with self._lock:
            if self._loaded is not None and self._loaded is not self._given:
                self._loaded.close()
                self._loaded = None


class Listening:
    """One stream of sound; belongs to the event loop in which it is made.

        listening = Listening(model, sample_rate=16_000)
        listening.push(pcm); ...; listening.end()
        async for event in listening: ...       # in another task

    Args:
        model: recognizes; it is loaded if it is not.
        sample_rate: Hz of the sound.
        config: None for the defaults.

    Raises:
        AudioError: the rate is impossible.
    """

    def __init__(self, model: Model, *, sample_rate: int, config: LiveConfig | None = None) -> None:
        check_sample_rate(sample_rate)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._source = QueueSource(sample_rate, queue_s=_QUEUE_S)
        self._thread = threading.Thread(
            target=self._run, args=(model, config), name="edge-asr-listening", daemon=True
        )
        self._thread.start()

    def push(self, pcm: bytes, channels: int = 1) -> None:
        """Take 16-bit samples, interleaved; what recognition has no time for is dropped and a `Gap`.

        A sample that is not whole, at the end, is left out.
        """
        n_whole = len(pcm) - len(pcm) % (2 * channels)
        if n_whole:
            self._source.push(np.frombuffer(pcm, "<i2", count=n_whole // 2).reshape(-1, channels))

    def end(self) -> None:
        """Take no more sound; the last events follow."""
        self._source.stop()

    async def close(self) -> None:
        """Stop and wait until the threads have ended; events that nobody has taken are lost.

        Raises:
            BackendError: they did not end in time.
        """
        self.end()
        await asyncio.wait({self._ended}, timeout=_CLOSE_S)
        if not self._ended.done():
            raise BackendError(f"recognition did not end within {_CLOSE_S:g} s after it was stopped")
        self._thread.join()  # which has said so as the last thing it does

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events as they happen, until the end.

        Raises:
            Exception: what ended recognition, if it was not the end of the sound.
        """
        while (event := await self._events.get()) is not None:
            yield event
        self._ended.result()

    def _run(self, model: Model, config: LiveConfig | None) -> None:
        failure: BaseException | None = None
        try:
            with LiveRecognizer(model.load(), self._source, config=config) as live:
                for event in live:
                    self._call(self._events.put_nowait, event)
        except BaseException as error:  # noqa: BLE001 - raised by the iteration
            failure = error
        self._call(self._finish, failure)

    def _finish(self, failure: BaseException | None) -> None:
        self._events.put_nowait(None)
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
            self._ended.exception()  # whoever only closes need not know

    def _call(self, function: object, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)  # type: ignore[arg-type]
        except RuntimeError:  # the loop has ended first
            pass
