"""Ten thousand connections that come to nothing, while somebody speaks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving_clients import END, MakeServer, Running, Speech, comparable, of_type, read, run, send, until
from websockets.asyncio.client import connect

from edge_asr.serving import http_face

N_BATCHES, N_AT_ONCE = 40, 250
HALF_HANDSHAKE = (
    b"GET /v1/listen HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSock"
)
BEGINNINGS = (b"", b"\x16\x03\x01\0\xa5\xff\r\n\r\n", HALF_HANDSHAKE)
"""Silence, garbage, half a handshake."""
RESET = struct.pack("ii", 1, 0)


async def connect_and_drop(address: tuple[str | None, int | None], number: int) -> None:
    """Open a batch of connections, say little, and drop them all, every second one with a reset."""
    loop = asyncio.get_running_loop()
    opened = [socket.socket() for _ in range(N_AT_ONCE)]

    async def begin(client: socket.socket, first: bytes) -> None:
        client.setblocking(False)
        await loop.sock_connect(client, address)
        await loop.sock_sendall(client, first)

    try:
        await asyncio.gather(*(begin(c, BEGINNINGS[i % 3]) for i, c in enumerate(opened)))
    finally:
        for index, client in enumerate(opened):
            if index % 2 == number % 2:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def n_connections() -> int:
    """Connections of the server that are still somewhere."""
    gc.collect()
    return sum(type(thing) is http_face._PunctualH11 for thing in gc.get_objects())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors and memory in /proc")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch, when all that it holds is looked at
def test_ten_thousand_connections_leave_nothing_and_disturb_nobody(
    make_server: MakeServer, speech: Speech, finals: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(running: Running, n_batches: int) -> list[dict[str, Any]]:
        place = urlsplit(running.http)
        async with connect(f"{running.ws}/v1/listen") as client:
            reading = asyncio.ensure_future(read(client))
            size = -(-len(speech) // n_batches)
            for number in range(n_batches):
                await send(client, speech[number * size : (number + 1) * size])
                await connect_and_drop((place.hostname, place.port), number)
            await client.send(END)
            return await reading

    def settle(running: Running) -> tuple[int, int, int]:
        """Wait until nobody is connected; count descriptors, objects and bytes of memory."""
        run(until(lambda: running.core.n_sessions == 0 and n_connections() == 0, 25))
        return n_descriptors(), len(gc.get_objects()), resident_bytes()

    for name in ("uvicorn.error", "edge_asr.serving"):  # pytest would keep each line
        caplog.set_level(logging.ERROR, name)
    with make_server() as running:
        run(work(running, 4))  # so that pools and caches have their size
        descriptors, objects, memory = settle(running)
        events = asyncio.run(asyncio.wait_for(work(running, N_BATCHES), 400))
        assert [comparable(event) for event in of_type(events, "final")] == finals
        descriptors_after, objects_after, memory_after = settle(running)
    assert descriptors_after <= descriptors
    assert objects_after - objects < 2000  # a fifth of one for each connection
    # The allocator keeps what it had while they came: 24 MiB, and 2 more for the next ten thousand.
    assert memory_after - memory < 96 << 20
