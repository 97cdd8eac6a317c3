"""A real Ray cluster of several processes on this machine: kill what you like, every input gets one row.

2000 clips of half a second, one that is no sound, and one on which every worker kills itself (a stand-in for
what ends a process: its `open` is planted by sitecustomize). The driver is killed, then a worker of the
second run. It takes about two minutes and Ray, so it is run by scripts/test_integrations ray.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cluster_fakes import read_rows

from edge_asr.cluster.store import Row, Store
from edge_asr.runtime.bulk import transcribe_files
from edge_asr.runtime.recognizer import Recognizer

pytest.importorskip("ray", reason="needs edge-asr[ray]; scripts/test_integrations runs it")

N_CLIPS = 2000
POISON = "0007.wav"
ENOUGH_S = 600.0
PLANTED = f"""
import builtins, os, signal
plain = builtins.open
def opening(file, *arguments, **keywords):
    if str(file).endswith("/{POISON}"):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(file, *arguments, **keywords)
builtins.open = opening
"""


@dataclass
class Evidence:
    """What the two runs left, and what was seen of the second while it ran."""

    rows: list[Row]
    n_before: int
    said: str
    listening: set[str]
    reports_usage: set[str]
    left_running: list[str]
    left_in_home: list[str]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    starts = np.random.default_rng(5).integers(0, len(speech) - 16_000, N_CLIPS)
    for number, start in enumerate(starts):
        length = 4_000 + 4 * number  # 0.25 to 0.75 s
        soundfile.write(folder / f"{number:04d}.wav", speech[start : start + length], 16_000)
    (folder / "bad.wav").write_bytes(b"no sound at all")
    return folder


def descendants(pid: int) -> dict[int, str]:
    """All living processes below one, with their command lines."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = {}, [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found[child] = names[child]
            waiting.append(child)
    return found


def listening_addresses(pids: dict[int, str]) -> set[str]:
    """The IP addresses at which processes listen, as the kernel writes them."""
    inodes = set()
    for pid in pids:
        try:
            inodes |= {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                found.add(fields[1].split(":")[0])
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + ENOUGH_S
    while not condition():
        assert process.poll() is None, f"the run ended first: {process.communicate()[0][-2000:]}"
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def evidence(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "sitecustomize.py").write_text(PLANTED)
    (folder / "home").mkdir()
    output = folder / "out"
    command = [
        sys.executable,
        "-m",
        "edge_asr",
        "-v",
        "transcribe",
        "--manifest",
        str(clips),
        "-o",
        str(output),
    ]
    command += ["--shard-minutes", "1", "--workers", "2", "--ray", "local"]
    path = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    environment["RAY_memory_monitor_refresh_ms"] = "0"  # what else uses the memory is no concern of this test

    def n_shards() -> int:
        return len(list((output / "shards").glob("part-*"))) if (output / "shards").is_dir() else 0

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    process = start()
    try:
        wait_for(lambda: n_shards() >= 3, process)
        below = descendants(process.pid)
        process.kill()
        process.communicate(timeout=60)
        end = time.monotonic() + 120
        while left := [name for pid, name in below.items() if Path(f"/proc/{pid}").exists()]:
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        n_before = n_shards()

        process = start()
        wait_for(lambda: n_shards() > n_before, process)
        below = descendants(process.pid)
        listening = listening_addresses(below)
        usage = set()
        for pid in below:
            try:
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            usage |= {v.decode() for v in variables if v.startswith(b"RAY_USAGE_STATS_ENABLED=")} or {"unset"}
        workers = [pid for pid, name in below.items() if name.startswith("ray::ShardWorker")]
        os.kill(workers[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=ENOUGH_S)
        assert process.returncode == 1, said  # two rows have an error
    finally:
        process.kill()
    home = sorted(str(p.relative_to(folder / "home")) for p in (folder / "home").rglob("*") if p.is_file())
    return Evidence(
        rows=read_rows(Store(str(output), "parquet")),
        n_before=n_before,
        said=said,
        listening=listening,
        reports_usage=usage,
        left_running=left,
        left_in_home=[name for name in home if "edge-asr/self-test" not in name],
    )


def test_every_clip_has_one_row(evidence: Evidence, clips: Path) -> None:
    assert evidence.n_before >= 3
    assert "files are finished already" in evidence.said
    assert Counter(row["id"] for row in evidence.rows) == Counter(path.name for path in clips.iterdir())


def test_texts_are_those_of_transcribe(evidence: Evidence, clips: Path) -> None:
    paths = sorted(clips.glob("[0-9]*.wav"))
    found = {row["id"]: row for row in evidence.rows}
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        for result in transcribe_files(recognizer, paths, num_workers=2):
            name = paths[result.index].name
            assert result.transcript is not None
            if name != POISON:
                assert found[name]["text"] == result.transcript.text
                assert found[name]["error"] is None
    assert sum(bool(row["text"]) for row in evidence.rows) > N_CLIPS / 3


def test_what_kills_workers_and_what_is_no_sound_are_rows(evidence: Evidence) -> None:
    errors = {row["id"]: row["error"] for row in evidence.rows if row["error"]}
    assert set(errors) == {POISON, "bad.wav"}
    assert errors[POISON].startswith("the worker died on it, alone and again: ")
    assert "2 with an error" in evidence.said or "1 with an error" in evidence.said  # this run's alone
    assert "workers died: " in evidence.said


def test_nothing_is_left_and_nothing_is_told(evidence: Evidence) -> None:
    assert evidence.left_running == []  # of the driver that was killed
    assert evidence.left_in_home == []
    assert evidence.reports_usage == {"RAY_USAGE_STATS_ENABLED=0"}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1, and the same as IPv6
    assert evidence.listening
    assert evidence.listening <= loopback
