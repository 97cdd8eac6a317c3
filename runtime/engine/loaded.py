"""A TensorRT plan on the device: activations, buffers, copies, runs, recorded runs, release.

The plan itself, and the contexts that run it, are TensorRT's (deserialized.py); the memory is CUDA's. What
the tensors mean is for the runners (runner.py, stream_runner.py), which also hold the lock.

Memory. A profile takes memory when it is first used: page-locked and device buffers at its maximum, and one
block for the activations, which all its contexts share. Both are safe because there is one stream, and each
run ends before the next begins. On a GPU that shares the processor's memory the page-locked buffer is the
device buffer, and nothing is copied.

CUDA graphs. A recorded shape is one launch. Recording takes a context of its own, because the state of a
context belongs to the shape it was last given (NVIDIA/TensorRT issue 3798), and several runs, so it happens
in `record` alone, never in a run that someone waits for. When there are `max_graphs`, the context of the
least recently used one is taken. TensorRT-RTX records by itself.

Swapped runs. Tensors may change places, as the caches of streams do: what one run gave, the next one takes.
A recorded run has its addresses in it, so either way has recordings, and a context, of its own.

Whatever is created here is released here, in the opposite order, also when a step between fails.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge_asr.errors import DeviceError, EngineError
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.deserialized import DeserializedPlan
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.engine.tensors import Buffer, Dims, RunShape, TensorSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What one profile has on the device.

    Attributes:
        contexts: run every shape that was not recorded, swapped or not; the second is made on demand.
        buffers: by name of the tensor.
        activations: address and size of the memory that its contexts share.
    """

    contexts: dict[bool, Any]
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
        plan, profiles, tensors, trt, kernel_cache: see `DeserializedPlan`.
        cuda: the device to run on.
        shares_memory: whether that device's memory is the host's.
        use_cuda_graphs: whether `record` records.
        waits_asleep: wait without keeping a core busy, which takes some microseconds more; None does where
            memory is shared, for such a board has few cores, and they capture the sound.
        max_graphs: most recorded shapes.

    Attributes:
        dtypes: NumPy type of each tensor.
        records_itself: whether TensorRT-RTX records, and `record` only compiles.
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
        self._cuda = cuda
        self._profiles = profiles
        self._tensors = tensors
        self._shares_memory = shares_memory
        self._waits_asleep = waits_asleep
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[RunShape, _Graph] = OrderedDict()
        self._lanes: dict[int, Lane] = {}
        self._resources = contextlib.ExitStack()
        self.n_runs = self.n_replays = self.n_recorded = 0
        self._plan: DeserializedPlan | None = None
        try:
            self._open_stream()
            # Contexts, engine and runtime are released in this order, once nothing refers to them.
            self._resources.callback(self._forget_plan)
            self._plan = DeserializedPlan(
                plan, profiles, tensors, trt=trt, use_cuda_graphs=use_cuda_graphs, kernel_cache=kernel_cache
            )
            self.dtypes = self._plan.dtypes
            self.records_itself = self._plan.records_itself
            self._records = use_cuda_graphs and not self.records_itself
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
        return self._queue_ordinary(lane, shape)

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
        if not self._records:  # CUDA loads and TensorRT-RTX compiles kernels in the first run
            self._queue_ordinary(lane, shape)
            self.wait()
            return False
        try:
            context = self._recording_context(lane, shape)
        except (EngineError, DeviceError) as error:
            self._give_up_graphs(error)
            return False
        outputs = self._deserialized.set_shape(context, shape)
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

    def output_dims(self, shape: RunShape) -> Mapping[str, Dims]:
        """Return the shapes of the outputs of a run.

        Raises:
            EngineError: TensorRT refuses the shape.
        """
        return self._deserialized.set_shape(self._context(self.lane(shape.profile), shape), shape)

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
        own = "its own CUDA graphs" if self.records_itself else f"{self.n_recorded} recorded"
        return f"{self.n_runs} runs, {self.n_replays} of them replayed ({own})"

    def close(self) -> None:
        """Release everything. May be called twice."""
        if self.n_runs:
            self._deserialized.save_kernels()
            logger.info("engine: %s", self.describe_runs())
            self.n_runs = self.n_replays = 0
        while self._graphs:
            self._drop_oldest_graph()
        self._lanes.clear()
        self._resources.close()

    # --- loading ---

    @property
    def _deserialized(self) -> DeserializedPlan:
        assert self._plan is not None, "used before it was loaded, or after close()"
        return self._plan

    def _open_stream(self) -> None:
        self.stream = self._own(self._resources, self._cuda.create_stream(), self._cuda.destroy_stream)
        self._event = None
        if self._shares_memory if self._waits_asleep is None else self._waits_asleep:
            self._event = self._own(self._resources, self._cuda.create_event(), self._cuda.destroy_event)

    def _open_lane(self, profile: int, taken: contextlib.ExitStack) -> Lane:
        said = self._profiles[profile]
        largest = RunShape(profile=profile, n_batch=said.max_batch, n_frames=said.max_frames)
        context = self._new_context(profile)
        shapes = self._deserialized.set_shape(context, largest)
        shapes |= {name: spec.dims(largest) for name, spec in self._tensors.items() if spec.dims is not None}
        for name, spec in self._tensors.items():
            other = spec.swaps_with
            if other is not None and (self.dtypes[name], shapes[name]) != (self.dtypes[other], shapes[other]):
                raise EngineError(
                    f"the engine takes {name} of {self.dtypes[name].__name__} {list(shapes[name])} and gives "
                    f"{other} of {self.dtypes[other].__name__} {list(shapes[other])}; build the engine again"
                )
        n_bytes = max(self._deserialized.count_activation_bytes(profile), 1)
        lane = Lane(
            contexts={False: context},
            buffers={name: self._buffer(name, shapes[name], taken) for name in self._tensors},
            activations=(self._own(taken, self._cuda.allocate(n_bytes), self._cuda.free), n_bytes),
        )
        self._bind(context, lane)
        logger.debug("profile %d takes %.1f MB for activations", profile, n_bytes / 1e6)
        return lane

    def _new_context(self, profile: int) -> Any:
        context = self._deserialized.create_context()
        self._choose_profile(context, profile)
        return context

    def _choose_profile(self, context: Any, profile: int) -> None:
        self._deserialized.choose_profile(context, profile, self.stream)
        self.wait()

    def _context(self, lane: Lane, shape: RunShape) -> Any:
        """Return the context of runs that were not recorded."""
        if shape.swapped not in lane.contexts:
            context = self._new_context(shape.profile)
            self._bind(context, lane, shape.swapped)
            lane.contexts[shape.swapped] = context
        return lane.contexts[shape.swapped]

    def _bind(self, context: Any, lane: Lane, swapped: bool = False) -> None:
        if hasattr(context, "set_device_memory"):
            address, n_bytes = lane.activations
            context.set_device_memory(address, n_bytes)
        else:
            context.device_memory = lane.activations[0]  # 8.6
        for name, spec in self._tensors.items():
            place = spec.swaps_with if swapped and spec.swaps_with is not None else name
            if not context.set_tensor_address(name, lane.buffers[place].device):
                raise self._deserialized.error(f"TensorRT refuses the address of {name}")

    # --- running ---

    def _queue(self, context: Any, lane: Lane, shape: RunShape, outputs: Mapping[str, Dims]) -> None:
        self.queue_inputs(lane, shape)
        if not context.execute_async_v3(int(self.stream)):
            raise self._deserialized.error(f"TensorRT failed to run {shape}")
        self.queue_outputs(lane, outputs)

    def _queue_ordinary(self, lane: Lane, shape: RunShape) -> Mapping[str, Dims]:
        context = self._context(lane, shape)
        outputs = self._deserialized.set_shape(context, shape)
        self._queue(context, lane, shape, outputs)
        return outputs

    # --- CUDA graphs ---

    def _recording_context(self, lane: Lane, shape: RunShape) -> Any:
        """Return a context for one more recording; when there are enough, that of the oldest one."""
        if len(self._graphs) >= self._max_graphs:
            context = self._drop_oldest_graph()
            self._choose_profile(context, shape.profile)
        else:
            context = self._new_context(shape.profile)
        self._bind(context, lane, shape.swapped)
        return context

    def _give_up_graphs(self, error: Exception) -> None:
        self._records = False
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

    def _forget_plan(self) -> None:
        plan, self._plan = self._plan, None
        if plan is not None:
            plan.close()


def _release(release: Callable[[Any], None], resource: Any) -> None:
    """Release one resource; a failure must not keep the others from being released."""
    try:
        release(resource)
    except DeviceError as error:
        logger.warning("while releasing the engine: %s", str(error))
