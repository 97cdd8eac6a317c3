"""The front door: help without imports, exit codes, one-line errors, logging."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import click
import pytest

from edge_asr import __version__
from edge_asr.cli import main as front_door
from edge_asr.errors import AudioError, DeviceError, GateError

HEAVY = (
    "numpy",
    "scipy",
    "torch",
    "onnx",
    "onnxruntime",
    "rich",
    "soundfile",
    "soxr",
    "sounddevice",
    "jiwer",
)


@pytest.mark.parametrize("arguments", [[], *([name] for name in front_door.COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from edge_asr.cli.main import cli\n"
        f"try: cli.main({[*arguments, '--help']!r})\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: edge-asr " + "".join(arguments))
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_lists_every_command_with_its_line(run) -> None:
    text = " ".join(run("--help").stdout.split())
    assert list(front_door.COMMANDS) == [
        "train",
        "export",
        "quantize",
        "build",
        "transcribe",
        "listen",
        "serve",
        "align",
        "bench",
        "evaluate",
        "grammar",
        "lm",
        "inspect",
        "doctor",
    ]
    for name, (_, line) in front_door.COMMANDS.items():
        assert f"{name} {line}" in text


@pytest.mark.parametrize("name", front_door.COMMANDS)
def test_each_module_has_a_command_with_a_help(name: str) -> None:
    command = importlib.import_module(front_door.COMMANDS[name][0]).command
    assert isinstance(command, click.Command)
    assert command.help


def test_version(run) -> None:
    assert run("--version").stdout.strip() == f"edge-asr, version {__version__}"


def test_unknown_command_is_usage_and_names_the_nearest(run) -> None:
    result = run("transcibe")
    assert result.exit_code == 2
    assert "Did you mean 'transcribe'?" in result.stderr
    assert run("frobnicate").exit_code == 2


@pytest.fixture
def failing(monkeypatch):
    """`failing(error)` makes `edge-asr doctor` raise it."""

    def install(error: BaseException) -> None:
        @click.command(name="doctor")
        def command() -> None:
            logging.getLogger("edge_asr.test").info("an info line")
            raise error

        module = SimpleNamespace(command=command)
        monkeypatch.setattr(importlib, "import_module", lambda name: module)

    return install


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AudioError("a.wav holds\nno sound; convert it"), 1),
        (DeviceError("no microphone"), 1),
        (GateError("max error 0.1 is above 1e-4"), 3),
        (KeyboardInterrupt(), 130),
        (click.UsageError("wrong"), 2),
        (FileNotFoundError(2, "No such file or directory", "x.yaml"), 1),
    ],
)
def test_errors_become_exit_codes_and_one_line(run, failing, error: BaseException, code: int) -> None:
    failing(error)
    result = run("doctor")
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code in (1, 3):
        assert result.stderr.startswith("edge-asr: ")
        assert len(result.stderr.splitlines()) == 1


def test_a_bug_keeps_its_traceback(run, failing) -> None:
    failing(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_verbosity(run, failing) -> None:
    failing(AudioError("bad"))
    assert "an info line" not in run("doctor").stderr
    assert "edge-asr: INFO: an info line" in run("-v", "doctor").stderr
    loud = run("-vv", "doctor").stderr
    assert re.search(r"DEBUG: traceback of the error below\nTraceback .*\nedge-asr: bad\n$", loud, re.DOTALL)


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_asr", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"edge-asr, version {__version__}"


ENDING = """
import atexit, sys
from edge_asr.cli import main as front_door

class Part:
    def __del__(self): print("taken apart", flush=True)

part = Part()

def work():
    atexit.register(print, "tidied")
    sys.stdout.write("done ")
    {end}

front_door.cli.main = work
front_door.main()
"""


@pytest.mark.parametrize(
    ("end", "code", "out"),
    [
        ("sys.exit(3)", 3, "done tidied\n"),
        ("sys.exit(0)", 0, "done tidied\n"),
        ("raise RuntimeError('a bug')", 1, "done tidied\ntaken apart\n"),
    ],
)
def test_a_process_ends_with_its_handlers_and_output_but_is_not_taken_apart(
    end: str, code: int, out: str
) -> None:
    done = subprocess.run([sys.executable, "-c", ENDING.format(end=end)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, out)
    assert ("RuntimeError: a bug" in done.stderr) is ("bug" in end)
