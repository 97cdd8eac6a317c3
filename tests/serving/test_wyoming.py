"""The Wyoming face with the `wyoming` client and `wyoming-bench`: what it says of itself, what it hears."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving_clients import MakeServer, Running, Speech, is_near, run, until
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.event import Event
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping
from wyoming_clients import RATE, SAID, answer, client, hear, make_face, send, transcript

from edge_asr.audio import resample
from edge_asr.runtime import Recognizer, grammar_decoder
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.wyoming_service import WyomingService


@pytest.fixture(scope="module")
def wyoming(make_server: MakeServer) -> Iterator[Running]:
    with make_server(make_face=make_face) as running:
        yield running
        run(until(lambda: running.core.n_sessions == 0))


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
    assert is_near(transcript(events)[: len(chunks)], chunks)
    assert len(chunks) > len("enter seven")


def test_live_speech_is_answered_at_its_end_though_the_client_goes_on(
    wyoming: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    async def work() -> tuple[list[Event], float, list[Event]]:
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
            for _ in range(3):  # still in the pipe
                await connected.write_event(AudioChunk(RATE, 2, 1, audio=bytes(3200)).event())
            await connected.write_event(AudioStop().event())
            await connected.write_event(Transcribe(language="en").event())
            await send(connected, speech.tobytes())
            return await answering, sent_s, await answer(connected)

    events, sent_s, second = run(work())
    assert transcript(events) == finals[0][1]
    assert 2.0 < sent_s < len(speech) / RATE  # before the next phrase has ended
    assert transcript(second) == " ".join(final[1] for final in finals)


def test_a_sensitivity_is_another_pause(wyoming: Running) -> None:
    service = WyomingService(wyoming.core, "en")
    pauses = [
        service.options({"vad_sensitivity": name}).endpoint_config().pause_s
        for name in ("aggressive", "default", "relaxed", "unheard of")
    ]
    assert pauses == [0.3, 0.7, 1.25, 0.7]


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
    wish = Transcribe(transcript_names=["Meters-And-Stopped"], transcript_terms=["enter"])

    async def work() -> list[list[Event]]:
        return await asyncio.gather(hear(wyoming, speech, wish), hear(wyoming, speech))

    favored, plain = map(transcript, run(work()))
    assert "meters and stopped" in favored
    assert "meters and stopped" not in plain
    options = WyomingService(wyoming.core, "en-GB").options({**wish.event().data, "language": "en"})
    assert options.hotwords == ("meters and stopped:1.0", "enter:0.5")


def test_a_grammar_of_the_server_stays(tmp_path: Path) -> None:
    (tmp_path / "grammar.txt").write_text("start recording")
    decoder = grammar_decoder(tmp_path / "grammar.txt")
    with Recognizer.load("tiny-en", num_threads=1, decoder=decoder) as loaded:
        core = Sessions(loaded, name="tiny-en")
        assert WyomingService(core, "en").options({"transcript_names": ["lamp"]}).hotwords == ()
        core.close()


def test_wyoming_bench_finds_every_word(wyoming: Running, speech: Speech, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "robot.wav", speech, RATE)
    (tmp_path / "robot.txt").write_text(SAID)
    place = wyoming.http.removeprefix("tcp://")

    def bench(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("wyoming-bench")), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    assert "asr  edge-asr (transcript streaming)" in bench("info", place)
    output = bench("stt", place, "--corpus", str(tmp_path), "--rounds", "1", "--warmup", "0")
    assert "[streaming] ok=1 fail=0" in output
    assert "[non_streaming] ok=1 fail=0" in output
    rates = [float(rate) for rate in re.findall(r"WER=([\d.]+)%", output)]
    assert len(rates) == 2
    assert max(rates) <= 20
