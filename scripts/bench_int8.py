#!/usr/bin/env python3
"""INT8 against float32 of the same model: encoder time, file size, agreement and WER, against their bars.

The physics: an AVX512-VNNI core multiplies four times as many int8 as float32 a cycle, but only the
products gain; softmax, norms, activations and the Q/DQ around the products are float32 or extra work.
Both files run on the runtime's own onnxruntime backend in this process, one thread, taking turns, first and
second alternately, so that a slow moment hits both. The bar is on medians of the time that passes; the
processor time of the thread is given too, for it leaves out the turns of other programs. float32 is the
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
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peers.machine import machine_name, restart_with_threads, versions
from peers.operators import WARM_UP, profile_file

from edge_asr.audio import read_audio
from edge_asr.benchmark.random_models import save_random
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.calibration import Budget, Int8Options, quantize_bundle
from edge_asr.calibration.measure import Int8Loss, MeasuredClip, Reference
from edge_asr.errors import EdgeAsrError, GateError
from edge_asr.feature_config import FeatureConfig
from edge_asr.graph.weights import load_float32
from edge_asr.manifest import read_manifest
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.backends import OnnxRuntimeBackend
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]
Numbers = dict[str, float]

PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
MAX_TIME_RATIO = 0.60
MAX_SIZE_RATIO = 0.32
MIN_AGREEMENT = 0.985
MAX_WER_LOSS_POOLED = 0.003
MAX_WER_LOSS_EACH = 0.006
PACKAGES = ("edge-asr", "numpy", "onnx", "onnxruntime")
ANY_LOSS = Budget(max_wer_loss=1.0, min_agreement=0.0)


def main() -> int:
    """Make or load a bundle, measure it, print tables and the JSON line; the exit code."""
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
    """All that is asked for, JSON-ready."""
    bundle = find_bundle(arguments, folder)
    paths = {precision: bundle.artifact_path(precision) for precision in PRECISIONS}
    float32 = load_float32(paths["fp32"])
    features = speech(bundle.info.features, arguments.seconds)
    wall, processor = time_files(paths, features, arguments.rounds)
    times = {precision: summarize(values) for precision, values in wall.items()}
    busy = {precision: summarize(values) for precision, values in processor.items()}
    report: dict[str, Any] = {
        "bench": "int8",
        "model": f"random {arguments.random}" if arguments.random else bundle.info.name,
        "n_parameters": bundle.info.n_parameters,
        "time_ratio": four_digits(times["int8"]["median"] / times["fp32"]["median"]),
        "time_ratio_of_minima": four_digits(times["int8"]["min"] / times["fp32"]["min"]),
        "processor_time_ratio": four_digits(busy["int8"]["median"] / busy["fp32"]["median"]),
        "size_ratio": four_digits(bundle.artifact("int8").size_bytes / float32.ByteSize()),
        "ms": times,
        "processor_ms": busy,
        "bytes": {
            "int8": bundle.artifact("int8").size_bytes,
            "float32": float32.ByteSize(),
            "model.onnx": bundle.artifact("fp32").size_bytes,
        },
        "audio_s": arguments.seconds,
        "threads": 1,
        "rounds": arguments.rounds,
        "sha256": {precision: bundle.artifact(precision).sha256 for precision in PRECISIONS},
        "machine": machine_name(),
        "versions": versions(PACKAGES),
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
    """The bundle to measure, with an INT8 model; made in `folder` where it has to be."""
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
    """A line on standard error as a stage begins."""
    if not total:
        print(f"bench_int8: {stage} ...", file=sys.stderr)


def speech(config: FeatureConfig, seconds: float) -> F32Array:
    """Features [T, n_mels] of the embedded samples, laid end to end and cut at `seconds`."""
    waveform = np.concatenate(list(load_clips(find_clips(), config.sample_rate).values()))
    return FeatureExtractor(config)(np.resize(waveform, round(seconds * config.sample_rate)))


def time_files(
    paths: dict[Precision, Path], features: F32Array, rounds: int
) -> tuple[dict[Precision, list[float]], dict[Precision, list[float]]]:
    """Milliseconds of every run of each file: passed, and spent by the one thread that computes."""
    batch, lengths = features[None], np.array([len(features)], np.int64)
    runners = [(p, OnnxRuntimeBackend(path, precision=p, num_threads=1)) for p, path in paths.items()]
    wall: dict[Precision, list[float]] = {precision: [] for precision in paths}
    processor: dict[Precision, list[float]] = {precision: [] for precision in paths}
    gc.disable()
    for number in range(WARM_UP + rounds):
        for precision, backend in runners[:: -1 if number % 2 else 1]:
            started, started_busy = time.perf_counter(), time.thread_time()
            backend.log_probs(batch, lengths)
            passed, spent = time.perf_counter() - started, time.thread_time() - started_busy
            if number >= WARM_UP:
                wall[precision].append(passed * 1e3)
                processor[precision].append(spent * 1e3)
        gc.collect()
    gc.enable()
    for _, backend in runners:
        backend.close()
    return wall, processor


def measure_loss(bundle: Bundle, manifests: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What INT8 loses against float32: by manifest and pooled, or on the embedded samples."""
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
    """The loss as JSON; WER in per cent, its loss in points with a 95 % interval."""
    found: dict[str, Any] = {"agreement": four_digits(loss.agreement), "n_frames": loss.n_frames}
    if loss.wer_loss is not None and loss.wer_loss_low is not None and loss.wer_loss_high is not None:
        wers = {"wer_float32": loss.wer_reference, "wer_int8": loss.wer_candidate}
        found |= {name: round(100 * wer, 3) for name, wer in wers.items() if wer is not None}
        found["wer_loss"] = round(100 * loss.wer_loss, 3)
        found["wer_loss_95"] = [round(100 * loss.wer_loss_low, 3), round(100 * loss.wer_loss_high, 3)]
        found["n_words"] = loss.n_words
    return found


def find_missed(report: dict[str, Any]) -> list[str]:
    """The bars that are missed, each in words."""
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


def summarize(values: list[float]) -> Numbers:
    """Median, 10th and 90th percentile and least, four significant digits."""
    points = np.percentile(values, [50, 10, 90, 0])
    return dict(zip(("median", "p10", "p90", "min"), map(four_digits, points), strict=True))


def four_digits(value: float) -> float:
    """Rounded to four significant digits."""
    return float(f"{value:.4g}")


def print_tables(report: dict[str, Any]) -> None:
    """What a person reads, on standard output before the JSON line."""
    print(f"{report['model']} ({report['n_parameters'] / 1e6:.2f} M), {report['audio_s']:g} s, 1 thread")
    print(report["machine"])
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    print(f"\n{'encoder, ms':12}{'median':>10}{'p10':>10}{'p90':>10}{'min':>10}{'MB':>10}")
    for precision in PRECISIONS:
        cells = "".join(f"{report['ms'][precision][name]:10.2f}" for name in ("median", "p10", "p90", "min"))
        size = report["bytes"]["int8" if precision == "int8" else "float32"]
        print(f"{precision:12}{cells}{size / 1e6:10.2f}")
    print(
        f"{'int8 / fp32':12}{report['time_ratio']:10.3f}{'':20}{report['time_ratio_of_minima']:10.3f}"
        f"{report['size_ratio']:10.3f}"
    )
    print(f"processor time of the thread, medians: int8 / fp32 {report['processor_time_ratio']:.3f}")
    for name, loss in report.get("loss", {}).items():
        line = f"{name}: {loss['agreement']:.2%} of {loss['n_frames']} frames agree"
        if "wer_loss" in loss:
            low, high = loss["wer_loss_95"]
            line += (
                f"; WER {loss['wer_float32']:.2f} -> {loss['wer_int8']:.2f} %, loss {loss['wer_loss']:+.2f} "
                f"({low:+.2f} .. {high:+.2f}) on {loss['n_words']} words"
            )
        print(line)
    for precision, operators in report.get("operators", {}).items():
        print(f"\n{precision + ' operator':28}{'ms':>8}{'share':>8}{'nodes':>7}")
        for name, entry in operators.items():
            print(f"{name:28}{entry['ms']:8.3f}{entry['share']:8.1%}{entry['nodes']:7.0f}")
    print("\nbars " + ("MISSED: " + "; ".join(report["missed"]) if report["missed"] else "met") + "\n")


if __name__ == "__main__":
    sys.exit(main())
