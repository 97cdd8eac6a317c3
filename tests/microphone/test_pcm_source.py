"""Raw samples from a pipe: what was written is what is heard, however it was cut; no sound is an error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from tones import ToneRecognizer, silence, speak

from edge_asr.audio import mono_from_waveform, read_audio, resample
from edge_asr.cli.main import cli
from edge_asr.errors import AudioError, ConfigError
from edge_asr.runtime.live.events import Final
from edge_asr.runtime.live.pcm_source import PcmSource
from edge_asr.runtime.live.recognizer import LiveRecognizer

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def read_all(source: PcmSource) -> np.ndarray:
    with source:
        pieces = []
        while (block := source.read()) is not None:
            assert not block.losses
            pieces.append(block.samples)
    return np.concatenate(pieces)


class Dribble(io.RawIOBase):
    """A stream that gives as little as a pipe may: 1 to 7 bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.n = 0

    def read(self, size: int = -1) -> bytes:
        self.n = self.n % 7 + 1
        piece, self.data = self.data[: self.n], self.data[self.n :]
        return piece


@pytest.mark.parametrize("form", ["s16le", "s32le", "f32le"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (48_000, 2), (8_000, 3)])
def test_what_is_written_is_what_is_heard(form: Any, rate: int, channels: int) -> None:
    sound = np.random.default_rng(rate).normal(0, 0.1, (2_000, channels)).astype(np.float32)
    dtype = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}[form]
    written = sound if form == "f32le" else (sound * 2 ** (8 * int(dtype[2]) - 1)).astype(dtype)
    heard = read_all(
        PcmSource(Dribble(written.tobytes() + b"\1"), sample_rate=rate, channels=channels, format=form)
    )
    expected = resample(mono_from_waveform(written.astype(written.dtype.newbyteorder("="))), rate, 16_000)
    np.testing.assert_array_equal(heard, expected)


def test_stop_does_not_wait_for_a_writer_that_is_silent() -> None:
    reader, writer = os.pipe()
    audio = np.concatenate([speak(["alpha", "echo"]), silence(0.2)])
    with open(reader, "rb", buffering=0) as stream:
        with LiveRecognizer(ToneRecognizer(), PcmSource(stream)) as live:
            os.write(writer, (audio * 32767).astype("<i2").tobytes())
            live.hearing.wait()
            while live.stats.audio_s < len(audio) / 16_000:
                pass
            threading.Timer(0.2, live.stop).start()
            events = list(live)
        os.close(writer)
    assert [event.text for event in events if isinstance(event, Final)] == ["alpha echo"]
    assert live.error is None


@pytest.mark.parametrize("begin", [b"RIFF", b"fLaC", b"OggS"])
def test_a_file_is_refused(begin: bytes) -> None:
    with pytest.raises(AudioError, match=f"begin like a file \\({begin.decode()}\\); write raw ones"):
        read_all(PcmSource(io.BytesIO(begin + bytes(100))))


def test_a_stream_that_fails_is_an_audio_error() -> None:
    stream = io.BytesIO()
    stream.close()
    with pytest.raises(AudioError, match="the raw samples cannot be read: I/O operation on closed file"):
        read_all(PcmSource(stream))


@pytest.mark.parametrize(
    ("values", "words"),
    [({"format": "u8"}, "format is 'u8'; it must be"), ({"channels": 0}, "channels is 0")],
)
def test_config_errors_say_what_and_the_value(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PcmSource(io.BytesIO(), **values)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mic"], "'mic' is no source: - means raw samples"),
        (["-", "--device", "usb"], "--device does not go with -; leave it out"),
        (["-", "--wait"], "--wait does not go with -"),
        (["--format", "f32le"], "--format does not go with a microphone"),
        (["--simulate", "FILE", "--rate", "8000"], "--rate does not go with --simulate"),
        (["-", "--simulate", "FILE"], "FILE are two sources; leave one out"),
        (["--simulate", "FILE", "--reconnect", "3"], "--reconnect does not go with --simulate"),
        (["--simulate", "/no/such.wav"], "does not exist"),
        (["-", "--channels", "0"], "--channels"),
        (["--reconnect", "-1"], "--reconnect"),
    ],
)
def test_sources_that_contradict_each_other_are_wrong_usage(
    arguments: list[str], words: str, sample_path: Path
) -> None:
    arguments = [str(sample_path) if a == "FILE" else a for a in arguments]
    result = CliRunner().invoke(cli, ["listen", *arguments])
    assert result.exit_code == 2
    assert words.replace("FILE", str(sample_path)) in " ".join(result.output.split())


def listen(*arguments: str, stdin: bytes = b"") -> tuple[int, list[dict[str, Any]], str]:
    result = subprocess.run(
        [sys.executable, "-m", "edge_asr", "listen", "--json", "--threads", "1", *arguments],
        input=stdin,
        env=ENVIRONMENT,
        capture_output=True,
        timeout=120,
    )
    return (
        result.returncode,
        [json.loads(line) for line in result.stdout.splitlines()],
        result.stderr.decode(),
    )


def test_listen_hears_raw_samples_and_a_file_in_the_same_way(sample_path: Path, tmp_path: Path) -> None:
    waveform = read_audio(sample_path)[: 3 * 16_000]
    soundfile.write(tmp_path / "speech.wav", waveform, 16_000, subtype="PCM_16")
    samples, _ = soundfile.read(tmp_path / "speech.wav", dtype="int16")
    piped = listen("-", "--partials", "off", stdin=samples.astype("<i2").tobytes())
    simulated = listen("--simulate", str(tmp_path / "speech.wav"), "--partials", "off")
    for code, events, messages in (piped, simulated):
        assert code == 0, messages
        assert events[0]["text"].startswith("enter seven two five")
        assert "heard 3.00 s" in messages
    texts = [[event["text"] for event in events] for _, events, _ in (piped, simulated)]
    assert texts[0] == texts[1]
    assert "listening to standard input at 16000 Hz" in piped[2]
    assert f"listening to {tmp_path / 'speech.wav'} with tiny-en" in simulated[2]


def test_listen_refuses_a_file_in_the_place_of_raw_samples(sample_path: Path) -> None:
    code, events, messages = listen("-", stdin=sample_path.read_bytes())
    assert code == 1
    assert [event["type"] for event in events] == ["error"]
    assert "they begin like a file (fLaC)" in messages.splitlines()[-1]
