"""`edge-asr serve`: what it refuses to start, and a real one that is stopped by a signal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edge_asr.audio import read_audio
from edge_asr.cli.main import cli

pytest.importorskip("uvicorn", reason="needs edge-asr[serve]")
TOKEN = "correct-horse-battery-staple"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ["--host", "0.0.0.0"],
            1,
            "others can reach 0.0.0.0, so clients need a token; give --token-file FILE",
        ),
        (["--host", "no.such.host.invalid"], 1, "the host 'no.such.host.invalid' is not known here"),
        (["--token", "short"], 1, "the token has 5 characters; give 16 or more"),
        (["--token", TOKEN, "--no-token"], 2, "--no-token and a token contradict each other"),
        (["--token", TOKEN, "--token-file", __file__], 2, "are two tokens; leave one out"),
        (["--token-file", __file__], 1, "it must hold the token alone"),
        (["--allow-origin", "*"], 1, "the origin is '*'; give a scheme and a host"),
        (["--tls-cert", __file__], 2, "--tls-cert and --tls-key belong together"),
        (["--tls-cert", __file__, "--tls-key", __file__], 1, "are no certificate with its key"),
        (["--max-rate", "0"], 2, "0.0 is not in the range x>0"),
        (["--http", "70000"], 2, "70000 is not in the range"),
        (["--riva", "-1"], 2, "-1 is not in the range"),
        (["--language", "english"], 2, "'english' is no code of a language; give one such as en or pt-BR"),
        (["--wyoming", "70000"], 2, "70000 is not in the range"),
        (
            ["--wyoming", "0", "--host", "0.0.0.0"],
            1,
            "others can reach 0.0.0.0, and clients of Wyoming cannot send a token; give --no-token to let",
        ),
        (
            ["--wyoming", "0", "--token", TOKEN],
            2,
            "clients of Wyoming cannot send a token; leave the token out",
        ),
        (["--zeroconf"], 2, "--zeroconf announces Wyoming; give --wyoming PORT too"),
        (["--wyoming", "0", "--zeroconf"], 1, "who cannot reach 127.0.0.1; give --host 0.0.0.0"),
        (["--max-sessions", "0"], 2, "0 is not in the range"),
        (["--max-seconds", "nan"], 2, "nan is not a finite number"),
        (["--grace", "-1"], 2, "-1.0 is not in the range"),
        (["--socket", "x" * 200], 1, "the path of the socket has 200 bytes"),
        (["--socket", __file__], 1, "is there and is no socket; choose another path"),
        (
            ["--socket", "a.sock", "--socket-mode", "888"],
            2,
            "'888' lets nobody in or is not octal; give 0600",
        ),
        (
            ["--socket", "a.sock", "--socket-mode", "066"],
            2,
            "'066' lets nobody in or is not octal; give 0600",
        ),
        (["--socket-mode", "0600"], 2, "--socket-mode is of the socket of --socket PATH; give that too"),
        (["--log", "xml"], 2, "'xml' is not one of 'json', 'text'"),
    ],
)
def test_what_does_not_start(arguments: list[str], code: int, sentence: str) -> None:
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert sentence in " ".join(result.output.split())
    assert result.exit_code == code


@pytest.mark.parametrize(
    ("module", "arguments", "extra"), [("uvicorn", [], "serve"), ("grpc", ["--riva", "0"], "riva")]
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, arguments: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = CliRunner().invoke(cli, ["serve", *arguments])
    assert result.exit_code == 1
    assert f"install it with: pip install 'edge-asr[{extra}]'" in result.output


@contextmanager
def serving(*arguments: str, token: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its address."""
    command = [sys.executable, "-m", "edge_asr", "serve", "--http", "0", *arguments]
    environment = {**os.environ, "EDGE_ASR_TOKEN": token} if token else dict(os.environ)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            found = re.search(r"at http://(\S+);", line)
            assert found, line + process.stderr.read()
            yield process, found[1]
        finally:
            if process.poll() is None:
                process.kill()


def test_a_signal_lets_the_last_final_out(sample_path: Path) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosedError

    speech = (read_audio(sample_path)[: round(4.5 * 16_000)] * 32767).astype(np.int16)

    async def work(process: subprocess.Popen[str], address: str) -> list[dict[str, Any]]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        events = []
        async with connect(f"ws://{address}/v1/listen", additional_headers=headers) as client:
            await client.send(speech.tobytes())
            while (event := json.loads(await client.recv()))["type"] != "end":
                events.append(event)
                if event["type"] == "final" and event["id"] == 0:
                    process.send_signal(signal.SIGTERM)
            assert event["reason"] == "draining"
            with pytest.raises(ConnectionClosedError, match="1012"):
                await client.recv()
        return events

    with serving("--log", "json", "--threads", "1", token=TOKEN) as (process, address):
        events = asyncio.run(asyncio.wait_for(work(process, address), 60))
        assert process.wait(20) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    first, second = [event["text"] for event in events if event["type"] == "final"]
    assert first == "enter seven two five"
    assert second.startswith("start rec")
    assert [line["message"] for line in lines] == ["session opened", "final", "final", "session closed"]
    assert "text" not in lines[1]
    assert lines[-1]["reason"] == "draining"


def test_the_log_has_what_was_said_only_if_asked(sample_path: Path) -> None:
    import httpx

    with serving("--log", "json", "--log-text") as (process, address):
        with sample_path.open("rb") as file:
            answer = httpx.post(
                f"http://{address}/v1/audio/transcriptions",
                files={"file": file},
                data={"stream": "true"},
                timeout=60,
            )
        assert "transcript.text.done" in answer.text
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert [line["text"] for line in lines if line["message"] == "final"][:1] == ["enter seven two five"]


WITHOUT_EXTRA = """
import sys
sys.modules.update(dict.fromkeys(("starlette", "uvicorn", "websockets", "prometheus_client")))
from edge_asr.cli.main import cli
cli()
"""


def test_the_socket_alone_needs_no_extra(sample_path: Path) -> None:
    speech = (read_audio(sample_path)[: round(2.9 * 16_000)] * 32767).astype(np.int16)
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        path = f"{folder}/a.sock"
        command = [sys.executable, "-c", WITHOUT_EXTRA, "serve", "--socket", path, "--socket-mode", "660"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert f"tiny-en at unix:{path}; Ctrl-C stops" in process.stderr.readline()
                assert Path(path).stat().st_mode & 0o777 == 0o660
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                    client.settimeout(60)
                    client.connect(path)
                    client.sendall(b'{"partials": false}\n' + speech.tobytes())
                    client.shutdown(socket.SHUT_WR)
                    with client.makefile("rb") as lines:
                        events = [json.loads(line) for line in lines]
                process.send_signal(signal.SIGTERM)
                assert process.wait(60) == 0
            finally:
                process.kill()
        assert not Path(path).exists()
    assert [event["type"] for event in events] == ["ready", "final", "end"]
    assert events[1]["text"] == "enter seven two five"


def test_wyoming_alone() -> None:
    from wyoming.client import AsyncClient
    from wyoming.info import Describe, Info

    async def describe(uri: str) -> Info:
        async with AsyncClient.from_uri(uri, read_timeout=30) as client:
            await client.write_event(Describe().event())
            event = await client.read_event()
            assert event is not None
            return Info.from_event(event)

    command = [sys.executable, "-m", "edge_asr", "serve", "--wyoming", "0", "--language", "pt-BR"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"tiny-en at (tcp://127.0.0.1:\d+); Ctrl-C stops", process.stderr.readline())
            assert found
            info = asyncio.run(asyncio.wait_for(describe(found[1]), 60))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert [model.languages for model in info.asr[0].models] == [["pt-BR"]]


def test_riva_alone() -> None:
    import grpc

    from edge_asr.serving.riva_messages import MESSAGES

    command = [sys.executable, "-m", "edge_asr", "serve", "--riva", "0", "--language", "pt-BR"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.search(r"tiny-en at grpc://(127.0.0.1:\d+); Ctrl-C stops", process.stderr.readline())
            assert found
            with grpc.insecure_channel(found[1]) as channel:
                describe = channel.unary_unary(
                    "/nvidia.riva.asr.RivaSpeechRecognition/GetRivaSpeechRecognitionConfig"
                )
                answer = MESSAGES.RivaSpeechRecognitionConfigResponse.FromString(describe(b"", timeout=60))
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert {entry.value for model in answer.model_config for entry in model.parameters} >= {"pt-BR", "online"}
