"""A fake CUDA, driver and runtime, as cuda-bindings gives them: nothing here is evidence about a real GPU.

"Device" and page-locked memory are ctypes buffers, poisoned with NaN. A stream only runs its work when it is
synchronized, so reading too early shows. What a real CUDA leaves undefined is an assertion here: addresses
inside living allocations of the right kind, nothing freed twice or while work is queued, one thread at a time
on a stream. `FakeCuda.fail` makes a call fail, `assert_released` counts what is left.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np


class CudaError(enum.IntEnum):
    """Codes as cuda-bindings returns them."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class Stream:
    """Work waits in `queue` until synchronized, or goes into `recording`."""

    handles = itertools.count(0x5000)

    def __init__(self) -> None:
        self.handle = next(self.handles)
        self.queue: list[Callable[[bool], None]] = []
        self.recording: list[Callable[[bool], None]] | None = None
        self.recorder: int | None = None

    def __int__(self) -> int:
        return self.handle

    def push(self, work: Callable[[bool], None]) -> None:
        (self.queue if self.recording is None else self.recording).append(work)


class FakeCuda:
    """One fake GPU and everything allocated on it. `calls` holds the names of calls, oldest first."""

    def __init__(self) -> None:
        self.name, self.capability, self.multiprocessors, self.driver = "Orin", (8, 7), 16, 12060
        self.calls: list[str] = []
        self.memory: dict[int, tuple[str, int, Any]] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: set[int] = set()
        self.devices = 1
        self.current_device = 0
        self._failures: dict[str, list[int]] = {}
        self._synchronizing = threading.Lock()

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
        for start, (there, size, _) in self.memory.items():
            if there == kind and start <= address and address + n_bytes <= start + size:
                return
        raise AssertionError(f"{n_bytes} bytes at {address:#x} lie in no living {kind} memory")

    def read(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.check_range("device", address, n_bytes)
        return np.frombuffer(ctypes.string_at(address, n_bytes), dtype).reshape(shape)

    # --- cuda.bindings ---

    def driver_module(self) -> types.ModuleType:
        module = types.ModuleType("cuda.bindings.driver")
        ok = CudaError.cudaSuccess

        class CUdevice_attribute(enum.IntEnum):
            CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76

        def get_attribute(which: CUdevice_attribute, device: int) -> tuple[CudaError, int]:
            values = {16: self.multiprocessors, 75: self.capability[0], 76: self.capability[1]}
            return ok, values[which]

        functions = {
            "CUdevice_attribute": CUdevice_attribute,
            "cuInit": lambda flags: (ok if self.devices else CudaError.cudaErrorNoDevice,),
            "cuDriverGetVersion": lambda: (ok, self.driver),
            "cuDeviceGet": lambda ordinal: (ok, ordinal),
            "cuDeviceGetName": lambda n, device: (ok, self.name.encode().ljust(n, b"\0")),
            "cuDeviceGetAttribute": get_attribute,
        }
        vars(module).update(functions)
        return module

    def runtime_module(self) -> types.ModuleType:
        module = types.ModuleType("cuda.bindings.runtime")
        runtime = FakeCudaRuntime(self)
        for name in dir(runtime):
            if name.startswith("cuda"):
                setattr(module, name, getattr(runtime, name))
        return module


class FakeCudaRuntime:
    """Functions of `cuda.bindings.runtime`, each giving a tuple that begins with an error code."""

    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1

    class cudaMemcpyKind(enum.IntEnum):
        cudaMemcpyHostToDevice = 1
        cudaMemcpyDeviceToHost = 2

    class cudaStreamCaptureMode(enum.IntEnum):
        cudaStreamCaptureModeThreadLocal = 1

    def __init__(self, gpu: FakeCuda) -> None:
        self._gpu = gpu

    def _code(self, call: str, bad: CudaError) -> CudaError:
        return bad if self._gpu.fails(call) else CudaError.cudaSuccess

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        if not self._gpu.devices:
            return CudaError.cudaErrorNoDevice, None
        return CudaError.cudaSuccess, self._gpu.devices

    def cudaGetDevice(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self._gpu.current_device

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        self._gpu.calls.append(f"cudaSetDevice {device}")
        self._gpu.current_device = device
        return (CudaError.cudaSuccess,)

    def cudaRuntimeGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, 12090

    def _allocate(self, call: str, kind: str, n_bytes: int) -> tuple[CudaError, int | None]:
        assert self._gpu.current_device == 0
        code = self._code(call, CudaError.cudaErrorMemoryAllocation)
        return code, None if code else self._gpu.allocate(kind, n_bytes)

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[CudaError, int | None]:
        return self._allocate("cudaHostAlloc", "pinned", size)

    def cudaFree(self, address: int) -> tuple[CudaError]:
        self._gpu.release("device", address)
        return (self._code("cudaFree", CudaError.cudaErrorIllegalAddress),)

    def cudaFreeHost(self, address: int) -> tuple[CudaError]:
        self._gpu.release("pinned", address)
        return (self._code("cudaFreeHost", CudaError.cudaErrorIllegalAddress),)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, Stream | None]:
        assert flags == self.cudaStreamNonBlocking
        code = self._code("cudaStreamCreateWithFlags", CudaError.cudaErrorMemoryAllocation)
        if code:
            return code, None
        stream = Stream()
        self._gpu.streams[int(stream)] = stream
        return code, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[CudaError]:
        assert stream.recording is None
        del self._gpu.streams[int(stream)]
        return (self._code("cudaStreamDestroy", CudaError.cudaErrorIllegalAddress),)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[CudaError]:
        assert int(stream) in self._gpu.streams
        if stream.recording is not None:
            return (CudaError.cudaErrorStreamCaptureUnsupported,)
        assert self._gpu._synchronizing.acquire(blocking=False), "two threads use the stream at once"
        try:
            while stream.queue:
                stream.queue.pop(0)(False)
        finally:
            self._gpu._synchronizing.release()
        return (self._code("cudaStreamSynchronize", CudaError.cudaErrorIllegalAddress),)

    def cudaMemcpyAsync(
        self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Stream
    ) -> tuple[CudaError]:
        to_device = kind == self.cudaMemcpyKind.cudaMemcpyHostToDevice
        name = "copy to device" if to_device else "copy to host"
        sides = ("device", "pinned") if to_device else ("pinned", "device")

        def copy(replayed: bool) -> None:
            self._gpu.check_range(sides[0], dst, count)
            self._gpu.check_range(sides[1], src, count)
            ctypes.memmove(dst, src, count)

        self._gpu.check_range(sides[0], dst, count)
        self._gpu.check_range(sides[1], src, count)
        code = self._code(name, CudaError.cudaErrorIllegalAddress)
        if not code:
            stream.push(copy)
        return (code,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: cudaStreamCaptureMode) -> tuple[CudaError]:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert stream.recording is None
        assert not stream.queue
        code = self._code("cudaStreamBeginCapture", CudaError.cudaErrorStreamCaptureUnsupported)
        if not code:
            stream.recording, stream.recorder = [], threading.get_ident()
        return (code,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[CudaError, Any]:
        assert stream.recorder == threading.get_ident()
        recorded, stream.recording = stream.recording, None
        code = self._code("cudaStreamEndCapture", CudaError.cudaErrorStreamCaptureInvalidated)
        if code:
            return code, None
        return code, self._new_graph(recorded)

    def _new_graph(self, work: Any) -> Any:
        graph = types.SimpleNamespace(work=work)
        self._gpu.graphs.add(id(graph))
        return graph

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[CudaError, Any]:
        assert id(graph) in self._gpu.graphs
        assert flags == 0
        code = self._code("cudaGraphInstantiate", CudaError.cudaErrorMemoryAllocation)
        return code, None if code else self._new_graph(list(graph.work))

    def cudaGraphDestroy(self, graph: Any) -> tuple[CudaError]:
        self._gpu.graphs.remove(id(graph))
        return (CudaError.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[CudaError]:
        self._gpu.graphs.remove(id(graph))
        return (self._code("cudaGraphExecDestroy", CudaError.cudaErrorIllegalAddress),)

    def cudaGraphLaunch(self, graph: Any, stream: Stream) -> tuple[CudaError]:
        assert id(graph) in self._gpu.graphs
        code = self._code("cudaGraphLaunch", CudaError.cudaErrorIllegalAddress)
        if not code:
            for work in graph.work:
                stream.push(lambda _, work=work: work(True))
        return (code,)
