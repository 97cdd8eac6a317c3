"""The Wyoming face with the `wyoming` client and `wyoming-bench`: what is heard, refused and left."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from serving_clients import MakeServer, Running, Speech, is_near, run, until
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping

from edge_asr.audio import resample
from edge_asr.runtime import Recognizer, grammar_decoder
from edge_asr.serving import wyoming_face
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.wyoming_face import WyomingFace
from edge_asr.serving.wyoming_service import WyomingService

RATE = 16_000
SAID = "enter seven two five start recording go three meters and stop"
FIRST_S = 2.2  # the first phrase of the sample ends before this


def make_face(core: Sessions) -> WyomingFace:
    return WyomingFace(core, host="127.0.0.1", port=0)


@pytest.fixture(scope="module")
def wyoming(make_server: MakeServer) -> Iterator[Running]:
    with make_server(make_face=make_face) as running:
        yield running
        run(until(lambda: running.core.n_sessions == 0))


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


def test_it_describes_itself(wyoming: Running) -> None:
    async def work() -> tuple[Info, Event]:
        async with client(wyoming) as connected:
            await connected.write_event(SelectProgram("edge-asr").event())
            await connected.write_event(Describe().event())
            info = await connected.read_event()
            await connected.write_event(Ping(text="are you there").event())
            pong = await connected.read_event()
            assert info is not None
            assert pong is not None
            return Info.from_event(info), pong

    info, pong = run(work())
    (program,) = info.asr
    (model,) = program.models
    assert (program.name, program.supports_transcript_streaming) == ("edge-asr", True)
    assert program.requires_external_vad is False
    assert (model.name, model.languages, model.installed) == ("tiny-en", ["en"], True)
    assert (pong.type, pong.data["text"]) == ("pong", "are you there")


def test_a_recording_is_heard_to_its_end(
    wyoming: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    events = run(hear(wyoming, speech, Transcribe(name="tiny-en", language="en_US")))
    kinds = [event.type for event in events]
    assert kinds[0] == "transcript-start"
    assert kinds[-2:] == ["transcript", "transcript-stop"]
    assert set(kinds[1:-2]) == {"transcript-chunk"}
    assert transcript(events) == " ".join(final[1] for final in finals)
    chunks = "".join(event.data["text"] for event in events if event.type == "transcript-chunk")
    assert transcript(events).startswith(chunks)
    assert len(chunks) > len("enter seven")


def test_live_speech_is_answered_at_its_end_though_the_client_goes_on(
    wyoming: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    async def work() -> tuple[list[Event], float]:
        async with client(wyoming) as connected:
            await connected.write_event(Transcribe(language="en").event())
            await connected.write_event(AudioStart(RATE, 2, 1).event())
            answering = asyncio.ensure_future(answer(connected))
            began, sent_s = time.monotonic(), 0.0
            while not answering.done() and sent_s < 60:  # an open microphone
                block = speech[round(sent_s * RATE) :][:1600]
                block = block if len(block) else np.zeros(1600, np.int16)
                await connected.write_event(AudioChunk(RATE, 2, 1, audio=block.tobytes()).event())
                sent_s = round(sent_s + 0.1, 1)
                await asyncio.sleep(max(0.0, began + sent_s - time.monotonic()))
            return await answering, sent_s

    events, sent_s = run(work())
    assert transcript(events) == finals[0][1]
    assert 2.0 < sent_s < len(speech) / RATE  # before the next phrase has ended


def test_a_sensitivity_is_another_pause(wyoming: Running) -> None:
    service = WyomingService(wyoming.core, "en")
    pauses = [
        service.options({"vad_sensitivity": name}).endpoint_config().pause_s
        for name in ("aggressive", "default", "relaxed", "unheard of")
    ]
    assert pauses == [0.3, 0.6, 1.25, 0.6]


@pytest.mark.parametrize("form", [(16_000, 1, 1), (16_000, 3, 1), (48_000, 4, 2), (22_050, 2, 1)])
def test_any_rate_width_and_channels(wyoming: Running, speech: Speech, form: tuple[int, int, int]) -> None:
    rate, width, channels = form
    floats = resample(speech.astype(np.float32) / 32768, RATE, rate).astype(np.float64)
    whole = np.round(floats * 2.0 ** (8 * width - 1)).astype(np.int64)
    sound = {
        1: lambda: (whole + 128).astype(np.uint8).tobytes(),
        2: lambda: whole.astype("<i2").tobytes(),
        3: lambda: whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes(),
        4: lambda: np.repeat(whole.astype("<i4"), channels).tobytes(),
    }[width]()

    async def work() -> list[Event]:
        async with client(wyoming) as connected:
            await send(connected, sound, form)
            return await answer(connected)

    assert is_near(transcript(run(work())), SAID)


def test_names_and_terms_are_hotwords_of_their_request_alone(wyoming: Running, speech: Speech) -> None:
    wish = Transcribe(transcript_names=["Star-Recording"], transcript_terms=["meter"])

    async def work() -> list[list[Event]]:
        return await asyncio.gather(hear(wyoming, speech, wish), hear(wyoming, speech))

    favored, plain = map(transcript, run(work()))
    assert "star recording" in favored
    assert "star recording" not in plain
    options = WyomingService(wyoming.core, "en-GB").options({**wish.event().data, "language": "en"})
    assert options.hotwords == ("star recording:1.0", "meter:0.5")


def test_a_grammar_of_the_server_stays(tmp_path: Path) -> None:
    (tmp_path / "grammar.txt").write_text("start recording")
    decoder = grammar_decoder(tmp_path / "grammar.txt")
    with Recognizer.load("tiny-en", num_threads=1, decoder=decoder) as loaded:
        core = Sessions(loaded, name="tiny-en")
        assert WyomingService(core, "en").options({"transcript_names": ["lamp"]}).hotwords == ()
        core.close()


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


def test_wyoming_bench_finds_every_word(wyoming: Running, speech: Speech, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "robot.wav", speech, RATE)
    (tmp_path / "robot.txt").write_text(SAID)
    place = wyoming.http.removeprefix("tcp://")

    def bench(*arguments: str) -> str:
        command = ["wyoming-bench", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    assert "asr  edge-asr (transcript streaming)" in bench("info", place)
    output = bench("stt", place, "--corpus", str(tmp_path), "--rounds", "1", "--warmup", "0")
    assert "[streaming] ok=1 fail=0" in output
    assert "[non_streaming] ok=1 fail=0" in output
    rates = [float(rate) for rate in re.findall(r"WER=([\d.]+)%", output)]
    assert len(rates) == 2
    assert max(rates) <= 20
