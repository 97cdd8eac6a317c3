"""Runs one TensorRT plan at given shapes: contexts, buffers, copies, CUDA graphs, release.

It speaks to `tensorrt` (8.6, 10, 11) or `tensorrt_rtx` and to CUDA, by features and not by version; NumPy
only fills and reads the page-locked buffers. The caller (backend.py) chooses profile and shape of a request
and holds the lock. Plans with host code in them (version-compatible ones) are refused, which is TensorRT's
default.

Memory. Page-locked and device buffers for both inputs and the output are allocated once, at the maximum of
all profiles. Every context gets its activations from one block of device memory that all share. Both are
safe because there is one stream, and each run ends before the next begins.

CUDA graphs. The second time a shape comes, the run uses a context of its own and is then recorded, copies
included; from the third time on it is one launch. TensorRT requires a context per graph, because the state of
a context belongs to the shape it was last given (NVIDIA/TensorRT issue 3798). The least recently used graph
goes when there are more than `MAX_CUDA_GRAPHS`. TensorRT-RTX records by itself, once its kernels are compiled
for a shape, so it is asked to do so.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.errors import DeviceError, EngineError
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.sidecar import EngineProfile, EngineSidecar

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

FEATURES, LENGTHS, LOG_PROBS = "audio_signal", "length", "logprobs"
MAX_CUDA_GRAPHS = 16
_REMEMBERED_SHAPES = 256
# The parser of TensorRT 8.6 turns int64 inputs into int32.
_DTYPES: dict[str, dict[str, type[np.generic]]] = {
    FEATURES: {"FLOAT": np.float32},
    LENGTHS: {"INT64": np.int64, "INT32": np.int32},
    LOG_PROBS: {"FLOAT": np.float32},
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """The exact shape of a run: profile index, rows and feature frames."""

    profile: int
    n_batch: int
    n_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Buffer:
    """Page-locked and device memory of the same size, for one tensor."""

    host: int
    device: int

    def view(self, shape: tuple[int, ...], dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Return the beginning of the page-locked memory as an array."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        raw = memoryview((ctypes.c_uint8 * n_bytes).from_address(self.host))
        return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """A recorded run. The context is kept because the recording uses its state."""

    executable: Any
    context: Any
    output_shape: tuple[int, ...]


class EngineRunner:
    """A loaded plan. Not thread-safe: one call at a time.

    Args:
        plan: content of the plan file. It is a program, so the caller must have checked where it comes from.
        sidecar: the sidecar of the plan; its profiles must be those of the plan.
        trt: the module of the sidecar's flavor.
        cuda: the device to run on.
        n_mels: feature channels.
        use_cuda_graphs: record runs of shapes that repeat.

    Raises:
        EngineError: TensorRT refuses the plan, or the plan differs from the sidecar.
        DeviceError: CUDA failed, most likely because memory ran out.
    """

    def __init__(
        self,
        plan: bytes,
        sidecar: EngineSidecar,
        *,
        trt: ModuleType,
        cuda: Cuda,
        n_mels: int,
        use_cuda_graphs: bool,
    ) -> None:
        self._trt: Any = trt
        self._cuda = cuda
        self._n_mels = n_mels
        self._log = create_logger(trt)
        self._seen: OrderedDict[RunShape, None] = OrderedDict()
        self._graphs: OrderedDict[RunShape, _Graph] = OrderedDict()
        self._contexts: list[Any] = []
        self._use_cuda_graphs = use_cuda_graphs
        self._resources = contextlib.ExitStack()
        try:
            self._load(plan, sidecar)
        except BaseException:
            self.close()
            raise

    def run(self, shape: RunShape, features: F32Array, feature_lens: I64Array) -> F32Array:
        """Compute log-probs of a batch, padded to `shape` with zero frames, and with rows of one frame.

        Args:
            shape: within its profile, and not smaller than the batch.
            features: [B, T, n_mels].
            feature_lens: [B], valid frames of each row.

        Returns:
            [B, T', V], a copy; T' belongs to the frames of `shape`.

        Raises:
            EngineError: TensorRT refused the shape or the run.
            DeviceError: CUDA failed.
        """
        n_rows, n_frames, _ = features.shape
        staged = self._features.view((shape.n_batch, self._n_mels, shape.n_frames), np.float32)
        staged[:n_rows, :, :n_frames] = features.transpose(0, 2, 1)
        staged[:n_rows, :, n_frames:] = 0.0
        staged[n_rows:] = 0.0
        lens = self._lens.view((shape.n_batch,), self._lens_dtype)
        lens[:n_rows] = feature_lens
        lens[n_rows:] = 1
        try:
            output_shape = self._execute(shape)
        except BaseException:
            # Queued copies must not touch the buffers of the next run.
            with contextlib.suppress(DeviceError):
                self._cuda.synchronize(self._stream)
            raise
        log_probs: F32Array = self._log_probs.view(output_shape, np.float32)[:n_rows].copy()
        return log_probs

    def time_copies(self, shape: RunShape) -> tuple[float, float]:
        """Time the copies of a run alone, in seconds, to the device and back, whatever the buffers hold.

        Raises:
            EngineError: TensorRT refused the shape.
            DeviceError: CUDA failed.
        """
        output_shape = self._set_shape(self._contexts[shape.profile], shape)
        began = time.perf_counter()
        self._queue_inputs(shape)
        self._cuda.synchronize(self._stream)
        arrived = time.perf_counter()
        self._queue_output(output_shape)
        self._cuda.synchronize(self._stream)
        return arrived - began, time.perf_counter() - arrived

    def close(self) -> None:
        """Release everything. May be called twice."""
        # Also a finalizer's thread has no current device of its own.
        with self._cuda.current_device():
            while self._graphs:
                self._drop_oldest_graph()
            self._contexts.clear()
            self._resources.close()

    # --- loading ---

    def _load(self, plan: bytes, sidecar: EngineSidecar) -> None:
        self._stream = self._own(self._cuda.create_stream(), self._cuda.destroy_stream)
        self._log.take_errors()  # discards errors of others, because the log is shared
        # Contexts, engine and runtime are released in this order, once nothing refers to them.
        self._resources.callback(self._forget_engine)
        try:
            self._runtime = self._trt.Runtime(self._log)
        except (TypeError, RuntimeError) as error:  # TypeError is how pybind11 reports that it got no object
            raise self._error("TensorRT cannot start here; run `edge-asr doctor`") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._error("TensorRT refuses the plan")
        self._lens_dtype = self._check_tensors()
        self._check_profiles(sidecar.profiles)
        self._config = self._create_runtime_config()

        engine = self._engine
        has_v2 = hasattr(engine, "device_memory_size_v2")  # 8.6 lacks it, 11 lacks the other
        self._workspace_bytes = int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size)
        self._workspace = self._own(self._cuda.allocate(max(self._workspace_bytes, 1)), self._cuda.free)
        most_frames = max(p.max_batch * p.max_frames for p in sidecar.profiles)
        most_rows = max(p.max_batch for p in sidecar.profiles)
        self._features = self._allocate(most_frames * self._n_mels * 4)
        self._lens = self._allocate(most_rows * np.dtype(self._lens_dtype).itemsize)
        output_bytes = 0
        for index, profile in enumerate(sidecar.profiles):
            self._contexts.append(self._create_context(index))
            largest = RunShape(profile=index, n_batch=profile.max_batch, n_frames=profile.max_frames)
            output_bytes = max(output_bytes, math.prod(self._set_shape(self._contexts[-1], largest)) * 4)
        self._log_probs = self._allocate(output_bytes)
        for context in self._contexts:
            self._bind(context)

    def _check_tensors(self) -> type[np.generic]:
        """Check that inputs and output are those of our graphs; return the dtype of the lengths."""
        engine, found = self._engine, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = engine.get_tensor_dtype(name).name
            if dtype not in _DTYPES.get(name, {}) or engine.get_tensor_location(name).name != "DEVICE":
                raise EngineError(
                    f"the engine has a tensor {name} of {dtype}, which edge-asr's graphs do not have; "
                    "build the engine again"
                )
            found[name] = dtype
        if found.keys() != _DTYPES.keys():
            raise EngineError(
                f"the engine has the tensors {sorted(found)}, not {sorted(_DTYPES)}; build the engine again"
            )
        n_mels = engine.get_tensor_shape(FEATURES)[1]
        if n_mels not in (self._n_mels, -1):
            raise EngineError(
                f"the engine takes {n_mels} feature channels, the bundle gives {self._n_mels}; build it again"
            )
        return _DTYPES[LENGTHS][found[LENGTHS]]

    def _check_profiles(self, profiles: tuple[EngineProfile, ...]) -> None:
        engine = self._engine
        if engine.num_optimization_profiles != len(profiles):
            raise EngineError(
                f"the engine has {engine.num_optimization_profiles} profiles, its sidecar {len(profiles)}; "
                "build the engine again"
            )
        for index, said in enumerate(profiles):
            low, opt, high = (tuple(dims) for dims in engine.get_tensor_profile_shape(FEATURES, index))
            real = EngineProfile(
                min_frames=low[2],
                opt_frames=opt[2],
                max_frames=high[2],
                min_batch=low[0],
                opt_batch=opt[0],
                max_batch=high[0],
            )
            if real != said:
                raise EngineError(
                    f"profile {index} of the engine is {real}, its sidecar says {said}; "
                    "build the engine again"
                )

    def _create_runtime_config(self) -> Any:
        """Return a TensorRT-RTX configuration with its own CUDA graphs; None for TensorRT, which has none."""
        if not (self._use_cuda_graphs and hasattr(self._trt, "CudaGraphStrategy")):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._use_cuda_graphs = False  # TensorRT-RTX records its own
        return config

    def _create_context(self, profile: int) -> Any:
        """Create a context for a profile, with the shared activations; its tensors are not bound yet."""
        engine = self._engine
        if self._config is not None:
            context = engine.create_execution_context(self._config)
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        else:
            context = engine.create_execution_context_without_device_memory()  # 8.6
        if context is None:
            raise self._error("TensorRT cannot create an execution context")
        try:
            context.set_optimization_profile_async(profile, int(self._stream))
        except RuntimeError as error:  # the one setter that raises instead of returning False
            raise self._error(f"TensorRT refuses profile {profile}") from error
        self._cuda.synchronize(self._stream)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._workspace, self._workspace_bytes)
        else:
            context.device_memory = self._workspace  # 8.6
        return context

    def _bind(self, context: Any) -> None:
        for name, buffer in (
            (FEATURES, self._features),
            (LENGTHS, self._lens),
            (LOG_PROBS, self._log_probs),
        ):
            if not context.set_tensor_address(name, buffer.device):
                raise self._error(f"TensorRT refuses the address of {name}")

    # --- running ---

    def _set_shape(self, context: Any, shape: RunShape) -> tuple[int, ...]:
        """Set the shape of the inputs in a context, and return the shape of the output."""
        inputs = {FEATURES: (shape.n_batch, self._n_mels, shape.n_frames), LENGTHS: (shape.n_batch,)}
        for name, dims in inputs.items():
            if not context.set_input_shape(name, dims):
                raise self._error(f"TensorRT refuses {name} of shape {list(dims)}")
        output_shape = tuple(int(n) for n in context.get_tensor_shape(LOG_PROBS))
        if len(output_shape) != 3 or min(output_shape) < 1:
            raise self._error(f"TensorRT cannot infer the output shape for {shape}, it gives {output_shape}")
        return output_shape

    def _execute(self, shape: RunShape) -> tuple[int, ...]:
        """Run what is staged and wait; return the shape of the output, which then lies in its buffer."""
        graph = self._graphs.get(shape)
        if graph is not None:
            self._graphs.move_to_end(shape)
            self._cuda.launch(graph.executable, self._stream)
            self._cuda.synchronize(self._stream)
            return graph.output_shape
        recording = self._create_recording_context(shape) if self._repeats(shape) else None
        context = self._contexts[shape.profile] if recording is None else recording
        output_shape = self._set_shape(context, shape)
        self._queue(context, shape, output_shape)
        self._cuda.synchronize(self._stream)
        if recording is not None:
            # TensorRT needs one ordinary run with a new shape before a recording, which was the one above.
            self._record(recording, shape, output_shape)
        return output_shape

    def _queue(self, context: Any, shape: RunShape, output_shape: tuple[int, ...]) -> None:
        self._queue_inputs(shape)
        if not context.execute_async_v3(int(self._stream)):
            raise self._error(f"TensorRT failed to run {shape}")
        self._queue_output(output_shape)

    def _queue_inputs(self, shape: RunShape) -> None:
        n_bytes = shape.n_batch * self._n_mels * shape.n_frames * 4
        self._cuda.copy_to_device(self._features.device, self._features.host, n_bytes, self._stream)
        n_bytes = shape.n_batch * np.dtype(self._lens_dtype).itemsize
        self._cuda.copy_to_device(self._lens.device, self._lens.host, n_bytes, self._stream)

    def _queue_output(self, output_shape: tuple[int, ...]) -> None:
        n_bytes = math.prod(output_shape) * 4
        self._cuda.copy_to_host(self._log_probs.host, self._log_probs.device, n_bytes, self._stream)

    # --- CUDA graphs ---

    def _repeats(self, shape: RunShape) -> bool:
        """Note a shape; tell whether it has come before and runs are recorded."""
        if not self._use_cuda_graphs:
            return False
        seen = shape in self._seen
        self._seen[shape] = None
        self._seen.move_to_end(shape)
        if len(self._seen) > _REMEMBERED_SHAPES:
            self._seen.popitem(last=False)
        return seen

    def _create_recording_context(self, shape: RunShape) -> Any:
        try:
            context = self._create_context(shape.profile)
            self._bind(context)
        except (EngineError, DeviceError) as error:
            self._give_up_graphs(error)
            return None
        return context

    def _record(self, context: Any, shape: RunShape, output_shape: tuple[int, ...]) -> None:
        try:
            executable = self._cuda.capture(self._stream, lambda: self._queue(context, shape, output_shape))
        except (EngineError, DeviceError) as error:
            self._give_up_graphs(error)
            return
        self._graphs[shape] = _Graph(executable=executable, context=context, output_shape=output_shape)
        if len(self._graphs) > MAX_CUDA_GRAPHS:
            self._drop_oldest_graph()

    def _give_up_graphs(self, error: Exception) -> None:
        self._use_cuda_graphs = False
        # Logged as text: a stored log record would keep the context alive through the traceback of the error.
        logger.warning("continuing without CUDA graphs, so runs may take longer to start: %s", str(error))

    def _drop_oldest_graph(self) -> None:
        _, graph = self._graphs.popitem(last=False)
        _release(self._cuda.destroy_graph, graph.executable)

    # --- resources ---

    def _allocate(self, n_bytes: int) -> _Buffer:
        return _Buffer(
            host=self._own(self._cuda.allocate_pinned(n_bytes), self._cuda.free_pinned),
            device=self._own(self._cuda.allocate(n_bytes), self._cuda.free),
        )

    def _own(self, resource: Any, release: Callable[[Any], None]) -> Any:
        self._resources.callback(_release, release, resource)
        return resource

    def _forget_engine(self) -> None:
        self._config = self._engine = self._runtime = None

    def _error(self, what: str) -> EngineError:
        reasons = "; ".join(self._log.take_errors()) or "it gives no reason"
        return EngineError(f"{what}: {reasons}")


def _release(release: Callable[[Any], None], resource: Any) -> None:
    """Release one resource; a failure must not keep the others from being released."""
    try:
        release(resource)
    except DeviceError as error:
        logger.warning("while releasing the engine: %s", str(error))
