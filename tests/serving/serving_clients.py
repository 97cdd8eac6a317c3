"""What the tests of the server share: the running server as they see it, and a WebSocket client."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from edge_asr.serving.sessions import Sessions

Speech = npt.NDArray[np.int16]
#: One for all tests, because each one reads all certificates of the machine.
HTTP = httpx.Client(timeout=30)
END = '{"type": "end"}'


async def send(client: ClientConnection, samples: npt.NDArray[Any], block: int = 1600) -> None:
    for begin in range(0, len(samples), block):
        await client.send(samples[begin : begin + block].tobytes())


async def read(client: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the server closes."""
    found = []
    try:
        async for message in client:
            found.append(json.loads(message))
    except ConnectionClosedError:  # any code but 1000; the caller looks at it
        pass
    return found


async def hear(
    url: str, samples: npt.NDArray[Any], *, start: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    async with connect(url) as client:
        if start is not None:
            await client.send(json.dumps({"type": "start", **start}))
        await send(client, samples)
        await client.send(END)
        events = await read(client)
        assert client.close_code == 1000
        return events


def of_type(events: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] in types]


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["text"] for event in of_type(events, "final")]


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.02)


def run(work: Awaitable[Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(work, 30)

    return asyncio.run(bounded())


@dataclass
class Running:
    """A server that runs in a thread."""

    http: str
    core: Sessions
    stop: Callable[[], None]
    is_clean: bool | None = None

    @property
    def ws(self) -> str:
        return self.http.replace("http", "ws", 1)


MakeServer = Callable[..., AbstractContextManager[Running]]


def is_near(heard: str, said: str, ratio: float = 0.85) -> bool:
    """Whether other weights, rates or borders of segments explain the difference: a letter or two."""
    return SequenceMatcher(None, heard, said).ratio() > ratio


def comparable(final: dict[str, Any]) -> tuple[Any, ...]:
    """What of a final does not depend on how busy the machine is.

    Partials come as time allows, and move the borders of segments by hundredths of a second.
    """
    return final["id"], final["text"], final["reason"], [word["text"] for word in final["words"]]


def n_refused(running: Running, reason: str) -> float:
    """How often /metrics says that a client was refused for this reason."""
    page = HTTP.get(f"{running.http}/metrics").text
    found = re.search(rf'^edge_asr_refused_total{{reason="{reason}"}} (.*)$', page, re.MULTILINE)
    return float(found[1]) if found else 0.0
