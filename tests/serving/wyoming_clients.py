"""What the tests of the Wyoming face share: its real client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy.typing as npt
from serving_clients import Running
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event

from edge_asr.serving.sessions import Sessions
from edge_asr.serving.wyoming_face import WyomingFace

RATE = 16_000
SAID = "enter seven two five start recording go three meters and stop"
FIRST_S = 2.2  # the first phrase of the sample ends before this


def make_face(core: Sessions) -> WyomingFace:
    return WyomingFace(core, host="127.0.0.1", port=0)


@asynccontextmanager
async def client(server: Running) -> AsyncIterator[AsyncTcpClient]:
    host, port = server.http.removeprefix("tcp://").split(":")
    async with AsyncTcpClient(host, int(port), connect_timeout=10, read_timeout=20) as connected:
        yield connected


async def send(to: AsyncTcpClient, sound: bytes, form: tuple[int, int, int] = (RATE, 2, 1)) -> None:
    """A whole recording in chunks of 0.1 s, and its end."""
    step = form[0] // 10 * form[1] * form[2]
    await to.write_event(AudioStart(*form).event())
    for begin in range(0, len(sound), step):
        await to.write_event(AudioChunk(*form, audio=sound[begin : begin + step]).event())
    await to.write_event(AudioStop().event())


async def answer(of: AsyncTcpClient) -> list[Event]:
    """What comes until the answer is at its end, the request has failed or the server has closed."""
    found: list[Event] = []
    while (event := await of.read_event()) is not None:
        found.append(event)
        if event.type in ("transcript-stop", "error"):
            break
    return found


async def hear(server: Running, sound: npt.NDArray[Any], transcribe: Transcribe | None = None) -> list[Event]:
    async with client(server) as connected:
        await connected.write_event((transcribe or Transcribe()).event())
        await send(connected, sound.tobytes())
        return await answer(connected)


def transcript(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.type == "transcript")


def error(events: list[Event]) -> tuple[str, str]:
    """Code and sentence of the error at the end."""
    assert events[-1].type == "error", events
    return events[-1].data["code"], events[-1].data["text"]
