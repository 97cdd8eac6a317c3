"""A fake TensorRT that only builds, in the styles of 8.6, 10 and 11: no evidence about a real one.

It has the names that the style has and no others, remembers what it was told, and gives a plan that holds
the model it was given. What the real 8.6, 10 and 11 do with the same calls was not tested here.
"""

from __future__ import annotations

import enum
import types
from typing import Any, Literal

Style = Literal["8.6", "10", "11"]

VERSIONS = {"8.6": "8.6.2.3", "10": "10.3.0.26", "11": "11.4.1.7"}
PLAN = b"plan of "
LAYERS = '{"Layers": []}'


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class FakeBuilder:
    """Everything a build touches. Attributes tell a test what happened.

    Attributes:
        network_flags: names given to create_network.
        builder_flags: names that were set and not cleared; TF32 is on at first, as in TensorRT.
        previews: names of preview features that were switched on; 10 has profile sharing always on.
        limits: bytes by memory pool.
        profiles: of each profile the three shapes of each input.
        model: bytes that the parser got.
        cache_in: content of the timing cache that the build began with.
        fails: a message to log as an error; the build then gives nothing.
        config: the configuration of the last build.
    """

    def __init__(self, style: Style) -> None:
        self.style = style
        self.network_flags: list[str] = []
        self.builder_flags: set[str] = {"TF32"}
        self.previews: list[str] = []
        self.limits: dict[str, int] = {}
        self.profiles: list[dict[str, Any]] = []
        self.model = b""
        self.cache_in: bytes | None = None
        self.monitored = False
        self.fails: str | None = None
        self.config: Any = None

    def module(self) -> types.ModuleType:
        """The module to put at sys.modules["tensorrt"]."""
        fake = self
        trt: Any = types.ModuleType("tensorrt")
        trt.__version__ = VERSIONS[self.style]
        trt.ICudaEngine = object
        network_flags = ["EXPLICIT_BATCH"] if self.style != "11" else []
        network_flags += ["STRONGLY_TYPED"] if self.style != "8.6" else []
        trt.NetworkDefinitionCreationFlag = enum.IntEnum(
            "NetworkDefinitionCreationFlag", {name: bit for bit, name in enumerate(network_flags)}
        )
        flags = ["TF32"] if self.style == "11" else ["TF32", "FP16", "INT8"]
        trt.BuilderFlag = enum.Enum("BuilderFlag", {name: name for name in flags})
        if self.style != "11":
            trt.PreviewFeature = enum.Enum("PreviewFeature", {"PROFILE_SHARING_0806": 0})
        trt.MemoryPoolType = enum.Enum("MemoryPoolType", {"WORKSPACE": "WORKSPACE"})

        class ILogger:
            def __init__(self) -> None: ...

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Network:
                known = trt.NetworkDefinitionCreationFlag
                fake.network_flags = sorted(flag.name for flag in known if flags & 1 << int(flag))
                return Network()

            def create_builder_config(self) -> Config:
                return Config()

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
                fake.config = config
                if fake.fails is not None:
                    self.logger.log(Severity.ERROR, fake.fails)
                    return None
                monitor = getattr(config, "progress_monitor", None)
                if monitor is not None:
                    fake.monitored = True
                    monitor.phase_start("build", None, 2)
                    for step in range(2):
                        if not monitor.step_complete("build", step):
                            return None
                    monitor.phase_finish("build")
                config.cache.content += b"+"
                return PLAN + fake.model

        class Network:
            num_inputs, num_outputs = 2, 1

            def get_input(self, index: int) -> Any:
                wide = "INT32" if fake.style == "8.6" else "INT64"
                return (
                    Tensor("audio_signal", "FLOAT", (-1, 80, -1)),
                    Tensor("length", wide, (-1,)),
                )[index]

            def get_output(self, index: int) -> Any:
                return Tensor("logprobs", "FLOAT", (-1, -1, 28))

        class Tensor:
            is_shape_tensor = False

            def __init__(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
                self.name, self.shape = name, shape
                self.dtype = types.SimpleNamespace(name=dtype)

        class Profile:
            def __init__(self) -> None:
                self.shapes: dict[str, Any] = {}

            def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
                self.shapes[name] = shapes

        class Cache:
            def __init__(self, content: bytes) -> None:
                self.content = content

            def serialize(self) -> bytes:
                return self.content

        class Config:
            if fake.style != "8.6":
                progress_monitor: Any = None
            profiling_verbosity: Any = None
            builder_optimization_level = 3
            max_aux_streams = -1
            avg_timing_iterations = 1

            def set_flag(self, flag: enum.Enum) -> None:
                fake.builder_flags.add(flag.name)

            def clear_flag(self, flag: enum.Enum) -> None:
                fake.builder_flags.discard(flag.name)

            def get_flag(self, flag: enum.Enum) -> bool:
                return flag.name in fake.builder_flags

            def get_preview_feature(self, feature: enum.Enum) -> bool:
                return fake.style != "8.6" or feature.name in fake.previews

            def set_preview_feature(self, feature: enum.Enum, enable: bool) -> None:
                assert enable
                fake.previews.append(feature.name)

            def set_memory_pool_limit(self, pool: enum.Enum, size: int) -> None:
                fake.limits[pool.name] = size

            def add_optimization_profile(self, profile: Profile) -> int:
                fake.profiles.append(profile.shapes)
                return len(fake.profiles) - 1

            def create_timing_cache(self, content: bytes) -> Cache | None:
                return None if content == b"damaged" else Cache(content)

            def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
                self.cache = cache
                fake.cache_in = cache.content
                return True

        class OnnxParser:
            num_errors = 0

            def __init__(self, network: Network, logger: Any) -> None: ...

            def parse(self, model: bytes) -> bool:
                fake.model = model
                return True

        class Runtime:
            def __init__(self, logger: Any) -> None: ...

            def deserialize_cuda_engine(self, plan: bytes) -> Any:
                inspector = types.SimpleNamespace(get_engine_information=lambda form: LAYERS)
                return types.SimpleNamespace(create_engine_inspector=lambda: inspector)

        trt.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", {"DETAILED": 1})
        trt.LayerInformationFormat = enum.Enum("LayerInformationFormat", {"JSON": 1})
        trt.Runtime = Runtime
        trt.ILogger, trt.Builder, trt.OnnxParser = ILogger, Builder, OnnxParser
        if self.style != "8.6":
            trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
        module: types.ModuleType = trt
        return module
