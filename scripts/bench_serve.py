#!/usr/bin/env python3
"""How many clients `edge-asr serve` can hear at once: latency to finals, processor time, memory.

    python scripts/bench_serve.py --clients 1,4,8 --seconds 30
    python scripts/bench_serve.py --protocol wyoming --clients 1,2,4,8,16,32 --stop-at 0.5
    python scripts/bench_serve.py --bundle stream160 --manifest dev.jsonl --clients 8 --seconds 600
    python scripts/bench_serve.py --peer bin/sherpa-onnx-online-websocket-server --clients 1,4,16

For each number, a server of its own is started as a program. The clients speak at real-time pace, in blocks
of 20 ms, each with another clip first and a moment later than the one before. A latency is the time from the
end of the last word to the arrival of its final; the clock of a client's stream begins with its first block.
Over WebSocket, the final says when its last word ended. Over Wyoming, which does not, each utterance is a
request of its own, with silence behind it until the answer comes, and its end is where the same model finds
it beforehand. "wait" is the part that end-pointing waits for a pause (over Wyoming, the pause asked for).
Processor time is that of the server's process, and of this one for the clients, in cores. Memory is what the
server has at the end of a run; "a session" is what it has grown by since before the first client, over their
number, and "slope" how fast it grows in the second half of a run (of a minute or more).
With `--peer`, sherpa-onnx's own server (PyPI: sherpa-onnx-bin, its libraries in sherpa-onnx-core) serves the
streaming graph of the bundle in INT8 to as many clients after each run. It counts frames of 40 ms and looks
after each chunk only, so its pause is given to it in its own time; a final of its answers the last utterance
that has ended before it comes.
The exit code is 3 if a client lost sound, heard nothing or was refused; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from websockets.asyncio.client import connect
from wyoming.asr import Transcribe
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncClient

from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.table import Table, make_console, print_table
from edge_asr.bundle.folder import Bundle
from edge_asr.diagnostics.machine import Machine
from edge_asr.manifest import read_manifest
from edge_asr.runtime import FileSource, Final, LiveRecognizer, Recognizer

RATE = 16_000
BLOCK = RATE // 50
TAIL_S = 1.5
GIVE_UP_S = 20
MEMORY_EVERY_S = 10.0
SAMPLE = Path(__file__).resolve().parents[1] / "edge_asr/models/samples/robot_commands.flac"
PACKAGES = ("edge-asr", "numpy", "onnxruntime", "uvicorn", "websockets", "wyoming")
PAUSES_S = {"aggressive": 0.3, "default": 0.7, "relaxed": 1.25}
ENDPOINT_PAUSES_S = {"agent": 0.2, "command": 0.4, "dictation": 1.0}
PEER_FRAME_S = 0.04
Pcm = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Utterance:
    """Sound, and the second of it at which its last word ends."""

    samples: Pcm
    end_s: float


@dataclass
class Heard:
    """What came back to all clients of a run."""

    latencies_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    n_gaps: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Server:
    """A server of this run: its process, and where it listens, as host:port."""

    pid: int
    http: str
    wyoming: str = ""

    def cpu_s(self) -> float:
        """Return the processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Return its resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


Serving = Callable[[int], AbstractContextManager[Server]]
SpeakOne = Callable[[Server, int, Heard], Coroutine[Any, Any, None]]


def main() -> int:
    """Measure, print the table and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", default="tiny-en")
    parser.add_argument("--manifest", type=Path, help="speech; the default is the embedded sample")
    parser.add_argument("--protocol", default="websocket", choices=("websocket", "wyoming"))
    parser.add_argument("--clients", default="1,2,4", help="numbers of clients, with commas")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--stop-at", type=float, metavar="SECONDS", help="end with the first p99 above this")
    parser.add_argument("--endpoint", default="agent", choices=("command", "dictation", "agent"))
    parser.add_argument("--no-partials", action="store_true", help="over WebSocket")
    parser.add_argument("--sensitivity", default="aggressive", choices=tuple(PAUSES_S), help="over Wyoming")
    parser.add_argument("--peer", type=Path, metavar="PROGRAM", help="sherpa-onnx-online-websocket-server")
    arguments = parser.parse_args()
    ours = choose_client(arguments), lambda n: serving(arguments.bundle, n)
    theirs = None if arguments.peer is None else choose_peer(arguments)
    rows: list[dict[str, Any]] = []
    peer_rows: list[dict[str, Any]] = []
    for n in map(int, arguments.clients.split(",")):
        rows.append(measure(n, *ours))
        if theirs is not None:
            peer_rows.append(measure(n, *theirs))
        if arguments.stop_at is not None and not rows[-1]["p99"] <= arguments.stop_at:
            break
    show("edge-asr", rows)
    if theirs is not None:
        show("sherpa-onnx", peer_rows)
    kept = [row["clients"] for row in rows if row["p99"] <= (arguments.stop_at or 0.5) and is_good(row)]
    pause = {"sensitivity": arguments.sensitivity}
    if arguments.protocol == "websocket":
        pause = {"endpoint": arguments.endpoint, "partials": not arguments.no_partials}
    report = {
        "bench": "serve",
        "machine": describe_cpu(Machine()),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "bundle": str(arguments.bundle),
        "protocol": arguments.protocol,
        **pause,
        "seconds": arguments.seconds,
        "p99_limit": arguments.stop_at or 0.5,
        "most_clients": max(kept, default=0),
        "runs": rows,
        "peer_runs": peer_rows,
    }
    print(json.dumps(report))
    return 0 if all(map(is_good, rows)) else 3


def choose_client(arguments: argparse.Namespace) -> SpeakOne:
    """Return what one client does, with the speech that it needs."""
    clips = load_clips(arguments.manifest)
    if arguments.protocol == "websocket":
        query = f"endpoint={arguments.endpoint}&partials={str(not arguments.no_partials).lower()}"

        def speak_one(server: Server, index: int, heard: Heard) -> Coroutine[Any, Any, None]:
            url = f"ws://{server.http}/v1/listen?{query}"
            return speak(url, turned(clips, index), arguments.seconds, heard)

        return speak_one
    utterances = [u for cut in find_utterances(clips, arguments.bundle) for _, u in cut]

    def ask_one(server: Server, index: int, heard: Heard) -> Coroutine[Any, Any, None]:
        own = turned(utterances, index)
        return ask(f"tcp://{server.wyoming}", own, arguments.sensitivity, arguments.seconds, heard)

    return ask_one


def choose_peer(arguments: argparse.Namespace) -> tuple[SpeakOne, Serving]:
    """Return what a client of sherpa-onnx does, and how its server is started."""
    clips = load_clips(arguments.manifest)
    ends = [[begin + u.end_s for begin, u in cut] for cut in find_utterances(clips, arguments.bundle)]
    pairs = list(zip(clips, ends, strict=True))
    pause_s = ENDPOINT_PAUSES_S[arguments.endpoint]

    def speak_one(server: Server, index: int, heard: Heard) -> Coroutine[Any, Any, None]:
        return speak_to_peer(f"ws://{server.http}", turned(pairs, index), arguments.seconds, heard)

    return speak_one, lambda n: serving_peer(arguments.peer, arguments.bundle, pause_s)


def is_good(row: dict[str, Any]) -> bool:
    """Return whether nothing went wrong in a run."""
    return not (row["problems"] or row["gaps"])


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    columns = (
        "clients", "finals", "p50", "p90", "p99", "wait p50", "server CPU", "client CPU", "memory",
        "a session", "slope", "gaps",
    )  # fmt: skip
    cells = tuple(
        (
            str(row["clients"]), str(row["finals"]), *(f"{row[name]:.3f}" for name in ("p50", "p90", "p99")),
            f"{row['wait_p50']:.3f}", f"{row['server_cpu']:.2f}", f"{row['client_cpu']:.2f}",
            f"{row['memory_mb']:.0f} MB", f"{row['session_mb']:.1f} MB",
            "-" if row["slope_mb_per_min"] is None else f"{row['slope_mb_per_min']:.2f} MB/min",
            str(row["gaps"]),
        )
        for row in rows
    )  # fmt: skip
    title = f"{name}: seconds from the end of speech to the final"
    print_table(Table(title=title, columns=columns, rows=cells), make_console())


def load_clips(manifest: Path | None) -> list[Pcm]:
    """Read speech as 16-bit samples, each clip with silence behind it."""
    paths = [SAMPLE] if manifest is None else [u.audio_path for u in read_manifest(manifest).utterances]
    tail = np.zeros(round(TAIL_S * RATE), np.float32)
    return [(np.append(read_audio(path, RATE), tail) * 32767).astype(np.int16) for path in paths]


def find_utterances(clips: list[Pcm], bundle: str) -> list[list[tuple[float, Utterance]]]:
    """Cut each clip into what the model takes for utterances; return where each begins, and itself."""
    found = []
    with Recognizer.load(bundle, num_threads=1) as recognizer:
        for clip in clips:
            with LiveRecognizer(recognizer, FileSource(clip, sample_rate=RATE, pace=0)) as live:
                finals = [event for event in live if isinstance(event, Final)]
            found.append([(final.segment_start_s, utterance_of(clip, final)) for final in finals])
    return found


def utterance_of(clip: Pcm, final: Final) -> Utterance:
    """Return the sound of a final."""
    samples = clip[final.segment_start_samples : final.segment_end_samples]
    return Utterance(samples, final.end_s - final.segment_start_s)


def turned(items: list[Any], index: int) -> list[Any]:
    """Return the items with another one first."""
    first = index % len(items)
    return items[first:] + items[:first]


def measure(n_clients: int, speak_one: SpeakOne, serve: Serving) -> dict[str, Any]:
    """Run so many clients on a server of their own."""
    with serve(n_clients) as server:
        heard = Heard()
        cpu_s, memory, own_s = server.cpu_s(), server.memory(), time.process_time()
        began = time.monotonic()
        sizes = asyncio.run(speak_all(server, n_clients, speak_one, heard))
        wall_s = time.monotonic() - began
        client_cpu = (time.process_time() - own_s) / wall_s
        server_cpu = (server.cpu_s() - cpu_s) / wall_s
        memory_at_end = server.memory()
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
        "server_cpu": round(server_cpu, 3),
        "client_cpu": round(client_cpu, 3),
        "memory_mb": round(memory_at_end / 1e6, 1),
        "memory_idle_mb": round(memory / 1e6, 1),
        "session_mb": round((memory_at_end - memory) / 1e6 / n_clients, 2),
        "slope_mb_per_min": slope(sizes),
        "gaps": heard.n_gaps,
        "problems": heard.problems[:5],
    }


def slope(sizes: list[tuple[float, float]]) -> float | None:
    """Return the megabytes a minute of a line through the second half of (seconds, bytes)."""
    late = sizes[len(sizes) // 2 :]
    if len(late) < 3:
        return None
    return round(60 * float(np.polyfit([at for at, _ in late], [size / 1e6 for _, size in late], 1)[0]), 3)


@contextmanager
def serving(bundle: str, n_sessions: int) -> Iterator[Server]:
    """Start a server, and yield where it listens."""
    command = [sys.executable, "-m", "edge_asr", "serve", "-m", bundle, "--log", "text"]
    # A Wyoming client asks anew while the session of its last answer may still be ending.
    command += ["--http", "0", "--wyoming", "0", "--max-sessions", str(2 * n_sessions)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"at http://(\S+), tcp://(\S+);", process.stderr.readline())
        if found is None:
            sys.exit(f"the server did not start: {process.stderr.read()}")
        # Its log must not fill the pipe.
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield Server(process.pid, found[1], found[2])
        finally:
            process.terminate()
            process.wait(30)
            drain.wait(30)


@contextmanager
def serving_peer(program: Path, bundle: str, pause_s: float) -> Iterator[Server]:
    """Start sherpa-onnx's server on the streaming graph of a bundle, and yield where it listens."""
    loaded = Bundle.load(bundle)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    features = loaded.info.features
    frame_s = loaded.info.subsampling_factor * features.hop_length / features.sample_rate
    graph = loaded.path / loaded.streaming.find("int8").file
    command = [
        str(program), f"--port={port}", f"--nemo-ctc-model={graph}",
        f"--tokens={loaded.path / 'tokens.txt'}", "--num-threads=1", "--enable-endpoint=true",
        f"--rule1-min-trailing-silence={60 * PEER_FRAME_S}",
        f"--rule2-min-trailing-silence={pause_s * PEER_FRAME_S / frame_s}",
        "--max-batch-size=64", f"--log-file={os.devnull}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        if not any("Listening on" in line for line in process.stderr):
            sys.exit(f"{program} did not start; its libraries belong into LD_LIBRARY_PATH")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
        try:
            yield Server(process.pid, f"127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait(30)
            drain.wait(30)


async def speak_all(
    server: Server, n_clients: int, speak_one: SpeakOne, heard: Heard
) -> list[tuple[float, float]]:
    """Let all clients speak, a moment apart, so that their utterances do not end together.

    Returns:
        The memory of the server in bytes at some seconds of the run.
    """
    sizes: list[tuple[float, float]] = []

    async def watch() -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(MEMORY_EVERY_S)
            sizes.append((time.monotonic() - began, server.memory()))

    async def begin(index: int) -> None:
        await asyncio.sleep(3.0 * index / n_clients)
        try:
            await speak_one(server, index, heard)
        except Exception as error:  # noqa: BLE001 - one client's failure is a result
            heard.problems.append(f"client {index}: {type(error).__name__}: {error}")

    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(begin(index) for index in range(n_clients)))
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return sizes


async def speak(url: str, clips: list[Pcm], seconds: float, heard: Heard) -> None:
    """Send clips over WebSocket for some time as a microphone would; note what comes back, and when."""
    speech = np.resize(np.concatenate(clips), round(seconds * RATE))
    speech[-round(TAIL_S * RATE) :] = 0
    async with connect(url) as client:
        await client.recv()  # ready
        began = time.monotonic()
        reading = asyncio.ensure_future(listen(client, began, heard))
        for start in range(0, len(speech), BLOCK):
            await sleep_until(began + (start + BLOCK) / RATE, heard)
            await client.send(speech[start : start + BLOCK].tobytes())
        await client.send('{"type": "end"}')
        await reading


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


async def speak_to_peer(url: str, pairs: list[tuple[Pcm, list[float]]], seconds: float, heard: Heard) -> None:
    """Send clips to sherpa-onnx's server, of each of which the ends of utterances are known."""
    begins = np.cumsum([0, *(len(clip) for clip, _ in pairs)]) / RATE
    ends = [begin + end for begin, (_, own) in zip(begins, pairs, strict=False) for end in own]
    ends = [end + turn * begins[-1] for turn in range(int(seconds / begins[-1]) + 1) for end in ends]
    speech = np.resize(np.concatenate([clip for clip, _ in pairs]), round(seconds * RATE))
    speech[-round(TAIL_S * RATE) :] = 0
    samples = speech.astype(np.float32) / 32768
    async with connect(url) as client:
        began = time.monotonic()
        reading = asyncio.ensure_future(listen_to_peer(client, began, ends, heard))
        for start in range(0, len(samples), BLOCK):
            await sleep_until(began + (start + BLOCK) / RATE, heard)
            await client.send(samples[start : start + BLOCK].tobytes())
        await client.send("Done")
        await reading


async def listen_to_peer(client: Any, began: float, ends: list[float], heard: Heard) -> None:
    """Note when the first final after the end of an utterance comes."""
    waiting = list(ends)
    async for message in client:
        at = time.monotonic() - began
        if message == "Done!":
            return
        event = json.loads(message)
        if event["is_final"] and not event["is_eof"] and event["text"]:
            over = [end for end in waiting if end <= at]
            if over:
                heard.latencies_s.append(at - over[-1])
                waiting = waiting[len(over) :]


async def ask(uri: str, utterances: list[Utterance], sensitivity: str, seconds: float, heard: Heard) -> None:
    """Speak one utterance after the other over Wyoming, each until its answer comes, as a satellite does."""
    until = time.monotonic() + seconds
    silence = bytes(2 * BLOCK)
    async with AsyncClient.from_uri(uri) as client:
        for utterance in itertools.cycle(utterances):
            if time.monotonic() > until:
                return
            await client.write_event(Transcribe(vad_sensitivity=sensitivity).event())
            await client.write_event(AudioStart(RATE, 2, 1).event())
            answering = asyncio.ensure_future(wait_for_answer(client, heard))
            began = time.monotonic()
            sound = utterance.samples.tobytes()
            for start in itertools.count(0, 2 * BLOCK):
                await sleep_until(began + (start // 2 + BLOCK) / RATE, heard)
                if answering.done():
                    break
                if start > len(sound) + 2 * RATE * GIVE_UP_S:
                    raise TimeoutError(f"no answer {GIVE_UP_S} s after the end of an utterance")
                block = (sound[start : start + 2 * BLOCK] + silence)[: 2 * BLOCK]
                await client.write_event(AudioChunk(RATE, 2, 1, audio=block).event())
            text, at = answering.result()
            # An answer before the end is one to a pause within the utterance; what follows it is not heard.
            if text and at - began >= utterance.end_s:
                heard.latencies_s.append(at - began - utterance.end_s)
                heard.waits_s.append(PAUSES_S[sensitivity])


async def wait_for_answer(client: AsyncClient, heard: Heard) -> tuple[str, float]:
    """Return the transcript, and when it came."""
    answer = ("", time.monotonic())
    while (event := await client.read_event()) is not None:
        if event.type == "error":
            heard.problems.append(event.data["text"])
            return answer
        if event.type == "transcript":
            answer = (event.data["text"], time.monotonic())
        if event.type == "transcript-stop":
            return answer
    raise ConnectionError("the server closed the connection")


async def sleep_until(due: float, heard: Heard) -> None:
    """Wait for the moment of a block, and note how late this client is."""
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    heard.late_s.append(time.monotonic() - due)


if __name__ == "__main__":
    sys.exit(main())
