"""The TensorRT backend: any batch within an engine's profiles, on the `Backend` protocol.

It finds the engine of a bundle that may run here (lookup.py), gives each request a profile and a shape, and
runs it (runner.py). It needs `tensorrt` (or `tensorrt_rtx`, if it is named) and the CUDA driver, not
PyTorch.

Shapes. A batch with more rows than a profile takes is run in parts. Frames are padded to the profile's
minimum and to a coarse grid (shapes.py), so that shapes, and with them recordings, repeat. Rows are padded
to the smallest batch. `length` does not change, and the graphs of a bundle mask the frames after it, so a
valid frame has the same log-probs with and without padding, except for rounding. The proof of the export
compares padded batches with rows alone and unpadded, and the proof of the engine does so again. More frames
than any profile takes is an error: the recognizer's windows (24 s) bound the length, below the 30 s that a
default build takes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import BackendError, DeviceError, EngineError
from edge_asr.runtime.engine.api import load_tensorrt, version_of
from edge_asr.runtime.engine.cuda import Cuda, query_gpu
from edge_asr.runtime.engine.loaded import LoadedPlan
from edge_asr.runtime.engine.lookup import (
    FoundEngine,
    Graph,
    build_command,
    check_engine,
    check_trust,
    open_engine,
)
from edge_asr.runtime.engine.runner import MAX_CUDA_GRAPHS, EngineRunner
from edge_asr.runtime.engine.shapes import choose_profile, grid_frames, grid_up_to
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineSidecar, Flavor
from edge_asr.runtime.engine.tensors import RunShape
from edge_asr.runtime.engine.trust import state_folder

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)


class OpenedEngine:
    """An engine of a bundle that may run here, and the device that it runs on.

    Args:
        bundle, precision, flavor, allow_unverified, engine: see `TensorRTBackend`.
        graph: which graph of the bundle.

    Raises:
        As `TensorRTBackend`.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        flavor: Flavor,
        allow_unverified: bool = False,
        engine: tuple[Path, EngineSidecar] | None = None,
        graph: Graph = "model",
    ) -> None:
        self.trt = load_tensorrt(flavor)
        gpu = query_gpu()
        self.shares_memory = gpu is not None and gpu.integrated
        # Open CUDA first; otherwise a missing GPU is reported as a device mismatch.
        self.cuda = Cuda()
        device, self.version = DeviceIdentity.detect(), version_of(self.trt)
        found: FoundEngine
        if engine is None:
            found = open_engine(
                bundle, precision, flavor=flavor, tensorrt_version=self.version, device=device, graph=graph
            )
        else:
            found = check_engine(bundle, *engine, flavor=flavor, tensorrt_version=self.version, device=device)
        self.path, self.sidecar, self.plan = found
        if not allow_unverified:
            check_trust(bundle, self.path, self.sidecar)

    @property
    def kernel_cache(self) -> Path | None:
        """File for the kernels that TensorRT-RTX compiles; the user's, because it holds programs."""
        if self.sidecar.flavor != "tensorrt-rtx":
            return None
        folder = state_folder("XDG_CACHE_HOME", ".cache")
        return None if folder is None else folder / "rtx" / f"{self.sidecar.plan_sha256}.kernels"


class TensorRTBackend:
    """Runs an engine of a bundle. Thread-safe: calls wait for each other, one runs at a time.

    Args:
        bundle: a loaded bundle.
        precision: precision of the engine.
        flavor: "tensorrt", or "tensorrt-rtx".
        use_cuda_graphs: let `warm_up` record runs, which are then one launch.
        waits_asleep: wait for the GPU without keeping a core busy; None does on a GPU that shares the
            processor's memory.
        allow_unverified: also accept an engine that was not proven, failed its proof, or was not built here.
        engine: plan and sidecar inside the bundle's folder; None finds the one that fits. Either is checked.

    Attributes:
        name: the flavor.
        precision: precision of the engine.
        allow_unverified: the argument.
        plan_path, sidecar: the engine.

    Raises:
        MissingDependencyError: TensorRT is not installed.
        EngineError: no engine fits, it is not to be trusted, or TensorRT refuses it.
        BackendError: no usable GPU, or not enough of its memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision,
        *,
        flavor: Flavor = "tensorrt",
        use_cuda_graphs: bool = True,
        waits_asleep: bool | None = None,
        allow_unverified: bool = False,
        engine: tuple[Path, EngineSidecar] | None = None,
    ) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._output_frames = bundle.info.output_frames
        self._n_mels = bundle.info.features.n_mels
        self.name: str = flavor
        self.precision: str = precision
        self.allow_unverified = allow_unverified
        with translating_device_errors(flavor):
            opened = OpenedEngine(
                bundle, precision, flavor=flavor, allow_unverified=allow_unverified, engine=engine
            )
            self._cuda, self.plan_path, self.sidecar = opened.cuda, opened.path, opened.sidecar
            self.runtime = f"{flavor} {opened.version}"
            with self._cuda.current_device():
                runner = EngineRunner(
                    opened.plan,
                    self.sidecar,
                    trt=opened.trt,
                    cuda=self._cuda,
                    shares_memory=opened.shares_memory,
                    n_mels=self._n_mels,
                    encoded=bundle.info.decoder is not None,
                    use_cuda_graphs=use_cuda_graphs,
                    waits_asleep=waits_asleep,
                    kernel_cache=opened.kernel_cache,
                )
        self._runner = runner
        # Also for a backend that nobody closed; at exit the process gives everything back, and another
        # thread may still be running.
        self._release = weakref.finalize(self, close_on_device, runner, self._cuda)
        self._release.atexit = False

    @property
    def num_threads(self) -> None:
        """None: the GPU runs it."""

    @property
    def max_frames(self) -> int:
        """Most feature frames of one row."""
        return max(profile.max_frames for profile in self.sidecar.profiles)

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `Backend.log_probs`.

        Raises:
            EngineError: more frames than any profile takes, or TensorRT failed.
            BackendError: features or lengths of a wrong shape, closed, or CUDA failed.
        """
        return self._run(features, feature_lens)[0]

    def encode(self, features: F32Array, feature_lens: I64Array) -> tuple[F32Array, F32Array]:
        """See `EncodingBackend.encode`; raises as `log_probs`."""
        outputs = self._run(features, feature_lens)
        if len(outputs) < 2:
            raise BackendError(
                f"the engine {self.plan_path} gives no frames of its encoder, which an attention decoder "
                "needs; its bundle has no decoder"
            )
        return outputs[0], outputs[1]

    def _run(self, features: F32Array, feature_lens: I64Array) -> list[F32Array]:
        """Run a batch in parts that the engine takes; return every output."""
        n_rows, n_frames = self._check_inputs(features, feature_lens)
        n_out = self._output_frames.n_graph(n_frames)
        parts: list[tuple[F32Array, ...]] = []
        try:
            with self._lock, self._cuda.current_device():
                self._check_open()
                row = 0
                while row < n_rows:
                    shape = self._shape_for(n_frames, n_rows - row)
                    rows = slice(row, row + shape.n_batch)
                    parts.append(self._runner.run(shape, features[rows], feature_lens[rows]))
                    row += shape.n_batch
        except DeviceError as error:
            raise BackendError(
                f"the engine {self.plan_path} failed on features of shape {list(features.shape)}: {error}"
            ) from error
        outputs = [
            (some[0] if len(some) == 1 else np.concatenate(some))[:, :n_out]
            for some in zip(*parts, strict=True)
        ]
        if outputs[0].shape[1] != n_out:
            raise EngineError(
                f"the engine {self.plan_path} gives {outputs[0].shape[1]} frames for {n_frames}, "
                f"expected {n_out}; build it again with: {self._build_again()}"
            )
        return outputs

    def warm_up(self, n_frames: Sequence[int] | None = None, n_rows: int = 1) -> None:
        """Record the shapes that will come, so that runs of them are one launch from the first one on.

        It takes about as long as four runs of each shape. Call it at load or while nothing is to be heard; it
        waits for the runs of other threads, shape by shape.

        Args:
            n_frames: lengths that will come, in feature frames; None records all lengths, from the shortest
                to as many as are kept.
            n_rows: rows of a batch.

        Raises:
            EngineError, BackendError: as `log_probs`.
        """
        if n_frames is None:
            n_frames = grid_up_to(self.max_frames, self._output_frames)[:MAX_CUDA_GRAPHS]
        shapes = {self._shape_for(min(n, self.max_frames), n_rows) for n in n_frames}
        for shape in sorted(shapes, key=lambda shape: shape.n_frames):
            with translating_device_errors(self.name), self._lock, self._cuda.current_device():
                self._check_open()
                self._runner.warm_up(shape)

    def time_copies(self, n_rows: int, n_frames: int) -> tuple[float, float]:
        """Seconds that a batch's copies take by themselves, to the device and back; for benchmarks.

        Raises:
            EngineError: more frames than any profile takes.
            BackendError: closed, or CUDA failed.
        """
        there = back = 0.0
        try:
            with self._lock, self._cuda.current_device():
                self._check_open()
                row = 0
                while row < n_rows:
                    shape = self._shape_for(n_frames, n_rows - row)
                    laps = self._runner.time_copies(shape)
                    there, back, row = there + laps[0], back + laps[1], row + shape.n_batch
        except DeviceError as error:
            raise BackendError(f"copies of the engine {self.plan_path} failed: {error}") from error
        return there, back

    def close(self) -> None:
        """Release engine, memory and stream. May be called twice, also while other threads run."""
        with self._lock:
            self._release()

    def _check_open(self) -> None:
        if not self._release.alive:
            raise BackendError("this backend was closed; load the recognizer again")

    def _check_inputs(self, features: F32Array, feature_lens: I64Array) -> tuple[int, int]:
        if features.ndim != 3 or features.shape[2] != self._n_mels or 0 in features.shape:
            raise BackendError(
                f"features have the shape {list(features.shape)}; the engine takes [B, T, {self._n_mels}], "
                "none of them zero"
            )
        n_rows, n_frames, _ = features.shape
        if feature_lens.shape != (n_rows,) or not 1 <= feature_lens.min() <= feature_lens.max() <= n_frames:
            raise BackendError(
                f"feature_lens is {feature_lens.tolist()} for features of shape {list(features.shape)}; "
                f"give one length a row, from 1 to {n_frames}"
            )
        return n_rows, n_frames

    def _shape_for(self, n_frames: int, n_rows: int) -> RunShape:
        profiles = self.sidecar.profiles
        index = choose_profile(profiles, n_frames, n_rows)
        if index is None:
            raise EngineError(self._too_long(n_frames))
        profile = profiles[index]
        padded = grid_frames(n_frames, self._output_frames)
        return RunShape(
            profile=index,
            n_batch=min(max(n_rows, profile.min_batch), profile.max_batch),
            n_frames=min(max(padded, profile.min_frames), profile.max_frames),
        )

    def _too_long(self, n_frames: int) -> str:
        front_end = self._bundle.info.features
        frame_s = front_end.hop_length / front_end.sample_rate
        ranges = ", ".join(f"{p.min_frames} to {p.max_frames}" for p in self.sidecar.profiles)
        served = {n for p in self.sidecar.profiles for n in (p.min_frames, p.max_frames)}
        edges = sorted({grid_frames(n, self._output_frames) for n in served | {n_frames}})
        seconds = ",".join(f"{edge * frame_s:g}" for edge in edges)
        return (
            f"{n_frames} feature frames ({n_frames * frame_s:g} s) fit no profile of the engine "
            f"{self.plan_path}, which take {ranges}; give shorter pieces, or build with: "
            f"{self._build_again()} --profile-seconds {seconds}"
        )

    def _build_again(self) -> str:
        return build_command(self._bundle, self.sidecar.precision, self.sidecar.flavor, force=True)


@contextlib.contextmanager
def translating_device_errors(flavor: str) -> Iterator[None]:
    """Raise a `DeviceError` of the block as the `BackendError` of a backend."""
    try:
        yield
    except DeviceError as error:
        raise BackendError(f"backend {flavor!r} cannot run here: {error}") from error


def close_on_device(runner: EngineRunner | LoadedPlan, cuda: Cuda) -> None:
    """Close a runner in whatever thread this is, which may have no current device."""
    try:
        with cuda.current_device():
            runner.close()
    except DeviceError as error:
        logger.warning("while releasing the engine: %s", str(error))
