"""Starts the faces of a server, waits for a signal, and stops gracefully.

SIGTERM or SIGINT lets nobody new in and ends the sessions; their finals are delivered before the faces close.
A second signal stops at once.
What this file does not do: know a protocol.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from edge_asr.errors import ConfigError
from edge_asr.serving.access import resolve
from edge_asr.serving.sessions import Sessions

_UNREAD_S = 60
"""After this long, the kernel drops a connection whose other end takes nothing, or has vanished."""


class Face(Protocol):
    """One protocol, at the place where it listens."""

    async def start(self) -> str:
        """Begin to listen; return where, such as "http://127.0.0.1:8765".

        Raises:
            ConfigError: it cannot listen there.
        """
        ...

    async def close(self) -> None:
        """Stop listening and close what connections are left; the sessions have ended before."""
        ...


async def run_server(
    core: Sessions,
    faces: Sequence[Face],
    *,
    grace_s: float,
    on_ready: Callable[[list[str]], None],
    stop: asyncio.Event | None = None,
) -> bool:
    """Serve until a signal comes or `stop` is set.

    Args:
        core: closed at the end.
        faces: started in this order.
        grace_s: how long running sessions may take to deliver their finals.
        on_ready: called with the addresses, once all faces listen.
        stop: stops the server like a signal. With it, signals are left alone.

    Returns:
        Whether everything that was heard was delivered.

    Raises:
        ConfigError: a face cannot listen.
    """
    stopping, at_once = stop or asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        (at_once if stopping.is_set() else stopping).set()

    signals = (signal.SIGINT, signal.SIGTERM) if stop is None else ()
    for number in signals:
        loop.add_signal_handler(number, on_signal)
    started: list[Face] = []
    try:
        addresses = []
        for face in faces:
            addresses.append(await face.start())
            started.append(face)
        on_ready(addresses)
        await stopping.wait()
        draining = asyncio.ensure_future(core.drain(grace_s))
        cut_off = asyncio.ensure_future(at_once.wait())
        await asyncio.wait({draining, cut_off}, return_when=asyncio.FIRST_COMPLETED)
        is_clean = draining.done() and draining.result()
        draining.cancel()
        cut_off.cancel()
        return is_clean
    finally:
        for face in started:
            await face.close()
        core.close()
        for number in signals:
            loop.remove_signal_handler(number)


def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets at every address of a host; port 0 takes a free one.

    Raises:
        ConfigError: an address or the port cannot be had.
    """
    sockets: list[socket.socket] = []
    try:
        for family, address in resolve(host):
            opened = socket.create_server((address, port), family=family, backlog=128)
            opened.setblocking(False)
            # Those that are accepted inherit this.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_S * 1000)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _UNREAD_S)
            sockets.append(opened)
            port = opened.getsockname()[1]
    except OSError as error:
        for opened in sockets:
            opened.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port}: {os.strerror(error.errno or 0)}; choose another"
        ) from error
    return sockets
