"""A TensorRT plan on the device: contexts, activations, buffers, copies, recorded runs, release.

It speaks to `tensorrt` (8.6, 10, 11) or `tensorrt_rtx` and to CUDA, by features and not by version. What the
tensors mean is for the runners (runner.py, stream_runner.py), which also hold the lock. Plans with host code
in them (version-compatible ones) are refused, which is TensorRT's default.

Memory. A profile takes memory when it is first used: page-locked and device buffers at its maximum, and one
block for the activations, which all its contexts share. Both are safe because there is one stream, and each
run ends before the next begins. On a GPU that shares the processor's memory the page-locked buffer is the
device buffer, and nothing is copied.

CUDA graphs. A recorded shape is one launch. Recording takes a context of its own, because the state of a
context belongs to the shape it was last given (NVIDIA/TensorRT issue 3798), and several runs, so it happens
in `record` alone, never in a run that someone waits for. When there are `max_graphs`, the context of the
least recently used one is taken. TensorRT-RTX records by itself, once its kernels are compiled for a shape,
so it is asked to do so, and its compiled kernels are kept in a file.

Whatever is created here is released here, in the opposite order, also when a step between fails: hence the
length.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.atomic import write_file
from edge_asr.errors import DeviceError, EngineError
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.sidecar import EngineProfile

Dims = tuple[int, ...]

FEATURES = "audio_signal"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunShape:
    """The exact shape of a run: profile index, rows and feature frames."""

    profile: int
    n_batch: int
    n_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor of our graphs.

    Attributes:
        dtypes: NumPy types by the name of TensorRT's. The parser of TensorRT 8.6 turns int64 into int32.
        is_input: whether it is an input.
        dims: shape of an input for a run; None for an output, whose shape TensorRT infers.
        on_host: whether its content comes from the host, or goes there, in every run.
    """

    dtypes: Mapping[str, type[np.generic]]
    dims: Callable[[RunShape], Dims] | None
    on_host: bool = True

    @property
    def is_input(self) -> bool:
        """Tell whether it is an input."""
        return self.dims is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """Device memory of one tensor, and page-locked memory of the same size where the host uses it.

    Attributes:
        host: address on the host; 0 without one, the device's where both are one memory.
        device: address on the device.
    """

    host: int
    device: int

    def view(self, shape: Dims, dtype: type[np.generic]) -> npt.NDArray[Any]:
        """Return the beginning of the page-locked memory as an array."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        raw = memoryview((ctypes.c_uint8 * n_bytes).from_address(self.host))
        return np.frombuffer(raw, np.dtype(dtype)).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What one profile has on the device.

    Attributes:
        context: runs every shape that was not recorded.
        buffers: by name of the tensor.
        activations: address and size of the memory that its contexts share.
    """

    context: Any
    buffers: Mapping[str, Buffer]
    activations: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graph:
    """A recorded run. The context is kept because the recording uses its state."""

    executable: Any
    context: Any
    outputs: Mapping[str, Dims]


class LoadedPlan:
    """A loaded plan. Not thread-safe: one call at a time.

    Args:
        plan: content of the plan file. It is a program, so the caller must have checked where it comes from.
        profiles: those of the sidecar; they must be those of the plan.
        tensors: the inputs and outputs that the plan must have, inputs first.
        trt: the module of the plan's flavor.
        cuda: the device to run on.
        shares_memory: whether that device's memory is the host's.
        use_cuda_graphs: whether `record` records.
        waits_asleep: wait without keeping a core busy, which takes some microseconds more; None does where
            memory is shared, for such a board has few cores, and they capture the sound.
        max_graphs: most recorded shapes.
        kernel_cache: file for the kernels that TensorRT-RTX compiles here; None keeps none.

    Attributes:
        dtypes: NumPy type of each tensor.
        n_runs, n_replays, n_recorded: runs, those of them that were a launch, recordings.

    Raises:
        EngineError: TensorRT refuses the plan, or the plan differs from what is expected.
        DeviceError: CUDA failed, most likely because memory ran out.
    """

    def __init__(
        self,
        plan: bytes,
        profiles: Sequence[EngineProfile],
        tensors: Mapping[str, TensorSpec],
        *,
        trt: ModuleType,
        cuda: Cuda,
        shares_memory: bool = False,
        use_cuda_graphs: bool,
        waits_asleep: bool | None = None,
        max_graphs: int,
        kernel_cache: Path | None = None,
    ) -> None:
        self._trt: Any = trt
        self._cuda = cuda
        self._profiles = profiles
        self._tensors = tensors
        self._shares_memory = shares_memory
        self._use_cuda_graphs = use_cuda_graphs
        self._waits_asleep = waits_asleep
        self._max_graphs = max_graphs
        self._kernel_cache = kernel_cache
        self._log = create_logger(trt)
        self._graphs: OrderedDict[RunShape, _Graph] = OrderedDict()
        self._lanes: dict[int, Lane] = {}
        self._resources = contextlib.ExitStack()
        self.n_runs = self.n_replays = self.n_recorded = 0
        try:
            self._load(plan)
            smallest = min(
                range(len(profiles)), key=lambda i: (profiles[i].max_batch, profiles[i].max_frames)
            )
            self.lane(smallest)  # a device that cannot hold it says so now
        except BaseException:
            self.close()
            raise

    def lane(self, profile: int) -> Lane:
        """Return what a profile has on the device; its memory is allocated at the first call.

        Raises:
            EngineError, DeviceError: see the class; what the profile took is given back.
        """
        if profile not in self._lanes:
            with contextlib.ExitStack() as taken:
                lane = self._open_lane(profile, taken)
                self._resources.push(taken.pop_all())
            self._lanes[profile] = lane
        return self._lanes[profile]

    def queue(self, shape: RunShape) -> Mapping[str, Dims]:
        """Queue a run of what is staged; return the shapes of the outputs. `wait` for it.

        Raises:
            EngineError: TensorRT refused the shape or the run.
            DeviceError: CUDA failed.
        """
        lane = self.lane(shape.profile)
        self.n_runs += 1
        graph = self._graphs.get(shape)
        if graph is not None:
            self._graphs.move_to_end(shape)
            self._cuda.launch(graph.executable, self.stream)
            self.n_replays += 1
            return graph.outputs
        outputs = self.set_shape(lane.context, shape)
        self._queue(lane.context, lane, shape, outputs)
        return outputs

    def wait(self) -> None:
        """Wait for everything that is queued.

        Raises:
            DeviceError: CUDA failed.
        """
        if self._event is None:
            self._cuda.synchronize(self.stream)
        else:
            self._cuda.synchronize_asleep(self.stream, self._event)

    def discard(self) -> None:
        """Wait after a failure: queued copies must not touch the buffers of the next run."""
        with contextlib.suppress(DeviceError):
            self.wait()

    def record(self, shape: RunShape) -> bool:
        """Record a run of a shape, with what is staged; tell whether it is recorded now.

        A failure is logged, and runs go on without recordings.

        Raises:
            EngineError, DeviceError: an ordinary run of the shape failed.
        """
        lane = self.lane(shape.profile)
        if shape in self._graphs:
            return True
        if not self._use_cuda_graphs:  # CUDA loads and TensorRT-RTX compiles kernels in the first run
            self._queue(lane.context, lane, shape, self.set_shape(lane.context, shape))
            self.wait()
            return False
        try:
            context = self._recording_context(lane, shape.profile)
        except (EngineError, DeviceError) as error:
            self._give_up_graphs(error)
            return False
        outputs = self.set_shape(context, shape)
        # Ordinary runs must come before: TensorRT finishes a context for a shape in the first ones.
        for _ in range(2):
            self._queue(context, lane, shape, outputs)
            self.wait()
        try:
            executable = self._cuda.capture(self.stream, lambda: self._queue(context, lane, shape, outputs))
        except (EngineError, DeviceError) as error:
            self._give_up_graphs(error)
            return False
        self._graphs[shape] = _Graph(executable=executable, context=context, outputs=outputs)
        self.n_recorded += 1
        return True

    def has_recorded(self, shape: RunShape) -> bool:
        """Tell whether a run of this shape is one launch."""
        return shape in self._graphs

    def set_shape(self, context: Any, shape: RunShape) -> dict[str, Dims]:
        """Set the shapes of the inputs in a context, and return those of the outputs.

        Raises:
            EngineError: TensorRT refuses one.
        """
        for name, spec in self._tensors.items():
            if spec.dims is not None and not context.set_input_shape(name, spec.dims(shape)):
                raise self.error(f"TensorRT refuses {name} of shape {list(spec.dims(shape))}")
        outputs = {}
        for name in (name for name, spec in self._tensors.items() if not spec.is_input):
            outputs[name] = tuple(int(n) for n in context.get_tensor_shape(name))
            if not outputs[name] or min(outputs[name]) < 1:
                raise self.error(f"TensorRT cannot infer {name} for {shape}, it gives {outputs[name]}")
        return outputs

    def queue_inputs(self, lane: Lane, shape: RunShape) -> None:
        """Queue the copies of the staged inputs to the device."""
        if self._shares_memory:
            return
        for name, spec in self._tensors.items():
            if spec.dims is not None and spec.on_host:
                buffer = lane.buffers[name]
                n_bytes = self._n_bytes(name, spec.dims(shape))
                self._cuda.copy_to_device(buffer.device, buffer.host, n_bytes, self.stream)

    def queue_outputs(self, lane: Lane, outputs: Mapping[str, Dims]) -> None:
        """Queue the copies of the outputs to the host."""
        if self._shares_memory:
            return
        for name, dims in outputs.items():
            if self._tensors[name].on_host:
                buffer = lane.buffers[name]
                self._cuda.copy_to_host(buffer.host, buffer.device, self._n_bytes(name, dims), self.stream)

    def allocate(self, n_bytes: int) -> int:
        """Allocate device memory that is freed with the plan.

        Raises:
            DeviceError: there is none left.
        """
        return int(self._own(self._resources, self._cuda.allocate(n_bytes), self._cuda.free))

    def describe_runs(self) -> str:
        """Say how many runs were a launch, for logs."""
        own = "its own CUDA graphs" if self._config is not None else f"{self.n_recorded} recorded"
        return f"{self.n_runs} runs, {self.n_replays} of them replayed ({own})"

    def error(self, what: str) -> EngineError:
        """Return an error with what TensorRT logged."""
        reasons = "; ".join(self._log.take_errors()) or "it gives no reason"
        return EngineError(f"{what}: {reasons}")

    def close(self) -> None:
        """Release everything. May be called twice."""
        self._save_kernels()
        if self.n_runs:
            logger.info("engine: %s", self.describe_runs())
            self.n_runs = self.n_replays = 0
        while self._graphs:
            self._drop_oldest_graph()
        self._lanes.clear()
        self._resources.close()

    # --- loading ---

    def _load(self, plan: bytes) -> None:
        self._config: Any = None
        self._kernels: Any = None
        self.stream = self._own(self._resources, self._cuda.create_stream(), self._cuda.destroy_stream)
        self._event = None
        if self._shares_memory if self._waits_asleep is None else self._waits_asleep:
            self._event = self._own(self._resources, self._cuda.create_event(), self._cuda.destroy_event)
        self._log.take_errors()  # discards errors of others, because the log is shared
        # Contexts, engine and runtime are released in this order, once nothing refers to them.
        self._resources.callback(self._forget_engine)
        try:
            self._runtime = self._trt.Runtime(self._log)
        except (TypeError, RuntimeError) as error:  # TypeError is how pybind11 reports that it got no object
            raise self.error("TensorRT cannot start here; run `edge-asr doctor`") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.error("TensorRT refuses the plan")
        self.dtypes = self._check_tensors()
        self._check_profiles()
        self._config = self._create_runtime_config()

    def _check_tensors(self) -> dict[str, type[np.generic]]:
        """Check that inputs and outputs are those of our graphs; return their types."""
        engine, found = self._engine, {}
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            dtype = engine.get_tensor_dtype(name).name
            known = self._tensors[name].dtypes if name in self._tensors else {}
            if dtype not in known or engine.get_tensor_location(name).name != "DEVICE":
                raise EngineError(
                    f"the engine has a tensor {name} of {dtype}, which edge-asr's graphs do not have; "
                    "build the engine again"
                )
            found[name] = known[dtype]
        if found.keys() != self._tensors.keys():
            raise EngineError(
                f"the engine has the tensors {sorted(found)}, not {sorted(self._tensors)}; build the engine "
                "again"
            )
        for name, spec in self._tensors.items():
            if spec.dims is None:
                continue
            said = tuple(engine.get_tensor_shape(name))
            varies = (0, 2) if name == FEATURES else (0,)
            dims = spec.dims(RunShape(profile=0, n_batch=1, n_frames=1))
            takes = tuple(-1 if axis in varies else n for axis, n in enumerate(dims))
            if len(said) != len(takes) or any(
                b != -1 and a not in (b, -1) for a, b in zip(said, takes, strict=True)
            ):
                raise EngineError(
                    f"the engine takes {name} of shape {list(said)}, the bundle gives {list(takes)}; build "
                    "the engine again"
                )
        return found

    def _check_profiles(self) -> None:
        engine, profiles = self._engine, self._profiles
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

    def _create_runtime_config(self) -> Any | None:
        """Return a TensorRT-RTX configuration with its own CUDA graphs; None for TensorRT, which has none."""
        if not (self._use_cuda_graphs and hasattr(self._trt, "CudaGraphStrategy")):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._use_cuda_graphs = False  # TensorRT-RTX records its own
        if self._kernel_cache is not None and hasattr(config, "create_runtime_cache"):
            self._kernels = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                if not self._kernels.deserialize(self._kernel_cache.read_bytes()):
                    logger.info("%s is of another GPU, driver or version; compiling anew", self._kernel_cache)
            config.set_runtime_cache(self._kernels)
        return config

    def _save_kernels(self) -> None:
        kernels, self._kernels = getattr(self, "_kernels", None), None
        if kernels is None or self._kernel_cache is None or not self.n_runs:
            return
        try:
            write_file(self._kernel_cache, bytes(kernels.serialize()))
        except OSError as error:
            logger.info("%s cannot be written (%s): kernels are compiled again", self._kernel_cache, error)

    def _open_lane(self, profile: int, taken: contextlib.ExitStack) -> Lane:
        said = self._profiles[profile]
        largest = RunShape(profile=profile, n_batch=said.max_batch, n_frames=said.max_frames)
        context = self._create_context()
        self._choose_profile(context, profile)
        shapes = self.set_shape(context, largest)
        shapes |= {name: spec.dims(largest) for name, spec in self._tensors.items() if spec.dims is not None}
        n_bytes = max(self._count_activation_bytes(profile), 1)
        lane = Lane(
            context=context,
            buffers={name: self._buffer(name, shapes[name], taken) for name in self._tensors},
            activations=(self._own(taken, self._cuda.allocate(n_bytes), self._cuda.free), n_bytes),
        )
        self._bind(context, lane)
        logger.debug("profile %d takes %.1f MB for activations", profile, n_bytes / 1e6)
        return lane

    def _count_activation_bytes(self, profile: int) -> int:
        engine = self._engine
        if hasattr(engine, "get_device_memory_size_for_profile_v2"):
            return int(engine.get_device_memory_size_for_profile_v2(profile))
        # The largest of all profiles. 8.6 lacks the first, 11 the second.
        has_v2 = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size)

    def _create_context(self) -> Any:
        engine = self._engine
        if self._config is not None:
            context = engine.create_execution_context(self._config)
        elif hasattr(self._trt, "ExecutionContextAllocationStrategy"):
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        else:
            context = engine.create_execution_context_without_device_memory()  # 8.6
        if context is None:
            raise self.error("TensorRT cannot create an execution context")
        return context

    def _choose_profile(self, context: Any, profile: int) -> None:
        try:
            context.set_optimization_profile_async(profile, int(self.stream))
        except RuntimeError as error:  # the one setter that raises instead of returning False
            raise self.error(f"TensorRT refuses profile {profile}") from error
        self.wait()

    def _bind(self, context: Any, lane: Lane) -> None:
        if hasattr(context, "set_device_memory"):
            address, n_bytes = lane.activations
            context.set_device_memory(address, n_bytes)
        else:
            context.device_memory = lane.activations[0]  # 8.6
        for name, buffer in lane.buffers.items():
            if not context.set_tensor_address(name, buffer.device):
                raise self.error(f"TensorRT refuses the address of {name}")

    # --- running ---

    def _queue(self, context: Any, lane: Lane, shape: RunShape, outputs: Mapping[str, Dims]) -> None:
        self.queue_inputs(lane, shape)
        if not context.execute_async_v3(int(self.stream)):
            raise self.error(f"TensorRT failed to run {shape}")
        self.queue_outputs(lane, outputs)

    # --- CUDA graphs ---

    def _recording_context(self, lane: Lane, profile: int) -> Any:
        """Return a context for one more recording; when there are enough, that of the oldest one."""
        if len(self._graphs) >= self._max_graphs:
            context = self._drop_oldest_graph()
        else:
            context = self._create_context()
        self._choose_profile(context, profile)
        self._bind(context, lane)
        return context

    def _give_up_graphs(self, error: Exception) -> None:
        self._use_cuda_graphs = False
        # Logged as text: a stored log record would keep the context alive through the error's traceback.
        logger.warning("continuing without CUDA graphs, so runs may take longer to start: %s", str(error))

    def _drop_oldest_graph(self) -> Any:
        _, graph = self._graphs.popitem(last=False)
        _release(self._cuda.destroy_graph, graph.executable)
        return graph.context

    # --- resources ---

    def _n_bytes(self, name: str, dims: Dims) -> int:
        return math.prod(dims) * np.dtype(self.dtypes[name]).itemsize

    def _buffer(self, name: str, dims: Dims, taken: contextlib.ExitStack) -> Buffer:
        n_bytes, on_host = self._n_bytes(name, dims), self._tensors[name].on_host
        host = self._own(taken, self._cuda.allocate_pinned(n_bytes), self._cuda.free_pinned) if on_host else 0
        if on_host and self._shares_memory:
            return Buffer(host=host, device=host)
        return Buffer(host=host, device=self._own(taken, self._cuda.allocate(n_bytes), self._cuda.free))

    @staticmethod
    def _own(taken: contextlib.ExitStack, resource: Any, release: Callable[[Any], None]) -> Any:
        taken.callback(_release, release, resource)
        return resource

    def _forget_engine(self) -> None:
        self._config = self._kernels = self._engine = self._runtime = None


def _release(release: Callable[[Any], None], resource: Any) -> None:
    """Release one resource; a failure must not keep the others from being released."""
    try:
        release(resource)
    except DeviceError as error:
        logger.warning("while releasing the engine: %s", str(error))
