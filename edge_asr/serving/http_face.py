"""The HTTP face: captions page, WebSocket, the OpenAI API, health, readiness and metrics at one port.

    GET  /                              see captions.py
    GET  /healthz                       the process lives
    GET  /readyz                        it takes clients (503 while it stops)
    GET  /metrics                       Prometheus
    GET  /v1/models                     see openai_api.py
    POST /v1/audio/transcriptions
    WS   /v1/listen                     see websocket.py
    WS   /v1/realtime                   see realtime.py

Every request passes `_Gate` first, which asks access.py. Errors have the form of OpenAI's.
What this file does not do: recognize, decide who may come.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_asr.errors import EdgeAsrError, RefusedError
from edge_asr.serving.access import Access
from edge_asr.serving.captions import captions_response
from edge_asr.serving.metrics import CONTENT_TYPE, Metrics
from edge_asr.serving.openai_api import OpenAiApi
from edge_asr.serving.realtime import RealtimeApi
from edge_asr.serving.run import listen
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.tls import TlsFiles
from edge_asr.serving.websocket import ListenSocket, subprotocol_token

_OPEN = ("/", "/healthz", "/readyz")
_STATUS = {
    "busy": 429, "too_fast": 429, "draining": 503, "too_large": 413, "too_long": 413, "idle": 408,
    "bad_request": 400, "not_found": 404, "unauthorized": 401, "forbidden": 403,
}  # fmt: skip
_FIRST_BYTES_S = 15.0
_CONNECTIONS_BESIDE = 64
MAX_MESSAGE_BYTES = 1 << 20


def error_response(error: EdgeAsrError) -> JSONResponse:
    """Return the response of a refusal, or of what a client asked for and cannot have."""
    reason = error.reason if isinstance(error, RefusedError) else "bad_request"
    status = _STATUS.get(reason, 400)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = {"error": {"message": str(error), "type": kind, "param": None, "code": reason}}
    return JSONResponse(body, status_code=status, headers=headers)


class _Gate:
    """ASGI middleware: lets through who may come, turns errors into responses."""

    def __init__(self, app: Any, *, access: Access, core: Sessions) -> None:
        self._app, self._access, self._core = app, access, core

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except RefusedError as error:
            if error.reason == "unauthorized":
                self._core.rate_limit.fail(_address(scope))
            self._core.count(error)
            response = error_response(error)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Any) -> None:
        self._core.rate_limit.admit(_address(scope))
        headers = Headers(scope=scope)
        scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
        self._access.check_page(scheme, headers.get("host", ""), headers.get("origin"))
        if scope["path"] not in _OPEN:
            self._access.check_token(_given_token(HTTPConnection(scope)))


def _address(scope: Any) -> str | None:
    return scope["client"][0] if scope.get("client") else None


def _given_token(request: HTTPConnection) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    return subprotocol_token(request.scope.get("subprotocols", ()))


def make_app(core: Sessions, *, access: Access, metrics: Metrics) -> Starlette:
    """Return the ASGI application of a core."""

    page = captions_response(token_required=access.token is not None)

    async def show_page(request: Request) -> Response:
        return page

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        ready = not core.is_draining
        return JSONResponse({"status": "ready" if ready else "draining"}, status_code=200 if ready else 503)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    async def refuse(request: Any, error: Exception) -> Response:
        assert isinstance(error, EdgeAsrError)
        core.count(error)
        return error_response(error)

    async def refuse_http(request: Any, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = {404: "not_found"}.get(error.status_code, "bad_request")
        response = error_response(RefusedError(reason, error.detail or "there is nothing here"))
        response.status_code = error.status_code
        return response

    async def note_left(request: Any, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    openai, socket, realtime = OpenAiApi(core), ListenSocket(core), RealtimeApi(core)
    app = Starlette(
        routes=[
            Route("/", show_page),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", show_metrics),
            Route("/v1/models", openai.list_models),
            Route("/v1/models/{name:path}", openai.show_model),
            Route("/v1/audio/transcriptions", openai.transcribe, methods=["POST"]),
            WebSocketRoute("/v1/listen", _denying(socket.serve)),
            WebSocketRoute("/v1/realtime", _denying(realtime.serve)),
        ],
        exception_handlers={EdgeAsrError: refuse, HTTPException: refuse_http, ClientDisconnect: note_left},
    )
    app.add_middleware(_Gate, access=access, core=core)  # type: ignore[arg-type, unused-ignore]
    return app


def _denying(serve: Callable[[WebSocket], Awaitable[None]]) -> Callable[[WebSocket], Awaitable[None]]:
    """Answer what is refused before the handshake with an HTTP status."""

    async def endpoint(socket: WebSocket) -> None:
        try:
            await serve(socket)
        except EdgeAsrError as error:
            await socket.send_denial_response(error_response(error))

    return endpoint


class HttpFace:
    """Serves HTTP at one host and port; a `Face`.

    Args:
        core: the sessions.
        host, port: where; port 0 takes a free one.
        access: who may come.
        metrics: what /metrics shows.
        tls: for https; None for http.
    """

    def __init__(
        self,
        core: Sessions,
        *,
        host: str,
        port: int,
        access: Access,
        metrics: Metrics,
        tls: TlsFiles | None = None,
    ) -> None:
        self._host, self._port, self._tls = host, port, tls
        if tls is not None:
            tls.check()
        metrics.watch(core)
        limits = core.limits
        config = uvicorn.Config(
            make_app(core, access=access, metrics=metrics),
            http=_PunctualH11,
            ws="websockets-sansio",
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_ping_interval=limits.slow_reader_s,
            ws_ping_timeout=limits.slow_reader_s,
            ws_per_message_deflate=False,  # sound does not shrink, and inflating can be abused
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.max_sessions + limits.max_requests + _CONNECTIONS_BESIDE,
            timeout_graceful_shutdown=2,
            ssl_certfile=None if tls is None else str(tls.certificate),
            ssl_keyfile=None if tls is None else str(tls.key),
            ssl_ciphers="ECDHE+AESGCM:ECDHE+CHACHA20",  # of TLS 1.2; uvicorn's default has old ones alone
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """See `Face.start`."""
        sockets = listen(self._host, self._port)
        logging.getLogger("uvicorn.error").addFilter(_is_of_ours)
        port = sockets[0].getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=sockets))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._tls is None else 'https'}://{host}:{port}"

    async def close(self) -> None:
        """See `Face.close`."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


def _is_of_ours(record: logging.LogRecord) -> bool:
    """Drop what uvicorn (0.54) logs of clients: one that is denied a WebSocket, or sends no HTTP at all."""
    return record.getMessage() not in (
        "ASGI callable returned without completing handshake.",
        "Invalid HTTP request received.",
    )


class _Uvicorn(uvicorn.Server):
    """Leaves signals to run.py."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override, unused-ignore]
        yield


class _PunctualH11(H11Protocol):
    """Closes a connection on which no request has come in time; uvicorn (0.54) would wait for ever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch = asyncio.get_running_loop().call_later(_FIRST_BYTES_S, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch.cancel()  # it would keep what is left of the connection for as long

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._watch.cancel()
        super().handle_websocket_upgrade(event)

    def _close_if_silent(self) -> None:
        scope: Any = self.scope  # None until a request has come, whatever its annotation says
        if scope is None and not self.transport.is_closing():
            self.transport.close()
