#!/usr/bin/env python3
"""Live recognition beside sherpa-onnx's online recognizer: the same clips, chunk and weights, in one run.

Both run on one thread and take turns clip by clip, in rotating order. First as fast as they go, for compute
by the processor's time, words that change from one partial to the next, and WER. "chunk" is what both do:
the steps that a chunk completes. "update" is what `listen` does for a partial: a chunk, or the unfinished
part of a long one. Then at real-time pace (not with --fast), for latencies on the clock, against the borders
of words by forced alignment with the offline model, and the processor's time of the process as a share of it.
Both end an utterance after the same pause. Our final is the offline model on the whole utterance, which runs
in the pause; "final, live" is what is computed from the block that ends the pause to the final. That of
sherpa-onnx is its text when it finds the pause, so it costs the last chunk. Of the files of the bundles in
one precision, the one with which sherpa-onnx is fastest counts.

    edge-asr export tiny-en -o kv160 --chunk-ms 160 --precision int8
    edge-asr export tiny-en -o nemo160 --chunk-ms 160 --stream-layout nemo
    python scripts/bench_live.py --bundle kv160 nemo160 --manifest dev.jsonl --manifest more.jsonl

Our runtime takes the first bundle of each --bundle, sherpa-onnx any. The exit code is 3 when a goal is
missed or sherpa-onnx is ahead in a row; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_partials import count_changed
from peers.live import Clip, Contender, EdgeAsr, Heard, SherpaOnnx

from edge_asr.audio import STREAM_SAMPLE_RATE as RATE
from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.table import Table, make_console, print_lines, print_table
from edge_asr.benchmark.timing import restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import Bundle
from edge_asr.diagnostics.machine import Machine
from edge_asr.manifest import read_manifest
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer

PACKAGES = ("edge-asr", "numpy", "onnxruntime", "sherpa-onnx")
LEAD_S, TAIL_S, NOISE_DBFS = 0.5, 2.0, -75.0
#: In milliseconds at p50, p90 and p99, those of each mode.
TIMES = (
    ("chunk", "update", "final"),
    ("first partial", "word emission", "end to final", "wait", "final, live"),
)
#: (measure, percentile): most milliseconds, in INT8 with chunks of 160 ms.
GOALS = {("chunk", "p99"): 8.0, ("update", "p99"): 8.0, ("final, live", "p90"): 15.0}


def main() -> int:
    """Measure, print tables and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bundle", type=Path, nargs="+", action="append", required=True)
    parser.add_argument("--manifest", type=Path, action="append", required=True)
    parser.add_argument("--clips", type=int, default=12, help="at most, in equal parts of each manifest")
    parser.add_argument("--max-seconds", type=float, default=6.0, help="of a clip")
    parser.add_argument("--precision", default="fp32,int8")
    parser.add_argument("--pause", type=float, default=0.6, help="seconds that end an utterance")
    parser.add_argument("--interval", type=float, default=0.3, help="from a chunk to a partial after it")
    parser.add_argument("--fast", action="store_true", help="no latencies")
    arguments = parser.parse_args()
    restart_with_threads(1)
    clips = load_clips(arguments.manifest, arguments.clips, arguments.max_seconds, arguments.bundle[0][0])
    if not clips:
        parser.error(f"no clip of at most {arguments.max_seconds:g} s in --manifest; raise --max-seconds")
    report: dict[str, Any] = {
        "bench": "live",
        "machine": describe_cpu(Machine()),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "clips": len(clips),
        "speech_s": round(sum(len(c.samples) / RATE - LEAD_S - TAIL_S for c in clips), 1),
        "pause_s": arguments.pause,
        "interval_s": arguments.interval,
        "rows": [],
    }
    for bundles in arguments.bundle:
        for precision in arguments.precision.split(","):
            report["rows"] += compare(bundles, precision, clips, arguments)
    report["missed"] = find_missed(report["rows"])
    print_tables(report)
    print(json.dumps(report))
    return 3 if report["missed"] else 0


def load_clips(manifests: list[Path], n_clips: int, max_s: float, model: Path) -> list[Clip]:
    """The first short clips of each manifest, with the borders of their words."""
    rng, clips, each = np.random.default_rng(0), [], math.ceil(n_clips / len(manifests))
    with Recognizer.load(model, precision="fp32", num_threads=1) as recognizer:
        for manifest in manifests:
            short = (u for u in read_manifest(manifest).utterances if u.text and (u.duration_s or 0) <= max_s)
            for utterance, _ in zip(short, range(each), strict=False):
                speech = read_audio(utterance.audio_path, RATE)
                lead, tail = round(LEAD_S * RATE), round(TAIL_S * RATE)
                samples = rng.standard_normal(lead + len(speech) + tail, np.float32)
                samples *= np.float32(10 ** (NOISE_DBFS / 20))
                samples[lead : lead + len(speech)] += speech
                words = recognizer.align(speech, RATE, utterance.text).words
                ends = tuple(None if w.end_s is None else w.end_s + LEAD_S for w in words)
                begins = [w.start_s + LEAD_S for w in words if w.start_s is not None]
                if begins:
                    end_s = max(end for end in ends if end is not None)
                    clips.append(Clip(samples, utterance.text, begins[0], end_s, ends))
    return clips[:n_clips]


def compare(
    bundles: list[Path], precision: str, clips: list[Clip], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """The rows of one chunk and precision."""
    with ExitStack() as stack:
        recognizer = Recognizer.load(bundles[0], precision=precision, backend="cpu", num_threads=1)
        stack.enter_context(recognizer)
        model = recognizer.streaming_model()
        if model.precision != precision:
            sys.exit(f"{bundles[0]} has no stream in {precision}; export it with --precision {precision}")
        chunk_s = model.geometry.chunk_frames * model.geometry.frame_ms / 1e3
        contenders: list[Contender] = [EdgeAsr(recognizer, arguments.pause, arguments.interval)]
        for path in bundles:
            streaming = Bundle.load(path).streaming
            file = path / streaming.find(precision).file
            if streaming.find(precision).precision == precision:
                name = f"{file.name}, {streaming.geometry.layout}"
                contenders.append(SherpaOnnx(name, file, path / "tokens.txt", arguments.pause))
        about = {"chunk_ms": round(1e3 * chunk_s), "precision": precision}
        show(f"{about['chunk_ms']} ms, {precision}: as fast as they go")
        for contender in contenders:
            contender.follow(clips[0], round(chunk_s * RATE))
        runs = {
            c.name: map(partial(c.follow, step=round(chunk_s * RATE)), clips).__next__ for c in contenders
        }
        heard = take_turns(runs, rounds(len(clips)))
        ours, *peers = contenders
        peer = min(peers, key=lambda c: float(np.median(gather(heard[c.name], "chunk"))))
        about["file"] = peer.name
        rows = make_rows(about, TIMES[0], heard[ours.name], heard[peer.name])
        for name, rate in (("revision %", revision), ("WER %", partial(word_error_rate, clips=clips))):
            rows.append(rate_row(about, name, rate(heard[ours.name]), rate(heard[peer.name])))
        if not arguments.fast:
            show(f"{about['chunk_ms']} ms, {precision}: at real-time pace, sherpa-onnx on {peer.name}")
            live = take_turns(
                {c.name: map(c.listen, clips).__next__ for c in (ours, peer)}, rounds(len(clips))
            )
            for pair in zip(live[ours.name], live[peer.name], strict=True):
                for one in pair:  # the words that both had right
                    both = (one.word_s[place] for place in pair[0].word_s if place in pair[1].word_s)
                    one.seconds["word emission"] = list(both)
            rows += make_rows(about, TIMES[1], live[ours.name], live[peer.name])
            for name, rate in (("CPU %", cpu), ("WER, live %", partial(word_error_rate, clips=clips))):
                rows.append(rate_row(about, name, rate(live[ours.name]), rate(live[peer.name])))
    return rows


def gather(heard: list[Heard], measure: str) -> list[float]:
    """All times of a measure, seconds."""
    return [seconds for one in heard for seconds in one.seconds.get(measure, ())]


def make_rows(
    about: dict[str, Any], measures: tuple[str, ...], ours: list[Heard], peer: list[Heard]
) -> list[dict[str, Any]]:
    """Rows of times. The ratio of compute is the median of those by clip, of the means of both; that of the
    others is of their medians, because a latency of a single clip may be 0, or less by the error of a border.
    """
    rows = []
    for measure in measures:
        row: dict[str, Any] = {**about, "measure": measure}
        for side, heard in (("ours", ours), ("peer", peer)):
            found = gather(heard, measure)
            points = np.percentile(np.array(found) * 1e3, (50, 90, 99)).tolist() if found else ()
            named = zip(("p50", "p90", "p99"), points, strict=False)
            row[side] = {**{name: round(point, 2) for name, point in named}, "n": len(found)}
        medians = [row[side].get("p50", 0.0) for side in ("ours", "peer")]
        ratio = medians[0] / medians[1] if medians[1] > 0 else None
        if measure in TIMES[0]:
            pairs = [[h.seconds.get(measure) for h in pair] for pair in zip(ours, peer, strict=True)]
            ratio = float(np.median([np.mean(a) / np.mean(b) for a, b in pairs if a and b]))
        rows.append({**row, "ratio": None if ratio is None else round(ratio, 3)})
    return rows


def rate_row(about: dict[str, Any], measure: str, ours: float, peer: float) -> dict[str, Any]:
    """A row of two percentages."""
    sides = {"ours": {"value": round(100 * ours, 2)}, "peer": {"value": round(100 * peer, 2)}}
    ratio = round(ours / peer, 3) if peer else None if ours else 1.0
    return {**about, "measure": measure, "ratio": ratio, **sides}


def revision(heard: list[Heard]) -> float:
    """Of the words of one partial, the share that the next one replaces or takes back."""
    n_shown, n_changed = np.sum([count_changed(one.partials) for one in heard], axis=0).tolist()
    return float(n_changed / max(n_shown, 1))


def word_error_rate(heard: list[Heard], clips: list[Clip]) -> float:
    """WER of the finals."""
    return compute_error_rates([clip.text for clip in clips], [one.text for one in heard]).wer


def cpu(heard: list[Heard]) -> float:
    """Processor time of the process over time on the clock."""
    return sum(one.cpu_s for one in heard) / sum(one.wall_s for one in heard)


def find_missed(rows: list[dict[str, Any]]) -> list[str]:
    """Mark each row, ahead at every percentile or behind, and describe the goals that were missed."""
    missed = []
    for row in rows:
        what = f"{row['chunk_ms']} ms, {row['precision']}, {row['measure']}"
        theirs = [(name, value) for name, value in row["peer"].items() if name != "n"]
        row["ok"] = all(row["ours"].get(name, math.inf) <= value for name, value in theirs)
        if not row["ok"]:
            missed.append(f"{what}: behind")
        for (measure, point), most in GOALS.items():
            applies = (row["measure"], row["precision"], row["chunk_ms"]) == (measure, "int8", 160)
            if applies and row["ours"].get(point, math.inf) > most:
                missed.append(f"{what} {point}: {row['ours'].get(point)} ms > {most:g}")
    return missed


def print_tables(report: dict[str, Any]) -> None:
    """Print what a person reads."""
    console = make_console()
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print_lines((report["machine"], versions), console)
    rows = []
    for row in report["rows"]:
        labels = (f"{row['chunk_ms']} ms {row['precision']}", row["file"], row["measure"])
        cells = (" / ".join(f"{v:g}" for k, v in row[side].items() if k != "n") for side in ("ours", "peer"))
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        rows.append((*labels, *cells, ratio, "ok" if row["ok"] else "behind"))
    columns = ("chunk", "its file", "measure", "edge-asr", "sherpa-onnx", "ratio", "")
    title = f"{report['clips']} clips, {report['speech_s']:g} s of speech; ms at p50 / p90 / p99, or %"
    print_table(Table(title=title, columns=columns, rows=tuple(rows), n_labels=3), console)
    print_lines(
        ["goals " + ("MISSED: " + "; ".join(report["missed"]) if report["missed"] else "met")], console
    )


def show(stage: str) -> None:
    """Print a line on standard error as a stage begins."""
    print(f"bench_live: {stage}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
