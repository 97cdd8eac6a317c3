"""The WebSocket face: raw sound in, events out as JSON, at /v1/listen (docs/serve.md).

    client                                          server
    connect /v1/listen?sample_rate=48000&...        {"type": "ready", ...}, or an HTTP status if it refuses
    {"type": "start", "hotwords": [...], ...}
    <binary: samples>, again and again              {"type": "partial" | "final" | "unmatched" | "gap", ...}
    {"type": "end"}                                 the last finals, {"type": "end", ...}, close 1000

Options stand in the query or in "start", which may be left out. The events are those of `edge-asr listen
--json`. An "error" event with a sentence comes before any close but 1000.
What this file does not do: recognize, check tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from edge_asr.errors import AudioError, ConfigError, EdgeAsrError, RefusedError
from edge_asr.printable import json_line
from edge_asr.records import decode_json
from edge_asr.runtime.live.events import Event
from edge_asr.serving.conversation import converse, error_event, greeting, last_events, sentence_of_reason
from edge_asr.serving.options import SessionOptions, json_from_text, session_options_from_json
from edge_asr.serving.sessions import Place, Session, Sessions, event_to_line
from edge_asr.serving.sound_pieces import decode_pieces, first_sound

SUBPROTOCOL = "edge-asr"
_TOKEN_PREFIXES = ("token.", "openai-insecure-api-key.")
_CLOSE_S = 2.0
#: RFC 6455, section 7.4.1, and the registry of IANA: 1008 policy, 1011 internal, 1012 restart, 1013 later.
_CODES = {"draining": 1012, "busy": 1013, "too_large": 1009, "error": 1011, "end": 1000}
_POLICY = 1008


def subprotocol_token(offered: Sequence[str]) -> str | None:
    """Return the token among the subprotocols that a client offers; a browser can send it no other way."""
    for name in offered:
        for prefix in _TOKEN_PREFIXES:
            if name.startswith(prefix):
                return name[len(prefix) :]
    return None


async def receive(socket: WebSocket, wait_s: float | None = None) -> dict[str, Any] | bytes:
    """Return the next message: decoded JSON of a text, or the bytes.

    Raises:
        WebSocketDisconnect: the client has left.
        RefusedError: "idle": nothing came.
        ConfigError: a text that is no JSON object with a type.
    """
    try:
        message = await (asyncio.wait_for(socket.receive(), wait_s) if wait_s else socket.receive())
    except asyncio.TimeoutError:
        raise RefusedError("idle", f"nothing came for {wait_s:g} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"], message.get("reason"))
    data = message.get("bytes")
    if data is not None:
        return bytes(data)
    decoded = decode_json(message["text"], "the message")
    if not isinstance(decoded, dict) or not isinstance(decoded.get("type"), str):
        raise ConfigError('a message is a JSON object with a "type"')
    return decoded


async def try_send(socket: WebSocket, message: dict[str, Any]) -> None:
    """Send JSON; a client that takes nothing more is left."""
    try:
        await asyncio.wait_for(socket.send_text(json_line(message)), _CLOSE_S)
    except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
        pass


async def close(socket: WebSocket, reason: str, sentence: str) -> None:
    """Close with the code of a reason; a client that takes nothing more is left."""
    code = _CODES.get(reason, _POLICY)
    try:
        # The protocol has room for 123 bytes of reason.
        await asyncio.wait_for(socket.close(code, sentence.encode()[:120].decode(errors="ignore")), _CLOSE_S)
    except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
        pass


class ListenSocket:
    """Serves /v1/listen."""

    def __init__(self, core: Sessions) -> None:
        self._core = core

    async def serve(self, socket: WebSocket) -> None:
        """Serve one client.

        Raises:
            EdgeAsrError: it is refused before the handshake.
        """
        options = json_from_text(socket.query_params)
        asked = session_options_from_json(options)
        with self._core.place() as place:
            offered = socket.scope.get("subprotocols", [])
            await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
            try:
                await socket.send_text(json_line(greeting(self._core, asked.sample_rate)))
                reason, sentence = await self._serve(socket, place, options)
            except WebSocketDisconnect:
                return
            except EdgeAsrError as error:
                reason, sentence = self._core.count(error), str(error)
                await try_send(socket, error_event(error))
            await close(socket, reason, sentence)

    async def _serve(self, socket: WebSocket, place: Place, options: dict[str, Any]) -> tuple[str, str]:
        """Talk to the client until its session has ended; return why, in a word and a sentence."""
        limits = self._core.limits
        first = await receive(socket, limits.idle_s)
        if isinstance(first, dict) and first["type"] == "start":
            options = {**options, **first}
            del options["type"]
            first = b""
        asked = session_options_from_json(options)
        if asked.format == "ogg":
            session, reason = await self._converse_encoded(socket, place, asked, first)
        else:
            session = await place.open(asked)
            receive_all = self._receive(socket, session, first)
            reason = await converse(session, receive_all, lambda event: _send_event(socket, event))
        for last in last_events(session, reason, limits):
            await try_send(socket, last)
        return reason, sentence_of_reason(reason, limits)

    async def _converse_encoded(
        self, socket: WebSocket, place: Place, asked: SessionOptions, first: dict[str, Any] | bytes
    ) -> tuple[Session, str]:
        """Run a session whose sound is a stream that libsndfile decodes; return it, and why it ended."""
        async with aclosing(decode_pieces(_pieces(socket, first), None)) as sound:
            begin = await first_sound(sound, self._core.limits.idle_s)
            if begin is None:
                raise AudioError("the stream ended before any sound; send an Ogg or FLAC stream")
            sample_rate, samples = begin
            channels = 1 if samples.ndim == 1 else samples.shape[1]
            session = await place.open(replace(asked, sample_rate=sample_rate, channels=channels))

            async def receive_all() -> None:
                await session.push(samples)
                async for _, block in sound:
                    await session.push(block)
                session.end()

            reason = await converse(session, receive_all(), lambda event: _send_event(socket, event))
        return session, reason

    async def _receive(self, socket: WebSocket, session: Session, first: dict[str, Any] | bytes) -> None:
        """Take sound until the client leaves; after "end" wait for that, and take no more."""
        message: dict[str, Any] | bytes = first
        while True:
            if isinstance(message, bytes):
                await session.push(session.options.samples_from_bytes(message))
            elif message["type"] == "end":
                session.end()
            else:
                raise _unexpected(message)
            message = await receive(socket)  # the session itself watches how long nothing comes


async def _send_event(socket: WebSocket, event: Event) -> None:
    await socket.send_text(event_to_line(event))


async def _pieces(socket: WebSocket, message: dict[str, Any] | bytes) -> AsyncGenerator[bytes, None]:
    """Yield the binary messages up to "end"."""
    while isinstance(message, bytes):
        if message:
            yield message
        message = await receive(socket)
    if message["type"] != "end":
        raise _unexpected(message)


def _unexpected(message: dict[str, Any]) -> ConfigError:
    return ConfigError(
        f"a message has the type {message['type'][:40]!r}; send end, or start before any sound"
    )
