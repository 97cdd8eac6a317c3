"""/v1/listen with the `websockets` client: what is heard and refused, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile
from serving_clients import (
    MakeServer,
    Running,
    Speech,
    comparable,
    hear,
    is_near,
    n_refused,
    of_type,
    read,
    run,
    send,
    texts,
    until,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus


def test_a_session_hears_what_the_runtime_hears(
    server: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    events = run(hear(f"{server.ws}/v1/listen", speech))
    assert events[0]["type"] == "ready"
    assert events[0]["model"] == "tiny-en"
    assert [comparable(event) for event in of_type(events, "final")] == finals
    assert {event["id"] for event in of_type(events, "partial")} <= {0, 1, 2}
    assert events[-1] == {"type": "end", "reason": "end", "audio_s": round(len(speech) / 16_000, 3)}


def test_two_sessions_at_once_hear_what_each_hears_alone(
    server: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    first = speech[: round(2.9 * 16_000)]

    async def both() -> Any:
        url = f"{server.ws}/v1/listen"
        return await asyncio.gather(hear(url, speech), hear(url, first), hear(url, speech))

    whole, short, again = run(both())
    assert [comparable(event) for event in of_type(whole, "final")] == finals
    assert [comparable(event) for event in of_type(again, "final")] == finals
    assert [comparable(event) for event in of_type(short, "final")] == finals[:1]


def test_options_of_the_query(server: Running, speech: Speech) -> None:
    stereo = np.repeat(np.stack([speech, speech], axis=1), 3, axis=0).astype(np.float32) / 32768
    query = "sample_rate=48000&channels=2&format=f32le&partials=false&digits=true&endpoint=agent"
    events = run(hear(f"{server.ws}/v1/listen?{query}", stereo))
    assert not of_type(events, "partial")
    assert "725" in "".join(texts(events)).replace(" ", "")
    assert events[-1]["audio_s"] == pytest.approx(len(speech) / 16_000, abs=0.01)


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_a_stream_is_decoded_while_it_comes(
    server: Running, speech: Speech, finals: list[tuple[Any, ...]], container: str, subtype: str
) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.repeat(speech, 3), 48_000, format=container, subtype=subtype)
    encoded = file.getvalue()

    async def listen() -> tuple[list[Any], int]:
        events: list[Any] = []
        async with connect(f"{server.ws}/v1/listen?format=ogg&partials=false") as client:
            n_sent = 0
            while n_sent < len(encoded) and not of_type(events, "final"):
                await client.send(encoded[n_sent : n_sent + 1000])
                n_sent += 1000
                with contextlib.suppress(asyncio.TimeoutError):
                    events.append(json.loads(await asyncio.wait_for(client.recv(), 0.1)))
            heard_at = n_sent
            await client.send(encoded[n_sent:])
            await client.send('{"type": "end"}')
            events += await read(client)
        return events, heard_at

    events, heard_at = run(listen())
    assert [is_near(text, final[1]) for text, final in zip(texts(events), finals, strict=True)] == [True] * 3
    assert heard_at < 0.8 * len(encoded)  # the first utterance is a third of it
    assert events[-1]["audio_s"] == pytest.approx(len(speech) / 16_000, abs=0.1)


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (b"\x1a\x45\xdf\xa3" * 500, "send a WAV, FLAC or Ogg stream"),
        (b"OggS" + b"x" * 4000, "the sound cannot be decoded"),
        (b"", "the stream ended before any sound"),
    ],
)
def test_what_is_no_stream_is_refused(server: Running, sound: bytes, sentence: str) -> None:
    async def listen() -> list[Any]:
        async with connect(f"{server.ws}/v1/listen?format=ogg") as client:
            await client.send(sound)
            await client.send('{"type": "end"}')
            return await read(client)

    events = run(listen())
    assert events[-1]["type"] == "error"
    assert sentence in events[-1]["message"]


def test_a_grammar_and_hotwords_of_one_session(server: Running, speech: Speech) -> None:
    url = f"{server.ws}/v1/listen"
    grammar = {"grammar": "start recording\ngo {n 1..9} meters and stop", "partials": False}
    events = run(hear(url, speech, start=grammar))
    found = of_type(events, "final", "unmatched")
    assert [event["type"] for event in found] == ["unmatched", "final", "final"]
    assert found[2]["slots"][0]["number"] == 3
    # The phrase is no word of the sample; so strong a wish makes it one.
    wish = {"hotwords": ["star:9"], "language_model": False, "partials": False}
    assert "star " in texts(run(hear(url, speech, start=wish)))[1] + " "
    assert "star " not in texts(run(hear(url, speech)))[1] + " "


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("sample_rate=12", "the sample rate is 12; give whole Hz"),
        ("sample_rate=fast", "sample_rate is 'fast'; give a whole number"),
        ("channels=9", "channels is 9; give 1 to 8"),
        ("sample_rate=384000", "sample_rate is 384000; give at most 192000"),
        ("format=mp3", "format"),
        ("endpoint=never", "endpoint"),
        ("partials=maybe", "partials is 'maybe'; give true or false"),
        ("pause_s=99", "pause_s is 99.0; give 0.1 to 10 seconds"),
        ("overflow=explode", "overflow"),
        ("hotwords=a:b", "the boost of the hotword 'a:b' is no number"),
        ("grammar=go&hotwords=stop", "a grammar takes neither hotwords nor a language model"),
        ("path=/etc/passwd", "path"),
    ],
)
def test_a_bad_query_is_refused_before_the_handshake(server: Running, query: str, sentence: str) -> None:
    async def refused() -> tuple[int, str]:
        with pytest.raises(InvalidStatus) as refusal:
            async with connect(f"{server.ws}/v1/listen?{query}"):
                pass
        response = refusal.value.response
        return response.status_code, json.loads(response.body or b"{}")["error"]["message"]

    status, message = run(refused())
    assert status == 400
    assert sentence in message


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("{", "the message is not valid JSON"),
        ("[1]", 'a message is a JSON object with a "type"'),
        ('{"type": "dance"}', "a message has the type 'dance'; send end"),
        (b"odd", "a block has 3 bytes; send whole samples, a multiple of 2 bytes"),
    ],
)
def test_what_was_heard_before_garbage_is_delivered(
    server: Running, speech: Speech, message: str | bytes, sentence: str
) -> None:
    async def work() -> tuple[list[dict[str, Any]], int | None]:
        async with connect(f"{server.ws}/v1/listen?partials=false") as client:
            await send(client, speech[: round(2.2 * 16_000)])
            await client.send(message)
            return await read(client), client.close_code

    n_before = n_refused(server, "bad_request")
    events, code = run(work())
    assert n_refused(server, "bad_request") == n_before + 1
    assert texts(events) == ["enter seven two five"]
    assert sentence in events[-1]["message"]
    assert (events[-1]["type"], code) == ("error", 1008)


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        ({"grammar": "start (recording"}, "line 1"),
        ({"grammar": "überfahrt"}, "cannot spell"),
        ({"grammar": "#JSGF V1.0;\ngrammar a;\nimport <b.*>;\npublic <x> = <b.y>;"}, "import"),
        ({"grammar": "x" * 70_000}, "the grammar has 70000 characters"),
        ({"grammar": "{n 0..9999} and {m 0..9999}"}, "more than 20000 arcs"),
        ({"hotwords": ["ÄÖÜ"]}, "cannot spell the hotword"),
        ({"hotwords": "stop"}, "hotwords"),
        ({"wish": 1}, "wish"),
    ],
)
def test_a_bad_start_is_an_error_and_the_end(server: Running, start: dict[str, Any], sentence: str) -> None:
    async def work() -> tuple[list[dict[str, Any]], int | None]:
        async with connect(f"{server.ws}/v1/listen") as client:
            await client.send(json.dumps({"type": "start", **start}))
            return await read(client), client.close_code

    events, code = run(work())
    assert sentence in events[-1]["message"]
    assert (events[-1]["kind"], code) == ("bad_request", 1008)


def test_a_message_that_is_too_large_ends_the_connection(server: Running) -> None:
    async def work() -> int | None:
        async with connect(f"{server.ws}/v1/listen") as client:
            await client.send(bytes(2 << 20))
            await read(client)
            return client.close_code

    assert run(work()) == 1009
    run(until(lambda: server.core.n_sessions == 0))


def test_clients_that_are_killed_leave_nothing_and_disturb_nobody(
    server: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    run(hear(f"{server.ws}/v1/listen", speech[:16_000]))  # so that the threads of the pools exist

    async def kill_one(after: int) -> None:
        client = await connect(f"{server.ws}/v1/listen").__aenter__()
        await send(client, speech[:after])
        client.transport.abort()

    async def work() -> list[dict[str, Any]]:
        other = asyncio.ensure_future(hear(f"{server.ws}/v1/listen", speech))
        await asyncio.gather(*(kill_one(after) for after in (0, 8_000, 24_000, 30_000)))
        events = await other
        await until(lambda: server.core.n_sessions == 0)
        return events

    events = run(work())
    assert [comparable(event) for event in of_type(events, "final")] == finals
    run(until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edge-asr-live")]))


def test_a_hundred_connections_leave_no_thread(server: Running, speech: Speech) -> None:
    async def one() -> None:
        async with connect(f"{server.ws}/v1/listen") as client:
            await client.send(speech[:3200].tobytes())

    async def work() -> None:
        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(10)))
            await until(lambda: server.core.n_sessions == 0)

    run(work())

    def count(of_pool: bool) -> int:
        names = [thread.name for thread in threading.enumerate()]
        return sum(name.startswith("edge-asr-session") == of_pool for name in names)

    before = count(of_pool=False)
    run(work())
    run(until(lambda: count(of_pool=False) <= before and count(of_pool=True) <= 16))


def test_too_many_sessions(make_server: MakeServer, speech: Speech) -> None:
    async def work(url: str) -> tuple[int, str | None, str]:
        async with connect(url) as client:
            await client.recv()
            with pytest.raises(InvalidStatus) as refusal:
                await connect(url).__aenter__()
        response = refusal.value.response
        return response.status_code, response.headers.get("Retry-After"), (response.body or b"").decode()

    with make_server(max_sessions=1) as running:
        url = f"{running.ws}/v1/listen"
        status, retry, body = run(work(url))
        assert (status, retry) == (429, "1")
        assert "all 1 places for sessions are taken" in body
        assert n_refused(running, "busy") == 1
        run(until(lambda: running.core.n_sessions == 0))
        assert texts(run(hear(url, speech[: round(2.9 * 16_000)]))) == ["enter seven two five"]


def test_limits_of_time_end_a_session_with_its_finals(make_server: MakeServer, speech: Speech) -> None:
    async def work(url: str, samples: Speech) -> tuple[list[dict[str, Any]], int | None]:
        async with connect(url) as client:
            await send(client, samples)
            return await read(client), client.close_code

    with make_server(idle_s=0.7) as running:
        events, code = run(work(f"{running.ws}/v1/listen", speech[: round(2.0 * 16_000)]))
        assert texts(events) == ["enter seven two five"]
        assert of_type(events, "error")[0]["message"] == "no sound came for 0.7 s"
        assert (events[-1]["reason"], code) == ("idle", 1008)
        events, code = run(work(f"{running.ws}/v1/listen", speech[:0]))  # not even a start
        assert (events[-1]["kind"], code) == ("idle", 1008)
    with make_server(max_session_s=2.0) as running:
        events, code = run(work(f"{running.ws}/v1/listen", speech))
        assert texts(events) == ["enter seven two five"]
        assert events[-1] == {"type": "end", "reason": "too_long", "audio_s": 2.0}
        assert code == 1008


def test_sound_that_finds_no_room_waits_or_is_a_gap(
    make_server: MakeServer, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    with make_server(queue_s=1.0) as running:
        events = run(hear(f"{running.ws}/v1/listen", np.concatenate([speech] * 3)))
        assert not of_type(events, "gap")
        assert texts(events) == 3 * [final[1] for final in finals]
        # A minute in one go is more than anything hears in no time.
        flood = np.concatenate([speech] * 8)
        events = run(hear(f"{running.ws}/v1/listen?overflow=drop", flood))
        gaps = of_type(events, "gap")
        assert {gap["reason"] for gap in gaps} == {"queue_overflow"}
        lost_s = sum(gap["lost_s"] for gap in gaps)
        assert lost_s + events[-1]["audio_s"] == pytest.approx(len(flood) / 16_000, abs=0.01)


def test_a_client_that_answers_no_ping_is_dropped(make_server: MakeServer) -> None:
    # By hand, as every library answers pings.
    with make_server(slow_reader_s=0.4) as running:
        place = urlsplit(running.http)
        with socket.create_connection((place.hostname, place.port), timeout=10) as raw:
            raw.sendall(
                b"GET /v1/listen HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
            )
            received = b""
            while data := raw.recv(4096):  # until the server closes
                received += data
        assert b"101 Switching Protocols" in received
        assert b"keepalive ping timeout" in received
        run(until(lambda: running.core.n_sessions == 0))


def test_a_stopping_server_delivers_the_last_final(make_server: MakeServer, speech: Speech) -> None:
    async def work(running: Running) -> tuple[list[dict[str, Any]], int | None]:
        async with connect(f"{running.ws}/v1/listen") as client:
            await send(client, speech[: round(4.5 * 16_000)])
            while json.loads(await client.recv())["type"] != "final":
                pass
            running.stop()
            return await read(client), client.close_code

    with make_server() as running:
        events, code = run(work(running))
        (heard,) = texts(events)
        assert is_near(heard, "start recording")
        assert (events[-1]["reason"], code) == ("draining", 1012)
    assert running.is_clean is True
