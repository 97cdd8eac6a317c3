"""OpenAI's realtime transcription over a WebSocket: /v1/realtime?intent=transcription (docs/serve.md).

The client sends sound in `input_audio_buffer.append` (PCM16, base64, 24 kHz unless `session.update` says
otherwise). With `server_vad`, the default, each utterance is an item: speech_started, deltas, speech_stopped,
committed, completed. With `turn_detection: null`, the client ends each item by `input_audio_buffer.commit`.
Deltas are only ever appended to, so a delta waits until its words have settled; `completed` has the text.
What this file does not do: conversations. A session of another type is refused.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import secrets
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from edge_asr.errors import ConfigError, EdgeAsrError, RefusedError
from edge_asr.printable import json_line
from edge_asr.runtime import Error, Final, Partial, Unmatched
from edge_asr.runtime.live.events import Event
from edge_asr.serving.growing_text import GrowingText
from edge_asr.serving.openai_api import ALIAS
from edge_asr.serving.options import SessionOptions, session_options_from_json
from edge_asr.serving.sessions import Place, Session, Sessions
from edge_asr.serving.websocket import close, receive, try_send

_SAMPLE_RATE = 24_000
_SUBPROTOCOL = "realtime"


class RealtimeApi:
    """Serves /v1/realtime."""

    def __init__(self, core: Sessions) -> None:
        self._core = core

    async def serve(self, socket: WebSocket) -> None:
        """Serve one client.

        Raises:
            EdgeAsrError: it is refused before the handshake.
        """
        intent = socket.query_params.get("intent", "transcription")
        if intent != "transcription":
            raise ConfigError(f"the intent is {intent[:40]!r}; this server does transcription")
        with self._core.place() as place:
            offered = socket.scope.get("subprotocols", [])
            await socket.accept(_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
            connection = _Connection(self._core, socket, place)
            try:
                reason, sentence = await connection.run()
            except WebSocketDisconnect:
                return
            finally:
                await connection.stop()
            await try_send(socket, connection.error_event(reason, sentence))
            await close(socket, reason, sentence)


class _Connection:
    """One client: what it asked for, the session that hears it, and the item that it is speaking."""

    def __init__(self, core: Sessions, socket: WebSocket, place: Place) -> None:
        self._core, self._socket, self._place = core, socket, place
        self._id = f"sess_{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)
        self._options = SessionOptions(sample_rate=_SAMPLE_RATE)
        self._has_vad = True
        self._session: Session | None = None
        self._delivering: asyncio.Task[str] | None = None
        self._ended_by_server: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._item: str | None = None
        self._previous_item: str | None = None
        self._text = GrowingText()
        self._speech_s = 0.0
        self._is_ignoring = False

    async def run(self) -> tuple[str, str]:
        """Serve until the server has a reason to end; return it, in a word and a sentence.

        Raises:
            WebSocketDisconnect: the client has left.
        """
        await self._send("session.created", session=self._describe())
        receiver = asyncio.ensure_future(self._receive())
        try:
            waited: set[asyncio.Future[Any]] = {receiver, self._ended_by_server}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if receiver.done():
                receiver.result()
            reason = await self._ended_by_server
            return reason, f"the session was ended: {reason}"
        except RefusedError as error:
            return self._core.count(error), str(error)
        finally:
            receiver.cancel()
            await asyncio.gather(receiver, return_exceptions=True)

    async def stop(self) -> None:
        """End what is still running."""
        if self._delivering is not None:
            self._delivering.cancel()
            await asyncio.gather(self._delivering, return_exceptions=True)

    def error_event(self, code: str, message: str, event_id: Any = None) -> dict[str, Any]:
        """Return an event that says what went wrong."""
        error = {
            "type": "invalid_request_error", "code": code, "message": message, "param": None,
            "event_id": event_id,
        }  # fmt: skip
        return {"type": "error", "event_id": self._new_id("event"), "error": error}

    async def _receive(self) -> None:
        """Take messages until the client leaves; what is wrong with one is an event, and goes on."""
        while True:
            message: Any = None
            try:
                message = await receive(self._socket, self._core.limits.idle_s)
                await self._take(message)
            except RefusedError:
                raise
            except EdgeAsrError as error:
                event_id = message.get("event_id") if isinstance(message, dict) else None
                await self._send_json(self.error_event("bad_request", str(error), event_id))

    async def _take(self, message: dict[str, Any] | bytes) -> None:
        if isinstance(message, bytes):
            raise ConfigError("a binary message came; send sound as input_audio_buffer.append with base64")
        kind = message["type"]
        if kind == "input_audio_buffer.append":
            samples = self._options.samples_from_bytes(_decode(message.get("audio")))
            session = await self._open()
            await session.push(samples)
        elif kind == "input_audio_buffer.commit":
            if self._session is None:
                raise ConfigError("the buffer is empty; append sound before it is committed")
            await self._finish()
        elif kind == "input_audio_buffer.clear":
            self._is_ignoring = True
            await self._finish()
            self._item, self._is_ignoring = None, False
            self._text, self._speech_s = GrowingText(), 0.0
            await self._send("input_audio_buffer.cleared")
        elif kind == "session.update":
            self._update(message.get("session"))
            await self._finish()
            await self._send("session.updated", session=self._describe())
        else:
            raise ConfigError(f"the type of the message is {kind[:60]!r}, which transcription does not have")

    def _update(self, session: Any) -> None:
        """Take over what a session.update says; what it leaves out stays.

        Raises:
            ConfigError: what this server does not do, or another form than OpenAI's.
        """
        try:
            self._take_over(session)
        except (AttributeError, TypeError) as error:
            raise ConfigError(f"the session has another form than that of OpenAI ({error})") from error

    def _take_over(self, session: Any) -> None:
        if not isinstance(session, dict) or session.get("type") != "transcription":
            raise ConfigError('the session must be an object of the type "transcription"')
        given = (session.get("audio") or {}).get("input") or {}
        asked: dict[str, Any] = {"sample_rate": self._options.sample_rate, "pause_s": self._options.pause_s}
        form = given.get("format")
        if form is not None:
            if form.get("type") != "audio/pcm":
                raise ConfigError(f"the format is {form.get('type')!r}; send audio/pcm")
            asked["sample_rate"] = form.get("rate", _SAMPLE_RATE)
        model = (given.get("transcription") or {}).get("model", self._core.name)
        if model not in (self._core.name, ALIAS):
            raise ConfigError(f"there is no model {model!r}; this server has {self._core.name} and {ALIAS}")
        has_vad = self._has_vad
        if "turn_detection" in given:
            detection = given["turn_detection"]
            has_vad = detection is not None
            if has_vad and detection.get("type", "server_vad") != "server_vad":
                raise ConfigError(f"turn_detection is {detection['type']!r}; give server_vad or null")
            silence_ms = (detection or {}).get("silence_duration_ms")
            asked["pause_s"] = None if silence_ms is None else silence_ms / 1000
        self._options, self._has_vad = session_options_from_json(asked), has_vad

    async def _open(self) -> Session:
        if self._session is None:
            self._session = await self._place.open(self._options)
            self._delivering = asyncio.ensure_future(self._session.deliver(self._show))
            self._delivering.add_done_callback(self._note_end)
        return self._session

    def _note_end(self, delivering: asyncio.Task[str]) -> None:
        if delivering.cancelled() or self._ended_by_server.done():
            return
        error = delivering.exception()
        if isinstance(error, RefusedError):
            self._ended_by_server.set_result(error.reason)
        elif error is None and delivering.result() != "end":
            self._ended_by_server.set_result(delivering.result())

    async def _finish(self) -> None:
        """End the session, deliver what it heard, and complete the item that the client has committed."""
        if self._session is None or self._delivering is None:
            return
        self._session.end()
        await self._delivering
        self._session = self._delivering = None
        if not self._has_vad and not self._is_ignoring:
            await self._complete()

    async def _show(self, event: Event) -> None:
        """Send what an event of the runtime is in this protocol."""
        if self._is_ignoring:
            return
        if isinstance(event, Error):
            await self._send_json(self.error_event("error", event.message))
        elif isinstance(event, Partial) and event.text:
            await self._begin_item(event.start_s)
            await self._send_delta(self._text.add_partial(event.text))
        elif isinstance(event, Final | Unmatched):
            await self._begin_item(event.start_s)
            self._speech_s += event.end_s - event.start_s
            await self._send_delta(self._text.add_final(event.text if isinstance(event, Final) else ""))
            if self._has_vad:
                end_ms = round(event.end_s * 1000)
                await self._send("input_audio_buffer.speech_stopped", item_id=self._item, audio_end_ms=end_ms)
                await self._complete()

    async def _begin_item(self, start_s: float) -> None:
        if self._item is None:
            self._item = self._new_id("item")
            if self._has_vad:
                await self._send(
                    "input_audio_buffer.speech_started",
                    item_id=self._item,
                    audio_start_ms=round(start_s * 1000),
                )

    async def _send_delta(self, delta: str) -> None:
        if delta:
            await self._send(
                "conversation.item.input_audio_transcription.delta",
                item_id=self._item,
                content_index=0,
                delta=delta,
            )

    async def _complete(self) -> None:
        """Say that the item is at its end, and what it is; the next utterance is another one."""
        item = self._item or self._new_id("item")
        await self._send("input_audio_buffer.committed", item_id=item, previous_item_id=self._previous_item)
        await self._send(
            "conversation.item.input_audio_transcription.completed",
            item_id=item,
            content_index=0,
            transcript=self._text.text,
            usage={"type": "duration", "seconds": round(self._speech_s, 3)},
        )
        self._item, self._previous_item = None, item
        self._text, self._speech_s = GrowingText(), 0.0

    def _describe(self) -> dict[str, Any]:
        pause_s = self._options.endpoint_config().pause_s
        detection = {"type": "server_vad", "silence_duration_ms": round(pause_s * 1000)}
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "id": self._id,
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self._options.sample_rate},
                    "transcription": {"model": self._core.name},
                    "turn_detection": detection if self._has_vad else None,
                }
            },
        }

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._send_json({"type": kind, "event_id": self._new_id("event"), **fields})

    async def _send_json(self, message: dict[str, Any]) -> None:
        await self._socket.send_text(json_line(message))

    def _new_id(self, what: str) -> str:
        return f"{what}_{next(self._numbers)}"


def _decode(audio: Any) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ConfigError("audio is not base64; send PCM16 samples as base64") from None
