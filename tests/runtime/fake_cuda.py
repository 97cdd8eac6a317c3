"""A fake libcuda: what edge_asr.runtime.engine.cuda calls of it. Nothing here is evidence about a real GPU.

"Device" and page-locked memory are ctypes buffers, poisoned with NaN. A stream only runs its work when it is
synchronized, so reading too early shows. What a real CUDA leaves undefined is an assertion here: addresses
inside living allocations of the right kind, nothing freed twice or while work is queued, one thread at a time
on a stream, the device current in the thread that calls. `FakeCuda.fail` makes a call fail, `assert_released`
counts what is left. Arguments are converted by the prototypes of cuda.py, which test_cuda.py compares with
NVIDIA's cuda.h.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.runtime.engine import cuda

if TYPE_CHECKING:
    import pytest  # scripts/gpu_acceptance.py uses this file where there is none

PRIMARY_CONTEXT = 0xC0
OTHER_CONTEXT = 0xC1


class CudaError(enum.IntEnum):
    """Codes as cuda.h has them."""

    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class Stream:
    """Work waits in `queue` until synchronized, or goes into `recording`."""

    handles = itertools.count(0x5000)

    def __init__(self, priority: int) -> None:
        self.handle, self.priority = next(self.handles), priority
        self.queue: list[Callable[[bool], None]] = []
        self.recording: list[Callable[[bool], None]] | None = None
        self.recorder: int | None = None
        self.synchronizing = threading.Lock()

    def push(self, work: Callable[[bool], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)


class FakeCuda:
    """One fake GPU and everything allocated on it. `calls` holds the names of calls, oldest first."""

    def __init__(self) -> None:
        self.name, self.capability, self.multiprocessors, self.driver = "Orin", (8, 7), 16, 12060
        self.calls: list[str] = []
        self.memory: dict[int, tuple[str, int, Any]] = {}
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, int | None] = {}
        self.graphs: dict[int, list[Callable[[bool], None]]] = {}
        self.devices, self.integrated, self.total_bytes = 1, False, 8 << 30
        self.priorities = (0, -5)  # the lowest and the highest: a smaller number comes first
        self._contexts = threading.local()
        self._failures: dict[str, list[int]] = {}

    @property
    def contexts(self) -> list[int]:
        """Contexts of this thread, the current one last; a fresh thread has none."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        stack: list[int] = self._contexts.stack
        return stack

    # --- what tests do ---

    def fail(self, call: str, *, after: int = 0) -> None:
        """Make one later call of this name fail, once."""
        self._failures[call] = [after]

    def fails(self, call: str) -> bool:
        """Note a call; must it fail?"""
        self.calls.append(call)
        if call not in self._failures:
            return False
        self._failures[call][0] -= 1
        if self._failures[call][0] >= 0:
            return False
        del self._failures[call]
        return True

    def assert_released(self) -> None:
        assert not self.memory, f"memory left: {[(k, n) for k, n, _ in self.memory.values()]}"
        assert not self.streams, "a stream is left"
        assert not self.events, "an event is left"
        assert not self.graphs, "a graph is left"

    # --- memory ---

    def allocate(self, kind: str, n_bytes: int) -> int:
        assert n_bytes > 0
        buffer = (ctypes.c_uint8 * (n_bytes + 256))()
        address = -(-ctypes.addressof(buffer) // 256) * 256
        ctypes.memset(address, 0xFF, n_bytes)
        self.memory[address] = (kind, n_bytes, buffer)
        return address

    def release(self, kind: str, address: int) -> None:
        assert address in self.memory, f"{address:#x} freed twice or never allocated"
        assert self.memory[address][0] == kind, f"{self.memory[address][0]} memory freed as {kind}"
        assert all(not stream.queue for stream in self.streams.values()), "freed while work is queued"
        ctypes.memset(address, 0xFF, self.memory[address][1])
        del self.memory[address]

    def check_range(self, kind: str, address: int, n_bytes: int) -> None:
        # On one memory, under unified addressing, the device reads page-locked memory at the same address.
        kinds = {kind, "pinned"} if kind == "device" and self.integrated else {kind}
        for start, (there, size, _) in self.memory.items():
            if there in kinds and start <= address and address + n_bytes <= start + size:
                return
        raise AssertionError(f"{n_bytes} bytes at {address:#x} lie in no living {kind} memory")

    def read(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.check_range("device", address, n_bytes)
        return np.frombuffer(ctypes.string_at(address, n_bytes), dtype).reshape(shape)

    def install_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the fake libcuda in the place of the real one."""
        library = FakeLibcuda(self)
        monkeypatch.setattr(cuda, "load_driver", lambda: library)


class FakeLibcuda:
    """Functions of libcuda by their names without "_v2" and "WithFlags"; `out` is where a result goes."""

    def __init__(self, gpu: FakeCuda) -> None:
        self._gpu = gpu

    def __getattr__(self, name: str) -> Callable[..., int]:
        prototype = cuda.PROTOTYPES[name]
        plain = name.removesuffix("_v2").removesuffix("WithFlags")
        function = getattr(type(self), f"_{plain}")

        def call(*arguments: Any) -> int:
            assert len(arguments) == len(prototype), f"{name} takes {len(prototype)} arguments"
            if plain.startswith(("cuMem", "cuStream", "cuGraph")):
                assert self._gpu.contexts[-1:] == [PRIMARY_CONTEXT], f"{name}: the device is not current"
            return int(function(self, *map(_converted, prototype, arguments)) or 0)

        return call

    def _code(self, call: str, bad: CudaError) -> CudaError | int:
        return bad if self._gpu.fails(call) else 0

    # --- the device ---

    def _cuInit(self, flags: int) -> int:
        return 0 if self._gpu.devices else CudaError.CUDA_ERROR_NO_DEVICE

    def _cuGetErrorName(self, code: int, out: Any) -> int:
        if code not in list(CudaError):
            return 1
        out.value = CudaError(code).name.encode()
        return 0

    def _cuDriverGetVersion(self, out: Any) -> None:
        out.value = self._gpu.driver

    def _cuDeviceGetCount(self, out: Any) -> None:
        out.value = self._gpu.devices

    def _cuDeviceGet(self, out: Any, ordinal: int) -> int:
        out.value = 40 + ordinal
        return 0 if ordinal < self._gpu.devices else 101

    def _cuDeviceGetName(self, out: Any, size: int, device: int) -> None:
        assert len(out) == size
        out.value = self._gpu.name.encode()

    def _cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> None:
        gpu = self._gpu
        values = {16: gpu.multiprocessors, 18: gpu.integrated, 75: gpu.capability[0], 76: gpu.capability[1]}
        out.value = values[which]

    def _cuDevicePrimaryCtxRetain(self, out: Any, device: int) -> None:
        out.value = PRIMARY_CONTEXT + device - 40

    def _cuCtxPushCurrent(self, context: int) -> None:
        self._gpu.contexts.append(context)

    def _cuCtxPopCurrent(self, out: Any) -> None:
        out.value = self._gpu.contexts.pop()

    # --- memory ---

    def _cuMemGetInfo(self, free: Any, total: Any) -> None:
        total.value = self._gpu.total_bytes
        free.value = total.value - sum(n_bytes for _, n_bytes, _ in self._gpu.memory.values())

    def _cuMemAlloc(self, out: Any, n_bytes: int) -> int:
        return self._allocate("cuMemAlloc", "device", out, n_bytes)

    def _cuMemHostAlloc(self, out: Any, n_bytes: int, flags: int) -> int:
        return self._allocate("cuMemHostAlloc", "pinned", out, n_bytes)

    def _allocate(self, call: str, kind: str, out: Any, n_bytes: int) -> int:
        code = self._code(call, CudaError.CUDA_ERROR_OUT_OF_MEMORY)
        if not code:
            out.value = self._gpu.allocate(kind, n_bytes)
        return code

    def _cuMemFree(self, address: int) -> int:
        self._gpu.release("device", address)
        return self._code("cuMemFree", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _cuMemFreeHost(self, address: int) -> int:
        self._gpu.release("pinned", address)
        return self._code("cuMemFreeHost", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _cuMemcpyHtoDAsync(self, to: int, source: int, n_bytes: int, stream: int) -> int:
        return self._copy("copy to device", ("device", to), ("pinned", source), n_bytes, stream)

    def _cuMemcpyDtoHAsync(self, to: int, source: int, n_bytes: int, stream: int) -> int:
        return self._copy("copy to host", ("pinned", to), ("device", source), n_bytes, stream)

    def _cuMemcpyDtoDAsync(self, to: int, source: int, n_bytes: int, stream: int) -> int:
        return self._copy("copy on device", ("device", to), ("device", source), n_bytes, stream)

    def _copy(
        self, name: str, to: tuple[str, int], source: tuple[str, int], n_bytes: int, stream: int
    ) -> int:
        def copy(replayed: bool) -> None:
            self._gpu.check_range(*to, n_bytes)
            self._gpu.check_range(*source, n_bytes)
            ctypes.memmove(to[1], source[1], n_bytes)

        self._gpu.check_range(*to, n_bytes)
        self._gpu.check_range(*source, n_bytes)
        return self._push(name, copy, stream)

    def _cuMemsetD8Async(self, address: int, value: int, n_bytes: int, stream: int) -> int:
        def fill(replayed: bool) -> None:
            self._gpu.check_range("device", address, n_bytes)
            ctypes.memset(address, value, n_bytes)

        return self._push("fill", fill, stream)

    def _push(self, name: str, work: Callable[[bool], None], stream: int) -> int:
        code = self._code(name, CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)
        if not code:
            self._gpu.streams[stream].push(work)
        return code

    # --- streams and graphs ---

    def _cuCtxGetStreamPriorityRange(self, lowest: Any, highest: Any) -> None:
        assert self._gpu.contexts[-1:] == [PRIMARY_CONTEXT], "the device is not current"
        lowest.value, highest.value = self._gpu.priorities

    def _cuStreamCreateWithPriority(self, out: Any, flags: int, priority: int) -> int:
        lowest, highest = self._gpu.priorities
        assert highest < lowest
        assert highest <= priority <= lowest
        return self._cuStreamCreate(out, flags, priority)

    def _cuStreamCreate(self, out: Any, flags: int, priority: int = 0) -> int:
        assert flags == cuda.CONSTANTS["CU_STREAM_NON_BLOCKING"]
        code = self._code("cuStreamCreate", CudaError.CUDA_ERROR_OUT_OF_MEMORY)
        if not code:
            stream = Stream(priority)
            self._gpu.streams[stream.handle] = stream
            out.value = stream.handle
        return code

    def _cuStreamDestroy(self, stream: int) -> int:
        assert self._gpu.streams[stream].recording is None
        del self._gpu.streams[stream]
        return self._code("cuStreamDestroy", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _cuStreamSynchronize(self, handle: int) -> int:
        stream = self._gpu.streams[handle]
        if stream.recording is not None:
            return CudaError.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
        assert stream.synchronizing.acquire(blocking=False), "two threads use the stream at once"
        try:
            while stream.queue:
                stream.queue.pop(0)(False)
        finally:
            stream.synchronizing.release()
        return self._code("cuStreamSynchronize", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _cuEventCreate(self, out: Any, flags: int) -> int:
        blocking = cuda.CONSTANTS["CU_EVENT_BLOCKING_SYNC"] | cuda.CONSTANTS["CU_EVENT_DISABLE_TIMING"]
        assert flags == blocking
        code = self._code("cuEventCreate", CudaError.CUDA_ERROR_OUT_OF_MEMORY)
        if not code:
            out.value = next(Stream.handles)
            self._gpu.events[out.value] = None
        return code

    def _cuEventRecord(self, event: int, stream: int) -> int:
        assert event in self._gpu.events
        assert self._gpu.streams[stream].recording is None
        self._gpu.events[event] = stream
        return 0

    def _cuEventSynchronize(self, event: int) -> int:
        stream = self._gpu.events[event]
        assert stream is not None, "nothing was recorded"
        return self._cuStreamSynchronize(stream)

    def _cuEventDestroy(self, event: int) -> None:
        del self._gpu.events[event]

    def _cuStreamBeginCapture(self, handle: int, mode: int) -> int:
        stream = self._gpu.streams[handle]
        assert mode == cuda.CONSTANTS["CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"]
        assert stream.recording is None
        assert not stream.queue
        code = self._code("cuStreamBeginCapture", CudaError.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
        if not code:
            stream.recording, stream.recorder = [], threading.get_ident()
        return code

    def _cuStreamEndCapture(self, handle: int, out: Any) -> int:
        stream = self._gpu.streams[handle]
        assert stream.recorder == threading.get_ident()
        recorded, stream.recording = stream.recording, None
        code = self._code("cuStreamEndCapture", CudaError.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
        if not code:
            out.value = self._new_graph(recorded or [])
        return code

    def _new_graph(self, work: list[Callable[[bool], None]]) -> int:
        handle = next(Stream.handles)
        self._gpu.graphs[handle] = work
        return handle

    def _cuGraphInstantiate(self, out: Any, graph: int, flags: int) -> int:
        assert flags == 0
        code = self._code("cuGraphInstantiate", CudaError.CUDA_ERROR_OUT_OF_MEMORY)
        if not code:
            out.value = self._new_graph(list(self._gpu.graphs[graph]))
        return code

    def _cuGraphDestroy(self, graph: int) -> None:
        del self._gpu.graphs[graph]

    def _cuGraphExecDestroy(self, graph: int) -> int:
        del self._gpu.graphs[graph]
        return self._code("cuGraphExecDestroy", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)

    def _cuGraphLaunch(self, graph: int, stream: int) -> int:
        recorded = self._gpu.graphs[graph]
        code = self._code("cuGraphLaunch", CudaError.CUDA_ERROR_ILLEGAL_ADDRESS)
        if not code:
            for work in recorded:
                self._gpu.streams[stream].push(lambda _, work=work: work(True))
        return code


def _converted(kind: Any, argument: Any) -> Any:
    """Convert an argument as ctypes would, but refuse what would be cut off."""
    if hasattr(argument, "_obj"):  # byref(...)
        assert isinstance(argument._obj, kind._type_), (argument._obj, kind)
        return argument._obj
    if isinstance(argument, ctypes.Array):
        return argument
    assert isinstance(argument, int), argument
    assert (kind(argument).value or 0) == argument, f"{argument} does not fit in {kind.__name__}"
    return argument
