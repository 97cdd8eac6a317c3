"""The Riva face: speech recognition over gRPC, as clients of NVIDIA Riva call it (docs/serve.md).

    Recognize                        a recording -> its segments
    StreamingRecognize               a session: sound in, interim and final results out
    GetRivaSpeechRecognitionConfig   which model there is

Beside them stands `Check` of gRPC's health service, for probes. What is asked for in a request is read by
riva_options.py. Every method reads its messages itself, so that who may come, and whether there is room, is
decided before a recording is received.
What this file does not do: recognize, decode sound (sound_pieces.py), speak to browsers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from edge_asr.errors import ConfigError, EdgeAsrError, RefusedError
from edge_asr.runtime import Error, Final, Partial, Unmatched
from edge_asr.runtime.live.events import Event
from edge_asr.runtime.transcript import Word
from edge_asr.serving.access import Access, resolve
from edge_asr.serving.conversation import converse, sentence_of_reason
from edge_asr.serving.riva_messages import MESSAGES, PACKAGE
from edge_asr.serving.riva_options import Asked, read_request
from edge_asr.serving.sessions import Place, Session, Sessions
from edge_asr.serving.sound_pieces import Sound, decode_pieces, first_sound
from edge_asr.serving.tls import TlsFiles

_Code = grpc.StatusCode
_CODES = {
    "busy": _Code.RESOURCE_EXHAUSTED, "too_fast": _Code.RESOURCE_EXHAUSTED,
    "too_large": _Code.RESOURCE_EXHAUSTED, "too_long": _Code.RESOURCE_EXHAUSTED,
    "slow_reader": _Code.RESOURCE_EXHAUSTED,
    "draining": _Code.UNAVAILABLE, "idle": _Code.DEADLINE_EXCEEDED, "not_found": _Code.NOT_FOUND,
    "unauthorized": _Code.UNAUTHENTICATED, "forbidden": _Code.PERMISSION_DENIED, "error": _Code.INTERNAL,
}  # fmt: skip
_CONNECTIONS_BESIDE = 64
_CONFIG_BYTES = 1 << 20
_MAX_IDLE = 10
"""A recording may take so many times what it may be idle."""
_HANDSHAKE_S = 15
_CLOSE_S = 1.0
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"
"""HealthCheckResponse of grpc.health.v1: field 1, an enum."""

Requests = AsyncIterator[bytes]
_Serve = Callable[[Requests, Any], Awaitable[None]]


class RivaFace:
    """Serves Riva's gRPC at one host and port; a `Face`.

    Args:
        core: the sessions.
        host, port: where; port 0 takes a free one.
        access: who may come.
        tls: None for gRPC without TLS.
        language: that of the model, such as "en"; who asks for another one is refused.
    """

    def __init__(
        self,
        core: Sessions,
        *,
        host: str,
        port: int,
        access: Access,
        tls: TlsFiles | None = None,
        language: str = "en",
    ) -> None:
        self._core, self._access = core, access
        self._host, self._port, self._tls = host, port, tls
        self._language = language
        if tls is not None:
            tls.check()
        self._server: Any = None

    async def start(self) -> str:
        """See `Face.start`."""
        limits = self._core.limits
        n_most = limits.max_sessions + limits.max_requests + _CONNECTIONS_BESIDE
        self._server = server = grpc.aio.server(
            maximum_concurrent_rpcs=n_most,
            options=[
                ("grpc.so_reuseport", 0),  # another server at the same port is an error
                ("grpc.max_receive_message_length", min(limits.max_upload_bytes + _CONFIG_BYTES, 2**31 - 1)),
                ("grpc.max_allowed_incoming_connections", n_most),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S * 1000),
                ("grpc.keepalive_time_ms", round(limits.slow_reader_s * 1000)),
                ("grpc.keepalive_timeout_ms", round(limits.slow_reader_s * 1000)),
                ("grpc.max_connection_idle_ms", round(_MAX_IDLE * limits.idle_s * 1000)),
            ],
        )
        methods = {
            "Recognize": self._recognize,
            "StreamingRecognize": self._stream,
            "GetRivaSpeechRecognitionConfig": self._describe,
        }
        self._serve(
            f"{PACKAGE}.RivaSpeechRecognition", {name: self._guard(methods[name]) for name in methods}
        )
        self._serve("grpc.health.v1.Health", {"Check": self._check_health})
        credentials = None
        if self._tls is not None:
            pair = (self._tls.key.read_bytes(), self._tls.certificate.read_bytes())
            credentials = grpc.ssl_server_credentials([pair])
        port = self._port
        for _, address in resolve(self._host):
            where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            try:
                if credentials is None:
                    port = server.add_insecure_port(where)
                else:
                    port = server.add_secure_port(where, credentials)
            except RuntimeError:
                raise ConfigError(
                    f"cannot listen at {self._host}, port {port}: it is taken or not allowed; choose another"
                ) from None
        await server.start()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'grpc' if self._tls is None else 'grpcs'}://{host}:{port}"

    async def close(self) -> None:
        """See `Face.close`."""
        if self._server is not None:
            await self._server.stop(_CLOSE_S)

    def _serve(self, service: str, methods: dict[str, _Serve]) -> None:
        # On the wire a single message is a stream of one.
        handlers = {name: grpc.stream_stream_rpc_method_handler(methods[name]) for name in methods}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _guard(self, serve: _Serve) -> _Serve:
        """Let in who may come, and turn errors into a status."""

        async def method(requests: Requests, context: Any) -> None:
            address = _address(context.peer())
            try:
                self._core.rate_limit.admit(address)
                self._check_access(context)
                await serve(requests, context)
            except EdgeAsrError as error:
                reason = self._core.count(error)
                if reason == "unauthorized":
                    self._core.rate_limit.fail(address)
                await _abort(context, reason, str(error))

        return method

    def _check_access(self, context: Any) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        if "origin" in metadata:
            raise RefusedError("forbidden", "pages may not call this port; the one of --http is for them")
        kind, _, token = metadata.get("authorization", "").partition(" ")
        self._access.check_token(token.strip() if kind.lower() == "bearer" else None)

    async def _check_health(self, requests: Requests, context: Any) -> None:
        await context.write(_NOT_SERVING if self._core.is_draining else _SERVING)

    async def _first(self, requests: Requests, kind: str, wait_s: float) -> Any:
        try:
            data = await asyncio.wait_for(anext(requests), wait_s)
        except asyncio.TimeoutError:
            raise RefusedError("idle", f"no request came for {wait_s:g} s") from None
        except StopAsyncIteration:
            raise ConfigError(f"the call ended without a message; send a {kind}") from None
        return _parse(kind, data)

    async def _describe(self, requests: Requests, context: Any) -> None:
        request = await self._first(requests, "RivaSpeechRecognitionConfigRequest", self._core.limits.idle_s)
        self._check_model(request.model_name)
        response = MESSAGES.RivaSpeechRecognitionConfigResponse()
        for kind, streaming in (("online", "True"), ("offline", "False")):
            facts = {
                "type": kind, "streaming": streaming, "language_code": self._language, "sample_rate": "16000",
            }  # fmt: skip
            model = response.model_config.add(model_name=self._core.name)
            for key in facts:
                model.parameters.add(key=key, value=facts[key])
        await context.write(response.SerializeToString())

    async def _recognize(self, requests: Requests, context: Any) -> None:
        with self._core.request():
            request = await self._first(requests, "RecognizeRequest", _MAX_IDLE * self._core.limits.idle_s)
            asked = self._read(request.config)
            file = await asyncio.to_thread(asked.recording, request.audio)
            transcript = await self._core.transcribe(
                file, asked.options.decoding, digits=asked.options.digits
            )
        response = MESSAGES.RecognizeResponse()
        _copy_id(request, response)
        for segment in transcript.segments:
            result = response.results.add(channel_tag=1, audio_processed=transcript.duration_s)
            _add_alternative(result, segment.text, segment.words, asked)
        await context.write(response.SerializeToString())

    async def _stream(self, requests: Requests, context: Any) -> None:
        limits = self._core.limits
        with self._core.place() as place:
            request = await self._first(requests, "StreamingRecognizeRequest", limits.idle_s)
            if not request.HasField("streaming_config"):
                raise ConfigError("the first message has no streaming_config; send it before any sound")
            asked = self._read(request.streaming_config.config)
            pieces = _sound_of(requests)
            async with aclosing(decode_pieces(pieces, asked.raw)) as sound:
                first = await first_sound(sound, limits.idle_s)
                if first is None:
                    return
                reason = await self._converse(place, asked, request, first, sound, context)
        if reason != "end":  # an observer knows of it already
            await _abort(context, reason, sentence_of_reason(reason, limits))

    async def _converse(
        self, place: Place, asked: Asked, request: Any, first: Sound, rest: AsyncIterator[Sound], context: Any
    ) -> str:
        """Run a session to its end; return the reason."""
        sample_rate, samples = first
        options = replace(
            asked.options,
            sample_rate=sample_rate,
            channels=1 if samples.ndim == 1 else samples.shape[1],
            partials=request.streaming_config.interim_results,
        )
        session = await place.open(options)

        async def receive() -> None:
            await session.push(samples)
            async for _, block in rest:
                await session.push(block)
            session.end()

        async def send(event: Event) -> None:
            response = _response(event, session, asked)
            if response is not None:
                _copy_id(request, response)
                await context.write(response.SerializeToString())

        return await converse(session, receive(), send)

    def _read(self, config: Any) -> Asked:
        self._check_model(config.model)
        return read_request(config, self._language)

    def _check_model(self, name: str) -> None:
        if name not in ("", self._core.name):
            raise RefusedError(
                "not_found", f"there is no model {name[:80]!r}; this server has {self._core.name!r}"
            )


def _address(peer: str) -> str:
    """Return the address in what gRPC calls a peer: ipv4:10.0.0.1:5000 or ipv6:%5Bfe80::1%5D:5000."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


async def _abort(context: Any, reason: str, sentence: str) -> None:
    await context.abort(_CODES.get(reason, _Code.INVALID_ARGUMENT), sentence)


def _parse(kind: str, data: bytes) -> Any:
    try:
        return getattr(MESSAGES, kind).FromString(data)
    except DecodeError:
        raise ConfigError(f"the message is no {kind}; speak {PACKAGE} as nvidia-riva-client does") from None


async def _sound_of(requests: Requests) -> AsyncGenerator[bytes, None]:
    async for data in requests:
        request = _parse("StreamingRecognizeRequest", data)
        if request.HasField("streaming_config"):
            raise ConfigError("a second streaming_config came; begin another call for other options")
        if request.audio_content:
            yield request.audio_content


def _copy_id(request: Any, response: Any) -> None:
    if request.HasField("id"):
        response.id.CopyFrom(request.id)


def _response(event: Event, session: Session, asked: Asked) -> Any:
    """Return the message of an event; None for one that Riva has no word for."""
    if isinstance(event, Error):
        raise RefusedError("error", event.message)
    if not isinstance(event, Partial | Final | Unmatched):
        return None
    response = MESSAGES.StreamingRecognizeResponse()
    result = response.results.add(channel_tag=1, audio_processed=session.audio_s)
    result.is_final = not isinstance(event, Partial)
    if isinstance(event, Partial):
        _add_alternative(result, event.text, (), asked)
    elif isinstance(event, Final):
        _add_alternative(result, event.text, event.words, asked)
    return response


def _add_alternative(result: Any, text: str, words: Sequence[Word], asked: Asked) -> None:
    """Add the text; a space follows it as in Riva, because clients join the texts of results as they are."""
    alternative = result.alternatives.add(transcript=f"{text} " if text else "")
    alternative.language_code.append(asked.language)
    if words:
        alternative.confidence = sum(word.confidence for word in words) / len(words)
    for word in words if asked.with_words else ():
        alternative.words.add(
            word=word.text, start_time=round(word.start_s * 1000), end_time=round(word.end_s * 1000),
            confidence=word.confidence, language_code=asked.language,
        )  # fmt: skip
