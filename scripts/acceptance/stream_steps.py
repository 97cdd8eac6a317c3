"""Times steps of the engine of a stream, by number of streams, with CUDA graphs and without.

A step is from windows in host memory to log-probs in host memory, all streams at once, with the caches on the
device. What this file does not do: compare outputs; the proof of the engine has done so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from acceptance.measure import speech_batch
from acceptance.runners import WITHOUT_GRAPHS
from acceptance.settings import Settings
from edge_asr.benchmark.statistics import summarize
from edge_asr.benchmark.timing import lap, rounds, take_turns
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.runtime.engine.sidecar import Flavor
from edge_asr.runtime.engine.stream_runner import EngineSteps
from edge_asr.runtime.streaming_model import StreamingModel


def time_steps(
    bundle: Bundle, flavor: Flavor, precision: Precision, settings: Settings
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time steps of each profile; return rows for a table, and which recorded steps were no launches."""
    geometry, config = bundle.streaming.geometry, bundle.info.features
    chunk_s = geometry.chunk_frames * geometry.subsampling_factor * config.hop_length / config.sample_rate
    rows, failures = [], []
    ways = {"with CUDA graphs": True, WITHOUT_GRAPHS: False}
    opened = {
        way: EngineSteps(bundle, precision, flavor=flavor, use_cuda_graphs=graphs)
        for way, graphs in ways.items()
    }
    sizes = sorted(profile.max_batch for profile in next(iter(opened.values())).sidecar.profiles)
    shape = {"n_mels": config.n_mels, "vocab_size": bundle.info.vocabulary_size}
    models = {way: StreamingModel(steps, geometry, **shape) for way, steps in opened.items()}
    try:
        for model in models.values():
            model.warm_up(sizes[-1])
        counted = opened["with CUDA graphs"].run_counts()
        n_steps = 0
        for n_streams in sizes:
            features, _ = speech_batch(bundle, 2 * chunk_s + 1, n_streams, settings.clips)
            window = features[:, : geometry.window_frames]
            calls = {way: _Stream(model, window) for way, model in models.items()}
            laps = take_turns(
                {way: lambda stream=stream: lap(stream.step) for way, stream in calls.items()},
                rounds(settings.rounds),
                warm_up=settings.warm_up,
            )
            n_steps += calls["with CUDA graphs"].n_steps
            for way, samples in laps.items():
                times = summarize([1e3 * sample.wall_s for sample in samples])
                rows.append(
                    {
                        "n_streams": n_streams,
                        "runner": way,
                        "median_ms": round(times.p50, 4),
                        "p90_ms": round(times.p90, 4),
                        "min_ms": round(times.min, 4),
                        "at_once": round(n_streams * 1e3 * chunk_s / times.p50),
                    }
                )
        if not opened["with CUDA graphs"].records_itself:  # TensorRT-RTX does not say
            n_replayed = opened["with CUDA graphs"].run_counts()[1] - counted[1]
            if n_replayed < n_steps:
                failures.append(f"{n_replayed} of {n_steps} steps were replayed")
    finally:
        for model in models.values():
            model.close()
    return rows, failures


class _Stream:
    """Streams that go on and on, with the same window in every step."""

    def __init__(self, model: StreamingModel, window: np.ndarray) -> None:
        self._model, self._window = model, window
        self._lens = np.full(len(window), window.shape[1], np.int64)
        self._caches = model.initial_caches(len(window))
        self.n_steps = 0

    def step(self) -> None:
        """Run one step."""
        self.n_steps += 1
        self._caches = self._model.run_step(self._window, self._lens, self._caches)[2]
