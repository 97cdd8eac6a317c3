"""A TensorRT plan, deserialized and checked: its tensors, profiles, contexts, and the kernels compiled for
it.

It speaks to `tensorrt` (8.6, 10, 11) or `tensorrt_rtx` by features and not by version. Plans with host code
in them (version-compatible ones) are refused, which is TensorRT's default. TensorRT-RTX records CUDA graphs
by itself, once its kernels are compiled for a shape, so it is asked to do so, and its compiled kernels are
kept in a file.
What this file does not do: allocate memory, run, or record (loaded.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from edge_asr.atomic import write_file
from edge_asr.errors import EngineError
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.sidecar import EngineProfile
from edge_asr.runtime.engine.tensors import FEATURES, Dims, RunShape, TensorSpec

logger = logging.getLogger(__name__)


class DeserializedPlan:
    """A plan in TensorRT's hands. It needs the device to be current, as everything of TensorRT does.

    Args:
        plan: content of the plan file. It is a program, so the caller must have checked where it comes from.
        profiles: those of the sidecar; they must be those of the plan.
        tensors: the inputs and outputs that the plan must have, inputs first.
        trt: the module of the plan's flavor.
        use_cuda_graphs: let TensorRT-RTX record.
        kernel_cache: file for the kernels that TensorRT-RTX compiles here; None keeps none.

    Attributes:
        dtypes: NumPy type of each tensor.

    Raises:
        EngineError: TensorRT refuses the plan, or the plan differs from what is expected.
    """

    def __init__(
        self,
        plan: bytes,
        profiles: Sequence[EngineProfile],
        tensors: Mapping[str, TensorSpec],
        *,
        trt: ModuleType,
        use_cuda_graphs: bool,
        kernel_cache: Path | None,
    ) -> None:
        self._trt: Any = trt
        self._profiles = profiles
        self._tensors = tensors
        self._kernel_cache = kernel_cache
        self._log = create_logger(trt)
        self._config: Any = None
        self._kernels: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        try:
            self._load(plan, use_cuda_graphs)
        except BaseException:
            self.close()
            raise

    @property
    def records_itself(self) -> bool:
        """Tell whether it is TensorRT-RTX, recording its own CUDA graphs."""
        return self._config is not None

    def error(self, what: str) -> EngineError:
        """Return an error with what TensorRT logged."""
        reasons = "; ".join(self._log.take_errors()) or "it gives no reason"
        return EngineError(f"{what}: {reasons}")

    def close(self) -> None:
        """Let go of configuration, engine and runtime; contexts must be gone."""
        self._config = self._kernels = self._engine = self._runtime = None

    # --- contexts ---

    def create_context(self) -> Any:
        """Create an execution context without memory.

        Raises:
            EngineError: TensorRT cannot.
        """
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

    def choose_profile(self, context: Any, profile: int, stream: int) -> None:
        """Queue the choice of a context's profile.

        Raises:
            EngineError: TensorRT refuses it.
        """
        try:
            context.set_optimization_profile_async(profile, int(stream))
        except RuntimeError as error:  # the one setter that raises instead of returning False
            raise self.error(f"TensorRT refuses profile {profile}") from error

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

    def count_activation_bytes(self, profile: int) -> int:
        """Count the bytes that contexts of a profile need."""
        engine = self._engine
        if hasattr(engine, "get_device_memory_size_for_profile_v2"):
            return int(engine.get_device_memory_size_for_profile_v2(profile))
        # The largest of all profiles. 8.6 lacks the first, 11 the second.
        has_v2 = hasattr(engine, "device_memory_size_v2")
        return int(engine.device_memory_size_v2 if has_v2 else engine.device_memory_size)

    def save_kernels(self) -> None:
        """Write the kernels that were compiled to the cache, if there is one."""
        if self._kernels is None or self._kernel_cache is None:
            return
        try:
            write_file(self._kernel_cache, bytes(self._kernels.serialize()))
        except OSError as error:
            logger.info("%s cannot be written (%s): kernels are compiled again", self._kernel_cache, error)

    # --- loading ---

    def _load(self, plan: bytes, use_cuda_graphs: bool) -> None:
        self._log.take_errors()  # discards errors of others, because the log is shared
        try:
            self._runtime = self._trt.Runtime(self._log)
        except (TypeError, RuntimeError) as error:  # TypeError is how pybind11 reports that it got no object
            raise self.error("TensorRT cannot start here; run `edge-asr doctor`") from error
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self.error("TensorRT refuses the plan")
        self.dtypes = self._check_tensors()
        self._check_profiles()
        if use_cuda_graphs:
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
        if not hasattr(self._trt, "CudaGraphStrategy"):
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._kernel_cache is not None and hasattr(config, "create_runtime_cache"):
            self._kernels = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                if not self._kernels.deserialize(self._kernel_cache.read_bytes()):
                    logger.info("%s is of another GPU, driver or version; compiling anew", self._kernel_cache)
            config.set_runtime_cache(self._kernels)
        return config
