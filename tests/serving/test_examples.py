"""The clients of examples/serve, as their users run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving_clients import MakeServer, Running, is_near

from edge_asr.serving.wyoming_face import WyomingFace


def run_example(repository: Path, name: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(repository / "examples" / "serve" / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_websocket_client(server: Running, repository: Path, sample_path: Path) -> None:
    lines = run_example(repository, "websocket_client.py", str(sample_path), server.ws, "20")
    finals = [line for line in lines if not line.startswith("...")]
    assert len(finals) >= 3
    assert finals[0].split()[2] == "enter"


def test_openai_client(server: Running, repository: Path, sample_path: Path) -> None:
    *words, text = run_example(repository, "openai_client.py", str(sample_path), server.http)
    assert [line.split()[-1] for line in words][:2] == ["enter", "725"]
    assert is_near(text, "enter seven two five start recording go three meters and stop")


def test_wyoming_client(make_server: MakeServer, repository: Path, sample_path: Path) -> None:
    with make_server(make_face=lambda core: WyomingFace(core, host="127.0.0.1", port=0)) as running:
        lines = run_example(repository, "wyoming_client.py", str(sample_path), running.http, "Anna's lamp")
    assert lines[0] == "model: tiny-en"
    assert lines[1].startswith("... enter")
    assert is_near(lines[-1], "enter seven two five")  # the first sentence, as it was over
