"""The Wyoming face: speech to text for Home Assistant and its satellites (docs/serve.md).

    client                                   server
    describe                                 info
    transcribe (language, name, names, ...)
    audio-start
    audio-chunk, again and again             transcript-start, transcript-chunk ...
    audio-stop, if it likes                  transcript, transcript-stop

The server finds the end of speech itself: live speech is answered at the first pause, whether the client goes
on sending or not. What comes faster than it can be spoken is a recording, and is heard to its end. What a
client may not do or have is an `error` event; a request that has failed takes no more of its sound. A
connection may have one request after the other, and takes a place only from its first sound to its answer.
What this file does not do: recognize; check who may come, because the protocol has neither tokens nor TLS
(edge_asr/cli/serve.py).
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from wyoming.asr import Transcribe, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.error import Error as WyomingError
from wyoming.event import Event as WyomingEvent
from wyoming.event import Eventable, async_write_event
from wyoming.info import Describe, SelectProgram
from wyoming.ping import Ping, Pong

from edge_asr.errors import ConfigError, EdgeAsrError, RefusedError
from edge_asr.runtime import Error, Final, Partial, Unmatched
from edge_asr.runtime.live.events import Event
from edge_asr.serving.growing_text import GrowingText
from edge_asr.serving.options import SessionOptions
from edge_asr.serving.run import listen
from edge_asr.serving.sessions import Session, Sessions
from edge_asr.serving.wyoming_service import DEFAULT_OPTIONS, PROGRAM, WyomingService
from edge_asr.serving.wyoming_wire import MAX_HEADER_BYTES, AudioFormat, read_event

if TYPE_CHECKING:
    from edge_asr.serving.announcement import Announcement

_CONNECTIONS_BESIDE = 64
_CLOSE_S = 2.0
_AHEAD_S = 2.0
"""Sound that is further ahead of the clock is a recording. A satellite keeps less than that."""
_SILENT_S = 15.0
"""Who says nothing for so long, after a wake word that was none, gets an empty transcript."""
_LONGEST_S = 60.0
"""Live speech without any pause, such as that of a television, is answered after so long."""


class WyomingFace:
    """Serves Wyoming at one host and port; a `Face`.

    Args:
        core: the sessions.
        host, port: where; port 0 takes a free one.
        language: that of the model, such as "en".
        announcement: tells the network of it; None does not.
    """

    def __init__(
        self,
        core: Sessions,
        *,
        host: str,
        port: int,
        language: str = "en",
        announcement: Announcement | None = None,
    ) -> None:
        self.core = core
        self.service = WyomingService(core, language)
        self._host, self._port, self._announcement = host, port, announcement
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """See `Face.start`."""
        sockets = listen(self._host, self._port)
        for opened in sockets:
            self._servers.append(
                await asyncio.start_server(self._connected, sock=opened, limit=MAX_HEADER_BYTES)
            )
        port = sockets[0].getsockname()[1]
        if self._announcement is not None:
            await self._announcement.start(port)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"tcp://{host}:{port}"

    async def close(self) -> None:
        """See `Face.close`."""
        if self._announcement is not None:
            await self._announcement.close()
        for server in self._servers:
            server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limits = self.core.limits
        if len(self._connections) >= limits.max_sessions + limits.max_requests + _CONNECTIONS_BESIDE:
            self.core.observer.refused("busy")
            writer.close()
            return
        task = asyncio.ensure_future(_Connection(self, reader, writer).run())
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # even if it is cancelled before it begins


class _Connection:
    """One client: what it asked for, and its request in progress."""

    def __init__(self, face: WyomingFace, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.service = face.service
        self._core = face.core
        self._reader, self._writer = reader, writer
        self._writing = asyncio.Lock()
        self._options: SessionOptions | None = DEFAULT_OPTIONS  # None: what was asked for is refused
        self._is_deaf = False  # the request has failed, and its sound still comes
        self._request: _Request | None = None
        self._reads_since: float | None = None
        self._is_idle = False
        self._watch: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until the client leaves or has to."""
        try:
            peer = self._writer.get_extra_info("peername")
            self._core.rate_limit.admit(peer[0] if peer else None)
            self._check_idle()
            await self._serve()
            if self._request is not None and self._request.is_stopped:  # it closed its own direction alone
                await self._request.wait()
        except RefusedError as error:
            if error.reason == "idle" and self._request is not None:
                await self._request.end("idle")
            else:
                await self._refuse(error)
        except EdgeAsrError as error:
            await self._refuse(error)
        except OSError:  # the client has left
            pass
        finally:
            if self._watch is not None:
                self._watch.cancel()
            if self._request is not None:
                await self._request.abandon()

    async def send(self, *messages: Eventable) -> None:
        """Send events.

        Raises:
            OSError: the client has left, or does not read and was dropped.
        """
        watch = asyncio.get_running_loop().call_later(self._core.limits.slow_reader_s, self._drop_slow_reader)
        try:
            async with self._writing:
                for message in messages:
                    await async_write_event(message.event(), self._writer)
        finally:
            watch.cancel()

    async def send_error(self, error: EdgeAsrError) -> None:
        """Say what is wrong."""
        reason = error.reason if isinstance(error, RefusedError) else "bad_request"
        await self.send(WyomingError(text=str(error), code=reason))

    def abort(self) -> None:
        """Drop the client with what waits for it."""
        self._writer.transport.abort()

    def _drop_slow_reader(self) -> None:
        self._core.observer.refused("slow_reader")
        self.abort()

    async def _serve(self) -> None:
        """Take events until the client closes; what it cannot have is an error, and goes on.

        Raises:
            EdgeAsrError: nothing that it sends after this can be understood, or nothing comes.
        """
        while (event := await self._read()) is not None:
            try:
                await self._take(event)
            except EdgeAsrError as error:
                self._core.count(error)
                self._is_deaf = True
                if self._request is not None:
                    await self._request.abandon()
                    self._request = None
                await self.send_error(error)

    async def _take(self, event: WyomingEvent) -> None:
        if AudioChunk.is_type(event.type):
            if self._options is not None and not self._is_deaf:
                await self._hear(self._options, AudioFormat.of(event.data), event.payload or b"")
        elif AudioStart.is_type(event.type):
            await self._finish_request()
            self._is_deaf = False
        elif AudioStop.is_type(event.type):
            if self._request is not None:
                self._request.stop()
            elif self._options is not None and not self._is_deaf:  # not even a chunk
                await self.send(self.service.beginning(), *self.service.answer(""))
            self._is_deaf = False
        elif Transcribe.is_type(event.type):
            await self._finish_request()
            self._is_deaf, self._options = False, None
            self._options = await asyncio.to_thread(self.service.options, event.data)
        elif Describe.is_type(event.type):
            await self.send(self.service.info())
        elif Ping.is_type(event.type):
            text = event.data.get("text")
            await self.send(Pong(text=text if isinstance(text, str) else None))
        elif SelectProgram.is_type(event.type) and event.data.get("name") != PROGRAM:
            name = str(event.data.get("name"))
            raise RefusedError("not_found", f"there is no program {name[:60]!r}; this server has {PROGRAM}")
        # Other kinds are dropped, as the protocol wants it.

    async def _hear(self, options: SessionOptions, form: AudioFormat, data: bytes) -> None:
        if self._request is not None and self._request.is_stopped:
            await self._finish_request()
        if self._request is None:
            with ExitStack() as stack:
                place = stack.enter_context(self._core.place())
                session = await place.open(replace(options, sample_rate=form.rate, channels=form.channels))
                self._request = _Request(self, session, form, stack.pop_all())
        await self._request.push(form, data)

    async def _finish_request(self) -> None:
        """Wait for an answer that is due, give up a request whose sound never ended."""
        if self._request is not None:
            await (self._request.wait() if self._request.is_stopped else self._request.abandon())
            self._request = None

    async def _read(self) -> WyomingEvent | None:
        self._reads_since = time.monotonic()
        event = await read_event(self._reader)
        self._reads_since = None
        if self._is_idle:
            raise RefusedError("idle", f"nothing came for {self._core.limits.idle_s:g} s")
        return event

    def _check_idle(self) -> None:
        """End a client of which nothing comes, or look again when that could be."""
        idle_s, since = self._core.limits.idle_s, self._reads_since
        left_s = idle_s if since is None else since + idle_s - time.monotonic()
        if left_s > 0:
            self._watch = asyncio.get_running_loop().call_later(left_s, self._check_idle)
        else:
            self._is_idle = True
            self._writer.transport.pause_reading()  # type: ignore[attr-defined]
            self._reader.feed_eof()

    async def _refuse(self, error: EdgeAsrError) -> None:
        """Say why, and close when the client has read it, which it cannot if a reset comes first."""
        self._core.count(error)

        async def read_rest() -> None:
            while await self._reader.read(1 << 16):
                pass

        with suppress(OSError, asyncio.TimeoutError):
            await self.send_error(error)
            self._writer.write_eof()
            await asyncio.wait_for(read_rest(), _CLOSE_S)


class _Request:
    """The sound of one utterance or recording, and its answer.

    Attributes:
        is_stopped: whether the client has said that no more sound comes.
    """

    def __init__(
        self, connection: _Connection, session: Session, form: AudioFormat, place: ExitStack
    ) -> None:
        self.is_stopped = False
        self._connection, self._session, self._form = connection, session, form
        self._began = time.monotonic()
        self._sent_s = self._heard_s = 0.0
        self._text = GrowingText()
        self._is_answered = False
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(lambda _: place.close())  # even if it is cancelled before it begins

    async def push(self, form: AudioFormat, data: bytes) -> None:
        """Take sound, unless the answer was given.

        Raises:
            ConfigError, AudioError: it is of another form than before, or ends within a sample.
        """
        if form != self._form:
            raise ConfigError(f"the sound changes from {self._form} to {form}; send audio-start before that")
        samples = form.samples(data)
        if self._is_answered:
            return
        self._sent_s += len(samples) / form.rate
        await self._session.push(samples)
        if self._is_live and self._sent_s - self._heard_s > _SILENT_S:
            self._session.end()

    def stop(self) -> None:
        """Take no more sound; the answer follows."""
        self.is_stopped = True
        self._session.end()

    async def end(self, reason: str) -> None:
        """End it for a reason of the server's, and wait for the answer."""
        self._session.end(reason)
        await self.wait()

    async def wait(self) -> None:
        """Wait until the answer is sent."""
        await asyncio.wait({self._task})

    async def abandon(self) -> None:
        """Answer no more."""
        self._is_answered = True
        self._session.end("left")  # `asyncio.wait_for` of Python 3.11 can lose a cancellation
        self._task.cancel()
        await self.wait()

    @property
    def _is_live(self) -> bool:
        return not self.is_stopped and self._sent_s - (time.monotonic() - self._began) < _AHEAD_S

    async def _run(self) -> None:
        try:
            await self._connection.send(self._connection.service.beginning())
            reason = await self._session.deliver(self._show)
            if self._is_answered:
                return
            if reason == "end" or self._text.text:
                await self._answer()
            else:
                sentence = f"the request was ended before any words: {reason}"
                await self._connection.send_error(RefusedError(reason, sentence))
        except RefusedError:  # it does not read
            self._connection.abort()
        except OSError:  # it has left
            pass

    async def _show(self, event: Event) -> None:
        """Send what an event of the runtime is in this protocol."""
        if self._is_answered:
            return
        delta = ""
        if isinstance(event, Error):
            self._is_answered = True
            await self._connection.send_error(RefusedError("error", event.message))
        elif isinstance(event, Partial) and event.text:
            self._heard_s = event.end_s
            delta = self._text.add_partial(event.text)
        elif isinstance(event, Final | Unmatched):
            self._heard_s = event.end_s
            delta = self._text.add_final(event.text if isinstance(event, Final) else "")
        if delta:
            await self._connection.send(TranscriptChunk(text=delta))
        is_end = isinstance(event, Final | Unmatched) and (
            event.reason != "max_length" or event.end_s > _LONGEST_S
        )
        if is_end and self._is_live:
            await self._answer()

    async def _answer(self) -> None:
        self._is_answered = True
        self._session.end()
        await self._connection.send(*self._connection.service.answer(self._text.text))
