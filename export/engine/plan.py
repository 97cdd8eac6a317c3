"""Builds a TensorRT plan from ONNX bytes: network, configuration, build.

It probes the features of the installed TensorRT and never looks at version numbers:
- a strongly typed network where that flag exists, so that the ONNX file decides the precision. Only TensorRT
  8.6 lacks it; there builder flags allow what the file holds, and FP16 what an INT8 file leaves open;
- the explicit-batch flag, IProgressMonitor and a timing cache where they exist and do something;
- profile sharing where it is a preview feature that is off by default (8.6; always on in 10). Without it a
  profile serves one context at a time, but the runtime has one for every CUDA graph;
- fp32 engines compute in float32: TF32, which keeps 10 bits of the mantissa, is off for them.
- plans say in detail what each layer is, for `describe_layers`.
What this file does not do: write files and sidecars, or prove (builder.py).
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edge_asr.bundle.manifest import Precision
from edge_asr.errors import ConfigError, EngineError
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.engine.profiles import add_profiles
from edge_asr.runtime.engine.sidecar import EngineProfile, EngineTensor
from edge_asr.stream_geometry import StreamingGeometry

#: Called with (steps done, steps in all) of the whole build.
BuildProgress = Callable[[int, int], None]

_PROGRESS_STEPS = 1000
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "BOOL": "bool",
}
_ADVICE = (
    (("memory", "workspace"), "give it less or more with --workspace-mb, or close other programs"),
    (("cuda", "driver"), "run `edge-asr doctor` to see driver and GPU"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How TensorRT's builder searches for kernels; None is its own default.

    Attributes:
        optimization_level: 0 to 5; higher takes longer and may find faster kernels.
        aux_streams: streams besides the main one. The default is none: the runtime records an engine as a
            CUDA graph, whose small kernels gain little from running side by side.
        timing_iterations: runs of a kernel that its time is averaged over; more help on a busy device.

    Raises:
        ConfigError: a number is out of range.
    """

    optimization_level: int | None = None
    aux_streams: int | None = 0
    timing_iterations: int | None = None

    def __post_init__(self) -> None:
        limits = (
            ("optimization_level", 0, 5),
            ("aux_streams", 0, None),
            ("timing_iterations", 1, None),
        )
        for name, low, high in limits:
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                allowed = f"{low} or more" if high is None else f"{low} to {high}"
                raise ConfigError(f"{name} is {value}; give {allowed}, or leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result of a build.

    Attributes:
        data: the serialized engine.
        tensors: its inputs and outputs.
        flags: names of the network and builder flags that were set, and "name=value" of the options.
        timing_cache: the serialized cache, for the next build; None if this TensorRT has none.
        build_time_s: time of parsing and building.
    """

    data: bytes
    tensors: tuple[EngineTensor, ...]
    flags: tuple[str, ...]
    timing_cache: bytes | None
    build_time_s: float


def is_strongly_typed(trt: Any) -> bool:
    """Tell whether TensorRT takes the precision from the ONNX file; only 8.6, with its flags, does not."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or not hasattr(
        trt.BuilderFlag, "FP16"
    )


def has_attention_operator(trt: Any) -> bool:
    """Tell whether TensorRT has an attention of its own (10.14 and later), which ONNX's becomes."""
    return hasattr(trt, "IAttention")


def check_parses(trt: Any, logger: Any, model: bytes, file: str) -> None:
    """Parse a model and build nothing, to say soon what is wrong with it.

    Raises:
        EngineError: as `make_plan`.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt)[0])
    parse_network(trt, network, model, file)


def make_plan(
    trt: Any,
    logger: Any,
    model: bytes,
    file: str,
    *,
    precision: Precision,
    profiles: Sequence[EngineProfile],
    n_mels: int,
    geometry: StreamingGeometry | None = None,
    workspace_mb: int | None = None,
    search: SearchOptions | None = None,
    timing_cache: bytes = b"",
    progress: BuildProgress | None = None,
) -> Plan:
    """Parse a model and build its plan.

    Args:
        trt, logger: TensorRT's module, and its `create_logger`.
        model, file: bytes of the ONNX file, and its name for messages.
        precision: the precision of the file.
        profiles: at least one.
        n_mels: channels of `audio_signal`.
        geometry: that of a streaming graph; None for an offline one.
        workspace_mb: limit of the builder's scratch memory; None leaves TensorRT's own, the whole GPU.
        search: how to search for kernels; None takes all defaults.
        timing_cache: the cache of an earlier build, or empty.
        progress: called during the build, from TensorRT's threads.

    Raises:
        EngineError: the parser refuses, a profile is refused, or the build failed; the message has TensorRT's
            errors.
        KeyboardInterrupt: Ctrl-C during the build, if this TensorRT can be stopped.
    """
    started = time.perf_counter()
    logger.take_errors()
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # TypeError is how pybind11 reports that it got no object
        raise EngineError(_failure(trt, file, logger.take_errors() or [str(error)])) from error
    network_flags, flags = _network_flags(trt)
    network = builder.create_network(network_flags)
    parse_network(trt, network, model, file)
    config = builder.create_builder_config()
    flags += _set_builder_flags(trt, config, precision)
    if workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    flags += _set_search(trt, config, search or SearchOptions())
    add_profiles(builder, config, network, profiles, n_mels, file, geometry)
    cache = _attach_timing_cache(config, timing_cache)
    monitor = _attach_monitor(trt, config, progress)
    serialized = builder.build_serialized_network(network, config)
    if monitor is not None and monitor.stopped_by is not None:
        raise monitor.stopped_by
    if serialized is None:
        raise EngineError(_failure(trt, file, logger.take_errors()))
    if progress is not None:
        progress(_PROGRESS_STEPS, _PROGRESS_STEPS)
    return Plan(
        data=bytes(serialized),
        tensors=_read_tensors(network),
        flags=tuple(flags),
        timing_cache=None if cache is None else bytes(cache.serialize()),
        build_time_s=time.perf_counter() - started,
    )


def _network_flags(trt: Any) -> tuple[int, list[str]]:
    known = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH") if hasattr(known, name)]
    return sum(1 << int(getattr(known, name)) for name in names), names


def _set_builder_flags(trt: Any, config: Any, precision: Precision) -> list[str]:
    names = []
    if not is_strongly_typed(trt) and precision != "fp32":
        for name in ("FP16",) if precision == "fp16" else ("FP16", "INT8"):
            config.set_flag(getattr(trt.BuilderFlag, name))
            names.append(name)
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        if precision == "fp32":
            config.clear_flag(tf32)
        elif config.get_flag(tf32):
            names.append("TF32")
    sharing = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if sharing is not None and not config.get_preview_feature(sharing):
        config.set_preview_feature(sharing, True)
        names.append("PROFILE_SHARING_0806")
    return names


def _set_search(trt: Any, config: Any, options: SearchOptions) -> list[str]:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    names = []
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
        names.append(f"builder_optimization_level={options.optimization_level}")
    if options.aux_streams is not None:
        config.max_aux_streams = options.aux_streams
        names.append(f"max_aux_streams={options.aux_streams}")
    if options.timing_iterations is not None:
        config.avg_timing_iterations = options.timing_iterations
        names.append(f"avg_timing_iterations={options.timing_iterations}")
    return names


def describe_layers(trt: Any, logger: Any, plan: bytes) -> str | None:
    """Return TensorRT's JSON about the layers of a plan; None if it cannot load the plan here, or say."""
    try:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            logger.take_errors()
            return None
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    except (TypeError, RuntimeError):  # TypeError: pybind11 got no object
        logger.take_errors()
        return None


def _attach_timing_cache(config: Any, content: bytes) -> Any | None:
    """Attach the cache that the build will fill; None if TensorRT says that it has no effect (RTX 1.2)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache = config.create_timing_cache(content)
        if not cache and content:  # another version, or damaged; the cache only saves time
            cache = config.create_timing_cache(b"")
        accepted = bool(cache) and config.set_timing_cache(cache, ignore_mismatch=False)
    useless = any("no-op" in str(warning.message) for warning in caught)
    return cache if accepted and not useless else None


def _attach_monitor(trt: Any, config: Any, progress: BuildProgress | None) -> Any | None:
    """Report the completed share of the build, and let Ctrl-C stop it; None if TensorRT cannot."""
    if not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases nest; TensorRT calls from several threads. No exception may cross its C++."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped_by: BaseException | None = None
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps done, steps
            self._reported = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            try:
                self._set(phase_name, (parent_phase, 0, max(num_steps, 1)))
            except BaseException as error:  # noqa: BLE001 - Ctrl-C; raised again when the build has ended
                self.stopped_by = error

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                parent, _, n_steps = self._phases.get(phase_name, (None, 0, 1))
                self._set(phase_name, (parent, min(step + 1, n_steps), n_steps))
                return self.stopped_by is None
            except BaseException as error:  # noqa: BLE001 - as above
                self.stopped_by = error
                return False

        def phase_finish(self, phase_name: str) -> None:
            try:
                self._set(phase_name, None)
            except BaseException as error:  # noqa: BLE001 - as above
                self.stopped_by = error

        def _set(self, phase: str, state: tuple[str | None, int, int] | None) -> None:
            with self._lock:
                if state is None:
                    self._phases.pop(phase, None)
                else:
                    self._phases[phase] = state
                    self._report()

        def _report(self) -> None:
            done = int(_PROGRESS_STEPS * max(map(self._share, self._roots()), default=0.0))
            if progress is not None and done > self._reported:
                self._reported = done
                progress(done, _PROGRESS_STEPS)

        def _roots(self) -> list[str]:
            return [name for name, (parent, _, _) in self._phases.items() if parent not in self._phases]

        def _share(self, phase: str) -> float:
            _, done, n_steps = self._phases[phase]
            inner = [n for n, (parent, _, _) in self._phases.items() if parent == phase and n != phase]
            running = max(map(self._share, inner), default=0.0) if done < n_steps else 0.0
            return (done + running) / n_steps

    monitor = Monitor()
    config.progress_monitor = monitor
    return monitor


def _read_tensors(network: Any) -> tuple[EngineTensor, ...]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return (*(_describe(t, "input") for t in inputs), *(_describe(t, "output") for t in outputs))


def _describe(tensor: Any, mode: Literal["input", "output"]) -> EngineTensor:
    dtype = tensor.dtype.name
    return EngineTensor(
        name=tensor.name, mode=mode, dtype=_DTYPES.get(dtype, dtype.lower()), shape=tuple(tensor.shape)
    )


def _failure(trt: Any, file: str, errors: list[str]) -> str:
    said = "; ".join(" ".join(error.split()) for error in errors) or "it does not say why"
    advice = next(
        (advice for words, advice in _ADVICE if any(word in said.lower() for word in words)),
        "run again with -vv to see TensorRT's log",
    )
    return (
        f"{trt.__name__} {trt.__version__} cannot build an engine of {file}: {said}. What may help: {advice}"
    )
