"""`edge-asr listen` as a program: events, signals, exit codes, pipes. Sound and recognizer are fakes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from test_microphone import DEVICES, FakeSoundDevice, fake_portaudio

from edge_asr.cli import listen
from edge_asr.cli.main import cli
from edge_asr.runtime.live.partials import WindowedDecoder
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder

PROGRAM = Path(__file__).with_name("listen_to_tones.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "TERM": "xterm"}

EVENT_KEYS = {
    "partial": {"type", "id", "text", "start_s", "end_s"},
    "final": {
        *("type", "id", "text", "start_s", "end_s", "segment_start_s", "segment_end_s", "reason"),
        *("endpoint_wait_s", "compute_s", "tokens", "words"),
    },
    "gap": {"type", "at_s", "lost_s", "reason", "estimated"},
    "error": {"type", "message", "kind", "at_s"},
}


def start(arguments: Sequence[str], **streams: Any) -> subprocess.Popen[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([sys.executable, str(PROGRAM), *arguments], env=ENVIRONMENT, text=True, **streams)


def run_until_first_final(
    number: signal.Signals, arguments: Sequence[str]
) -> tuple[int, list[dict[str, Any]], str]:
    """Send the signal while the second sentence is being said; exit code, all events, stderr."""
    process = start(["--json", *arguments])
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        event = json.loads(line)
        if event["type"] == "partial" and event["id"] == 1:
            process.send_signal(number)
            break
    output, messages = process.communicate(timeout=30)
    return process.returncode, [json.loads(line) for line in [*lines, *output.splitlines()]], messages


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_flushes_the_last_words(number: signal.Signals, code: int) -> None:
    exit_code, events, messages = run_until_first_final(number, ["alpha", "bravo", "charlie"])
    finals = [event for event in events if event["type"] == "final"]
    assert exit_code == code, messages
    assert [final["reason"] for final in finals] == ["pause", "end"]
    assert finals[0]["text"] == "alpha bravo charlie"
    # It was interrupted within the sentence: whatever had been said is in the final.
    assert finals[1]["text"].startswith("alpha")
    assert messages.splitlines()[0] == "edge-asr: listening to tones"
    assert "2 finals; 0 gaps (0.00 s lost), 0 overflows" in messages.splitlines()[-1]
    assert "Traceback" not in messages


def test_a_second_ctrl_c_ends_at_once() -> None:
    """The fake needs 20 s for the last words; nobody has to wait for them."""
    process = start(["--json", "--slowness", "20", "alpha", "bravo", "charlie"])
    assert process.stderr is not None
    assert process.stderr.readline() == "edge-asr: listening to tones\n"
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - began < 3


def test_json_lines_have_exactly_the_documented_keys() -> None:
    process = start(["--json", "--seconds", "3", "alpha", "bravo"])
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    events = [json.loads(line) for line in output.splitlines()]
    assert {event["type"] for event in events} == {"partial", "final"}
    for event in events:
        assert set(event) == EVENT_KEYS[event["type"]]
    final = next(event for event in events if event["type"] == "final")
    assert set(final["tokens"][0]) == {"text", "id", "start_s", "end_s", "confidence"}
    assert set(final["words"][0]) == {"text", "start_s", "end_s", "confidence"}
    assert "heard 3.00 s" in messages


def test_an_error_is_an_event_then_one_line_and_exit_code_1() -> None:
    process = start(["--json", "--fail", "alpha", "bravo", "charlie", "delta"])
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    last = json.loads(output.splitlines()[-1])
    assert set(last) == EVENT_KEYS["error"]
    assert last["kind"] == "BackendError"
    assert messages.splitlines()[-1] == f"edge-asr: {last['message']}"
    assert "Traceback" not in messages


def test_finals_are_lines_on_a_pipe() -> None:
    process = start(["--seconds", "3", "alpha", "bravo"])
    output, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert output == "alpha bravo\nalpha bravo\n"


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    process = start(["--json", "alpha", "bravo"])
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    messages = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 1
    assert "Traceback" not in messages
    assert "Exception" not in messages


def test_a_terminal_shows_a_dim_line_that_finals_replace() -> None:
    master, slave = pty.openpty()
    process = start(["--seconds", "3", "alpha", "bravo"], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux's end of file on a terminal whose other side has closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    dim = "\x1b[2m"
    assert f"{dim}alpha" in text
    finals = [line for line in text.replace("\r", "").split("\n") if line.endswith("alpha bravo")]
    assert len(finals) == 2, text


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakeSoundDevice:
    return fake_portaudio(monkeypatch)


def test_list_devices(portaudio: FakeSoundDevice) -> None:
    result = CliRunner().invoke(cli, ["listen", "--list-devices"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "*"]
    assert "USB array: Audio" in lines[2]
    assert "16000 Hz" in lines[2]


def test_list_devices_as_json(portaudio: FakeSoundDevice) -> None:
    result = CliRunner().invoke(cli, ["listen", "--list-devices", "--json"])
    devices = json.loads(result.stdout)["devices"]
    assert [device["index"] for device in devices] == [1, 2, 3]
    assert devices[2] == {
        "index": 3,
        "name": "default",
        "host_api": "ALSA",
        "max_channels": 32,
        "sample_rate": 44100,
        "is_default": True,
    }


def test_list_devices_of_a_machine_without_any(portaudio: FakeSoundDevice) -> None:
    portaudio.devices = DEVICES[:1]
    portaudio.default = SimpleNamespace(device=[-1, 0])
    result = CliRunner().invoke(cli, ["listen", "--list-devices"])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "no input devices" in result.stderr


@pytest.mark.parametrize("wanted", ["webcam", "0", "usb"])
def test_a_wrong_device_is_one_line_before_anything_is_loaded(
    portaudio: FakeSoundDevice, wanted: str
) -> None:
    result = CliRunner().invoke(cli, ["listen", "--device", wanted, "-m", "/no/such/bundle"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("edge-asr: ")
    assert "1: USB mic: Audio" in result.stderr


@pytest.mark.parametrize(
    ("partials", "decoder"),
    [
        ("auto", StreamingDecoder),
        ("streaming", StreamingDecoder),
        ("windowed", WindowedDecoder),
        ("off", WindowedDecoder),
    ],
)
def test_how_the_utterance_in_progress_is_followed(
    portaudio: FakeSoundDevice,
    streaming_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    partials: str,
    decoder: type,
) -> None:
    lives: list[LiveRecognizer] = []
    monkeypatch.setattr(listen, "run_live", lambda live, **options: lives.append(live) or 0)
    arguments = ["listen", "-m", str(streaming_bundle), "--partials", partials]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    (live,) = lives
    assert live.config.partials == (partials != "off")
    assert type(live._stream._decoder) is decoder


def test_streaming_partials_need_a_streaming_model(portaudio: FakeSoundDevice, random_bundle: Path) -> None:
    result = CliRunner().invoke(cli, ["listen", "-m", str(random_bundle), "--partials", "streaming"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "no streaming model; export the checkpoint again with --streaming" in result.stderr


def test_an_existing_recording_is_refused_before_listening(
    portaudio: FakeSoundDevice, tmp_path: Path
) -> None:
    (tmp_path / "heard.wav").write_bytes(b"precious")
    result = CliRunner().invoke(cli, ["listen", "--record", str(tmp_path / "heard.wav")])
    assert result.exit_code == 1
    assert "heard.wav exists already" in result.stderr
    assert "--force" in result.stderr
    assert (tmp_path / "heard.wav").read_bytes() == b"precious"


@pytest.mark.parametrize(
    "arguments",
    [["--seconds", "0"], ["--seconds", "x"], ["--rate", "1"], ["--threads", "0"], ["--partials", "x"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(cli, ["listen", *arguments]).exit_code == 2


def test_the_runtime_imports_without_portaudio() -> None:
    program = (
        "import sys; sys.modules['sounddevice'] = None\n"
        "import edge_asr.runtime.live.recognizer, edge_asr.runtime.live.microphone, edge_asr.cli.listen\n"
        "assert not [m for m in ('torch', 'onnx', 'onnxruntime', 'rich') if m in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENVIRONMENT, timeout=60)
