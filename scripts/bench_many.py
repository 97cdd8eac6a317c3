#!/usr/bin/env python3
"""Many live streams on one model: processor's time for a second of one, which is how many a core sustains.

All streams hear the same clips, each from another one on, and come as fast as they are taken, so there is
always a stream that waits, as on a machine at its limit. Ours are `LiveRecognizer`s with end-points, partials
and offline finals, a thread each; steps that wait are computed together. "alone" is the same with each step
by itself. "stream finals" has the texts of the stream as finals, which is what sherpa-onnx gives: its streams
are decoded in batches (`decode_streams`) of those that are ready. One thread computes in each run, and runs
take turns. A core sustains 1 / (processor's seconds a second of sound) streams at most; the p99 of a step is
below the chunk as long as the streams do not fall behind.

    python scripts/bench_many.py bundle/ dev.jsonl more.jsonl --streams 8 --precision int8

The last line is JSON; the exit code is 3 when sherpa-onnx sustains more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE as RATE
from edge_asr.audio import read_audio
from edge_asr.benchmark.provenance import package_versions
from edge_asr.benchmark.timing import restart_with_threads, rounds, take_turns
from edge_asr.bundle.folder import Bundle
from edge_asr.errors import require
from edge_asr.manifest import read_manifest
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import FileSource
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.step_batching import StepBatcher

F32Array = npt.NDArray[np.float32]
PAUSE_S = 1.0


def main() -> int:
    """Measure, print a line for each and the JSON line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--clips", type=int, default=6, help="of each manifest, at most 8 s long")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    restart_with_threads(1)
    clips = load_clips(arguments.manifests, arguments.clips)
    turns = [clips[index % len(clips) :] + clips[: index % len(clips)] for index in range(arguments.streams)]
    signals = [np.concatenate(turn) for turn in turns]
    audio_s = sum(map(len, signals)) / RATE
    with Recognizer.load(
        arguments.bundle, precision=arguments.precision, backend="cpu", num_threads=1
    ) as recognizer:
        model = recognizer.streaming_model()
        batched = StepBatcher(model._steps.run, n_places=1, max_rows=8)
        alone = StepBatcher(model._steps.run, n_places=1, max_rows=1)

        def ours(batcher: StepBatcher, **config: str) -> float:
            model._run = batcher
            return processor_s(lambda: listen(recognizer, signals, config)) / audio_s

        runs: dict[str, Callable[[], float]] = {
            "edge-asr": partial(ours, batched),
            "edge-asr, alone": partial(ours, alone),
            "edge-asr, stream finals": partial(ours, batched, final="stream"),
            "sherpa-onnx": partial(sherpa, arguments.bundle, model.precision, signals),
        }
        found = take_turns(runs, rounds(arguments.rounds), warm_up=1)
    medians = {name: float(np.median(seconds)) for name, seconds in found.items()}
    for name, seconds in medians.items():
        print(f"{name}: {1e3 * seconds:.1f} ms for a second of a stream, {1 / seconds:.0f} streams a core")
    geometry = model.geometry
    facts = {
        "bench": "many",
        "streams": arguments.streams,
        "audio_s": round(audio_s, 1),
        "chunk_ms": geometry.chunk_frames * geometry.frame_ms,
        "precision": model.precision,
        "versions": package_versions(("edge-asr", "onnxruntime", "sherpa-onnx")),
    }
    print(json.dumps({**facts, "seconds": {name: round(s, 5) for name, s in medians.items()}}))
    return 3 if medians["edge-asr"] > medians["sherpa-onnx"] else 0


def load_clips(manifests: list[Path], n_clips: int) -> list[F32Array]:
    """Clips between pauses of faint noise."""
    rng = np.random.default_rng(0)
    clips = []
    for manifest in manifests:
        short = (u for u in read_manifest(manifest).utterances if (u.duration_s or 0) <= 8)
        for utterance in itertools.islice(short, n_clips):
            speech = read_audio(utterance.audio_path, RATE)
            pause = rng.standard_normal(round(PAUSE_S * RATE), np.float32) * np.float32(2e-4)
            clips.append(np.concatenate([speech, pause]))
    return clips


def processor_s(call: Callable[[], object]) -> float:
    """Processor seconds of a call, of all threads."""
    began = time.process_time()
    call()
    return time.process_time() - began


def listen(recognizer: Recognizer, signals: list[F32Array], options: dict[str, str]) -> None:
    """Follow all signals at once, with partials whenever they are due in the sound."""
    config = LiveConfig(partial_load=1.0, **options)  # type: ignore[arg-type]
    lives = [
        LiveRecognizer(recognizer, FileSource(signal, sample_rate=RATE, pace=0), config=config)
        for signal in signals
    ]
    for live in lives:
        live.start()
    for live in lives:
        live.join()
        if live.error is not None:
            raise live.error


def sherpa(bundle: Path, precision: str, signals: list[F32Array]) -> float:
    """Processor seconds for a second of a stream of sherpa-onnx."""
    file = Bundle.load(bundle, check_hashes=False).streaming.find(precision).file
    online = require("sherpa_onnx", extra="dev").OnlineRecognizer.from_nemo_ctc(
        model=str(bundle / file),
        tokens=str(bundle / "tokens.txt"),
        num_threads=1,
        enable_endpoint_detection=True,
        rule2_min_trailing_silence=0.6,
    )
    streams = [online.create_stream() for _ in signals]
    step = RATE // 50

    def run() -> None:
        for begin in range(0, max(map(len, signals)), step):
            for stream, signal in zip(streams, signals, strict=True):
                if begin < len(signal):
                    stream.accept_waveform(RATE, signal[begin : begin + step])
            while ready := [stream for stream in streams if online.is_ready(stream)]:
                online.decode_streams(ready)
                for stream in ready:
                    online.get_result(stream)
                    if online.is_endpoint(stream):
                        online.reset(stream)

    return processor_s(run) / (sum(map(len, signals)) / RATE)


if __name__ == "__main__":
    sys.exit(main())
