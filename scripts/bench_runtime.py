#!/usr/bin/env python3
"""One clip, one thread, the same weights: ours, bare onnxruntime, sherpa-onnx and onnx-asr.

The physics: the encoder is nearly all of the work and onnxruntime does it for everyone, so a bare
`InferenceSession.run` on features made beforehand is the floor; what a runtime adds is features,
decoding and Python. All four run in this process, one after the other in every round and in turning
order, so that a slow moment hits all alike; ratios are taken within a round, and the median of those
is reported with quartiles. onnx-asr always normalises per feature: on a model that was not trained so
its time counts and its text does not. The exit code is 1 when a goal is missed: our total at most
1.10 times the bare encoder, and faster than both peers.

    python scripts/bench_runtime.py BUNDLE [--clip speech.flac] [--rounds 50]
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.audio import read_audio
from edge_asr.bundle import DEFAULT_MODEL, Bundle
from edge_asr.runtime.ctc import greedy_decode, tokens_from_runs, words_from_tokens
from edge_asr.runtime.features import FeatureExtractor
from edge_asr.runtime.recognizer import Recognizer

F32Array = npt.NDArray[np.float32]
Stages = dict[str, float]

GOAL_RATIO = 1.10
WARM_UP = 5
SAMPLE_RATE = 16000
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
PACKAGES = ("edge-asr", "numpy", "scipy", "onnxruntime", "sherpa-onnx", "onnx-asr")
REPOSITORY = Path(__file__).resolve().parents[1]


class Ours:
    """edge-asr. Its total is `Recognizer.transcribe`; the stages are timed apart from it."""

    name = "edge-asr"

    def __init__(self, bundle: Bundle, precision: str) -> None:
        self.recognizer = Recognizer.load(bundle.path, precision=precision, backend="cpu", num_threads=1)
        self.extractor = FeatureExtractor(bundle.info.features)

    def run(self, waveform: F32Array) -> tuple[str, Stages]:
        recognizer = self.recognizer
        started = time.perf_counter()
        text = recognizer.transcribe(waveform, SAMPLE_RATE).text
        total = time.perf_counter() - started
        clock = Clock()
        features = self.extractor(waveform)
        clock.lap("features")
        log_probs = recognizer.backend.log_probs(features[None], np.array([len(features)], np.int64))[0]
        clock.lap("encode")
        runs = greedy_decode(log_probs, recognizer.vocabulary.blank_id)
        words_from_tokens(
            tokens_from_runs(runs, recognizer.vocabulary, recognizer.frame_s), recognizer.vocabulary
        )
        clock.lap("decode")
        return text, {**clock.laps, "total": total}


class Bare:
    """onnxruntime alone, on our features: the floor."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, precision: str) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        path = bundle.path / precision_file(bundle, precision)
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.extractor = FeatureExtractor(bundle.info.features)
        self.bundle = bundle

    def run(self, waveform: F32Array) -> tuple[str, Stages]:
        features = np.ascontiguousarray(self.extractor(waveform).T[None])
        feeds = {"audio_signal": features, "length": np.array([features.shape[2]], np.int64)}
        clock = Clock()
        (log_probs,) = self.session.run(None, feeds)
        clock.lap("encode")
        ids = greedy_decode(log_probs[0], self.bundle.vocabulary.blank_id).ids.tolist()
        return self.bundle.vocabulary.decode(ids), {**clock.laps, "total": clock.laps["encode"]}


class Sherpa:
    """sherpa-onnx. It encodes and decodes in one call."""

    name = "sherpa-onnx"

    def __init__(self, bundle: Bundle, precision: str) -> None:
        import sherpa_onnx

        self.recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            model=str(bundle.path / precision_file(bundle, precision)),
            tokens=str(bundle.path / "tokens.txt"),
            num_threads=1,
        )

    def run(self, waveform: F32Array) -> tuple[str, Stages]:
        clock = Clock()
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, waveform)
        clock.lap("features")
        self.recognizer.decode_stream(stream)
        text = stream.result.text
        clock.lap("encode_decode")
        return text, {**clock.laps, "total": sum(clock.laps.values())}


class OnnxAsr:
    """onnx-asr. Its total is `recognize`; the stages are its own methods, timed apart."""

    name = "onnx-asr"

    def __init__(self, bundle: Bundle, precision: str) -> None:
        import onnx_asr
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        file = precision_file(bundle, precision)
        self.model = onnx_asr.load_model(
            "nemo-conformer-ctc",
            str(bundle.path),
            quantization=None if file == "model.onnx" else file.split(".")[1],
            sess_options=options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, waveform: F32Array) -> tuple[str, Stages]:
        started = time.perf_counter()
        text = self.model.recognize(waveform, sample_rate=16000)
        total = time.perf_counter() - started
        inner: Any = self.model.asr
        clock = Clock()
        features, lens = inner._preprocessor(waveform[None], np.array([len(waveform)], np.int64))
        clock.lap("features")
        log_probs, output_lens = inner._encode(features, lens)
        clock.lap("encode")
        list(inner._decoding(log_probs, output_lens))
        clock.lap("decode")
        return text, {**clock.laps, "total": total}


class Clock:
    """Laps by name, seconds."""

    def __init__(self) -> None:
        self.laps: Stages = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def precision_file(bundle: Bundle, precision: str) -> str:
    """Name of the artefact that `precision` ("auto" too) means on a CPU."""
    from edge_asr.runtime.backends import choose_precision

    return bundle.artifact(choose_precision(bundle, precision, "cpu")).file


def main() -> int:
    """Measure, print a table and the JSON line; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--clip", type=Path, help="default: a LibriSpeech dev clip in ../shared")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # Libraries read these when they are loaded, so it takes a fresh process.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD})

    bundle = Bundle.load(arguments.bundle)
    clip = arguments.clip or find_clip(arguments.seconds)
    waveform = read_audio(clip)[: round(arguments.seconds * SAMPLE_RATE)]
    audio_s = len(waveform) / SAMPLE_RATE
    makers: list[Callable[[Bundle, str], Any]] = [Ours, Bare, Sherpa, OnnxAsr]
    runtimes = [make(bundle, arguments.precision) for make in makers]
    texts, times = measure(runtimes, waveform, arguments.rounds)
    report = summarize(texts, times)
    report.update(
        {
            "bench": "runtime",
            "bundle": bundle.info.name,
            "file": precision_file(bundle, arguments.precision),
            "n_parameters": bundle.info.n_parameters,
            "normalize": bundle.info.features.normalize,
            "clip": clip.name,
            "audio_s": round(audio_s, 3),
            "threads": 1,
            "rounds": arguments.rounds,
            "machine": f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            "versions": {"python": platform.python_version(), **versions()},
        }
    )
    print_table(report, audio_s)
    print(json.dumps(report, ensure_ascii=False))
    return 0 if report["goal_met"] else 1


def measure(
    runtimes: list[Any], waveform: F32Array, rounds: int
) -> tuple[dict[str, str], dict[str, list[Stages]]]:
    """Texts, and a list of stage times (s) for each runtime, round by round."""
    times: dict[str, list[Stages]] = {runtime.name: [] for runtime in runtimes}
    texts: dict[str, str] = {}
    gc.disable()
    for number in range(WARM_UP + rounds):
        turn = number % len(runtimes)
        for runtime in runtimes[turn:] + runtimes[:turn]:
            texts[runtime.name], stages = runtime.run(waveform)
            if number >= WARM_UP:
                times[runtime.name].append(stages)
        gc.collect()
    gc.enable()
    return texts, times


def summarize(texts: dict[str, str], times: dict[str, list[Stages]]) -> dict[str, Any]:
    """Medians and quartiles in ms, ratios within rounds, and whether the goals are met."""
    stages = {
        name: {stage: spread([laps[stage] * 1e3 for laps in rows]) for stage in rows[0]}
        for name, rows in times.items()
    }
    floor = np.array([laps["encode"] for laps in times[Bare.name]])
    totals = {name: np.array([laps["total"] for laps in rows]) for name, rows in times.items()}
    ratios = {name: spread((total / floor).tolist()) for name, total in totals.items()}
    ahead = {
        name: spread((totals[name] / totals[Ours.name]).tolist()) for name in (Sherpa.name, OnnxAsr.name)
    }
    return {
        "ms": stages,
        "total_over_bare_encoder": ratios,
        "peer_over_ours": ahead,
        "goal_met": ratios[Ours.name]["median"] <= GOAL_RATIO
        and all(entry["median"] > 1.0 for entry in ahead.values()),
        "texts": texts,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, quartiles and extremes, four significant digits."""
    points = np.percentile(values, [50, 25, 75, 0, 100])
    names = ("median", "p25", "p75", "min", "max")
    return {name: float(f"{point:.4g}") for name, point in zip(names, points, strict=True)}


def print_table(report: dict[str, Any], audio_s: float) -> None:
    """What a person reads, on standard output before the JSON line."""
    print(f"{report['bundle']} ({report['file']}), {audio_s:.1f} s of {report['clip']}, 1 thread")
    print(report["machine"])
    print(", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    stages_shown = ("features", "encode", "decode", "total")
    heading = "".join(f"{stage:>12}" for stage in stages_shown)
    print(f"\n{'median ms':14}{heading}  (quartiles)        x bare encoder")
    for name, stages in report["ms"].items():
        cells = [stages.get(stage, {}).get("median") for stage in stages_shown[:3]]
        if "encode_decode" in stages:
            cells[1:] = [stages["encode_decode"]["median"], None]
        total, ratio = stages["total"], report["total_over_bare_encoder"][name]
        row = "".join(f"{'-' if cell is None else format(cell, '.3f'):>12}" for cell in cells)
        print(
            f"{name:14}{row}{total['median']:12.2f}  ({total['p25']:.2f} .. {total['p75']:.2f})"
            f"   {ratio['median']:.3f} ({ratio['p25']:.3f} .. {ratio['p75']:.3f})"
        )
    print("sherpa-onnx: encode includes decode. onnx-asr always normalises per feature.")
    for name, ratio in report["peer_over_ours"].items():
        print(f"{name} takes {ratio['median']:.2f} times as long as edge-asr")
    verdict = "met" if report["goal_met"] else "MISSED"
    print(f"goal {verdict}: total <= {GOAL_RATIO:.2f} x bare encoder, and faster than both peers\n")


def find_clip(seconds: float) -> Path:
    """The first LibriSpeech dev clip of at least `seconds` in the shared data."""
    manifest = REPOSITORY.parent / "shared" / "data" / "librispeech_dev.jsonl"
    if not manifest.is_file():
        sys.exit(f"no {manifest}; name a speech file of {seconds:g} s or more with --clip")
    from edge_asr.manifest import read_manifest

    for utterance in read_manifest(manifest).utterances:
        if (utterance.duration_s or 0.0) >= seconds:
            return Path(utterance.audio_path)
    sys.exit(f"no clip of {seconds:g} s in {manifest}; name a longer one with --clip")


def versions() -> dict[str, str]:
    """Versions of what is compared."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    """Name of the processor, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
