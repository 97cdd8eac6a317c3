#!/usr/bin/env python3
"""What streaming costs: a step of a bundle's stream, as a share of what offline needs for as much sound.

The physics: a step has few frames, so its products are bound by reading the weights, and hundreds of small
nodes each take a few microseconds; offline both are shared by all frames of a clip. Each precision's stream
is compared with the offline graph of the same precision, on one thread in this process, in turns, by the
processor's time; a ratio is the median of those within a round.

    python scripts/bench_stream.py bundle/ --seconds 10 --rounds 30

The exit code is 3 when a step takes more than 1.5 times offline; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from edge_asr.benchmark.audio_clips import Recording
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.benchmark.timing import lap, restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.diagnostics.machine import Machine
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, open_artifact
from edge_asr.runtime.streaming_model import StreamingModel

F32Array = npt.NDArray[np.float32]
MAX_RATIO = 1.5
WARM_UP = 3
STEPS = 5  # in a row, whose mean is one sample


def main() -> int:
    """Measure, print a line for each precision and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    restart_with_threads(1)

    bundle = Bundle.load(arguments.bundle)
    geometry = bundle.streaming.geometry
    recording = Recording.load(None, bundle.info.features.sample_rate)
    (clip,) = recording.clips(arguments.seconds, 1)
    features = FeatureExtractor(bundle.info.features)(clip)
    chunk_s = geometry.chunk_frames * geometry.frame_ms / 1e3
    runs: dict[str, Callable[[], float]] = {}
    for artifact in bundle.streaming.artifacts:
        precision = artifact.precision
        offline = open_artifact(bundle, bundle.artifact(precision), num_threads=1)
        model = StreamingModel.load(bundle, precision=precision, num_threads=1)
        runs[f"{precision} offline"] = partial(_offline, offline, features, chunk_s / arguments.seconds)
        runs[f"{precision} stream"] = partial(_steps, model, features)
    samples = take_turns(runs, rounds(arguments.rounds), warm_up=WARM_UP)
    result = {}
    for artifact in bundle.streaming.artifacts:
        stream, offline_s = (samples[f"{artifact.precision} {kind}"] for kind in ("stream", "offline"))
        ratio = statistics.median(s / o for s, o in zip(stream, offline_s, strict=True))
        step_ms, offline_ms = 1e3 * statistics.median(stream), 1e3 * statistics.median(offline_s)
        result[artifact.precision] = {"step_ms": step_ms, "offline_ms": offline_ms, "ratio": ratio}
        print(
            f"{artifact.precision}: {1e3 * chunk_s:g} ms take {step_ms:.2f} ms in a stream, offline "
            f"{offline_ms:.2f} ms, ratio {ratio:.2f} (goal: at most {MAX_RATIO:g})"
        )
    facts = {"layout": geometry.layout, "chunk_ms": 1e3 * chunk_s, "cpu": describe_cpu(Machine())}
    print(json.dumps({**facts, "versions": package_versions(("edge-asr", "onnxruntime")), "result": result}))
    return 3 if any(found["ratio"] > MAX_RATIO for found in result.values()) else 0


def _offline(backend: OnnxRuntimeBackend, features: F32Array, share: float) -> float:
    """Seconds of an offline run for as much sound as a chunk has."""
    lengths = np.asarray([len(features)], np.int64)
    return share * lap(lambda: backend.log_probs(features[None], lengths)).thread_s


def _steps(model: StreamingModel, features: F32Array) -> float:
    """Seconds of a step in the middle of a stream."""
    geometry = model.geometry
    state = model.start()
    n_before = geometry.window(8)[1]
    model.push(state, features[:n_before])
    following = features[n_before : n_before + STEPS * geometry.shift_frames]
    return lap(lambda: model.push(state, following)).thread_s / STEPS


if __name__ == "__main__":
    sys.exit(main())
