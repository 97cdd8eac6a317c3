#!/usr/bin/env python3
"""Compare speed and words with sherpa-onnx, onnx-asr, onnxruntime, PyTorch, torch.compile and OpenVINO.

All run the same weights.

The physics: nearly all of the work is products of matrices, and onnxruntime reaches the roof of this CPU with
them (its best product of two matrices, measured here); a network's share of that roof is printed. What can be
won is fewer operations, cheaper ones (INT8), and what surrounds the network: features, decoding, Python.
All contenders run in this process and take turns in every round, in turning order; ratios are taken within a
round and their median is reported: ours over theirs, total time from waveform to text (for the last four the
network alone, on our features). Peers run the plain export, which is what their users have; in INT8 their
time is that of the faster of dynamic INT8, as they make it, and float32. onnx-asr counts for models with
per-feature normalization only.

    python scripts/bench_peers.py                                 all of it, an hour on two quiet cores
    python scripts/bench_peers.py --model tiny-en --audio 10 --threads 1 --peers sherpa-onnx

Speech is the embedded, synthesized set laid end to end; WER is that of the --manifest files (tiny-en only).
The last line is JSON; the exit code is 3 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from peers.contenders import SAMPLE_RATE, Contender, make_contenders
from peers.files import ModelFiles, make_files
from peers.operators import measure_peak_gflops, operator_table, profile_file
from peers.whole import load_speech, measure_peak_mb, time_cold_starts, time_many_files

from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.statistics import ratio_by_round
from edge_asr.benchmark.table import Table, make_console, print_lines, print_table
from edge_asr.benchmark.timing import THREAD_VARIABLES, lap, restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.calibration.sensitivity import count_multiply_adds
from edge_asr.diagnostics.machine import Machine
from edge_asr.graph.weights import load_float32
from edge_asr.manifest import read_manifest
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.backends import create_backend
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

F32Array = npt.NDArray[np.float32]

PEERS = ("sherpa-onnx", "onnx-asr", "onnxruntime", "torch", "torch.compile", "openvino")
PACKAGES = ("edge-asr", "numpy", "scipy", "onnxruntime", "sherpa-onnx", "onnx-asr", "torch", "openvino")
WARM_UP = 2
MIN_ROUNDS = 5
#: (precision, peer, seconds): largest ratio, on one thread.
GOALS = {
    ("fp32", "sherpa-onnx", 10.0): 0.75,
    ("fp32", "onnx-asr", 10.0): 0.85,
    ("int8", "sherpa-onnx", 10.0): 0.40,
    ("fp32", "sherpa-onnx", 120.0): 0.60,
    ("int8", "sherpa-onnx", 120.0): 0.60,
}
MAX_FEATURES_MS = 3.0
MAX_COLD_RATIO, MAX_COLD_S = 0.60, 1.0
MIN_SPEED_UP = 1.5


def main() -> int:
    """Measure, print tables and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", action="append", help="tiny-en or a preset; default: small and tiny-en")
    parser.add_argument("--audio", default="2,10,30,120", help="seconds, by commas")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--seconds-each", type=float, default=20.0, help="of measuring, by length of audio")
    parser.add_argument("--manifest", type=Path, action="append", default=[])
    parser.add_argument("--profile", action="store_true", help="time by operator")
    parser.add_argument("--only-rows", action="store_true", help="no cold start, memory and many files")
    arguments = parser.parse_args()
    thread_counts = [int(text) for text in arguments.threads.split(",")]
    if len(thread_counts) > 1:
        return combine([run_alone(number, first=number == thread_counts[0]) for number in thread_counts])
    restart_with_threads(thread_counts[0])
    with tempfile.TemporaryDirectory(prefix="edge-asr-bench-") as folder:
        report = measure(arguments, thread_counts[0], Path(folder))
    return combine([report])


def run_alone(num_threads: int, *, first: bool) -> dict[str, Any]:
    """This program for one number of threads; what needs no second time is measured by the first."""
    extra = ["--threads", str(num_threads)] + ([] if first else ["--only-rows"])
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(num_threads))}
    done = subprocess.run(
        [sys.executable, *sys.argv, *extra], env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def measure(arguments: argparse.Namespace, num_threads: int, folder: Path) -> dict[str, Any]:
    """All that is asked for on one number of threads, JSON-ready."""
    calibration = sorted((EMBEDDED_MODELS / "calibration" / "audio").iterdir())
    speech = load_speech(calibration)
    names = arguments.peers.split(",")
    peak = measure_peak_gflops(num_threads)
    report: dict[str, Any] = {
        "bench": "peers",
        "rows": [],
        "missed": [],
        "machine": describe_cpu(Machine()),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "peak_gflops": {str(num_threads): round(peak, 1)},
        "ms": [],
        "models": {},
    }
    for model in arguments.model or ["small", "tiny-en"]:
        show(f"{model}: files")
        files = make_files(model, folder)
        contenders = make_contenders(files, num_threads, names)
        wers = measure_wers(files, contenders, arguments.manifest)
        for audio_s in map(float, arguments.audio.split(",")):
            show(f"{model}: {audio_s:g} s, {num_threads} threads")
            waveform = np.resize(speech, round(audio_s * SAMPLE_RATE))
            times = time_contenders(contenders, waveform, arguments.seconds_each)
            medians = {name: round(float(np.median(t)) * 1e3, 2) for name, t in times.items()}
            about = {"model": files.name, "audio_s": audio_s, "threads": num_threads}
            report["ms"].append({**about, "median": medians})
            rows = make_rows(about, times, wers)
            show(", ".join(f"{row['precision']} / {row['peer']} {row['ratio']:g}" for row in rows))
            report["rows"] += rows
        if not arguments.only_rows:
            report["models"][files.name] = describe(files, speech, peak, folder, profile=arguments.profile)
    if not arguments.only_rows:
        report["whole"] = measure_whole(speech, folder)
    report["missed"] = find_missed(report)
    return report


def time_contenders(
    contenders: dict[str, Contender], waveform: F32Array, seconds_each: float
) -> dict[str, list[float]]:
    """Seconds of every run, round by round; a contender that fails is left out, and why is said."""

    def leave_out(name: str, error: Exception) -> None:
        if name.startswith("edge-asr"):
            raise error  # a peer may raise anything; ours is not to fail
        show(f"{name} failed and is left out: {error}")

    def going(samples: Mapping[str, list[float]]) -> Collection[str]:
        n_rounds = min(map(len, samples.values()))
        measured_s = sum(map(sum, samples.values()))
        return samples if n_rounds < MIN_ROUNDS or measured_s < seconds_each else ()

    runs = {name: partial(seconds_of, contender, waveform) for name, contender in contenders.items()}
    return take_turns(runs, going, warm_up=WARM_UP, on_error=leave_out)


def seconds_of(contender: Contender, waveform: F32Array) -> float:
    """Return the seconds of one run that count."""
    return contender.run(waveform)[1]


def make_rows(
    about: dict[str, Any], times: dict[str, list[float]], wers: dict[str, float]
) -> list[dict[str, Any]]:
    """Make one row per precision and peer; the fastest file of a peer counts."""
    rows = []
    for precision, files in (("fp32", ("fp32",)), ("int8", ("fp32", "dynamic int8"))):
        ours = f"edge-asr {precision}"
        for peer in PEERS:
            candidates = [f"{peer} {file}" for file in files if times.get(f"{peer} {file}")]
            if not candidates or (precision == "int8" and peer not in ("sherpa-onnx", "onnx-asr")):
                continue
            fastest = min(candidates, key=lambda name: float(np.median(times[name])))
            quartiles = ratio_by_round(times[ours], times[fastest])
            low, ratio, high = (round(value, 3) for value in quartiles)
            rows.append(
                {
                    **about,
                    "precision": precision,
                    "peer": peer,
                    "peer_file": fastest.removeprefix(f"{peer} "),
                    "ratio": ratio,
                    "ratio_quartiles": [low, high],
                    "rounds": len(times[ours]),
                    "wer_ours": wers.get(ours),
                    "wer_peer": wers.get(fastest),
                    "wer_loss_ours": loss(wers, ours, "edge-asr fp32"),
                    "wer_loss_peer": loss(wers, fastest, f"{peer} fp32"),
                }
            )
    return rows


def loss(wers: dict[str, float], name: str, reference: str) -> float | None:
    """Compute the WER lost against the same contender's float32."""
    return round(wers[name] - wers[reference], 5) if name in wers and reference in wers else None


def measure_wers(
    files: ModelFiles, contenders: dict[str, Contender], manifests: list[Path]
) -> dict[str, float]:
    """WER of the manifests together, as fractions, by contender; empty for random weights."""
    if not (files.has_words and manifests):
        return {}
    utterances = [u for manifest in manifests for u in read_manifest(manifest).utterances]
    clips = [read_audio(u.audio_path, SAMPLE_RATE) for u in utterances]
    references = [u.text for u in utterances]
    wers = {}
    for name, contender in contenders.items():
        if name.startswith("torch.compile"):
            continue  # it would be compiled anew for every length; its words are torch's
        show(f"WER of {name}")
        wers[name] = round(compute_error_rates(references, [contender.run(c)[0] for c in clips]).wer, 5)
    return wers


def describe(
    files: ModelFiles, speech: F32Array, peak: float, folder: Path, *, profile: bool
) -> dict[str, Any]:
    """Features, work and share of the roof of a model on 10 s, and its profile."""
    extractor = FeatureExtractor(files.bundle.info.features)
    waveform = np.resize(speech, 10 * SAMPLE_RATE)
    features = extractor(waveform)
    # A second or so, so that a short job of a neighbor does not decide.
    laps = take_turns({"features": lambda: lap(lambda: extractor(waveform))}, rounds(300))["features"]
    graph = load_float32(files.bundle.artifact_path("fp32"))
    gflop = 2 * sum(count_multiply_adds(graph, features).values()) / 1e9
    described: dict[str, Any] = {
        "features_ms": round(1e3 * float(np.median([run.wall_s for run in laps])), 3),
        "gflop": round(gflop, 3),
        "floor_ms": round(gflop / peak * 1e3, 2),
    }
    if profile:
        described["operators"] = {
            precision: profile_file(find_file(files.bundle, precision), features, folder)
            for precision in ("fp32", "int8")
        }
        described["operators"]["plain"] = profile_file(files.plain / "model.onnx", features, folder)
    return described


def find_file(bundle: Bundle, precision: str) -> Path:
    """Find the file that the runtime loads on a CPU for this precision."""
    backend = create_backend(bundle, precision=precision, backend="cpu", num_threads=1)
    assert isinstance(backend, OnnxRuntimeBackend)
    backend.close()
    return backend.path


def measure_whole(speech: F32Array, folder: Path) -> dict[str, Any]:
    """Cold start, memory by length, and many short files, all with tiny-en."""
    bundle = EMBEDDED_MODELS / "tiny-en" / "bundle"
    clips = {}
    for seconds in (3, 120, 1200):
        clips[seconds] = folder / f"{seconds}.wav"
        soundfile.write(clips[seconds], np.resize(speech, seconds * SAMPLE_RATE), SAMPLE_RATE)
    show("cold start, memory, many files")
    many = folder / "many"
    many.mkdir()
    return {
        "cold_start": time_cold_starts(bundle, clips[3]),
        "peak_mb": {
            f"{seconds} s": measure_peak_mb(bundle, "fp32", clips[seconds]) for seconds in (3, 120, 1200)
        },
        "many_files": time_many_files(bundle, speech, many),
    }


def find_missed(report: dict[str, Any]) -> list[str]:
    """Describe the measured goals that were missed."""
    missed = []
    for row in report["rows"]:
        goal = GOALS.get((row["precision"], row["peer"], row["audio_s"]))
        if goal is None or row["threads"] != 1:
            continue
        what = f"{row['model']} {row['precision']}, {row['audio_s']:g} s, {row['peer']}"
        if row["ratio"] > goal:
            missed.append(f"{what}: {row['ratio']:.3f} > {goal:g}")
        if row["wer_loss_ours"] is not None and row["wer_loss_ours"] > (row["wer_loss_peer"] or 0.0):
            missed.append(f"{what}: WER loss {row['wer_loss_ours']:.4f} > {row['wer_loss_peer'] or 0.0:.4f}")
    for name, model in report["models"].items():
        if model["features_ms"] > MAX_FEATURES_MS:
            missed.append(f"{name}: features {model['features_ms']:.2f} ms > {MAX_FEATURES_MS:g}")
    if "whole" in report:
        cold, many = report["whole"]["cold_start"], report["whole"]["many_files"]
        if cold["ratio"] > MAX_COLD_RATIO:
            missed.append(f"cold start: {cold['ratio']:.3f} of onnx-asr's > {MAX_COLD_RATIO:g}")
        if cold["s"]["edge-asr"] > MAX_COLD_S:
            missed.append(f"cold start: {cold['s']['edge-asr']:.2f} s > {MAX_COLD_S:g}")
        if many["speed_up"] < MIN_SPEED_UP:
            missed.append(f"many files: {many['speed_up']:.2f} times one by one < {MIN_SPEED_UP:g}")
        if not many["same_texts"]:
            missed.append("many files: a text differs from that of the file alone")
    return missed


def combine(reports: list[dict[str, Any]]) -> int:
    """Put the reports together, print them, and return the exit code."""
    whole = reports[0]
    for other in reports[1:]:
        whole["peak_gflops"] |= other["peak_gflops"]
        for key in ("rows", "ms", "missed"):
            whole[key] += other[key]
    print_tables(whole)
    print(json.dumps(whole, ensure_ascii=False))
    return 3 if whole["missed"] else 0


def print_tables(report: dict[str, Any]) -> None:
    """Print what a person reads, before the JSON line."""
    console = make_console()
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    roofs = ", ".join(f"{rate:g} on {n} threads" for n, rate in report["peak_gflops"].items())
    print_lines((report["machine"], versions, f"best product of two matrices, GFLOP/s: {roofs}"), console)
    for entry in report["ms"]:
        medians = ", ".join(f"{name} {value:g}" for name, value in entry["median"].items())
        about = f"{entry['model']}, {entry['audio_s']:g} s, {entry['threads']} threads"
        print_lines([f"{about}: median ms {medians}"], console)
    labels = ("model", "precision", "audio s", "threads", "peer (file)")
    columns = (*labels, "ours / peer", "quartiles", "WER", "WER of the peer")
    rows = tuple(map(describe_row, report["rows"]))
    print_table(Table(title="Ratios", columns=columns, rows=rows, n_labels=len(labels)), console)
    for name, model in report["models"].items():
        about = f"{name}, 10 s: features {model['features_ms']:.2f} ms; {model['gflop']:.2f} GFLOP"
        print_lines([f"{about}, {model['floor_ms']:.1f} ms at the roof"], console)
        for precision, operators in model.get("operators", {}).items():
            print_table(operator_table(f"{name}, {precision}: operators", operators), console)
    print_lines([f"{name}: {json.dumps(found)}" for name, found in report.get("whole", {}).items()], console)
    print_lines(
        ["goals " + ("MISSED: " + "; ".join(report["missed"]) if report["missed"] else "met")], console
    )


def describe_row(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a ratio."""
    low, high = row["ratio_quartiles"]
    wers = ("-" if row[key] is None else f"{row[key]:.2%}" for key in ("wer_ours", "wer_peer"))
    about = (row["model"], row["precision"], f"{row['audio_s']:g}", str(row["threads"]))
    peer = f"{row['peer']} ({row['peer_file']})"
    return (*about, peer, f"{row['ratio']:.3f}", f"{low:.3f} .. {high:.3f}", *wers)


def show(stage: str) -> None:
    """Print a line on standard error as a stage begins."""
    print(f"bench_peers: {stage}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
