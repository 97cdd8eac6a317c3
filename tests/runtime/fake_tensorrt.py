"""A fake TensorRT and a fake CUDA, for machines without a GPU: nothing here is evidence about a real one.

"Device" and page-locked memory are ctypes buffers, poisoned with NaN. A stream only runs its work when it is
synchronized, so reading too early shows. An execution reads its inputs from the fake device memory, computes
the true answer with onnxruntime on an ONNX file, and writes it there. The rules that a real TensorRT states
and does not check are assertions here: addresses inside living allocations, enough activation memory, a
context's shape unchanged since it was recorded, an ordinary run before a recording, one stream at a time.

`FakeGpu.install` puts the modules in place; `FakeGpu.fail` makes a call fail; `assert_all_released` counts.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import hashlib
import itertools
import json
import platform
import shutil
import sys
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_asr.bundle import Bundle
from edge_asr.runtime.engines import (
    DeviceIdentity,
    EngineProfile,
    EngineSidecar,
    EngineTensor,
    fingerprint,
    plan_path_of,
    sidecar_path_of,
)

N_MELS = 80
WORKSPACE_BYTES = 4096


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


VERSIONS = {"8.6": "8.6.2.3", "10": "10.3.0.30", "11": "11.4.1.7", "rtx": "1.7.1.116"}


class FakeGpu:
    """One fake GPU with its driver, its CUDA runtime and its TensorRT.

    Args:
        style: whose interface the fake tensorrt has: "8.6", "10", "11" or "rtx".
    """

    def __init__(self, style: str = "10") -> None:
        self.style = style
        self.version = VERSIONS[style]
        self.name, self.capability, self.multiprocessors, self.driver = "Orin", (8, 7), 16, 12060
        self.calls: list[str] = []
        self.memory: dict[int, tuple[str, int, Any]] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: set[int] = set()
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()
        self.devices = 1
        self.current_device = 0
        self.n_executions = 0
        self._failures: dict[str, list[int]] = {}
        self._synchronizing = threading.Lock()

    # --- what tests do ---

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
        """Put the fake modules where imports find them."""
        bindings = types.ModuleType("cuda.bindings")
        driver, runtime = self._driver_module(), self._runtime_module()
        bindings.driver, bindings.runtime = driver, runtime  # type: ignore[attr-defined]
        package = types.ModuleType("cuda")
        package.bindings = bindings  # type: ignore[attr-defined]
        name = "tensorrt_rtx" if self.style == "rtx" else "tensorrt"
        for module in (package, bindings, driver, runtime, tensorrt_module(self, name)):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return self

    @property
    def flavor(self) -> str:
        return "tensorrt-rtx" if self.style == "rtx" else "tensorrt"

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

    def assert_all_released(self) -> None:
        assert not self.memory, f"memory left: {[(k, n) for k, n, _ in self.memory.values()]}"
        assert not self.streams, "a stream is left"
        assert not self.graphs, "a graph is left"
        gc.collect()
        assert not list(self.objects), f"TensorRT objects left: {list(self.objects)}"

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

    def _driver_module(self) -> types.ModuleType:
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

    def _runtime_module(self) -> types.ModuleType:
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

    def __init__(self, gpu: FakeGpu) -> None:
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


# --- tensorrt ---

_SESSIONS: dict[str, Any] = {}


def onnx_session(path: str, sha256: str) -> Any:
    """What computes the answers; one session for all copies of a file."""
    if sha256 not in _SESSIONS:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        _SESSIONS[sha256] = onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
    return _SESSIONS[sha256]


class Severity(enum.Enum):
    """Severities of `ILogger`."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class FakeLogger:
    """`tensorrt.ILogger`: the constructor must run, or TensorRT crashes."""

    Severity = Severity

    def __init__(self) -> None:
        self.constructed = True

    def log(self, severity: Severity, msg: str) -> None:
        raise NotImplementedError


class FakeRuntime:
    """`tensorrt.Runtime`."""

    _gpu: FakeGpu

    def __init__(self, logger: FakeLogger) -> None:
        assert logger.constructed
        self._logger = logger
        self._gpu.objects.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        self._logger.log(Severity.INFO, "Loaded engine size: 0 MiB")
        if self._gpu.fails("deserialize"):
            self._logger.log(Severity.ERROR, "magicTag is wrong")
            return None
        return ENGINES[self._gpu.style](self._gpu, self._logger, json.loads(serialized_engine))


class FakeEngine:
    """What the engines of all versions have."""

    def __init__(self, gpu: FakeGpu, logger: FakeLogger, plan: dict[str, Any]) -> None:
        self._gpu, self._logger, self._plan = gpu, logger, plan
        self._lens_dtype = "INT32" if gpu.style == "8.6" else "INT64"
        self._names = ["audio_signal", "length", plan.get("output", "logprobs")]
        self.num_io_tensors = 3
        self.num_optimization_profiles = len(plan["profiles"])
        gpu.objects.add(self)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_dtype(self, name: str) -> Any:
        dtypes = {"audio_signal": "FLOAT", "length": self._lens_dtype, "logprobs": "FLOAT"}
        return types.SimpleNamespace(name=self._plan.get("dtypes", {}).get(name, dtypes.get(name, "FLOAT")))

    def get_tensor_location(self, name: str) -> Any:
        return types.SimpleNamespace(name="DEVICE")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        n_mels = self._plan.get("n_mels", N_MELS)
        return {"audio_signal": (-1, n_mels, -1), "length": (-1,)}.get(name, (-1, -1, -1))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name == "audio_signal"
        frames, rows = self._plan["profiles"][profile_index][:3], self._plan["profiles"][profile_index][3:]
        return [(b, N_MELS, t) for t, b in zip(frames, rows, strict=True)]

    def _new_context(self, contexts: type[FakeContext]) -> Any:
        if self._gpu.fails("create context"):
            self._logger.log(Severity.ERROR, "out of memory")
            return None
        return contexts(self._gpu, self)


class FakeEngine86(FakeEngine):
    """TensorRT 8.6."""

    device_memory_size = WORKSPACE_BYTES

    def create_execution_context_without_device_memory(self) -> Any:
        return self._new_context(FakeContext86)


class FakeEngine11(FakeEngine):
    """TensorRT 11: `device_memory_size` is gone."""

    device_memory_size_v2 = WORKSPACE_BYTES

    def create_execution_context(self, strategy: Any) -> Any:
        assert strategy is AllocationStrategy.USER_MANAGED
        return self._new_context(FakeContext)


class FakeEngine10(FakeEngine11):
    """TensorRT 10."""

    @property
    def device_memory_size(self) -> int:
        raise AssertionError("DeprecationWarning: use device_memory_size_v2")


class FakeEngineRtx(FakeEngine):
    """TensorRT-RTX, used with its own CUDA graphs or without."""

    device_memory_size_v2 = WORKSPACE_BYTES

    def create_runtime_config(self) -> Any:
        return FakeRuntimeConfig()

    def create_execution_context(self, config: Any) -> Any:
        if isinstance(config, FakeRuntimeConfig):
            assert config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config = config._strategy
        assert config is AllocationStrategy.USER_MANAGED
        return self._new_context(FakeContext)


class AllocationStrategy(enum.Enum):
    """`tensorrt.ExecutionContextAllocationStrategy`."""

    STATIC = 0
    USER_MANAGED = 2


class CudaGraphStrategy(enum.Enum):
    """`tensorrt_rtx.CudaGraphStrategy`."""

    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class FakeRuntimeConfig:
    """`tensorrt_rtx.IRuntimeConfig`."""

    cuda_graph_strategy = CudaGraphStrategy.DISABLED
    _strategy = AllocationStrategy.STATIC

    def set_execution_context_allocation_strategy(self, strategy: AllocationStrategy) -> None:
        self._strategy = strategy


class FakeContextBase:
    """What the execution contexts of all versions have."""

    def __init__(self, gpu: FakeGpu, engine: FakeEngine) -> None:
        self._gpu, self._engine = gpu, engine
        self._profile: int | None = None
        self._activations: tuple[int, int] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._generation = 0
        self._generation_run = -1
        gpu.objects.add(self)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle in self._gpu.streams
        if self._gpu.fails("set profile"):
            return False
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "the profile comes first"
        if self._gpu.fails("set shape"):
            self._engine._logger.log(Severity.ERROR, "shape out of range")
            return False
        low, _, high = self._engine.get_tensor_profile_shape("audio_signal", self._profile)
        if name == "length":
            low, high = low[:1], high[:1]
        assert all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)), (name, shape, low, high)
        if self._shapes.get(name) != shape:
            self._shapes[name] = shape
            self._generation += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "logprobs" and len(self._shapes) == 2:
            rows, _, frames = self._shapes["audio_signal"]
            return (rows, -(-frames // self._engine._plan["factor"]), self._engine._plan["classes"])
        return self._shapes.get(name, (-1, -1, -1))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._gpu.fails("set address"):
            return False
        self._gpu.check_range("device", memory, 1)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, stream = self._gpu, self._gpu.streams[stream_handle]
        if gpu.fails("execute"):
            self._engine._logger.log(Severity.ERROR, "enqueue went wrong")
            return False
        assert self._shapes["length"] == self._shapes["audio_signal"][:1]
        assert set(self._addresses) == {"audio_signal", "length", "logprobs"}
        assert self._activations is not None, "no activation memory was given"
        gpu.check_range("device", *self._activations)
        assert self._activations[1] >= WORKSPACE_BYTES
        if stream.recording is not None:
            assert self._generation_run == self._generation, "an ordinary run must come before a recording"
        generation = self._generation

        def execute(replayed: bool) -> None:
            assert generation == self._generation, "the context got another shape since it was recorded"
            features = gpu.read(self._addresses["audio_signal"], self._shapes["audio_signal"], np.float32)
            dtype = np.int32 if self._engine._lens_dtype == "INT32" else np.int64
            lens = gpu.read(self._addresses["length"], self._shapes["length"], dtype)
            session = onnx_session(self._engine._plan["onnx"], self._engine._plan["sha256"])
            feeds = {"audio_signal": features, "length": lens.astype(np.int64)}
            (log_probs,) = session.run(["logprobs"], feeds)
            assert log_probs.shape == self.get_tensor_shape("logprobs")
            gpu.check_range("device", self._addresses["logprobs"], log_probs.nbytes)
            ctypes.memmove(self._addresses["logprobs"], log_probs.ctypes.data, log_probs.nbytes)
            gpu.n_executions += 1
            self._generation_run = generation

        stream.push(execute)
        return True


class FakeContext(FakeContextBase):
    """TensorRT 10 and later, TensorRT-RTX."""

    def set_device_memory(self, memory: int, size: int) -> None:
        self._activations = (memory, size)


class FakeContext86(FakeContextBase):
    """TensorRT 8.6: an address without a size."""

    @property
    def device_memory(self) -> int:
        raise AssertionError("it can only be set")

    @device_memory.setter
    def device_memory(self, memory: int) -> None:
        self._activations = (memory, WORKSPACE_BYTES)


ENGINES = {"8.6": FakeEngine86, "10": FakeEngine10, "11": FakeEngine11, "rtx": FakeEngineRtx}


def tensorrt_module(gpu: FakeGpu, name: str) -> types.ModuleType:
    """A module `tensorrt` or `tensorrt_rtx`."""
    module = types.ModuleType(name)
    content: dict[str, Any] = {
        "__version__": gpu.version,
        "ILogger": FakeLogger,
        "Runtime": type("Runtime", (FakeRuntime,), {"_gpu": gpu}),
        "ICudaEngine": ENGINES[gpu.style],
    }
    if gpu.style != "8.6":
        content["ExecutionContextAllocationStrategy"] = AllocationStrategy
    if gpu.style == "rtx":
        content["CudaGraphStrategy"] = CudaGraphStrategy
    vars(module).update(content)
    return module


def copy_bundle(target: Path, *precisions: str, **artifact: Any) -> Bundle:
    """The embedded model in a folder of its own; its fp32 graph also serves as other precisions."""
    shutil.copytree(Bundle.load("tiny-en").path, target, ignore=shutil.ignore_patterns("*.*.onnx", "engines"))
    data = json.loads((target / "bundle.json").read_text())
    (fp32,) = (entry for entry in data["artifacts"] if entry["precision"] == "fp32")
    data["artifacts"] = [fp32]
    for precision in precisions:
        name = f"model.{precision}.onnx"
        shutil.copy(target / "model.onnx", target / name)
        data["artifacts"].append({**fp32, "file": name, "precision": precision, **artifact})
    (target / "bundle.json").write_text(json.dumps(data))
    return Bundle.load(target, check_hashes=False)


def add_engine(
    bundle: Bundle,
    gpu: FakeGpu,
    precision: Any = "fp32",
    *,
    profiles: tuple[tuple[int, ...], ...] = ((10, 100, 100, 1, 1, 4), (100, 400, 400, 1, 1, 4)),
    plan: Mapping[str, Any] = MappingProxyType({}),
    device: Mapping[str, Any] = MappingProxyType({}),
    **sidecar: Any,
) -> Path:
    """Write a plan of `profiles` (min, opt, max frames; min, opt, max rows) and its sidecar.

    `plan` and `sidecar` replace what the fake plan and the sidecar say, `device` what its device says.
    """
    artifact = bundle.artifact(precision)
    content = {
        "onnx": str(bundle.path / artifact.file),
        "sha256": artifact.sha256,
        "profiles": profiles,
        "factor": bundle.info.subsampling_factor,
        "classes": len(bundle.vocabulary),
        **plan,
    }
    data = json.dumps(content).encode()
    identity = {
        "gpu_name": gpu.name,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "driver": "12.6",
        "jetpack": None,
        "os": "linux",
        "arch": platform.machine(),
        "multiprocessors": gpu.multiprocessors,
        **device,
    }
    keys = ("min_frames", "opt_frames", "max_frames", "min_batch", "opt_batch", "max_batch")
    values: dict[str, Any] = {
        "format_version": 1,
        "onnx_file": artifact.file,
        "onnx_sha256": artifact.sha256,
        "precision": precision,
        "flavor": gpu.flavor,
        "tensorrt_version": gpu.version,
        "cuda_version": "12.6",
        "device": DeviceIdentity(**identity),
        "profiles": tuple(EngineProfile(**dict(zip(keys, p, strict=True))) for p in profiles),
        "tensors": (EngineTensor(name="length", mode="input", dtype="int64", shape=(-1,)),),
        "flags": ("STRONGLY_TYPED",),
        "workspace_mb": None,
        "plan_sha256": hashlib.sha256(data).hexdigest(),
        "plan_size_bytes": len(data),
        "build_time_s": 1.5,
        "built_at": "2026-11-23T12:00:00Z",
        "toolkit_version": "0.1.0",
        "proof": {"passed": True},
        **sidecar,
    }
    said = EngineSidecar(**values)
    folder = bundle.path / "engines" / fingerprint(said.flavor, said.tensorrt_version, said.device)
    folder.mkdir(parents=True, exist_ok=True)
    path = plan_path_of(folder, precision)
    path.write_bytes(data)
    sidecar_path_of(path).write_text(said.to_json())
    return path
