"""Runs steps of streams on a TensorRT engine of stream.onnx; the caches of all streams stay on the device.

One profile takes one number of streams, and its window is as long as every window but the first. A step is
one launch, once recorded: it reads the caches where the step before wrote them (stream_caches.py). Only
windows go to the device and only log-probs come back. Rows that no stream of the step needs have a window
without a valid frame.
What this file does not do: cut windows (streaming_model.py), wait for streams to join (step_batching.py).
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.bundle.names import ENCODED_NAME, STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import BackendError, DeviceError, EngineError
from edge_asr.runtime.engine.backend import OpenedEngine, close_on_device, translating_device_errors
from edge_asr.runtime.engine.loaded import Lane, LoadedPlan
from edge_asr.runtime.engine.runner import COUNT, FLOAT, LENGTHS, LOG_PROBS
from edge_asr.runtime.engine.sidecar import EngineSidecar, Flavor
from edge_asr.runtime.engine.stream_caches import StreamCaches
from edge_asr.runtime.engine.tensors import FEATURES, Dims, RunShape, TensorSpec
from edge_asr.runtime.step_batching import Arrays
from edge_asr.stream_geometry import StreamingGeometry

_CACHES = STREAM_INPUTS[2:]
_NEXT_CACHES = STREAM_OUTPUTS[2:]
_N_VALID = STREAM_OUTPUTS[1]
_NOBODY: tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[int, ...]] = (np.zeros(0), np.zeros(0), ())
"""Windows, lengths and rows of a step of no stream."""


def stream_input_dims(
    geometry: StreamingGeometry, n_mels: int, n_rows: int, n_frames: int
) -> dict[str, Dims]:
    """Compute the shape of every input for a number of streams and frames of the window."""
    rows = (n_rows,)
    shapes = (
        (n_rows, n_mels, n_frames),
        rows,
        (n_rows, *geometry.cache_last_channel),
        (n_rows, *geometry.cache_last_time),
        rows,
    )
    return dict(zip(STREAM_INPUTS, shapes, strict=True))


class EngineSteps:
    """A step of a bundle's streaming graph on its TensorRT engine; see `StreamSteps`. Thread-safe.

    Args:
        bundle, precision, flavor, allow_unverified, engine: see `TensorRTBackend`.
        use_cuda_graphs: let `warm_up` record steps.

    Attributes:
        plan_path, sidecar: the engine.

    Raises:
        As `TensorRTBackend`, and BundleError if the bundle has no streaming graph.
    """

    n_places = 1
    gives_encoded = False

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        flavor: Flavor = "tensorrt",
        allow_unverified: bool = False,
        engine: tuple[Path, EngineSidecar] | None = None,
        use_cuda_graphs: bool = True,
    ) -> None:
        geometry, n_mels = bundle.streaming.geometry, bundle.info.features.n_mels
        self.precision: str = precision
        self.name = self.runtime = str(flavor)
        self._geometry = geometry
        self._n_mels = n_mels
        self._lock = threading.Lock()
        with translating_device_errors(flavor):
            opened = OpenedEngine(
                bundle,
                precision,
                flavor=flavor,
                allow_unverified=allow_unverified,
                engine=engine,
                graph="stream",
            )
            self._cuda, self.plan_path, self.sidecar = opened.cuda, opened.path, opened.sidecar
            self._profiles = self.sidecar.profiles
            if any(profile.min_batch != profile.max_batch for profile in self._profiles):
                raise EngineError(
                    f"the engine {self.plan_path} takes no fixed numbers of streams; build it again"
                )
            self.max_rows = max(profile.max_batch for profile in self._profiles)
            with self._cuda.current_device():
                self._plan = LoadedPlan(
                    opened.plan,
                    self._profiles,
                    _tensors(geometry, n_mels, encoded=bundle.info.decoder is not None),
                    trt=opened.trt,
                    cuda=self._cuda,
                    shares_memory=opened.shares_memory,
                    use_cuda_graphs=use_cuda_graphs,
                    max_graphs=2 * len(self._profiles) * len(_window_lengths(geometry)),
                    kernel_cache=opened.kernel_cache,
                )
        self._release = weakref.finalize(self, close_on_device, self._plan, self._cuda)
        self._release.atexit = False
        one = stream_input_dims(geometry, n_mels, 1, 1)
        self._caches = StreamCaches(
            self._plan,
            self._cuda,
            (_CACHES, _NEXT_CACHES),
            [math.prod(one[name]) * np.dtype(self._plan.dtypes[name]).itemsize for name in _CACHES],
            [profile.max_batch for profile in self._profiles],
        )

    def initial_caches(self, batch: int) -> Arrays:
        """See `StreamSteps`."""
        return (np.full(batch, None, object),)

    def run(self, inputs: Arrays) -> Arrays:
        """See `StreamSteps`."""
        windows, lens, caches = inputs
        parts: list[Arrays] = []
        with self._failing("a step"), self._lock, self._cuda.current_device():
            self._check_open()
            for begin in range(0, len(caches), self.max_rows):
                rows = slice(begin, begin + self.max_rows)
                parts.append(self._run_rows(windows[rows], lens[rows], caches[rows]))
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(a) for a in zip(*parts, strict=True))

    def warm_up(self, n_streams: int = 1) -> None:
        """Record the steps of up to `n_streams` streams at once.

        Raises:
            EngineError, BackendError: as `run`.
        """
        sizes = sorted((profile.max_batch, index) for index, profile in enumerate(self._profiles))
        needed = [index for size, index in sizes if size < n_streams] + [self._profile_for(n_streams)]
        for profile in dict.fromkeys(needed):
            n_rows = self._profiles[profile].max_batch
            for n_frames, swapped in itertools.product(_window_lengths(self._geometry), (False, True)):
                shape = RunShape(profile=profile, n_batch=n_rows, n_frames=n_frames, swapped=swapped)
                with self._failing("recording"), self._lock, self._cuda.current_device():
                    self._check_open()
                    try:
                        self._caches.vacate(profile)
                        self._stage(shape, *_NOBODY)
                        self._plan.record(shape)
                    except BaseException:
                        self._plan.discard()
                        raise

    @property
    def records_itself(self) -> bool:
        """Tell whether TensorRT-RTX records, which does not say what it replays."""
        return self._plan.records_itself

    def run_counts(self) -> tuple[int, int]:
        """Return how many steps were run, and how many of them were the launch of a recording."""
        return self._plan.n_runs, self._plan.n_replays

    def close(self) -> None:
        """See `StreamSteps`."""
        with self._lock:
            self._release()

    def _run_rows(
        self, windows: npt.NDArray[Any], lens: npt.NDArray[Any], caches: npt.NDArray[Any]
    ) -> Arrays:
        n_rows, _, n_frames = windows.shape
        profile = self._profile_for(n_rows)
        n_batch = self._profiles[profile].max_batch
        try:
            positions, swapped = self._caches.gather(profile, caches.tolist())
            shape = RunShape(profile=profile, n_batch=n_batch, n_frames=n_frames, swapped=swapped)
            lane = self._stage(shape, windows, lens, positions)
            outputs = self._plan.queue(shape)
            self._plan.wait()
        except BaseException:
            self._plan.discard()
            raise
        following = np.empty(n_rows, object)
        following[:] = self._caches.advance(profile, positions)
        log_probs, n_valid = (
            lane.buffers[name].view(outputs[name], self._plan.dtypes[name])[positions]
            for name in (LOG_PROBS, _N_VALID)
        )
        return log_probs, n_valid.astype(np.int64, copy=False), following

    def _stage(
        self,
        shape: RunShape,
        windows: npt.NDArray[Any],
        lens: npt.NDArray[Any],
        positions: Sequence[int],
    ) -> Lane:
        lane = self._plan.lane(shape.profile)
        staged = lane.buffers[FEATURES].view((shape.n_batch, self._n_mels, shape.n_frames), np.float32)
        staged_lens = lane.buffers[LENGTHS].view((shape.n_batch,), self._plan.dtypes[LENGTHS])
        staged[:], staged_lens[:] = 0.0, 0
        for row, position in enumerate(positions):
            staged[position], staged_lens[position] = windows[row], lens[row]
        return lane

    def _profile_for(self, n_rows: int) -> int:
        """Return the profile with the fewest rows that suffice, else the largest."""
        sizes = [profile.max_batch for profile in self._profiles]
        return min(range(len(sizes)), key=lambda i: (sizes[i] < n_rows, abs(sizes[i] - n_rows)))

    def _check_open(self) -> None:
        if not self._release.alive:
            raise BackendError("this streaming graph was closed; load it again")

    def _failing(self, what: str) -> Any:
        return _Failing(f"{what} of the engine {self.plan_path} failed")


class _Failing:
    """Turns a `DeviceError` of its block into a `BackendError`."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DeviceError):
            raise BackendError(f"{self._what}: {error}") from error


def _tensors(geometry: StreamingGeometry, n_mels: int, *, encoded: bool) -> dict[str, TensorSpec]:
    def dims(name: str, shape: RunShape) -> Dims:
        return stream_input_dims(geometry, n_mels, shape.n_batch, shape.n_frames)[name]

    counts = (LENGTHS, _CACHES[2], _N_VALID, _NEXT_CACHES[2])
    partners = {a: b for pair in zip(_CACHES, _NEXT_CACHES, strict=True) for a, b in (pair, pair[::-1])}
    specs = {}
    for name in (*STREAM_INPUTS, *STREAM_OUTPUTS):
        specs[name] = TensorSpec(
            dtypes=COUNT if name in counts else FLOAT,
            dims=functools.partial(dims, name) if name in STREAM_INPUTS else None,
            on_host=name not in (*_CACHES, *_NEXT_CACHES),
            swaps_with=partners.get(name),
        )
    if encoded:  # the graph has that output, and nobody reads it
        specs[ENCODED_NAME] = TensorSpec(dtypes=FLOAT, dims=None, on_host=False)
    return specs


def _window_lengths(geometry: StreamingGeometry) -> list[int]:
    """List the lengths of all windows, that of most steps first."""
    steps = range(geometry.dropped_frames, -1, -1)
    return list(dict.fromkeys(b - a for a, b in map(geometry.window, steps)))
