"""What a command line meets in the wild: odd names, full disks, closed streams, narrow encodings, Ctrl-C.

Each command runs in a process of its own, as users have it, on the embedded model.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ODD = os.fsdecode(b"caf\xe9.flac")  # Latin-1, as archives from elsewhere have it
EVIL = "a\n\x1b[31mb.flac"


@pytest.fixture
def folder(tmp_path: Path, sample_path: Path) -> Callable[..., Path]:
    """`folder(name, ...)`: a folder with the sample under each of these names."""

    def make(*names: str) -> Path:
        path = tmp_path / "sounds"
        path.mkdir()
        for name in names:
            shutil.copy(sample_path, path / name)
        return path

    return make


def edge_asr(*arguments: str | Path, shell: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The command; `shell` are redirections of a shell, such as "2>&-"."""
    command = [sys.executable, "-m", "edge_asr", *map(str, arguments)]
    if shell:
        command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.run(command, capture_output=True, timeout=120, **options)


# --- names ---


@pytest.mark.parametrize("name", [ODD, EVIL], ids=["not UTF-8", "newline and escape"])
def test_any_name_of_a_file_is_transcribed_and_shown_on_one_line(
    folder: Any, name: str, sample_text: str
) -> None:
    sounds = folder("a.flac", name)
    done = edge_asr("transcribe", sounds)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = {ODD: "caf\\xe9.flac", EVIL: "a\\n\\x1b[31mb.flac"}[name]
    assert sorted(done.stdout.decode().splitlines()) == sorted(
        f"{sounds}/{line}: {sample_text}" for line in ("a.flac", shown)
    )
    document = json.loads(edge_asr("transcribe", sounds, "--json").stdout.decode())
    assert {entry["file"] for entry in document["transcripts"]} == {f"{sounds}/a.flac", f"{sounds}/{name}"}


@pytest.mark.parametrize(
    "arguments", [("transcribe", f"none-{EVIL}"), ("inspect", EVIL), ("bench", "--audio", EVIL)]
)
def test_names_in_messages_do_not_reach_the_terminal_raw(arguments: tuple[str, ...]) -> None:
    done = edge_asr(*arguments)
    assert done.returncode in (1, 2)
    assert b"\x1b" not in done.stderr
    assert b"\\x1b[31mb.flac" in done.stderr


def test_log_lines_show_names_escaped(run: Any, folder: Any) -> None:
    import logging

    from edge_asr.cli import main

    record = logging.LogRecord("x", logging.INFO, __file__, 1, "reading %s", (EVIL,), None)
    main.configure_logging(1)
    (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, main._StderrHandler))
    assert handler.format(record) == "edge-asr: INFO: reading a\\n\\x1b[31mb.flac"


def test_a_name_that_is_too_long_does_not_stop_the_others(folder: Any, sample_text: str) -> None:
    sounds = folder("a.flac")
    done = edge_asr("transcribe", "x" * 300 + ".wav", sounds / "a.flac")
    assert (done.returncode, done.stdout.decode()) == (1, f"{sounds}/a.flac: {sample_text}\n")
    (line,) = done.stderr.decode().splitlines()
    assert line.endswith("File name too long")


def test_a_name_as_long_as_may_be_gets_its_transcript(folder: Any, tmp_path: Path, sample_text: str) -> None:
    longest, no_room = "x" * 250 + ".flac", "y" * 253
    sounds = folder("a.flac", longest, no_room)
    done = edge_asr("transcribe", sounds, sounds / no_room, "-o", tmp_path / "out")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()  # 253 and ".txt" are more than 255
    assert line.endswith("cannot be written: File name too long")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "x" * 250 + ".txt"]
    assert (tmp_path / "out" / ("x" * 250 + ".txt")).read_text() == sample_text + "\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("transcribe", ""),
        ("transcribe", "-m", "", "a.wav"),
        ("quantize", ""),
        ("inspect", "--feature-preset="),
    ],
)
def test_an_empty_name_is_not_the_current_folder(run: Any, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "is empty; leave it out or give a value" in result.stderr


def test_what_is_no_file_is_called_what_it_is(run: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to(tmp_path / "gone.wav")
    for name, words in (
        ("pipe.wav", "a pipe, socket or device"),
        ("link.wav", "a link to something that is not there"),
    ):
        result = run("transcribe", tmp_path / name)
        assert (result.exit_code, words in result.stderr) == (1, True)
    result = run("transcribe", tmp_path)  # a pipe is passed over, a link that lost its file is not
    assert [words in result.stderr for words in ("link.wav: a link to", "pipe.wav")] == [True, False]
    result = run("inspect", tmp_path / "pipe.wav")
    assert (result.exit_code, "it is a pipe, socket or device" in result.stderr) == (1, True)
    result = run("inspect", tmp_path / "link.wav")
    assert (result.exit_code, "no such folder" in result.stderr) == (1, True)


def test_a_folder_that_cannot_be_read_is_named(
    run: Any, folder: Any, monkeypatch: pytest.MonkeyPatch, sample_text: str
) -> None:
    """As for a user who is not root; root may read everything."""
    sounds = folder("a.flac")
    (sounds / "private").mkdir()
    real = os.scandir

    def scan(path: Any) -> Any:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scan)
    result = run("transcribe", sounds)
    assert (result.exit_code, result.stdout) == (1, f"{sounds}/a.flac: {sample_text}\n")
    assert result.stderr == f"edge-asr: {sounds}/private: this folder cannot be read: Permission denied\n"


# --- full disks ---


def limit_files(n_bytes: int) -> Callable[[], None]:
    """Writing more to a file fails with EFBIG, as it fails with ENOSPC on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def test_a_full_standard_output_is_one_line(folder: Any) -> None:
    sounds = folder("a.flac")
    for options in ((), ("--json",), ("--format", "srt")):
        done = edge_asr("transcribe", sounds / "a.flac", *options, shell=">/dev/full")
        assert done.returncode == 1
        assert done.stderr == b"edge-asr: standard output: No space left on device\n"


def test_a_full_disk_is_one_line_and_what_was_done_stays(folder: Any, tmp_path: Path) -> None:
    sounds, out = folder("b.flac", "c.flac"), tmp_path / "out"
    out.mkdir()
    (out / "a.txt").write_text("done before\n")
    done = edge_asr("transcribe", sounds, "-o", out, preexec_fn=limit_files(0))
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()  # one, though two could not be written
    assert f"{out}/b.txt cannot be written: File too large; 0 transcripts are written" in line
    assert [p.name for p in out.iterdir()] == ["a.txt"]


def test_a_full_disk_under_the_training_cache_is_one_line(tmp_path: Path, sample_path: Path) -> None:
    pytest.importorskip("torch")
    from edge_asr.errors import TrainingError
    from edge_asr.training.corpus import _write_cache

    clips = iter([np.zeros(100_000, np.int16)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(TrainingError, match=r"cannot be written \(File too large\); free some room"):
            _write_cache(clips, tmp_path / "index.json", tmp_path / "audio.i16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


# --- streams ---


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_a_daemon_without_standard_error_gets_its_text(folder: Any, closed: str, sample_text: str) -> None:
    done = edge_asr("transcribe", folder("a.flac") / "a.flac", shell=closed)
    assert (done.returncode, done.stdout.decode()) == (0, sample_text + "\n")


def test_a_closed_standard_input_or_output_is_one_line(folder: Any) -> None:
    sound = folder("a.flac") / "a.flac"
    done = edge_asr("transcribe", "-", shell="<&-")
    assert (done.returncode, done.stderr) == (
        1,
        b"edge-asr: -: standard input is closed; pipe a sound into it\n",
    )
    done = edge_asr("transcribe", sound, shell=">&-")
    assert (done.returncode, done.stderr) == (1, b"edge-asr: standard output: Bad file descriptor\n")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_output_that_cannot_have_every_character(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = edge_asr("inspect", "tiny-en", env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u2581" in done.stdout  # the mark of a word's beginning among the tokens
    done = edge_asr("inspect", "tiny-en", "--json", env=environment)
    assert any("\u2581" in token for token in json.loads(done.stdout.decode("ascii"))["tokens"])


# --- Ctrl-C ---

INTERRUPTED = """
import atexit, os, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
        if {module!r} == "the_end" and name == "edge_asr.runtime.recognizer":
            atexit.register(os.kill, os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["edge-asr", *{arguments!r}]
from edge_asr.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module",
    ["click", "edge_asr.cli.main", "edge_asr.cli.transcribe", "edge_asr.runtime.recognizer", "the_end"],
)
def test_control_c_at_any_moment_ends_without_a_traceback(sample_path: Path, module: str) -> None:
    code = INTERRUPTED.format(module=module, arguments=["transcribe", str(sample_path)])
    # A background job of a script starts its children with SIGINT ignored, these tests among them.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    done = subprocess.run([sys.executable, "-c", heard + code], capture_output=True, text=True)
    ended = -signal.SIGINT if module == "the_end" else 130  # a shell says 130 of both
    assert done.returncode == ended
    assert "Traceback" not in done.stderr
    assert "KeyboardInterrupt" not in done.stderr


def test_control_c_stays_ignored_where_it_was() -> None:
    """`nohup` and background jobs of a script."""
    code = INTERRUPTED.format(module="click", arguments=["--version"])
    ignore = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = subprocess.run([sys.executable, "-c", ignore + code], capture_output=True, text=True)
    assert (done.returncode, "version" in done.stdout) == (0, True)


# --- numbers without an end ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("transcribe", "--threads", "100000", "a.wav"), "1<=x<=1024"),
        (("bench", "--min-duration", "inf"), "0<=x<=3600"),
        (("bench", "--min-duration", "nan"), "nan is not a finite number"),
        (("listen", "--seconds", "inf"), "inf is not a finite number"),
        (("quantize", "x", "--calibration-minutes", "inf"), "inf is not a finite number"),
    ],
)
def test_numbers_that_would_never_end_are_usage_errors(
    run: Any, arguments: tuple[str, ...], words: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
