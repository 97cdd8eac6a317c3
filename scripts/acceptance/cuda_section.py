"""Runs our own CUDA code on the real driver, with a stand-in for TensorRT (stand_in.py): the section `cuda`.

Page-locked memory and copies, runs of many shapes, recordings and their replay, more shapes than recordings
are kept, a recording that CUDA refuses, steps of streams whose caches stay on the device, threads, release.
Answers are compared with the host's; times have no bar.
What this file does not do: say anything about TensorRT.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from acceptance.settings import Settings
from acceptance.stand_in import StandInGpu, StepOnHost, expected
from edge_asr.bundle.folder import Bundle
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.stream_runner import EngineSteps
from edge_asr.runtime.streaming_model import StreamingModel

from engine_bundles import add_engine, add_stream_engine, copy_bundle  # type: ignore[import-not-found] # isort: skip

from edge_asr.runtime.engine.backend import TensorRTBackend

TOLERANCE = 1e-5  # one product in float32
STEP_TOLERANCE = 1e-4  # sums of two products of up to a hundred
STREAMS = (1, 8)
N_STEPS = 12
N_FRAMES = (1, 9, 16, 57, 100, 101, 250, 400, 777, 1000)
ROWS = (1, 3)
COPY_BYTES = 64 << 20
LEAK_LIMIT_BYTES = 8 << 20
PROFILES = ((1, 100, 400, 1, 1, 4), (400, 1000, 3000, 1, 1, 4))

Answer = dict[str, Any]


def run_cuda(settings: Settings, save: Callable[[Answer], None]) -> Answer:
    """Run every check, each on its own; an exception in one fails it, and the others go on."""
    answer: Answer = {"status": "ran", "why": "", "gates": [], "rows": [], "runners": []}
    gpu = StandInGpu(settings.device)
    gpu.put_in_place()
    cuda = Cuda()
    with tempfile.TemporaryDirectory(prefix="acceptance-cuda-") as folder:
        bundle = copy_bundle(Path(folder) / "bundle")
        add_engine(bundle, gpu, profiles=PROFILES)
        streaming = Bundle.load(shutil.copytree(Bundle.load("tiny-en").path, Path(folder) / "streaming"))
        add_stream_engine(streaming, gpu, streaming.streaming.artifact.precision, streams=STREAMS)
        checks = _Checks(bundle, streaming, gpu, cuda, n_loads=20 if settings.rehearsal else 200)
        for what, check in checks.all():
            started = time.perf_counter()
            try:
                found, passed = check()
            except Exception as error:  # noqa: BLE001 - whatever CUDA or PyTorch raises
                found, passed = f"{type(error).__name__}: {error}", False
            answer["gates"].append({"what": what, "value": found, "limit": "holds", "passed": passed})
            answer["rows"].append({"check": what, "seconds": round(time.perf_counter() - started, 3)})
            save(answer)
    return answer


class _Checks:
    def __init__(
        self, bundle: Bundle, streaming: Bundle, gpu: StandInGpu, cuda: Cuda, *, n_loads: int
    ) -> None:
        self._bundle, self._streaming, self._gpu, self._cuda = bundle, streaming, gpu, cuda
        self._n_loads = n_loads
        self._factor = bundle.info.subsampling_factor
        self._classes = len(bundle.vocabulary)

    def all(self) -> list[tuple[str, Callable[[], tuple[str, bool]]]]:
        return [
            ("page-locked memory, copies both ways and on the device", self.copies),
            ("runs of many shapes without CUDA graphs", lambda: self.shapes(graphs=False)),
            ("the same with CUDA graphs: recorded, replayed", lambda: self.shapes(graphs=True)),
            ("more shapes than recordings are kept", self.eviction),
            ("a recording that CUDA refuses: runs go on", self.refused_capture),
            ("steps of streams: no copies, one launch each", self.streams),
            ("streams in any order, and forks, without CUDA graphs", lambda: self.forks(graphs=False)),
            ("the same with CUDA graphs", lambda: self.forks(graphs=True)),
            ("four threads, two backends", self.threads),
            ("released by a thread that never used CUDA", self.foreign_release),
            (f"{self._n_loads} loads leave no memory behind", self.leaks),
            ("time of a run with and without CUDA graphs", self.times),
        ]

    def copies(self) -> tuple[str, bool]:
        cuda, n_bytes = self._cuda, COPY_BYTES
        sent = np.random.default_rng(1).integers(0, 256, n_bytes, np.uint8)
        with cuda.current_device():
            stream = cuda.create_stream()
            hosts = [cuda.allocate_pinned(n_bytes) for _ in range(2)]
            devices = [cuda.allocate(n_bytes) for _ in range(2)]
            there, back = (
                np.frombuffer(memoryview((ctypes.c_uint8 * n_bytes).from_address(at)), np.uint8)
                for at in hosts
            )
            there[:] = sent
            began = time.perf_counter()
            cuda.copy_to_device(devices[0], hosts[0], n_bytes, stream)
            cuda.synchronize(stream)
            arrived = time.perf_counter()
            cuda.copy_on_device(devices[1], devices[0], n_bytes, stream)
            cuda.fill(devices[1], 7, 64, stream)
            cuda.synchronize(stream)
            copied = time.perf_counter()
            cuda.copy_to_host(hosts[1], devices[1], n_bytes, stream)
            cuda.synchronize(stream)
            returned = time.perf_counter()
            right = bool((back[64:] == sent[64:]).all() and (back[:64] == 7).all())
            del there, back
            for address in devices:
                cuda.free(address)
            for address in hosts:
                cuda.free_pinned(address)
            cuda.destroy_stream(stream)
        rates = [n_bytes / 1e9 / s for s in (arrived - began, returned - copied)]
        return f"{rates[0]:.1f} GB/s to the device, {rates[1]:.1f} GB/s back", right

    def shapes(self, *, graphs: bool) -> tuple[str, bool]:
        with self._backend(graphs) as backend, _count_calls() as counts:
            if graphs:
                backend.warm_up(N_FRAMES)
            worst = max(self._error(backend, n, b, seed) for seed in range(3) for n in N_FRAMES for b in ROWS)
        n_runs = 3 * len(N_FRAMES) * len(ROWS)
        found = f"largest error {worst:.2g}, {n_runs} runs"
        found += f", {counts['capture']} recorded, {counts['launch']} replayed"
        return found, worst <= TOLERANCE and (counts["launch"] > 0) == graphs

    def eviction(self) -> tuple[str, bool]:
        with _count_calls() as counts, self._backend(True) as backend:
            worst = 0.0
            for n_rows in (1, 2, 3, 4, 1):
                backend.warm_up(N_FRAMES, n_rows)
                worst = max(worst, *(self._error(backend, n, n_rows, n) for n in N_FRAMES))
        found = f"largest error {worst:.2g}; {counts['capture']} recorded, {counts['destroy_graph']} dropped"
        return found, worst <= TOLERANCE and counts["capture"] == counts["destroy_graph"]

    def refused_capture(self) -> tuple[str, bool]:
        with self._backend(True) as backend:
            self._error(backend, 60, 1, 0)
            self._gpu.breaks_capture = True
            if self._gpu.device == "cpu":
                self._gpu.fail("cuStreamEndCapture")
            with _count_calls() as counts:
                backend.warm_up([60])
                worst = max(self._error(backend, 60, 1, seed) for seed in range(4))
                refused = counts["capture"] > 0 and counts["launch"] == 0
        self._gpu.breaks_capture = False
        return (
            f"largest error afterwards {worst:.2g}; {counts['launch']} replayed",
            refused and worst <= TOLERANCE,
        )

    def streams(self) -> tuple[str, bool]:
        """Streams that go on together: after their first step nothing but windows and log-probs is moved."""
        worst, copies, launches, n_steps = 0.0, 0, 0, 0
        with self._steps(True) as model:
            model.warm_up(max(STREAMS))
            for n_streams in STREAMS:
                streams = [_Stream(model, self._streaming, seed) for seed in range(n_streams)]
                worst = max(worst, _step_together(model, streams, 0))
                with _count_calls(("copy_on_device", "launch")) as counts:
                    for number in range(1, N_STEPS):
                        worst = max(worst, _step_together(model, streams, number))
                copies, launches = copies + counts["copy_on_device"], launches + counts["launch"]
                n_steps += N_STEPS - 1
        sizes = ", ".join(map(str, STREAMS))
        found = f"largest error {worst:.2g}; {sizes} streams: {launches} launches, {copies} copies of caches"
        return f"{found} in {n_steps} steps", worst <= STEP_TOLERANCE and (launches, copies) == (n_steps, 0)

    def forks(self, *, graphs: bool) -> tuple[str, bool]:
        """Steps of some of many streams, some of them twice, of states that go on from different points."""
        random = np.random.default_rng(0)
        worst = 0.0
        with self._steps(graphs) as model, _count_calls(("copy_on_device", "launch")) as counts:
            if graphs:
                model.warm_up(max(STREAMS))
            streams = [_Stream(model, self._streaming, seed) for seed in range(3)]
            for number in range(8 * N_STEPS):
                chosen = [streams[i] for i in random.permutation(len(streams))[: random.integers(1, 6)]]
                worst = max(worst, _step_together(model, chosen, number))
                streams.append(streams[random.integers(len(streams))].fork())
                if len(streams) > max(STREAMS) + 3:  # more than a profile has rows
                    del streams[random.integers(len(streams))]
            del chosen, streams
        found = f"largest error {worst:.2g}; {8 * N_STEPS} steps, {counts['launch']} launches, "
        found += f"{counts['copy_on_device']} copies of caches"
        return found, worst <= STEP_TOLERANCE and (counts["launch"] > 0) == graphs

    def threads(self) -> tuple[str, bool]:
        with self._backend(True) as one, self._backend(True) as other, ThreadPoolExecutor(4) as pool:
            one.warm_up(N_FRAMES)
            start = threading.Barrier(4)

            def work(seed: int) -> float:
                start.wait()
                order = np.random.default_rng(seed).permutation(np.array(N_FRAMES * 4))
                return max(self._error((one, other)[seed % 2], int(n), 1, seed) for n in order)

            worst = max(pool.map(work, range(4)))
        return f"largest error {worst:.2g}", worst <= TOLERANCE

    def foreign_release(self) -> tuple[str, bool]:
        backend = self._open(True)
        backend.warm_up([60])
        for seed in range(3):
            self._error(backend, 60, 1, seed)
        caught: list[BaseException] = []

        def close() -> None:
            try:
                backend.close()
            except BaseException as error:  # noqa: BLE001 - told by the check
                caught.append(error)

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
        return "; ".join(map(str, caught)) or "closed", not caught

    def leaks(self) -> tuple[str, bool]:
        def load() -> None:
            with self._backend(True) as backend:
                backend.warm_up([60])
                for seed in range(3):
                    self._error(backend, 60, 1, seed)
            with self._steps(True) as model:
                model.warm_up()
                stream = _Stream(model, self._streaming, 0)
                for number in range(3):
                    _step_together(model, [stream], number)

        load()  # what is made once: PyTorch's handles, the context's own memory
        with self._cuda.current_device():
            before = self._cuda.memory()[0]
        started = time.perf_counter()
        for _ in range(self._n_loads):
            load()
        seconds = time.perf_counter() - started
        with self._cuda.current_device():
            lost = before - self._cuda.memory()[0]
        each_ms = 1e3 * seconds / self._n_loads
        found = f"{lost / 2**20:.1f} MiB less free; load, 3 runs and close: {each_ms:.1f} ms"
        return found, lost <= LEAK_LIMIT_BYTES

    def times(self) -> tuple[str, bool]:
        features, lens = _batch(200, 1, 0)
        medians = []
        for graphs in (True, False):
            with self._backend(graphs) as backend:
                backend.warm_up([200])
                laps = []
                for _ in range(60):
                    started = time.perf_counter()
                    backend.log_probs(features, lens)
                    laps.append(time.perf_counter() - started)
                medians.append(1e6 * float(np.median(laps[10:])))
        return f"{medians[0]:.0f} us with, {medians[1]:.0f} us without (200 frames, stand-in)", True

    def _open(self, graphs: bool) -> TensorRTBackend:
        return TensorRTBackend(self._bundle, "fp32", use_cuda_graphs=graphs)

    @contextlib.contextmanager
    def _backend(self, graphs: bool) -> Iterator[TensorRTBackend]:
        backend = self._open(graphs)
        try:
            yield backend
        finally:
            backend.close()

    @contextlib.contextmanager
    def _steps(self, graphs: bool) -> Iterator[StreamingModel]:
        bundle = self._streaming
        steps = EngineSteps(bundle, bundle.streaming.artifact.precision, use_cuda_graphs=graphs)
        model = StreamingModel(
            steps, bundle.streaming.geometry, n_mels=80, vocab_size=bundle.info.vocabulary_size
        )
        try:
            yield model
        finally:
            model.close()

    def _error(self, backend: TensorRTBackend, n_frames: int, n_rows: int, seed: int) -> float:
        features, lens = _batch(n_frames, n_rows, seed)
        found = backend.log_probs(features, lens)
        return float(np.abs(found - expected(features, lens, self._classes, self._factor)).max())


class _Stream:
    """A stream on the device, and the same on the host."""

    def __init__(self, model: StreamingModel, bundle: Bundle, seed: int) -> None:
        self.seed = seed
        self.caches = model.initial_caches()
        self.host = StepOnHost(bundle.streaming.geometry.chunk_frames, bundle.info.vocabulary_size)

    def fork(self) -> _Stream:
        other = copy.copy(self)
        other.host = self.host.fork()
        return other


def _step_together(model: StreamingModel, streams: Sequence[_Stream], number: int) -> float:
    """Run a step of streams, every fifth window empty; return the largest error."""
    generator = np.random.default_rng((number, *(stream.seed for stream in streams)))
    n_frames = model.geometry.window_frames
    windows = generator.normal(-8, 3, (len(streams), n_frames, 80)).astype(np.float32)
    lens = np.where(generator.random(len(streams)) < 0.2, 0, n_frames)
    caches = tuple(np.concatenate(parts) for parts in zip(*(s.caches for s in streams), strict=True))
    log_probs, n_valid, following = model.run_step(windows, lens, caches)
    worst = 0.0
    for row, stream in enumerate(streams):
        stream.caches = tuple(cache[row : row + 1].copy() for cache in following)
        wanted = stream.host.step(windows[row], int(lens[row]))
        found = log_probs[row, : n_valid[row]]
        if found.shape != wanted.shape:
            return float("inf")
        worst = max(worst, float(np.abs(found - wanted).max(initial=0.0)))
    return worst


def _batch(n_frames: int, n_rows: int, seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng((n_frames, n_rows, seed))
    features = generator.normal(-8, 3, (n_rows, n_frames, 80)).astype(np.float32)
    lens = generator.integers(1, n_frames + 1, n_rows)
    lens[0] = n_frames
    return features, lens.astype(np.int64)


@contextlib.contextmanager
def _count_calls(names: Sequence[str] = ("capture", "launch", "destroy_graph")) -> Iterator[dict[str, int]]:
    """Count calls of methods of `Cuda` while the block runs."""
    counts = dict.fromkeys(names, 0)
    before = {name: getattr(Cuda, name) for name in names}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return before[name](*arguments)

        return call

    for name in names:
        setattr(Cuda, name, counted(name))
    try:
        yield counts
    finally:
        for name in names:
            setattr(Cuda, name, before[name])
