"""One live session: sound goes in from asyncio, a thread follows its recognizer, events come out in asyncio.

What this file does not do: count sessions (sessions.py, whose docstring describes the use).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from edge_asr.errors import RefusedError
from edge_asr.runtime import Error, LiveConfig, LiveRecognizer, QueueSource
from edge_asr.runtime.digits import write_event_digits
from edge_asr.runtime.live.events import Event
from edge_asr.serving.limits import Limits
from edge_asr.serving.observer import Observer
from edge_asr.serving.options import SessionOptions
from edge_asr.serving.outbox import Outbox
from edge_asr.serving.recognizers import Recognizers

_log = logging.getLogger(__name__)
MAX_QUEUE_BYTES = 8 << 20
"""Of sound that waits for recognition, of one session: 10 s of stereo at 48 kHz, less of more."""
_MOST_SAMPLE_BYTES = 4
_BLOCK_S = 0.5
_ROOM_POLL_S = 0.02


class Session:
    """One live stream of sound. `Place.open` makes it.

    Args:
        number: counts the sessions of the server from 1.
        options: what its client asked for.
        recognizers, limits, observer: those of the server.
        vad: ask the neural detector of speech too.
        loop: of the client. The constructor may take a while, so it is called in another thread.

    Attributes:
        number, options: as given.
        ended: is done when its thread has done its work.
        reason: why it ended: "end" (its client had no more sound), "left", "idle", "too_long", "draining",
            "slow_reader" or "error"; None while it goes on.
    """

    def __init__(
        self,
        number: int,
        options: SessionOptions,
        *,
        recognizers: Recognizers,
        limits: Limits,
        observer: Observer,
        vad: bool,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.number, self.options = number, options
        self.reason: str | None = None
        self._limits, self._observer, self._loop = limits, observer, loop
        bytes_a_second = _MOST_SAMPLE_BYTES * options.channels * options.sample_rate
        self._queue_s = min(limits.queue_s, MAX_QUEUE_BYTES / bytes_a_second)
        self._source = QueueSource(options.sample_rate, queue_s=self._queue_s)
        config = LiveConfig(
            endpoint=options.endpoint_config(vad=vad),
            partials=options.partials,
            max_audio_s=limits.max_session_s,
        )
        self._live = LiveRecognizer(
            recognizers.get(options, "final"),
            self._source,
            config=config,
            partial_decoder=recognizers.new_partial_decoder(options, config.partial_window_s),
        )
        self._outbox = Outbox(loop)
        self._began = self._last_push = time.monotonic()
        self._watch: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = loop.create_future()

    def start(self, threads: ThreadPoolExecutor) -> None:
        """Begin to recognize, in a thread of the pool; called in the loop."""
        self._began = self._last_push = time.monotonic()
        threads.submit(self._run)
        self._observer.session_opened(self)
        self._check_time()

    @property
    def audio_s(self) -> float:
        """Seconds of sound that were recognized."""
        return self._live.stats.audio_s

    async def push(self, samples: npt.NDArray[Any]) -> None:
        """Take sound; with `overflow="wait"`, wait for room. After the end it is ignored."""
        n_block = max(1, round(min(_BLOCK_S, self._queue_s / 2) * self.options.sample_rate))
        for begin in range(0, len(samples), n_block):
            block = samples[begin : begin + n_block]
            self._last_push = time.monotonic()
            if self.options.overflow == "wait":
                room_s = self._queue_s - len(block) / self.options.sample_rate
                while self.reason is None and self._source.queued_s > room_s:
                    await asyncio.sleep(_ROOM_POLL_S)
                    self._last_push = time.monotonic()
            if self.reason is not None:
                return
            self._source.push(block)

    def end(self, reason: str = "end") -> None:
        """Take no more sound; what was heard is still recognized and delivered. The first reason stays."""
        if self.reason is None:
            self.reason = reason
            self._live.stop()
            if reason not in ("end", "left", "draining", "bad_request"):  # who raised the last one counts it
                self._observer.refused(reason)

    async def deliver(self, send: Callable[[Event], Awaitable[None]]) -> str:
        """Hand every event to `send`, until the session has ended; return the reason.

        Raises:
            RefusedError: "slow_reader": `send` took too long; nothing more is delivered.
            Exception: what `send` raises; the session goes on until its place is left.
        """
        limit_s = self._limits.slow_reader_s
        while (event := await self._outbox.get()) is not None:
            try:
                await asyncio.wait_for(send(event), limit_s)
            except asyncio.TimeoutError:
                self.end("slow_reader")
                message = f"the client did not read its events for {limit_s:g} s"
                raise RefusedError("slow_reader", message, is_counted=True) from None
        await self.wait_ended()
        return self.reason or "error"

    async def wait_ended(self) -> None:
        """Wait until the thread has done its work."""
        await asyncio.shield(self.ended)

    def _run(self) -> None:
        """Follow the recognizer, in a thread of the pool."""
        try:
            with self._live:
                for event in self._live:
                    self._observer.event(self, event)
                    self._outbox.put(write_event_digits(event) if self.options.digits else event)
        except Exception:  # noqa: BLE001 - a bug ends its session, not the server
            _log.exception("session %d failed", self.number)
            message = "recognition failed inside the server; its log says why"
            self._outbox.put(Error(message=message, kind="InternalError", at_s=self.audio_s))
        self._outbox.close()
        try:
            self._loop.call_soon_threadsafe(self._finish)
        except RuntimeError:  # the loop has ended before its sessions
            pass

    def _finish(self) -> None:
        is_full = self.audio_s >= self._limits.max_session_s and self._live.error is None
        # A client that said "end" in time may still have sent more than was heard.
        if self.reason is None or (is_full and self.reason == "end"):
            self.reason = "too_long" if is_full else "error"
            self._observer.refused(self.reason)
        if self._watch is not None:
            self._watch.cancel()
        self.ended.set_result(None)
        self._observer.session_closed(self, self.audio_s)

    def _check_time(self) -> None:
        """End the session if it is idle or too long, else look again when it could be."""
        if self.reason is not None:
            return
        now, limits = time.monotonic(), self._limits
        idle_left_s = self._last_push + limits.idle_s - now
        left_s = self._began + limits.max_session_s - now
        if min(idle_left_s, left_s) <= 0:
            self.end("idle" if idle_left_s <= 0 else "too_long")
        else:
            self._watch = self._loop.call_later(min(idle_left_s, left_s), self._check_time)
