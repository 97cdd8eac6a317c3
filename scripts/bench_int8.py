#!/usr/bin/env python3
"""Compare INT8 with float32 of the same model: encoder time, file size, agreement and WER, and their goals.

The physics: an AVX512-VNNI core multiplies four times as many int8 as float32 a cycle, but only the
products gain; softmax, norms, activations and the Q/DQ around the products are float32 or extra work.
Both files run on the runtime's own onnxruntime backend in this process, one thread, taking turns, so that a
slow moment hits both. The bar is on medians of the time that passes; the
processor time of the thread is given too, because it leaves out the turns of other programs. float32 is the
bundle's model.onnx, with all rewrites; its size is that of float32 weights, also where it stores float16.

    python scripts/bench_int8.py [BUNDLE] [--manifest dev.jsonl ...] [--profile]
    python scripts/bench_int8.py --export CHECKPOINT [--calibration train.jsonl ...]
    python scripts/bench_int8.py --random small

A bundle without INT8, a checkpoint, and random weights of a preset are quantized or exported into a
temporary folder first. Without a manifest, agreement is that on the embedded samples; with random weights
neither it nor WER means anything. The exit code is 3 when a bar is missed; the last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.operators import WARM_UP, operator_table, profile_file

from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.random_models import save_random
from edge_asr.benchmark.statistics import four_digits, summarize
from edge_asr.benchmark.table import Table, make_console, print_lines, print_table
from edge_asr.benchmark.timing import Lap, lap, restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.calibration import Budget, Int8Options, quantize_bundle
from edge_asr.calibration.measure import Int8Loss, MeasuredClip, Reference
from edge_asr.diagnostics.machine import Machine
from edge_asr.errors import EdgeAsrError, GateError
from edge_asr.feature_config import FeatureConfig
from edge_asr.graph.weights import load_float32
from edge_asr.manifest import read_manifest
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

F32Array = npt.NDArray[np.float32]

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
STATISTICS = ("p50", "p90", "min")
MAX_TIME_RATIO = 0.60
MAX_SIZE_RATIO = 0.32
MIN_AGREEMENT = 0.985
MAX_WER_LOSS_POOLED = 0.003
MAX_WER_LOSS_EACH = 0.006
PACKAGES = ("edge-asr", "numpy", "onnx", "onnxruntime")
ANY_LOSS = Budget(max_wer_loss=1.0, min_agreement=0.0)


def main() -> int:
    """Make or load a bundle, measure it, print tables and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    source.add_argument("--export", metavar="CHECKPOINT")
    source.add_argument("--random", metavar="PRESET")
    parser.add_argument("--calibration", type=Path, action="append", default=[], metavar="MANIFEST")
    parser.add_argument("--manifest", type=Path, action="append", default=[])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--speed-only", action="store_true", help="no agreement, no WER: for random weights")
    parser.add_argument("--profile", action="store_true", help="time by operator, both files")
    arguments = parser.parse_args()
    restart_with_threads(1)
    with tempfile.TemporaryDirectory(prefix="edge-asr-bench-") as folder:
        try:
            report = measure(arguments, Path(folder))
        except EdgeAsrError as error:
            print(f"bench_int8: {error}", file=sys.stderr)
            return 3 if isinstance(error, GateError) else 1
    print_tables(report)
    print(json.dumps(report, ensure_ascii=False))
    return 3 if report["missed"] else 0


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all that is requested, ready for JSON."""
    bundle = find_bundle(arguments, folder)
    paths = {precision: bundle.artifact_path(precision) for precision in PRECISIONS}
    float32 = load_float32(paths["fp32"])
    features = speech(bundle.info.features, arguments.seconds)
    laps = time_files(paths, features, arguments.rounds)
    times = {name: summarize([1e3 * run.wall_s for run in runs]) for name, runs in laps.items()}
    busy = {name: summarize([1e3 * run.thread_s for run in runs]) for name, runs in laps.items()}
    report: dict[str, Any] = {
        "bench": "int8",
        "model": f"random {arguments.random}" if arguments.random else bundle.info.name,
        "n_parameters": bundle.info.n_parameters,
        "time_ratio": four_digits(times["int8"].p50 / times["fp32"].p50),
        "time_ratio_of_minima": four_digits(times["int8"].min / times["fp32"].min),
        "processor_time_ratio": four_digits(busy["int8"].p50 / busy["fp32"].p50),
        "size_ratio": four_digits(bundle.artifact("int8").size_bytes / float32.ByteSize()),
        "ms": {name: summary.to_dict() for name, summary in times.items()},
        "processor_ms": {name: summary.to_dict() for name, summary in busy.items()},
        "bytes": {
            "int8": bundle.artifact("int8").size_bytes,
            "float32": float32.ByteSize(),
            "model.onnx": bundle.artifact("fp32").size_bytes,
        },
        "audio_s": arguments.seconds,
        "threads": 1,
        "rounds": arguments.rounds,
        "sha256": {precision: bundle.artifact(precision).sha256 for precision in PRECISIONS},
        "machine": describe_cpu(Machine()),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
    }
    if not (arguments.random or arguments.speed_only):
        report["loss"] = measure_loss(bundle, arguments.manifest)
    if arguments.profile:
        report["operators"] = {
            precision: profile_file(path, features, folder) for precision, path in paths.items()
        }
    report["missed"] = find_missed(report)
    return report


def find_bundle(arguments: argparse.Namespace, folder: Path) -> Bundle:
    """Find the bundle to measure, with an INT8 model, or make it in `folder`."""
    options = Int8Options(calibration=tuple(arguments.calibration))
    source = arguments.export
    if arguments.random:
        source = save_random(arguments.random, folder / "checkpoint")
        options = Int8Options(calibration=tuple(arguments.calibration), budget=ANY_LOSS)
    if source is None:
        bundle = Bundle.load(arguments.bundle)
        if not arguments.calibration and any(a.precision == "int8" for a in bundle.info.artifacts):
            return bundle
        return quantize_bundle(bundle.path, options, output=folder / bundle.info.name, progress=show)[0]
    from edge_asr.export import export_bundle

    name = Path(source).name
    export_bundle(source, folder / name, precisions=PRECISIONS, int8=options, progress=show)
    return Bundle.load(folder / name)


def show(stage: str, done: int, total: int) -> None:
    """Print a line on standard error as a stage begins."""
    if not total:
        print(f"bench_int8: {stage} ...", file=sys.stderr)


def speech(config: FeatureConfig, seconds: float) -> F32Array:
    """Compute features [T, n_mels] of the embedded samples, laid end to end and cut at `seconds`."""
    waveform = np.concatenate(list(load_clips(find_clips(), config.sample_rate).values()))
    return FeatureExtractor(config)(np.resize(waveform, round(seconds * config.sample_rate)))


def time_files(paths: dict[Precision, Path], features: F32Array, n_rounds: int) -> dict[str, list[Lap]]:
    """Time every run of each file, by precision, on one thread."""
    batch, lengths = features[None], np.array([len(features)], np.int64)
    with contextlib.ExitStack() as stack:
        runs: dict[str, Callable[[], Lap]] = {}
        for precision, path in paths.items():
            backend = OnnxRuntimeBackend(path, precision=precision, num_threads=1)
            stack.callback(backend.close)
            runs[precision] = partial(lap, partial(backend.log_probs, batch, lengths))
        return take_turns(runs, rounds(n_rounds), warm_up=WARM_UP)


def measure_loss(bundle: Bundle, manifests: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Measure what INT8 loses against float32: by manifest and pooled, or on the embedded samples."""
    import onnx

    extractor = FeatureExtractor(bundle.info.features)
    rate = bundle.info.features.sample_rate
    sets: dict[str, list[MeasuredClip]] = {}
    for manifest in manifests:
        sets[manifest.stem] = [
            MeasuredClip(name=u.id, features=extractor(read_audio(u.audio_path, rate)), text=u.text)
            for u in read_manifest(manifest).utterances
        ]
    if not sets:
        sets["embedded samples"] = [
            MeasuredClip(name=name, features=extractor(waveform), text=None)
            for name, waveform in load_clips(find_clips(), rate).items()
        ]
    if len(sets) > 1:
        sets["pooled"] = [clip for clips in sets.values() for clip in clips]
    float32 = load_float32(bundle.artifact_path("fp32"))
    int8 = onnx.load(bundle.artifact_path("int8"))
    return {
        name: describe(Reference(float32, clips, bundle.vocabulary).measure(int8))
        for name, clips in sets.items()
    }


def describe(loss: Int8Loss) -> dict[str, Any]:
    """Convert the loss to JSON; WER in percent, its loss in points with a 95 % interval."""
    found: dict[str, Any] = {"agreement": four_digits(loss.agreement), "n_frames": loss.n_frames}
    if loss.wer_loss is not None and loss.wer_loss_low is not None and loss.wer_loss_high is not None:
        wers = {"wer_float32": loss.wer_reference, "wer_int8": loss.wer_candidate}
        found |= {name: round(100 * wer, 3) for name, wer in wers.items() if wer is not None}
        found["wer_loss"] = round(100 * loss.wer_loss, 3)
        found["wer_loss_95"] = [round(100 * loss.wer_loss_low, 3), round(100 * loss.wer_loss_high, 3)]
        found["n_words"] = loss.n_words
    return found


def find_missed(report: dict[str, Any]) -> list[str]:
    """Describe each missed goal in words."""
    missed = []
    for name, bar in (("time_ratio", MAX_TIME_RATIO), ("size_ratio", MAX_SIZE_RATIO)):
        if report[name] > bar:
            missed.append(f"{name} {report[name]:.4g} > {bar:g}")
    losses = report.get("loss", {})
    for name, loss in losses.items():
        bar = 100 * (MAX_WER_LOSS_EACH if "pooled" in losses and name != "pooled" else MAX_WER_LOSS_POOLED)
        if loss.get("wer_loss", 0.0) > bar:
            missed.append(f"WER loss on {name} {loss['wer_loss']:.3g} > {bar:g} points")
    whole = "pooled" if "pooled" in losses else next(iter(losses), None)
    if whole is not None and losses[whole]["agreement"] < MIN_AGREEMENT:
        missed.append(f"agreement on {whole} {losses[whole]['agreement']:.4g} < {MIN_AGREEMENT:g}")
    return missed


def print_tables(report: dict[str, Any]) -> None:
    """Print what a person reads, before the JSON line."""
    console = make_console()
    about = f"{report['model']} ({report['n_parameters'] / 1e6:.2f} M), {report['audio_s']:g} s, 1 thread"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print_lines((about, report["machine"], versions), console)
    rows = []
    for precision in PRECISIONS:
        cells = (f"{report['ms'][precision][name]:.2f}" for name in STATISTICS)
        size = report["bytes"]["int8" if precision == "int8" else "float32"]
        rows.append((precision, *cells, f"{size / 1e6:.2f}"))
    ratios = (f"{report['time_ratio']:.3f}", "", f"{report['time_ratio_of_minima']:.3f}")
    rows.append(("int8 / fp32", *ratios, f"{report['size_ratio']:.3f}"))
    notes = [f"processor time of the thread, medians: int8 / fp32 {report['processor_time_ratio']:.3f}"]
    notes += [describe_loss(name, loss) for name, loss in report.get("loss", {}).items()]
    columns = ("encoder, ms", *STATISTICS, "MB")
    print_table(Table(title="Speed", columns=columns, rows=tuple(rows), notes=tuple(notes)), console)
    for precision, operators in report.get("operators", {}).items():
        print_table(operator_table(f"{precision}: operators", operators), console)
    print_lines(
        ["bars " + ("MISSED: " + "; ".join(report["missed"]) if report["missed"] else "met")], console
    )


def describe_loss(name: str, loss: dict[str, Any]) -> str:
    """Format one line about one set of clips."""
    line = f"{name}: {loss['agreement']:.2%} of {loss['n_frames']} frames agree"
    if "wer_loss" not in loss:
        return line
    low, high = loss["wer_loss_95"]
    return (
        f"{line}; WER {loss['wer_float32']:.2f} -> {loss['wer_int8']:.2f} %, loss {loss['wer_loss']:+.2f} "
        f"({low:+.2f} .. {high:+.2f}) on {loss['n_words']} words"
    )


if __name__ == "__main__":
    sys.exit(main())
