"""The face at a Unix-domain socket: a line of options, then raw sound in, events out (docs/serve.md).

    client                                          server
    {"sample_rate": 48000, ...} and a line feed     {"type": "ready", ...}
    samples, as they come                           {"type": "partial" | "final" | "unmatched" | "gap", ...}
    shuts its writing half down                     the last finals, {"type": "end", "reason": "end", ...}

Sound has no frames, because a pipe has none: whatever writes samples to its output can be connected to this,
and the end of the sound is the end of the stream. Events are JSON Lines. The last line is always "end"; its
reason is "end" if all went well, else an "error" with a sentence stands before it. Who may come is decided by
the mode of the socket; there is no token.
What this file does not do: recognize.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from edge_asr.errors import AudioError, ConfigError, EdgeAsrError, RefusedError
from edge_asr.printable import json_line
from edge_asr.records import decode_json
from edge_asr.runtime.live.pcm_source import CONTAINERS
from edge_asr.serving.conversation import converse, error_event, greeting, last_events
from edge_asr.serving.options import SessionOptions, session_options_from_json
from edge_asr.serving.session import Session
from edge_asr.serving.sessions import Place, Sessions
from edge_asr.serving.systemd import inherited_socket

MAX_LINE_BYTES = 1 << 20
#: sockaddr_un.sun_path, less its final zero: unix(7).
MAX_PATH_BYTES = 107 if sys.platform == "linux" else 103
_READ_BYTES = 1 << 16
_CLOSE_S = 2.0
_CONNECTIONS_BESIDE = 64


class SocketFace:
    """Serves one Unix-domain socket; a `Face`.

    Args:
        core: the sessions.
        path: of the socket. One that a dead server left is replaced; one that systemd opened is taken over.
        mode: its permissions: who may write to it may use the server.
    """

    def __init__(self, core: Sessions, *, path: Path, mode: int = 0o600) -> None:
        self._core, self._path, self._mode = core, path, mode
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._talks: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """See `Face.start`."""
        opened = inherited_socket(str(self._path))
        if opened is None:
            opened = listen_at(self._path, self._mode)
            self._inode = self._path.stat().st_ino
        # By itself, Python 3.13 removes the path at the end, even that of systemd.
        options: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.start_unix_server(self._serve, sock=opened, **options)
        return f"unix:{self._path}"

    async def close(self) -> None:
        """See `Face.close`."""
        if self._server is not None:
            self._server.close()
        with suppress(OSError):
            if self._inode is not None and self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client, to the last line and its close."""
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)

        writer.transport.set_write_buffer_limits(high=0)  # so that `drain` waits for the kernel
        core = self._core
        try:
            try:
                with core.place() as place:
                    try:
                        last = await self._talk(place, reader, writer)
                    except EdgeAsrError as error:
                        core.count(error)
                        if isinstance(error, RefusedError) and error.reason == "slow_reader":
                            return
                        last = _refusal(error)
                    await asyncio.wait_for(_send(writer, *last), core.limits.slow_reader_s)
            except RefusedError as error:  # no place
                await asyncio.wait_for(_send(writer, *_refusal(error)), _CLOSE_S)
            writer.write_eof()
            # A close now would break the pipe of a client that still writes, before it has read why.
            if len(self._talks) <= core.limits.max_sessions + _CONNECTIONS_BESIDE:
                await asyncio.wait_for(_discard(reader), _CLOSE_S)
        except (OSError, asyncio.TimeoutError):  # the client has left, or takes nothing more
            pass
        except asyncio.CancelledError:  # the face closes
            writer.write(_lines(*_refusal(RefusedError("draining", "the server is stopping"))))
            raise
        finally:
            self._talks.discard(task)
            writer.transport.abort()

    async def _talk(
        self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> list[dict[str, Any]]:
        """Talk to a client until its session has ended; return the last words."""
        core = self._core
        session, sound = await self._begin(reader, place)
        await _send(writer, greeting(core, session.options.sample_rate))
        receive = _receive(session, reader, sound)
        reason = await converse(session, receive, lambda event: _send(writer, event.to_dict()))
        return last_events(session, reason, core.limits)

    async def _begin(self, reader: asyncio.StreamReader, place: Place) -> tuple[Session, bytes]:
        """Open the session that the first line asks for; return it with the sound that came along."""
        idle_s = self._core.limits.idle_s
        try:
            line, sound = await asyncio.wait_for(_read_line(reader), idle_s)
        except asyncio.TimeoutError:
            raise RefusedError("idle", f"no line of options came for {idle_s:g} s") from None
        return await place.open(_options_from_line(line)), sound


def listen_at(path: Path, mode: int) -> socket.socket:
    """Return a listening Unix-domain socket.

    Raises:
        ConfigError: the path is too long, is taken, or cannot be made.
    """
    n_bytes = len(os.fsencode(path))
    if n_bytes > MAX_PATH_BYTES:
        raise ConfigError(
            f"the path of the socket has {n_bytes} bytes, and the system takes at most {MAX_PATH_BYTES}; "
            f"choose a shorter one than {path}"
        )
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        opened.bind(os.fsencode(path))
        path.chmod(mode)  # in time: nobody can connect before the next line
        opened.listen(128)
    except OSError as error:
        opened.close()
        raise ConfigError(
            f"cannot listen at {path}: {os.strerror(error.errno or 0)}; choose a path in a "
            "folder that is there and may be written to"
        ) from error
    except ConfigError:
        opened.close()
        raise
    return opened


def _remove_stale(path: Path) -> None:
    """Remove a socket at which nobody listens."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ConfigError(f"{path} is there and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # a server with many who wait
            pass
    raise ConfigError(f"another server listens at {path}; stop it, or choose another path")


async def _read_line(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return the first line, and what came behind it."""
    data = bytearray()
    while True:
        chunk = await reader.read(_READ_BYTES)
        if not chunk and not data:
            raise ConnectionResetError("the client has left")
        data += chunk
        if data[:1] != b"{":
            raise ConfigError(
                'the first line must be options, {} or such as {"sample_rate": 48000}, and the sound follows '
                f"it; this begins with {bytes(data[:8])!r}"
            )
        if b"\n" in chunk:
            line, _, sound = bytes(data).partition(b"\n")
            return line, sound
        if not chunk or len(data) > MAX_LINE_BYTES:
            raise ConfigError(
                f"the first line has {len(data)} bytes and no end; give the options and a line feed, in at "
                f"most {MAX_LINE_BYTES} bytes"
            )


def _options_from_line(line: bytes) -> SessionOptions:
    options = decode_json(line, "the first line")
    if options.pop("type", "start") != "start":  # as a WebSocket's message is called
        raise ConfigError('the type of the first line must be "start", or left out')
    asked = session_options_from_json(options)
    if asked.format == "ogg":
        raise ConfigError("format ogg is for the WebSocket; here send raw samples, s16le or f32le")
    return asked


async def _receive(session: Session, reader: asyncio.StreamReader, sound: bytes) -> None:
    """Take sound to its end, in whole samples; half a one at the end is that of a client that was killed."""
    frame, is_first = session.options.frame_bytes, True
    while True:
        if is_first and sound.startswith(CONTAINERS):
            raise AudioError(
                f"the sound begins like a file ({sound[:4].decode('ascii')}); send raw samples, as "
                "arecord -t raw or ffmpeg -f s16le writes them"
            )
        is_first = is_first and not sound
        n_bytes = len(sound) // frame * frame
        await session.push(session.options.samples_from_bytes(sound[:n_bytes]))
        data = await reader.read(_READ_BYTES)
        if not data:
            session.end()
            return
        sound = sound[n_bytes:] + data


def _lines(*documents: dict[str, Any]) -> bytes:
    return "".join(json_line(document) + "\n" for document in documents).encode()


async def _send(writer: asyncio.StreamWriter, *documents: dict[str, Any]) -> None:
    writer.write(_lines(*documents))
    await writer.drain()


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(_READ_BYTES):
        pass


def _refusal(error: EdgeAsrError) -> list[dict[str, Any]]:
    event = error_event(error)
    return [event, {"type": "end", "reason": event["kind"], "audio_s": 0.0}]
