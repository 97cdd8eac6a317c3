#!/usr/bin/env python3
"""How many clients `edge-asr serve` can hear at once: latency to finals, processor time, memory.

    python scripts/bench_serve.py --clients 1,4,8 --seconds 30
    python scripts/bench_serve.py --bundle stream160 --manifest dev.jsonl --clients 1,2,4,8,16

For each number, a server of its own is started as a program. The clients speak over WebSocket at real-time
pace, in blocks of 20 ms, each with another clip first and a moment later than the one before. A latency is
the time from the end of the last word, as the final says it, to the arrival of that final; the clock of a
client's stream begins with its first block. "wait" is the part that end-pointing waits for a pause. Processor
time is that of the server's process, and of this one for the clients. Memory is read at the end of a run.
The exit code is 3 if a client lost sound, heard nothing or was refused; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.diagnostics.machine import Machine
from edge_asr.manifest import read_manifest

RATE = 16_000
BLOCK = RATE // 50
TAIL_S = 1.5
SAMPLE = Path(__file__).resolve().parents[1] / "edge_asr/models/samples/robot_commands.flac"
PACKAGES = ("edge-asr", "numpy", "onnxruntime", "uvicorn", "websockets")
Pcm = npt.NDArray[np.int16]


@dataclass
class Heard:
    """What came back to all clients of a run."""

    latencies_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    n_gaps: int = 0
    problems: list[str] = field(default_factory=list)


def main() -> int:
    """Measure, print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", default="tiny-en")
    parser.add_argument("--manifest", type=Path, help="speech; the default is the embedded sample")
    parser.add_argument("--clients", default="1,2,4", help="numbers of clients, with commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--endpoint", default="agent", choices=("command", "dictation", "agent"))
    parser.add_argument("--no-partials", action="store_true")
    arguments = parser.parse_args()
    clips = load_clips(arguments.manifest)
    query = f"endpoint={arguments.endpoint}&partials={str(not arguments.no_partials).lower()}"
    rows = [
        measure(int(n), clips, bundle=arguments.bundle, query=query, seconds=arguments.seconds)
        for n in arguments.clients.split(",")
    ]
    columns = (
        "clients",
        "finals",
        "p50",
        "p90",
        "p99",
        "wait p50",
        "server CPU",
        "client CPU",
        "memory",
        "gaps",
    )
    cells = tuple(
        (
            str(row["clients"]), str(row["finals"]), *(f"{row[name]:.3f}" for name in ("p50", "p90", "p99")),
            f"{row['wait_p50']:.3f}", f"{row['server_cpu']:.2f}", f"{row['client_cpu']:.2f}",
            f"{row['memory_mb']:.0f} MB", str(row["gaps"]),
        )
        for row in rows
    )  # fmt: skip
    print_table(
        Table(title="Seconds from the end of speech to the final", columns=columns, rows=cells),
        make_console(),
    )
    report = {
        "bench": "serve",
        "machine": describe_cpu(Machine()),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "bundle": str(arguments.bundle),
        "endpoint": arguments.endpoint,
        "partials": not arguments.no_partials,
        "seconds": arguments.seconds,
        "runs": rows,
    }
    print(json.dumps(report))
    return 3 if any(row["problems"] or row["gaps"] for row in rows) else 0


def load_clips(manifest: Path | None) -> list[Pcm]:
    """Read speech as 16-bit samples, each clip with silence behind it."""
    paths = [SAMPLE] if manifest is None else [u.audio_path for u in read_manifest(manifest).utterances]
    tail = np.zeros(round(TAIL_S * RATE), np.float32)
    return [(np.append(read_audio(path, RATE), tail) * 32767).astype(np.int16) for path in paths]


def measure(n_clients: int, clips: list[Pcm], *, bundle: str, query: str, seconds: float) -> dict[str, Any]:
    """Run so many clients on a server of their own."""
    with serving(bundle, n_clients) as address:
        heard = Heard()
        before, own_before = figures(address), time.process_time()
        began = time.monotonic()
        asyncio.run(speak_all(f"ws://{address}/v1/listen?{query}", n_clients, clips, seconds, heard))
        wall_s = time.monotonic() - began
        client_cpu = (time.process_time() - own_before) / wall_s
        after = figures(address)
    cpu = "process_cpu_seconds_total"
    if not heard.latencies_s:
        heard.problems.append("no client heard a final")
    p50, p90, p99 = np.percentile(heard.latencies_s or [float("nan")], [50, 90, 99]).tolist()
    return {
        "clients": n_clients,
        "finals": len(heard.latencies_s),
        "p50": round(p50, 4),
        "p90": round(p90, 4),
        "p99": round(p99, 4),
        "wait_p50": round(float(np.median(heard.waits_s or [0.0])), 4),
        "late_p99": round(float(np.percentile(heard.late_s or [0.0], 99)), 4),
        "server_cpu": round((after[cpu] - before[cpu]) / wall_s, 3),
        "client_cpu": round(client_cpu, 3),
        "memory_mb": round(after["process_resident_memory_bytes"] / 1e6, 1),
        "memory_idle_mb": round(before["process_resident_memory_bytes"] / 1e6, 1),
        "gaps": heard.n_gaps,
        "problems": heard.problems[:5],
    }


@contextmanager
def serving(bundle: str, n_sessions: int) -> Iterator[str]:
    """Start a server, and yield its address."""
    command = [sys.executable, "-m", "edge_asr", "serve", "-m", bundle, "--http", "0", "--log", "text"]
    command += ["--max-sessions", str(n_sessions)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"at http://(\S+);", process.stderr.readline())
        if found is None:
            sys.exit(f"the server did not start: {process.stderr.read()}")
        # Its log must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield found[1]
        finally:
            process.terminate()
            process.wait(30)
            drain.wait(30)


def figures(address: str) -> dict[str, float]:
    """Read the metrics without labels."""
    page = httpx.get(f"http://{address}/metrics").text
    return {s.name: s.value for family in text_string_to_metric_families(page) for s in family.samples}


async def speak_all(url: str, n_clients: int, clips: list[Pcm], seconds: float, heard: Heard) -> None:
    """Let all clients speak, a moment apart, so that their utterances do not end together."""
    await asyncio.gather(*(speak(url, i, n_clients, clips, seconds, heard) for i in range(n_clients)))


async def speak(url: str, index: int, n_clients: int, clips: list[Pcm], seconds: float, heard: Heard) -> None:
    """Send clips for some time as a microphone would, and note what comes back, and when."""
    await asyncio.sleep(3.0 * index / n_clients)
    own = clips[index % len(clips) :] + clips[: index % len(clips)]
    n_needed = round(seconds * RATE)
    speech = np.resize(np.concatenate(own), n_needed)
    speech[-round(TAIL_S * RATE) :] = 0
    try:
        async with connect(url) as client:
            await client.recv()  # ready
            began = time.monotonic()
            reading = asyncio.ensure_future(listen(client, began, heard))
            for start in range(0, len(speech), BLOCK):
                due = began + (start + BLOCK) / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                heard.late_s.append(time.monotonic() - due)
                await client.send(speech[start : start + BLOCK].tobytes())
            await client.send('{"type": "end"}')
            await reading
    except Exception as error:  # noqa: BLE001 - one client's failure is a result
        heard.problems.append(f"client {index}: {type(error).__name__}: {error}")


async def listen(client: Any, began: float, heard: Heard) -> None:
    """Note the finals and gaps of one client, until the server closes."""
    async for message in client:
        now, event = time.monotonic(), json.loads(message)
        if event["type"] == "final" and event["reason"] == "pause":
            heard.latencies_s.append(now - began - event["end_s"])
            heard.waits_s.append(event["endpoint_wait_s"])
        heard.n_gaps += event["type"] == "gap"
        if event["type"] == "error":
            heard.problems.append(event["message"])


if __name__ == "__main__":
    sys.exit(main())
