"""A fake TensorRT on the fake CUDA (fake_cuda.py): nothing here is evidence about a real one.

An execution reads its inputs from the fake device memory, computes the true answer with onnxruntime on an
ONNX file, and writes it there. The rules that a real TensorRT states and does not check are assertions here:
enough activation memory, all addresses set, a context's shape unchanged since it was recorded, an ordinary
run before a recording. `FakeGpu.install` puts the modules in place; bundles with plans: engine_bundles.py.
"""

from __future__ import annotations

import ctypes
import enum
import gc
import json
import sys
import types
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from fake_cuda import FakeCuda

if TYPE_CHECKING:
    import pytest  # scripts/gpu_acceptance.py uses this file where there is none

N_MELS = 80
WORKSPACE_BYTES = 4096
VERSIONS = {"8.6": "8.6.2.3", "10": "10.3.0.30", "11": "11.4.1.7", "rtx": "1.7.1.116"}


class FakeGpu(FakeCuda):
    """A fake GPU with its CUDA and its TensorRT.

    Args:
        style: whose interface the fake tensorrt has: "8.6", "10", "11" or "rtx".
    """

    def __init__(self, style: str = "10") -> None:
        super().__init__()
        self.style = style
        self.version = VERSIONS[style]
        self.flavor = "tensorrt-rtx" if style == "rtx" else "tensorrt"
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
        """Put the fake libcuda in place, and the fake module where imports find it."""
        self.install_cuda(monkeypatch)
        name = "tensorrt_rtx" if self.style == "rtx" else "tensorrt"
        monkeypatch.setitem(sys.modules, name, tensorrt_module(self, name))
        return self

    def assert_all_released(self) -> None:
        """No memory, stream, graph or TensorRT object is left."""
        self.assert_released()
        gc.collect()
        assert not list(self.objects), f"TensorRT objects left: {list(self.objects)}"


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
        if self._gpu.fails("create runtime"):
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
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
        n_mels = plan.get("n_mels", N_MELS)
        #: By name: dtype in ONNX, and shape in which -1 varies; the frames of an output follow the factor.
        self._tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "audio_signal": ("float32", (-1, n_mels, -1)),
            "length": ("int64", (-1,)),
            plan.get("output", "logprobs"): ("float32", (-1, -1, plan["classes"])),
        }
        if "tensors" in plan:
            self._tensors = {name: (dtype, tuple(dims)) for name, (dtype, dims) in plan["tensors"].items()}
        self._inputs = plan.get("inputs", ["audio_signal", "length"])
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(plan["profiles"])
        gpu.objects.add(self)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        narrow = "INT32" if self._gpu.style == "8.6" else "INT64"
        dtype = {"float32": "FLOAT", "int64": narrow}[self._tensors[name][0]]
        return types.SimpleNamespace(name=self._plan.get("dtypes", {}).get(name, dtype))

    def get_tensor_location(self, name: str) -> Any:
        return types.SimpleNamespace(name="DEVICE")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self._inputs
        said = self._plan["profiles"][profile_index]
        dims = self._tensors[name][1]
        return [
            tuple({0: rows, 2: frames}.get(axis, n) if n == -1 else n for axis, n in enumerate(dims))
            for frames, rows in zip(said[:3], said[3:], strict=True)
        ]

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

    device_memory_size_v2 = 2 * WORKSPACE_BYTES

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return WORKSPACE_BYTES

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

    device_memory_size_v2 = 2 * WORKSPACE_BYTES

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return WORKSPACE_BYTES

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

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        return True


class FakeRuntimeCache:
    """`tensorrt_rtx.IRuntimeCache`."""

    _kernels = b"compiled here"

    def deserialize(self, blob: bytes) -> bool:
        return blob == self._kernels

    def serialize(self) -> bytes:
        return self._kernels


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
        if self._gpu.fails("set profile"):  # as in TensorRT's bindings (python/src/infer/pyCore.cpp)
            raise RuntimeError("Error in set optimization profile async.")
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None, "the profile comes first"
        if self._gpu.fails("set shape"):
            self._engine._logger.log(Severity.ERROR, "shape out of range")
            return False
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        assert all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)), (name, shape, low, high)
        if self._shapes.get(name) != shape:
            self._shapes[name] = shape
            self._generation += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        engine = self._engine
        if name in engine._inputs or len(self._shapes) < len(engine._inputs):
            return self._shapes.get(name, (-1, -1, -1))
        rows, _, frames = self._shapes["audio_signal"]
        by_axis = {0: rows, 1: -(-frames // engine._plan["factor"])}
        return tuple(by_axis[a] if n == -1 else n for a, n in enumerate(engine._tensors[name][1]))

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
        engine = self._engine
        assert set(self._shapes) == set(engine._inputs)
        assert {dims[0] for dims in self._shapes.values()} == {self._shapes["length"][0]}
        assert set(self._addresses) == set(engine._tensors)
        assert self._activations is not None, "no activation memory was given"
        gpu.check_range("device", *self._activations)
        assert self._activations[1] >= WORKSPACE_BYTES
        if stream.recording is not None:
            assert self._generation_run == self._generation, "an ordinary run must come before a recording"
        generation, addresses = self._generation, dict(self._addresses)

        def execute(replayed: bool) -> None:
            assert generation == self._generation, "the context got another shape since it was recorded"
            feeds = {}
            for name in engine._inputs:
                dtype = engine._tensors[name][0]
                narrow = engine.get_tensor_dtype(name).name == "INT32"
                read = gpu.read(addresses[name], self._shapes[name], np.int32 if narrow else dtype)
                feeds[name] = read.astype(dtype)
            session = onnx_session(engine._plan["onnx"], engine._plan["sha256"])
            names = [name for name in engine._tensors if name not in engine._inputs]
            for name, array in zip(names, session.run(names, feeds), strict=True):
                assert array.shape == self.get_tensor_shape(name)
                gpu.check_range("device", addresses[name], array.nbytes)
                ctypes.memmove(addresses[name], array.ctypes.data, array.nbytes)
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
