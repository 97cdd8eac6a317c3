#!/usr/bin/env python3
"""Soak of `edge-asr listen`: minutes or hours of a microphone, to see whether memory or latency grows.

    python scripts/soak_listen.py --minutes 30 --plot soak.png
    python scripts/soak_listen.py --speech an4_dev.jsonl --speech more.jsonl --noise noise.jsonl -- --vad

It starts a private sound server with a virtual microphone, runs `edge-asr listen --json` on it as a program
of its own, and plays speech, speech in noise, noise and silence in turns from a seeded plan. Every 5 s it
reads the resident memory and the open files of that program and of its recording process. Sound server,
PortAudio and time are real. Exit code 3 when a limit is passed; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "microphone"))
import listen_program as lp  # type: ignore[import-not-found, unused-ignore]
import virtual_microphone as vm  # type: ignore[import-not-found, unused-ignore]

from edge_asr.audio import read_audio
from edge_asr.manifest import read_manifest
from edge_asr.training.augment import add_noise
from edge_asr.training.noise import NoisePool, fit_length

RATE = 16_000
SAMPLE = Path(__file__).resolve().parents[1] / "edge_asr/models/samples/robot_commands.flac"
SHARES = {"speech": 0.5, "speech in noise": 0.2, "noise": 0.2, "silence": 0.1}
#: Silence around what is played in a turn, so that its finals come before the next turn begins.
BEFORE, AFTER = np.zeros(round(0.4 * RATE), np.float32), np.zeros(round(1.6 * RATE), np.float32)
Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may do at most, and the share of it after which memory is judged.

    The slope of memory is the median of those between any two samples (Theil and Sen): the step that
    onnxruntime's memory takes for an utterance longer than all before does not count, growth that goes on
    does.
    """

    warm_up: float = 0.2
    memory_kb_min: float = 17.0  # 1 MB an hour
    memory_mb: float = 16.0  # from the warm-up to the end, steps included
    latency_growth_s: float = 0.1
    missed: float = 0.02  # share of the turns with speech that got no final


@dataclass(kw_only=True)
class Run:
    """What was seen. All times are seconds since listening began."""

    memory: list[tuple[float, int, int, int]] = field(default_factory=list)  # at, KB, KB recording, files
    turns: list[tuple[float, str]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)  # those after a pause
    gaps: int = 0
    seconds: float = 0.0
    summary: str = ""


class TimedProgram(lp.Program):  # type: ignore[misc, unused-ignore]
    """The program, with the time at which each event came."""

    def _read_output(self) -> None:
        self.events: list[tuple[float, dict[str, Any]]] = []
        for line in self.process.stdout:
            self.events.append((time.monotonic(), json.loads(line)))


def plan(clips: list[Path], noises: list[Path], seed: int) -> Iterator[tuple[str, Waveform]]:
    """Turn after turn, without end: its kind and its sound. The first is speech."""
    rng = np.random.default_rng(seed)
    pool = NoisePool(RATE, seed)
    kind = "speech"
    while True:
        sound = np.zeros(round(rng.uniform(3, 10) * RATE), np.float32)
        if kind.startswith("speech"):
            sound = read_audio(clips[int(rng.integers(len(clips)))], RATE)
        if kind.endswith("noise"):
            noise = pool.cut(str(rng.choice(["white", "pink"])), len(sound), rng)
            if noises and rng.random() < 0.5:
                noise = read_audio(noises[int(rng.integers(len(noises)))], RATE)
                noise = fit_length(noise, len(sound), rng)
            scale = 10 ** (rng.uniform(-50, -25) / 20) / max(float(np.sqrt(np.mean(noise**2))), 1e-6)
            sound = noise * scale if kind == "noise" else add_noise(sound, noise, rng.uniform(10, 20))
        yield kind, np.clip(sound, -1, 1).astype(np.float32)
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))


def read_memory(pid: int) -> tuple[int, int, int]:
    """KB resident in a process and in its descendants, and how many files all of them have open."""
    process = Path(f"/proc/{pid}")
    own = int((process / "status").read_text().split("VmRSS:")[1].split()[0])
    below, n_files = 0, len(list((process / "fd").iterdir()))
    for child in " ".join(path.read_text() for path in process.glob("task/*/children")).split():
        kb, kb_below, n = read_memory(int(child))
        below, n_files = below + kb + kb_below, n_files + n
    return own, below, n_files


def soak(
    seconds: float, turns: Iterator[tuple[str, Waveform]], options: list[str], every_s: float = 5.0
) -> Run:
    """Play turns for so long, and watch."""
    run, done = Run(), threading.Event()

    def watch() -> None:
        while not run.memory or not done.wait(every_s):
            run.memory.append((time.monotonic() - began, *read_memory(program.process.pid)))

    with tempfile.TemporaryDirectory(prefix="edge-asr-soak-") as name:
        turn = Path(name) / "turn.wav"
        with vm.VirtualMicrophone(turn.parent, 48_000).running() as microphone:
            program = TimedProgram(microphone, "--json", "--threads", "1", *options)
            program.wait_for("listening to")
            began = time.monotonic()
            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                while time.monotonic() - began < seconds:
                    kind, sound = next(turns)
                    soundfile.write(turn, np.concatenate([BEFORE, sound, AFTER]), RATE, subtype="PCM_16")
                    run.turns.append((time.monotonic() - began, kind))
                    microphone.play(turn)
            finally:
                done.set()
                watcher.join()
                run.seconds = time.monotonic() - began
                code, _, messages = program.interrupt()
    run.summary = messages.strip().splitlines()[-1]
    if code != 130:
        raise SystemExit(f"listen ended with {code} after {run.seconds:.0f} s: {messages}")
    lost_s = 0.0
    for at, event in program.events:
        if event["type"] == "gap":
            run.gaps, lost_s = run.gaps + 1, lost_s + event["lost_s"]
        elif event["type"] == "final" and event["reason"] == "pause":
            decided_s = event["segment_end_s"] + lost_s + event["endpoint_wait_s"]
            behind_s = at - began - decided_s - event["compute_s"]
            run.finals.append({**event, "at": at - began, "behind_s": behind_s})
    # Sound that waits in a queue delays a final by more than the two times it states. The stream began some
    # moments before it was seen to, so this counts from the soonest tenth (a cut at a blank seems sooner).
    soonest_s = float(np.percentile([final["behind_s"] for final in run.finals] or [0.0], 10))
    for final in run.finals:
        final["behind_s"] = max(0.0, final["behind_s"] - soonest_s)
        final["latency_s"] = final["endpoint_wait_s"] + final["compute_s"] + final["behind_s"]
    return run


def judge(run: Run, limits: Limits) -> tuple[dict[str, Any], list[str]]:
    """The figures, and a sentence for each limit that was passed."""
    settled = [row for row in run.memory if row[0] >= limits.warm_up * run.seconds]
    at, own, recording, files = np.array(settled, float).T
    some = slice(None, None, len(at) // 1000 + 1)
    slopes = [float(theilslopes(kb[some], at[some] / 60).slope) for kb in (own + recording, recording)]
    growth_mb = float(own[-1] + recording[-1] - own[0] - recording[0]) / 1024
    tenths: list[list[float]] = [[] for _ in range(10)]
    heard = [0] * len(run.turns)
    for final in run.finals:
        tenths[min(9, int(10 * final["at"] / run.seconds))].append(final["latency_s"])
        spoken_at = final["at"] - final["latency_s"]
        heard[max(0, sum(start < spoken_at for start, _ in run.turns) - 1)] += 1
    medians = [round(float(np.median(tenth)), 3) if tenth else None for tenth in tenths]
    known = [median for median in medians if median is not None] or [0.0]
    growth_s = float(np.mean(known[-3:]) - np.mean(known[:3]))
    kinds = [kind for _, kind in run.turns]
    spoken = [n for n, kind in zip(heard, kinds, strict=True) if kind.startswith("speech")]
    missed = spoken.count(0)
    found = {
        "seconds": round(run.seconds, 1),
        "memory_kb_min": round(slopes[0], 2),
        "recording_kb_min": round(slopes[1], 2),
        "memory_mb": [round(float(kb) / 1024, 1) for kb in (own + recording)[[0, -1]]],
        "open_files": [int(files[0]), int(files[-1])],
        "latency_s": medians,
        "latency_growth_s": round(growth_s, 3),
        "turns": {kind: kinds.count(kind) for kind in SHARES},
        "missed": missed,
        "finals": len(run.finals),
        "finals_of_noise": sum(heard) - sum(spoken),
        "gaps": run.gaps,
        "summary": run.summary,
    }
    bounds = (
        (slopes[0], limits.memory_kb_min, "KB of memory more each minute"),
        (growth_mb, limits.memory_mb, "MB of memory more at the end"),
        (growth_s, limits.latency_growth_s, "seconds of latency more"),
        (run.gaps, 0, "gaps"),
        (missed / max(1, len(spoken)), limits.missed, "of the turns with speech, as a share, got no final"),
        (files[-1] - files[0], 0, "files more open"),
    )
    return found, [f"{value:.4g} {what}, at most {most:g}" for value, most, what in bounds if value > most]


def draw(run: Run, found: dict[str, Any], path: Path) -> None:
    """Plot memory and latency over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    at, own, recording, _ = np.array(run.memory, float).T
    for name, kb in (("both", own + recording), ("listen", own), ("its recording process", recording)):
        above.plot(at / 60, kb / 1024, label=name, linewidth=1)
    above.set_ylabel("resident memory, MB")
    above.set_title(f"{found['memory_kb_min']:.1f} KB a minute after the warm-up", fontsize=9)
    latencies = [(final["at"] / 60, final["latency_s"]) for final in run.finals]
    below.plot(*np.array(latencies).T, ".", markersize=2, label="a final")
    medians = [median or np.nan for median in found["latency_s"]]
    below.step(
        np.arange(11) * run.seconds / 600, [*medians, medians[-1]], where="post", label="median of a tenth"
    )
    below.set_ylabel("end of speech to final, s")
    below.set_xlabel("minutes")
    for axes in (above, below):
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> int:
    """Run, plot, print the figures and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--speech", type=Path, action="append", help="manifest; default: the embedded sample")
    parser.add_argument("--noise", type=Path, help="manifest of recordings, beside white and pink noise")
    parser.add_argument("--seed", type=int, default=0, help="of the plan")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    parser.add_argument("--keep", type=Path, help="JSON to write: every sample of memory and every final")
    parser.add_argument("options", nargs="*", help="options of listen, after --")
    arguments = parser.parse_args()
    if missing := vm.missing_tools():
        raise SystemExit(f"the virtual microphone needs {', '.join(missing)}: apt install {vm.PACKAGES}")
    clips = [u.audio_path for path in arguments.speech or () for u in read_manifest(path).utterances]
    noises: list[Path] = []
    if arguments.noise:
        rows = [json.loads(line) for line in arguments.noise.read_text(encoding="utf-8").splitlines()]
        noises = [arguments.noise.parent / row["audio_filepath"] for row in rows]
    turns = plan(clips or [SAMPLE], noises, arguments.seed)
    run = soak(60 * arguments.minutes, turns, arguments.options)
    if arguments.keep:
        arguments.keep.write_text(json.dumps(vars(run)), encoding="utf-8")
    found, failures = judge(run, Limits())
    if arguments.plot:
        draw(run, found, arguments.plot)
    print(*(f"{name:20} {value}" for name, value in found.items()), sep="\n")
    print(*([f"FAIL {failure}" for failure in failures] or ["ok"]), sep="\n")
    print(json.dumps({**found, "ok": not failures, "failures": failures}))
    return 3 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
