"""OpenAI's transcription of recordings: /v1/models and /v1/audio/transcriptions (docs/serve.md).

Form fields `model`, `response_format` (json, verbose_json, text, srt, vtt), `timestamp_granularities[]` and
`stream` mean what they mean there; `hotwords`, `grammar` and `digits` are ours. `language`, `prompt`,
`temperature` and `chunking_strategy` are accepted without effect, because clients send them unasked. A form
that asks for what does not exist here (speakers, log-probs of tokens) is refused.

A streamed answer comes from a live session that hears the recording as fast as it is recognized: it is cut at
pauses, so a text can differ a little from that of the recording as a whole.
What this file does not do: read sound files (uploads.py), recognize.
"""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from edge_asr.errors import ConfigError, EdgeAsrError, RefusedError
from edge_asr.printable import json_line
from edge_asr.runtime import Error, Final, Transcript
from edge_asr.runtime.live.events import Event
from edge_asr.serving.options import (
    MAX_GRAMMAR_CHARACTERS,
    DecodingOptions,
    hotwords_from_text,
    session_options_from_json,
    switch_from_text,
)
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.uploads import open_upload
from edge_asr.transcript_formats import format_transcript

ALIAS = "whisper-1"
"""The name that most clients of this API have built in; here it means the loaded model."""
_FORMATS = ("json", "verbose_json", "text", "srt", "vtt")
_FORM_BYTES = 4 * MAX_GRAMMAR_CHARACTERS
_MAX_IDLE = 10
"""A request may take so many times what it may be idle."""
_Result = TypeVar("_Result")


class OpenAiApi:
    """The endpoints over one core."""

    def __init__(self, core: Sessions) -> None:
        self._core = core
        self._models = {
            name: {"id": name, "object": "model", "created": 0, "owned_by": "edge-asr"}
            for name in (core.name, ALIAS)
        }

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": list(self._models.values())})

    async def show_model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        return JSONResponse(self._models[self._check_model(request.path_params["name"])])

    async def transcribe(self, request: Request) -> Response:
        """POST /v1/audio/transcriptions."""
        with self._core.request():
            form = await self._read_form(request)
            try:
                file = io.BytesIO(await _only_file(form).read())
            finally:
                await form.close()
            self._check_model(_text(form, "model", self._core.name))
            output = _choose_format(form)
            digits = switch_from_text("digits", _text(form, "digits", "false"))
            options = DecodingOptions(
                hotwords=tuple(hotwords_from_text(_text(form, "hotwords", ""))),
                grammar=_text(form, "grammar", "") or None,
            )
            if switch_from_text("stream", _text(form, "stream", "false")):
                events = self._stream(file, options, digits=digits)
                first = await anext(events)  # what is refused has a status of its own
                return StreamingResponse(_joined(first, events), media_type="text/event-stream")
            transcript = await _unless_left(
                request, lambda: self._core.transcribe(file, options, digits=digits)
            )
        return _format(transcript, output, form)

    def _check_model(self, name: str) -> str:
        if name not in self._models:
            raise RefusedError(
                "not_found", f"there is no model {name[:80]!r}; this server has {' and '.join(self._models)}"
            )
        return name

    async def _read_form(self, request: Request) -> FormData:
        """Receive the form, within limits of size and time.

        Raises:
            RefusedError: "too_large" or "idle".
        """
        limits = self._core.limits
        n_most = limits.max_upload_bytes + _FORM_BYTES
        too_large = RefusedError(
            "too_large",
            f"the request is larger than {n_most >> 20} MiB; send the recording as FLAC",
        )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > n_most:
            raise too_large
        receive, n_bytes = request.receive, 0

        async def counting() -> Any:
            nonlocal n_bytes
            message = await asyncio.wait_for(receive(), limits.idle_s)
            n_bytes += len(message.get("body", b""))
            if n_bytes > n_most:
                raise too_large
            return message

        limited = Request(request.scope, counting)
        form = limited.form(max_files=1, max_fields=40, max_part_size=_FORM_BYTES)
        try:
            return await asyncio.wait_for(form, _MAX_IDLE * limits.idle_s)
        except asyncio.TimeoutError:
            raise RefusedError(
                "idle",
                f"nothing of the request came for {limits.idle_s:g} s, or it took longer than "
                f"{_MAX_IDLE * limits.idle_s:g} s in all; send it faster",
            ) from None

    async def _stream(
        self, file: io.BytesIO, options: DecodingOptions, *, digits: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the events of a streamed answer: a delta for each utterance, then the whole text."""
        texts: list[str] = []
        with open_upload(file) as sound, self._core.place() as place:
            asked = {**asdict(options), "sample_rate": sound.sample_rate, "partials": False, "digits": digits}
            session = await place.open(session_options_from_json(asked))
            events: asyncio.Queue[Event | None] = asyncio.Queue()

            async def feed() -> None:
                blocks = sound.blocks(1.0)
                try:
                    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                        await session.push(block)
                        if session.reason is not None:
                            break
                finally:
                    session.end()

            feeding = asyncio.ensure_future(feed())
            delivering = asyncio.ensure_future(session.deliver(events.put))
            delivering.add_done_callback(lambda _: events.put_nowait(None))
            try:
                while (event := await events.get()) is not None:
                    if isinstance(event, Error):
                        raise RefusedError("error", event.message)
                    if isinstance(event, Final):
                        delta = (" " if texts else "") + event.text
                        texts.append(event.text)
                        yield {"type": "transcript.text.delta", "delta": delta}
                await feeding
                reason = await delivering
                if reason != "end":
                    raise RefusedError(reason, f"the answer is not complete: {reason}")
            finally:
                feeding.cancel()
                delivering.cancel()
                await asyncio.gather(feeding, delivering, return_exceptions=True)
            yield {
                "type": "transcript.text.done",
                "text": " ".join(texts),
                "usage": {"type": "duration", "seconds": round(session.audio_s)},
            }


async def _joined(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield server-sent events; an error after the first one is an event too."""
    yield f"data: {json_line(first)}\n\n"
    try:
        async for event in rest:
            yield f"data: {json_line(event)}\n\n"
    except EdgeAsrError as error:
        yield f"data: {json_line({'type': 'error', 'error': {'message': str(error)}})}\n\n"


async def _unless_left(request: Request, work: Callable[[], Awaitable[_Result]]) -> _Result:
    """Await some work, and cancel it if the client leaves meanwhile.

    Raises:
        ClientDisconnect: it has left.
    """

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work())
    watching = asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _only_file(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ConfigError("the form has no file; send multipart/form-data with a field file")
    return file


def _text(form: FormData, name: str, otherwise: str) -> str:
    value = form.get(name, otherwise)
    if not isinstance(value, str):
        raise ConfigError(f"the field {name} is a file; send text")
    return value


def _choose_format(form: FormData) -> str:
    name = _text(form, "response_format", "json")
    if name not in _FORMATS:
        raise ConfigError(f"response_format is {name[:40]!r}; give {', '.join(_FORMATS)}")
    if form.getlist("include[]"):
        raise ConfigError("include[] asks for what is not here; words of verbose_json have a confidence")
    return name


def _format(transcript: Transcript, output: str, form: FormData) -> Response:
    """Write a transcript as OpenAI does; words and segments also have our confidence."""
    if output in ("text", "srt", "vtt"):
        return PlainTextResponse(format_transcript(transcript, {"text": "txt"}.get(output, output)))
    usage = {"type": "duration", "seconds": round(transcript.duration_s)}
    document: dict[str, Any] = {"text": transcript.text, "usage": usage}
    if transcript.grammar is not None:
        document = {**transcript.grammar.to_dict(), **document}
    if output == "verbose_json":
        document |= {
            "task": "transcribe",
            "language": _text(form, "language", ""),
            "duration": round(transcript.duration_s, 3),
        }
        document["segments"] = [
            {
                "id": number,
                "start": round(segment.start_s, 3),
                "end": round(segment.end_s, 3),
                "text": segment.text,
                "confidence": round(segment.confidence, 4),
                "avg_logprob": round(math.log(max(segment.confidence, 1e-6)), 4),
                # What Whisper alone has; its clients require the keys.
                "seek": 0,
                "tokens": [],
                "temperature": 0.0,
                "compression_ratio": 1.0,
                "no_speech_prob": 0.0,
            }
            for number, segment in enumerate(transcript.segments)
        ]
        if "word" in form.getlist("timestamp_granularities[]"):
            document["words"] = [
                {
                    "word": word.text,
                    "start": round(word.start_s, 3),
                    "end": round(word.end_s, 3),
                    "confidence": round(word.confidence, 4),
                }
                for word in transcript.words
            ]
    return JSONResponse(document)
