"""The Unix-domain socket with plain sockets: what is heard and refused, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_clients import MakeServer, Running, Speech, comparable, is_near, of_type, run, texts, until

from edge_asr.errors import ConfigError
from edge_asr.serving.sessions import Sessions
from edge_asr.serving.unix_socket import MAX_PATH_BYTES, SocketFace, listen_at

PLAIN = b'{"partials": false}\n'


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short name; those of pytest can be longer than a socket's may be."""
    with tempfile.TemporaryDirectory(prefix="asr-") as name:
        yield Path(name)


def serving(
    make_server: MakeServer, path: Path, mode: int = 0o600, **limits: Any
) -> AbstractContextManager[Running]:
    def make_face(core: Sessions) -> SocketFace:
        return SocketFace(core, path=path, mode=mode)

    return make_server(make_face=make_face, **limits)


@pytest.fixture(scope="module")
def at(make_server: MakeServer, folder: Path) -> Iterator[Running]:
    with serving(make_server, folder / "module.sock") as running:
        yield running


def connect(running: Running) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(running.http.removeprefix("unix:"))
    client.settimeout(30)
    return client


def read(client: socket.socket) -> list[dict[str, Any]]:
    """All lines until the server closes."""
    with client.makefile("rb") as lines:
        return [json.loads(line) for line in lines]


def hear(running: Running, first: bytes, sound: bytes) -> list[dict[str, Any]]:
    """Send everything while another thread reads, as a pipe does."""
    with connect(running) as client:
        found: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: found.extend(read(client)))
        reader.start()
        client.sendall(first)
        client.sendall(sound)
        client.shutdown(socket.SHUT_WR)
        reader.join(60)
        return found


def test_a_session_hears_what_the_runtime_hears(
    at: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    events = hear(at, b"{}\n", speech.tobytes())
    assert (events[0]["type"], events[0]["sample_rate"]) == ("ready", 16_000)
    assert [comparable(event) for event in of_type(events, "final")] == finals
    assert of_type(events, "partial")
    assert events[-1] == {"type": "end", "reason": "end", "audio_s": round(len(speech) / 16_000, 3)}


def test_any_cutting_gives_the_same(at: Running, speech: Speech, finals: list[tuple[Any, ...]]) -> None:
    """A stream has no borders: options and samples may come in any pieces, and half a sample is no sound."""
    with connect(at) as client:
        data = b'{"partials": false, "type": "start"}\n' + speech.tobytes() + b"\x01"
        cuts = [0, 1, 20, 38, 41, *range(4097, len(data), 33_333), len(data)]
        for begin, end in pairwise(cuts):
            client.sendall(data[begin:end])
        client.shutdown(socket.SHUT_WR)
        events = read(client)
    assert [comparable(event) for event in of_type(events, "final")] == finals
    assert events[-1]["audio_s"] == round(len(speech) / 16_000, 3)


def test_options_of_the_first_line(at: Running, speech: Speech) -> None:
    stereo = np.repeat(np.stack([speech, speech], axis=1), 3, axis=0).astype(np.float32) / 32768
    options = {"sample_rate": 48_000, "channels": 2, "format": "f32le", "digits": True, "partials": False}
    events = hear(at, json.dumps(options).encode() + b"\n", stereo.tobytes())
    assert "725" in "".join(texts(events)).replace(" ", "")
    assert events[-1]["audio_s"] == pytest.approx(len(speech) / 16_000, abs=0.01)
    events = hear(at, b'{"grammar": "start recording", "partials": false}\n', speech.tobytes())
    found = [event["type"] for event in of_type(events, "final", "unmatched")]
    assert found == ["unmatched", "final", "unmatched"]


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (b"RIFF", "the first line must be options"),
        (b"\0\1\2\3", "the first line must be options"),
        (b"{]\n", "the first line is not valid JSON"),
        (b'{"a": 1}', "the first line has 8 bytes and no end"),
        (b"{" + b" " * (2 << 20), "bytes and no end; give the options and a line feed, in at most 1048576"),
        (b'{"type": "end"}\n', 'the type of the first line must be "start"'),
        (b'{"wish": 1}\n', "wish"),
        (b'{"sample_rate": 12}\n', "the sample rate is 12; give whole Hz"),
        (b'{"grammar": "go (on"}\n', "line 1"),
        (b'{"path": "/etc/passwd"}\n', "path"),
        (b"{}\nRIFFxxxxWAVE", "the sound begins like a file (RIFF); send raw samples"),
    ],
)
def test_a_client_that_still_writes_reads_why_it_is_refused(at: Running, first: bytes, sentence: str) -> None:
    more = b"" if first.endswith(b"}") else bytes(500_000)  # more than the kernel keeps
    events = hear(at, first, more)
    assert sentence in events[-2]["message"]
    assert (events[-2]["kind"], events[-1]["reason"]) == ("bad_request", "bad_request")
    run(until(lambda: at.core.n_sessions == 0))


def test_clients_that_are_killed_leave_nothing_and_disturb_nobody(
    at: Running, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    def kill_one(after: int) -> None:
        client = connect(at)
        client.sendall((b"{}\n" + speech.tobytes())[:after])
        client.close()

    found: list[dict[str, Any]] = []
    other = threading.Thread(target=lambda: found.extend(hear(at, PLAIN, speech.tobytes())))
    other.start()
    for after in (0, 1, 3, 4, 30_001, 90_000):
        kill_one(after)
    other.join(60)
    assert [comparable(event) for event in of_type(found, "final")] == finals
    run(until(lambda: at.core.n_sessions == 0))
    run(until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edge-asr-live")]))


def test_a_thousand_connections_leave_no_descriptor(at: Running) -> None:
    async def work() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            connect(at).close()
        await until(lambda: at.core.n_sessions == 0 and len(os.listdir("/proc/self/fd")) <= before)

    run(work())


def test_limits_end_a_session_with_its_finals(make_server: MakeServer, folder: Path, speech: Speech) -> None:
    said = PLAIN + speech[: round(2.0 * 16_000)].tobytes()
    with serving(make_server, folder / "idle.sock", idle_s=2.0, max_sessions=1) as running:
        with connect(running) as client:
            client.sendall(said)  # and nothing more: half-open
            with connect(running) as second:
                events = read(second)
            assert events[0]["message"] == "all 1 places for sessions are taken; try again later"
            assert events[-1] == {"type": "end", "reason": "busy", "audio_s": 0.0}
            events = read(client)
        assert texts(events) == ["enter seven two five"]
        assert events[-2]["message"] == "no sound came for 2 s"
        assert events[-1]["reason"] == "idle"
        run(until(lambda: running.core.n_sessions == 0))
        with connect(running) as client:  # says nothing at all
            events = read(client)
        assert events[-2]["message"] == "no line of options came for 2 s"
    with serving(make_server, folder / "long.sock", max_session_s=2.0) as running:
        events = hear(running, PLAIN, speech.tobytes())
        assert texts(events) == ["enter seven two five"]
        assert events[-1] == {"type": "end", "reason": "too_long", "audio_s": 2.0}


def test_sound_waits_for_room_or_is_a_gap(
    make_server: MakeServer, folder: Path, speech: Speech, finals: list[tuple[Any, ...]]
) -> None:
    with serving(make_server, folder / "room.sock", queue_s=1.0) as running:
        events = hear(running, PLAIN, np.concatenate([speech] * 3).tobytes())
        assert not of_type(events, "gap")
        assert texts(events) == 3 * [final[1] for final in finals]
        flood = np.concatenate([speech] * 8)
        events = hear(running, b'{"partials": false, "overflow": "drop"}\n', flood.tobytes())
        lost_s = sum(gap["lost_s"] for gap in of_type(events, "gap"))
        assert lost_s > 0
        assert lost_s + events[-1]["audio_s"] == pytest.approx(len(flood) / 16_000, abs=0.01)


def test_a_client_that_never_reads_is_dropped(make_server: MakeServer, folder: Path, speech: Speech) -> None:
    with serving(make_server, folder / "slow.sock", slow_reader_s=0.3) as running, connect(running) as client:
        client.settimeout(300)  # until so many events have come that the kernel keeps no more
        client.sendall(b"{}\n")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(speech.tobytes() * 500)
        run(until(lambda: running.core.n_sessions == 0))


def test_a_stopping_server_delivers_the_last_final(
    make_server: MakeServer, folder: Path, speech: Speech
) -> None:
    path = folder / "stop.sock"
    with serving(make_server, path) as running, connect(running) as client, connect(running) as silent:
        client.sendall(PLAIN + speech[: round(4.5 * 16_000)].tobytes())
        with client.makefile("rb") as lines:
            events = [json.loads(next(lines)), json.loads(next(lines))]
            running.stop()
            events += map(json.loads, lines)
        first, second = texts(events)
        assert first == "enter seven two five"
        assert is_near(second, "start recording")
        assert events[-2]["message"] == "the server is stopping"
        assert events[-1]["reason"] == "draining"
        assert [event["type"] for event in read(silent)] == ["error", "end"]
    assert running.is_clean is True
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_socket_has_its_mode_whatever_the_umask(folder: Path, mode: int) -> None:
    path = folder / f"{mode:o}.sock"
    before = os.umask(0)
    try:
        with listen_at(path, mode):
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(folder: Path) -> None:
    path = folder / "again.sock"
    with listen_at(path, 0o600), pytest.raises(ConfigError, match=r"another server listens at .*; stop it"):
        listen_at(path, 0o600)
    with listen_at(path, 0o600):  # the one before was closed and left its path behind
        assert path.is_socket()


def test_a_path_that_cannot_be_had_is_one_sentence(folder: Path) -> None:
    (folder / "file").write_text("precious")
    for path, sentence in (
        (folder / "file", "is there and is no socket; choose another path"),
        (folder / "none" / "a.sock", "No such file or directory; choose a path in a folder that is there"),
        (Path("/tmp") / ("x" * 200), f"has 205 bytes, and the system takes at most {MAX_PATH_BYTES}"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            listen_at(path, 0o600)
    assert (folder / "file").read_text() == "precious"


def test_another_socket_at_the_path_is_left_alone(make_server: MakeServer, folder: Path) -> None:
    path = folder / "taken.sock"
    with serving(make_server, path):
        path.unlink()
        with listen_at(path, 0o600):
            pass
    assert path.is_socket()


CODE = """
import sys
from edge_asr.serving.systemd import inherited_socket, notify
assert inherited_socket("/elsewhere") is None
opened = inherited_socket(sys.argv[1])
opened.settimeout(60)  # the test's process has made the socket one that does not wait
notify("READY=1")
opened.accept()[0].sendall(b"handed over")
"""


def test_a_socket_of_systemd_is_taken_over_and_told(folder: Path) -> None:
    path, told = folder / "handed.sock", folder / "notify.sock"
    with listen_at(path, 0o600) as opened, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(told))
        notices.settimeout(60)
        opened.settimeout(60)
        script = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{opened.fileno()}'
        command = ["bash", "-c", script, "bash", sys.executable, "-c", CODE, str(path)]
        environment = {**os.environ, "NOTIFY_SOCKET": str(told)}
        with subprocess.Popen(command, pass_fds=[opened.fileno()], env=environment) as process:
            assert notices.recv(100) == b"READY=1"
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(60)
                client.connect(str(path))
                assert client.recv(100) == b"handed over"
            assert process.wait(60) == 0
