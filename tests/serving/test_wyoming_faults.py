"""What the Wyoming face refuses, and that a client that misbehaves harms nobody but itself."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving_clients import MakeServer, Running, Speech, is_near, run, until
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event
from wyoming.info import Describe, SelectProgram
from wyoming_clients import FIRST_S, RATE, answer, client, error, hear, make_face, send, transcript

from edge_asr.serving import wyoming_face


@pytest.fixture(scope="module")
def wyoming(make_server: MakeServer) -> Iterator[Running]:
    with make_server(make_face=make_face) as running:
        yield running
        run(until(lambda: running.core.n_sessions == 0))


@pytest.mark.parametrize(
    ("data", "code", "sentence"),
    [
        ({"name": "large"}, "not_found", "there is no model 'large'; this server has tiny-en"),
        ({"language": "de-AT"}, "not_found", "the language is 'de-AT'; this server understands en"),
        ({"transcript_names": "lamp"}, "bad_request", "transcript_names is no list of text"),
        ({"transcript_terms": [1]}, "bad_request", "transcript_terms is no list of text"),
    ],
)
def test_a_refused_request_is_one_error_and_the_next_is_heard(
    wyoming: Running, speech: Speech, data: dict[str, Any], code: str, sentence: str
) -> None:
    async def work() -> tuple[list[Event], list[Event]]:
        async with client(wyoming) as connected:
            await connected.write_event(Event("transcribe", data))
            await send(connected, speech[:RATE].tobytes())
            refused = await answer(connected)
            await connected.write_event(Transcribe(language="en").event())
            await send(connected, speech[: round(FIRST_S * RATE)].tobytes())
            return refused, await answer(connected)

    refused, heard = run(work())
    assert len(refused) == 1
    assert error(refused)[0] == code
    assert sentence in error(refused)[1]
    assert transcript(heard) == "enter seven two five"


CHUNK = {"rate": RATE, "width": 2, "channels": 1}


@pytest.mark.parametrize(
    ("data", "payload", "code", "sentence"),
    [
        (CHUNK, b"odd", "bad_request", "a chunk has 3 bytes; send whole samples, a multiple of 2 bytes"),
        ({"rate": RATE, "width": 2}, b"", "bad_request", "the channels of the sound is 'None'"),
        ({**CHUNK, "rate": "fast"}, b"", "bad_request", "the rate of the sound is 'fast'"),
        ({**CHUNK, "width": 5}, b"", "bad_request", "the width of the samples is 5; give 1, 2, 3 or 4"),
        ({**CHUNK, "channels": 99}, b"", "too_large", "the sound has 99 channels at 16000 Hz; at most 8"),
        ({**CHUNK, "rate": 12}, b"", "bad_request", "the sample rate is 12"),
        ({**CHUNK, "channels": 2}, b"", "bad_request", "the sound changes from"),
    ],
)
def test_a_wrong_chunk_ends_its_request_alone(
    wyoming: Running, speech: Speech, data: dict[str, Any], payload: bytes, code: str, sentence: str
) -> None:
    async def work() -> tuple[list[Event], list[Event]]:
        async with client(wyoming) as connected:
            if "changes" in sentence:
                await connected.write_event(AudioChunk(RATE, 2, 1, audio=bytes(3200)).event())
            await connected.write_event(Event("audio-chunk", data, payload))
            failed = await answer(connected)
            await send(connected, speech[: round(FIRST_S * RATE)].tobytes())
            return failed, await answer(connected)

    failed, heard = run(work())
    assert error(failed)[0] == code
    assert sentence in error(failed)[1]
    assert transcript(heard) == "enter seven two five"


def test_another_program_is_refused_and_what_is_unknown_dropped(wyoming: Running) -> None:
    async def work() -> list[Event]:
        async with client(wyoming) as connected:
            await connected.write_event(Event("synthesize", {"text": "hello"}))
            await connected.write_event(AudioStop().event())  # of nothing
            silent = await answer(connected)
            await connected.write_event(SelectProgram("whisper").event())
            return silent + await answer(connected)

    *silent, last = run(work())
    assert [event.type for event in silent] == ["transcript-start", "transcript", "transcript-stop"]
    assert transcript(silent) == ""
    assert error([last]) == ("not_found", "there is no program 'whisper'; this server has edge-asr")


def header(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.mark.parametrize(
    ("garbage", "code", "sentence"),
    [
        (b"\x00\xff\xfe\n", "bad_request", "the header of an event is not valid JSON"),
        (b"[1]\n", "bad_request", "the header of an event is no JSON object"),
        (b"[" * 50_000 + b"\n", "bad_request", "the header of an event is n"),
        (header(data={}), "bad_request", 'the header of an event is a JSON object with a "type"'),
        (header(type="describe", data=[1]), "bad_request", "the data of an event is no JSON object"),
        (header(type="x", data_length=3) + b"[1]", "bad_request", "the data of an event is no JSON object"),
        (
            header(type="x", data_length="9"),
            "bad_request",
            "data_length is '9'; give a whole number of bytes",
        ),
        (header(type="x", payload_length=-1), "bad_request", "payload_length is '-1'; give a whole number"),
        (header(type="x", data_length=10**12), "too_large", "data_length is 1000000000000; at most 262144"),
        (header(type="audio-chunk", payload_length=1 << 30), "too_large", "payload_length is 1073741824"),
        (b"x" * 200_000, "too_large", "the header of an event has more than 65536 bytes"),
        # What a page in a browser can send here; the event in its body is not reached.
        (b"POST / HTTP/1.1\r\n\r\n" + header(type="describe"), "bad_request", "is not valid JSON"),
    ],
)
def test_garbage_ends_its_connection_and_nothing_else(
    wyoming: Running, speech: Speech, garbage: bytes, code: str, sentence: str
) -> None:
    async def mess() -> list[Event]:
        async with client(wyoming) as connected:
            assert connected._writer is not None
            connected._writer.write(garbage)
            found = await answer(connected)
            assert await connected.read_event() is None
            return found

    async def work() -> list[list[Event]]:
        return await asyncio.gather(hear(wyoming, speech[: round(FIRST_S * RATE)]), mess())

    heard, found = run(work())
    assert transcript(heard) == "enter seven two five"
    assert len(found) == 1
    assert error(found)[0] == code
    assert sentence in error(found)[1]


def test_clients_that_are_killed_leave_nothing_and_change_no_words(
    wyoming: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    async def die(after_s: float) -> None:
        async with client(wyoming) as connected:
            await connected.write_event(AudioStart(RATE, 2, 1).event())
            sound = speech[: round(after_s * RATE)].tobytes()
            await connected.write_event(AudioChunk(RATE, 2, 1, audio=sound).event())
            await connected.read_event()
            assert connected._writer is not None
            connected._writer.transport.abort()

    async def work() -> list[Event]:
        heard, *_ = await asyncio.gather(
            hear(wyoming, speech), *(die(after_s) for after_s in (1.0, 2.0, 4.0))
        )
        await until(lambda: wyoming.core.n_sessions == 0, 20)
        return heard

    assert transcript(run(work())) == " ".join(final[1] for final in finals)


def test_a_hundred_connections_leave_nothing(wyoming: Running, speech: Speech) -> None:
    async def one(sound: bytes) -> None:
        async with client(wyoming) as connected:
            await connected.write_event(AudioChunk(RATE, 2, 1, audio=sound).event())

    async def work() -> None:
        for _ in range(10):
            await asyncio.gather(*(one(speech[:1600].tobytes()) for _ in range(10)))
            await until(lambda: wyoming.core.n_sessions == 0, 20)

    run(work())
    run(until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edge-asr-live")]))


def test_a_client_that_closes_its_own_direction_gets_its_answer(wyoming: Running, speech: Speech) -> None:
    async def work() -> list[Event]:
        async with client(wyoming) as connected:
            await send(connected, speech[: round(FIRST_S * RATE)].tobytes())
            assert connected._writer is not None
            connected._writer.write_eof()
            return await answer(connected)

    assert transcript(run(work())) == "enter seven two five"


def test_too_many_sessions(make_server: MakeServer, speech: Speech) -> None:
    async def work(running: Running) -> tuple[list[Event], str]:
        async with client(running) as first, client(running) as second:
            await first.write_event(AudioChunk(RATE, 2, 1, audio=speech[:3200].tobytes()).event())
            await first.read_event()
            await send(second, speech.tobytes())
            refused = await answer(second)
            await second.write_event(Describe().event())  # takes no place
            info = await second.read_event()
            assert info is not None
            await first.write_event(AudioStop().event())
            await answer(first)
            await until(lambda: running.core.n_sessions == 0)
            await send(second, speech[: round(FIRST_S * RATE)].tobytes())
            assert transcript(await answer(second)) == "enter seven two five"
            return refused, info.type

    with make_server(make_face=make_face, max_sessions=1) as running:
        refused, kind = run(work(running))
    assert error(refused) == ("busy", "all 1 places for sessions are taken; try again later")
    assert kind == "info"


def test_too_many_connections(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(running: Running) -> None:
        async with client(running), client(running) as second, client(running) as third:
            await second.write_event(Describe().event())
            assert await second.read_event() is not None
            assert await third.read_event() is None

    monkeypatch.setattr(wyoming_face, "_CONNECTIONS_BESIDE", 0)
    with make_server(make_face=make_face, max_sessions=1, max_requests=1) as running:
        run(work(running))


def test_limits_of_time(make_server: MakeServer, speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave_open(running: Running, sound: Speech | None) -> list[Event]:
        async with client(running) as connected:
            if sound is not None:
                await connected.write_event(AudioChunk(RATE, 2, 1, audio=sound.tobytes()).event())
            found = await answer(connected)
            assert await connected.read_event() is None
            return found

    with make_server(make_face=make_face, idle_s=0.7) as running:
        assert error(run(leave_open(running, None))) == ("idle", "nothing came for 0.7 s")
        assert transcript(run(leave_open(running, speech[: 2 * RATE]))) == "enter seven two five"
        silence = run(leave_open(running, np.zeros(1600, np.int16)))
        assert error(silence) == ("idle", "the request was ended before any words: idle")
    with make_server(make_face=make_face, max_session_s=2.0) as running:
        assert transcript(run(hear(running, speech))) == "enter seven two five"


def test_who_says_nothing_gets_an_empty_transcript(wyoming: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming_face, "_SILENT_S", 0.5)

    async def work() -> list[Event]:
        async with client(wyoming) as connected:
            answering = asyncio.ensure_future(answer(connected))
            while not answering.done():
                await connected.write_event(AudioChunk(RATE, 2, 1, audio=bytes(3200)).event())
                await asyncio.sleep(0.1)
            return await answering

    events = run(work())
    assert [event.type for event in events] == ["transcript-start", "transcript", "transcript-stop"]
    assert transcript(events) == ""


def test_a_client_that_does_not_read_is_dropped(make_server: MakeServer, speech: Speech) -> None:
    def ask_without_end(raw: socket.socket) -> None:
        for _ in range(100_000):
            raw.sendall(header(type="describe") * 100)

    def flood(running: Running) -> None:
        host, port = running.http.removeprefix("tcp://").split(":")
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(20)
            raw.connect((host, int(port)))
            with pytest.raises(ConnectionError):  # the server has had enough
                ask_without_end(raw)

    async def work(running: Running) -> list[Event]:
        flooding = asyncio.to_thread(flood, running)
        _, heard = await asyncio.gather(flooding, hear(running, speech[: round(FIRST_S * RATE)]))
        return heard

    with make_server(make_face=make_face, slow_reader_s=0.4) as running:
        assert transcript(run(work(running))) == "enter seven two five"


def test_sound_that_finds_no_room_waits(
    make_server: MakeServer, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    with make_server(make_face=make_face, queue_s=1.0) as running:
        events = run(hear(running, np.concatenate([speech] * 3)))
    assert transcript(events) == " ".join(3 * [final[1] for final in finals])


def test_a_stopping_server_answers_first(make_server: MakeServer, speech: Speech) -> None:
    async def work(running: Running) -> tuple[list[Event], list[Event]]:
        async with client(running) as connected, client(running) as silent:
            await silent.write_event(AudioChunk(RATE, 2, 1, audio=bytes(3200)).event())
            await silent.read_event()
            sound = speech[: round(1.7 * RATE)].tobytes()  # no pause yet
            await connected.write_event(AudioChunk(RATE, 2, 1, audio=sound).event())
            while (event := await connected.read_event()) is not None and event.type != "transcript-chunk":
                pass
            running.stop()
            return await answer(connected), await answer(silent)

    with make_server(make_face=make_face) as running:
        heard, unheard = run(work(running))
    assert is_near(transcript(heard), "enter seven two five")
    assert error(unheard)[0] == "draining"
    assert running.is_clean is True
