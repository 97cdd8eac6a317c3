"""examples/serve/client.c, compiled without a warning and run against a server, also with sanitizers."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from serving_clients import MakeServer, Running, Speech, comparable, of_type, run, until

from edge_asr.serving.unix_socket import SocketFace

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1", "-g")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PLAIN = ("-f", "-o", '"partials": false')


@pytest.fixture(scope="module", params=["plain", "sanitized"])
def client(request: pytest.FixtureRequest, repository: Path, tmp_path_factory: Any) -> Path:
    """The program."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt-get install gcc libc6-dev")
    path: Path = tmp_path_factory.mktemp("client") / "client"
    source = repository / "examples" / "serve" / "client.c"
    flags = FLAGS + (SANITIZERS if request.param == "sanitized" else ())
    done = subprocess.run(["gcc", *flags, "-o", path, source], capture_output=True, text=True)
    if request.param == "sanitized" and "cannot find" in done.stderr:
        pytest.skip("needs libasan and libubsan, which come with Debian's gcc")
    assert (done.returncode, done.stderr) == (0, "")
    return path


@pytest.fixture(scope="module")
def at(make_server: MakeServer) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        path = Path(folder) / "a.sock"
        with make_server(make_face=lambda core: SocketFace(core, path=path)) as running:
            running.http = str(path)
            yield running


def start(client: Path, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [client, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def hear(client: Path, *arguments: str | Path, sound: bytes = b"", code: int = 0) -> list[dict[str, Any]]:
    with start(client, *arguments) as process:
        out, errors = process.communicate(sound, timeout=60)
        assert (process.returncode, errors.decode()) == (code, "")
    return [json.loads(line) for line in out.splitlines()]


def wav(samples: np.ndarray[Any, Any], rate: int, kind: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def test_it_hears_what_the_runtime_hears(
    client: Path, at: Running, speech: Speech, finals: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    (tmp_path / "speech.wav").write_bytes(wav(speech, 16_000, "WAV", "PCM_16"))
    events = hear(client, *PLAIN, at.http, tmp_path / "speech.wav")
    assert [comparable(event) for event in of_type(events, "final")] == finals
    assert events[-1] == {"type": "end", "reason": "end", "audio_s": round(len(speech) / 16_000, 3)}


def test_raw_samples_and_files_of_several_kinds_from_a_pipe(
    client: Path, at: Running, speech: Speech
) -> None:
    short = speech[: round(2.9 * 16_000)]
    stereo = np.stack([short, short], axis=1).repeat(2, axis=0)
    unknown_size = bytearray(wav(short, 16_000, "WAV", "PCM_16"))
    place = unknown_size.index(b"data") + 4
    unknown_size[place : place + 4] = b"\xff\xff\xff\xff"
    other_chunk = wav(short, 16_000, "WAV", "PCM_16").replace(b"fmt ", b"LIST\x03\0\0\0abc\0fmt ", 1)
    for arguments, sound in (
        ((), short.tobytes()),
        (("-r", "32000"), short.repeat(2).tobytes()),
        ((), wav(stereo, 32_000, "WAV", "PCM_16")),
        ((), wav(stereo / 32768, 32_000, "WAVEX", "FLOAT")),
        ((), bytes(unknown_size)),
        ((), other_chunk),
        ((), other_chunk + b"LIST\x04\0\0\0tail"),
    ):
        events = hear(client, *PLAIN, *arguments, at.http, sound=sound)
        assert [event["text"] for event in of_type(events, "final")] == ["enter seven two five"]
        assert events[-1]["audio_s"] == pytest.approx(2.9, abs=0.01)


def test_it_keeps_the_pace_and_says_at_once_what_is_heard(client: Path, at: Running, speech: Speech) -> None:
    """The first final comes while the pipe is still open, with the sound after it not yet written."""
    with start(client, "-o", '"partials": false', at.http) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(speech[: round(2.9 * 16_000)].tobytes())
        process.stdin.flush()
        events = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert [event["type"] for event in events] == ["ready", "final"]
        process.stdin.close()
        assert json.loads(process.stdout.readline())["audio_s"] == 2.9
        assert process.wait(30) == 0


def test_refusals_are_printed_and_its_exit_code(client: Path, at: Running, speech: Speech) -> None:
    options = ("-f", "-o", '"endpoint": "never"')
    events = hear(client, *options, at.http, sound=speech.tobytes() * 4, code=1)
    assert [event["type"] for event in events] == ["error", "end"]
    assert "endpoint is 'never'" in events[0]["message"]


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (b"RIFF\0\0\0\0WAVE", "it has no sound"),
        (b"RIFF\0\0\0\0WAVEfmt \x02\0\0\0ab", "it has no sound"),
        (b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff", "it has no sound"),
        (b"RIFF\0\0\0\0WAVEdata\0\0\0\0", "neither 16-bit nor 32-bit float"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\0\0\1\0\0\0    \0\0\x10\0data", "it has no sound"),
        (b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\1\0\xff\xff\1\0\0\0    \0\0\x10\0data    ", "or too many"),
    ],
)
def test_a_damaged_file_is_one_sentence(client: Path, at: Running, sound: bytes, sentence: str) -> None:
    with start(client, at.http) as process:
        _, errors = process.communicate(sound, timeout=30)
        assert process.returncode == 1
    assert sentence in errors.decode()
    assert errors.count(b"\n") == 1


def test_wrong_arguments(client: Path, tmp_path: Path) -> None:
    for arguments, code, sentence in (
        ((), 2, "usage: client"),
        (("-x", "a.sock"), 2, "usage: client"),
        (("-r", "0", "a.sock"), 2, "usage: client"),
        ((str(tmp_path / "none.sock"),), 1, "No such file or directory"),
        (("x" * 200,), 1, "the path of a socket cannot be that long"),
        (("a.sock", str(tmp_path / "none.wav")), 1, "No such file or directory"),
    ):
        with start(client, *arguments) as process:
            _, errors = process.communicate(b"", timeout=30)
            assert process.returncode == code
        assert sentence in errors.decode()


def test_it_is_killed_in_mid_utterance(
    client: Path, at: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    with start(client, *PLAIN, at.http) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(speech[: round(1.5 * 16_000)].tobytes())
        process.stdin.flush()
        assert b"ready" in process.stdout.readline()
        process.kill()
    run(until(lambda: at.core.n_sessions == 0))
    events = hear(client, *PLAIN, at.http, sound=speech.tobytes())
    assert [comparable(event) for event in of_type(events, "final")] == finals


def test_a_server_that_vanishes_ends_it(client: Path, tmp_path: Path) -> None:
    path = Path(tempfile.mkdtemp(prefix="asr-")) / "a.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()
        server.settimeout(30)
        with start(client, "-f", str(path)) as process:
            assert process.stdin is not None
            process.stdin.write(bytes(4000))
            process.stdin.flush()
            connection = server.accept()[0]
            connection.recv(10)
            connection.close()
            assert process.wait(30) == 1
    shutil.rmtree(path.parent)
