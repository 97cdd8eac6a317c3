"""onnxruntime as a backend: a file of a bundle on the CPU or, with onnxruntime-gpu, on CUDA.

What this file does not do: choose between backends and precisions (backends.py).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Artifact
from edge_asr.bundle.names import ENCODED_NAME, OUTPUT_NAME
from edge_asr.errors import BackendError, require
from edge_asr.frames import OutputFrames

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

logger = logging.getLogger(__name__)

#: On a CPU the fused kernel takes three times as long as Add and LayerNormalization (1.32; docs/log.md).
SLOW_OPTIMIZERS: dict[str, list[str]] = {"cpu": ["SkipLayerNormFusion"], "cuda": []}
# In a graph that is already rewritten these find nothing, but take a quarter of the time to load it (1.32).
_NOTHING_TO_DO = [
    "CommonSubexpressionElimination",
    "ConstantSharing",
    "EnsureUniqueDQForNodeUnit",
    "GatherSliceToSplitFusion",
    "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
    "NhwcTransformer",
    "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
]
JETSON_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE = Path("/proc/device-tree/compatible")
MAX_THREADS = 1024
"""Most threads, more than any machine that this runs on has; each takes memory and time to start."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend:
    """onnxruntime on the CPU or, with onnxruntime-gpu, on CUDA. Thread-safe; rows of any length.

    Args:
        path: ONNX file with the inputs `audio_signal` [B, n_mels, T] and `length` [B] and the output
            `logprobs` [B, T', V].
        precision: precision of that file, for reports.
        device: "cpu" or "cuda".
        num_threads: threads of one operator; None means one per core that this process may use, at
            most four (small models do not gain from more).
        rewritten: whether onnxruntime has already rewritten the file (edge_asr.calibration.cpu_graph).
        fixed_shapes: whether inputs have always the same shapes, but for a few. onnxruntime then plans their
            memory once, which takes 1 to 11 % off a step of a stream (1.32; docs/log.md).
        spin: let idle threads wait busily. It is off because on a small board that takes the core
            which captures the sound.
        output_frames: the model's rule; with it, lengths are padded to a coarse grid on CUDA, where every new
            length costs a search for kernels.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: the device is not available, or the file cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str,
        device: str = "cpu",
        num_threads: int | None = None,
        rewritten: bool = False,
        fixed_shapes: bool = False,
        spin: bool = False,
        output_frames: OutputFrames | None = None,
    ) -> None:
        onnxruntime = load_onnxruntime()
        self.path = path
        self.name = device
        self.runtime = f"onnxruntime {onnxruntime.__version__}, {path.name}"
        self.precision = precision
        self.num_threads: int | None = _check_num_threads(num_threads)
        self.max_frames: int | None = None
        self._grid = output_frames if device == "cuda" else None
        check_device(device)
        if device == "cuda":
            _preload_cuda(onnxruntime)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.num_threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Where lengths change from call to call, a memory plan per shape would only cost memory.
        options.enable_mem_pattern = fixed_shapes
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path),
                sess_options=options,
                providers=[(_PROVIDERS[device], _provider_options(device, precision))],
                disabled_optimizers=SLOW_OPTIMIZERS[device] + (_NOTHING_TO_DO if rewritten else []),
            )
        except Exception as error:  # onnxruntime raises a dozen classes without a common base
            raise BackendError(
                f"onnxruntime {onnxruntime.__version__} cannot load {path} ({error}); export the model again"
            ) from error
        if _PROVIDERS[device] not in self._session.get_providers():
            # onnxruntime falls back to the CPU without an error.
            raise BackendError(
                f"onnxruntime could not start {_PROVIDERS[device]} here (driver, CUDA or cuDNN missing or of "
                "another version); use backend='cpu', or run `edge-asr doctor`"
            )

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the graph's outputs, in its order."""
        return tuple(output.name for output in self._open_session().get_outputs())

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `Backend.log_probs`."""
        return self._run_padded((OUTPUT_NAME,), features, feature_lens)[0]

    def encode(self, features: F32Array, feature_lens: I64Array) -> tuple[F32Array, F32Array]:
        """See `EncodingBackend`."""
        if ENCODED_NAME not in self.output_names:
            raise BackendError(
                f"{self.path.name} does not give the frames of its encoder, which an attention decoder "
                "needs; export the model again"
            )
        log_probs, encoded = self._run_padded((OUTPUT_NAME, ENCODED_NAME), features, feature_lens)
        return log_probs, encoded

    def _run_padded(
        self, outputs: Sequence[str], features: F32Array, feature_lens: I64Array
    ) -> list[F32Array]:
        channels_first = features.transpose(0, 2, 1)  # (B, F, T)
        n_out = None
        if self._grid is not None:
            from edge_asr.runtime.engine.shapes import grid_frames

            n_frames = features.shape[1]
            n_out = self._grid.n_graph(n_frames)
            behind = grid_frames(n_frames, self._grid) - n_frames
            channels_first = np.pad(channels_first, ((0, 0), (0, 0), (0, behind)))
        feeds = {"audio_signal": np.ascontiguousarray(channels_first), "length": feature_lens}
        return [output[:, :n_out] for output in self.run(outputs, feeds)]

    def run(self, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the graph directly: outputs by name, for inputs by name.

        Raises:
            BackendError: the run failed.
        """
        session = self._open_session()
        try:
            results: list[npt.NDArray[Any]] = session.run(list(outputs), dict(feeds))
        except Exception as error:  # see __init__
            raise self._failed(feeds, error) from error
        return results

    def run_on_device(self, outputs: Mapping[str, bool], feeds: Mapping[str, Any]) -> list[Any]:
        """Run the graph as `run` does, but leave outputs where the next run reads them.

        Args:
            outputs: names, each with whether it stays on the device.
            feeds: arrays, or what an earlier run left on the device.

        Returns:
            An `onnxruntime.OrtValue` for each output; its `numpy()` copies it to the host.

        Raises:
            BackendError: the run failed.
        """
        session = self._open_session()
        try:
            binding = session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, np.ndarray):
                    binding.bind_cpu_input(name, value)
                else:
                    binding.bind_ortvalue_input(name, value)
            for name, stays in outputs.items():
                binding.bind_output(name, self.name if stays else "cpu")
            session.run_with_iobinding(binding)
            results: list[Any] = binding.get_outputs()
        except Exception as error:  # see __init__
            raise self._failed(feeds, error) from error
        return results

    def _open_session(self) -> Any:
        if self._session is None:
            raise BackendError("this backend was closed; load the recognizer again")
        return self._session

    @staticmethod
    def _failed(feeds: Mapping[str, Any], error: Exception) -> BackendError:
        features = feeds.get("audio_signal")
        if features is None:  # a decoder
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            return BackendError(f"onnxruntime failed on {shapes}: {error}")
        shape = list(features.transpose(0, 2, 1).shape)
        return BackendError(f"onnxruntime failed on features of shape {shape}: {error}")

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def load_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry off.

    Importing edge_asr switches telemetry off before onnxruntime can start it. If a program imported
    onnxruntime first, its events are stopped here.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    onnxruntime = require("onnxruntime", extra="cpu")
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _preload_cuda(onnxruntime: ModuleType) -> None:
    """Load CUDA and cuDNN from pip's packages: its provider does not look there (1.21 and later)."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return
    printed = io.StringIO()  # what it does not find, it prints to stdout, where results go
    with contextlib.redirect_stdout(printed):
        onnxruntime.preload_dlls()
    if printed.getvalue():
        logger.debug("onnxruntime: %s", printed.getvalue().strip())


def _provider_options(device: str, precision: str) -> dict[str, str]:
    """Return the options of a provider. The default of CUDA tries every kernel for every new length."""
    if device == "cpu":
        return {}
    return {
        "device_id": "0",  # the first that CUDA_VISIBLE_DEVICES leaves
        "cudnn_conv_algo_search": "HEURISTIC",
        "cudnn_conv_use_max_workspace": "1",
        "use_tf32": "0" if precision == "fp32" else "1",  # it keeps 10 bits of the mantissa
    }


def default_num_threads() -> int:
    """Return one thread per core that this process may use, at most four."""
    return min(count_usable_cores(), 4)


def count_usable_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_num_threads(num_threads: int | None) -> int:
    """Validate `num_threads`; None means `default_num_threads()`."""
    if num_threads is None:
        return default_num_threads()
    whole = isinstance(num_threads, int) and not isinstance(num_threads, bool)
    if not whole or not 1 <= num_threads <= MAX_THREADS:
        raise BackendError(
            f"num_threads is {num_threads!r}; give a whole number from 1 to {MAX_THREADS}, or None"
        )
    return num_threads


def check_device(device: str) -> None:
    """Check that the installed onnxruntime supports a device.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        BackendError: the device is unknown, or this build of onnxruntime lacks it.
    """
    if device not in _PROVIDERS:
        raise BackendError(f"backend {device!r} is unknown; use one of {', '.join(_PROVIDERS)}")
    onnxruntime = load_onnxruntime()
    available = onnxruntime.get_available_providers()
    if _PROVIDERS[device] not in available:
        advice = "install it with: pip uninstall onnxruntime && pip install 'edge-asr[gpu]'"
        if is_jetson():
            advice = (
                "no onnxruntime wheel has kernels for a Jetson's GPU: build a TensorRT engine with "
                "`edge-asr build`, or use backend='cpu'"
            )
        raise BackendError(
            f"backend {device!r} needs {_PROVIDERS[device]}, this onnxruntime has {', '.join(available)}; "
            f"{advice}"
        )


def is_jetson() -> bool:
    """Tell whether this is a Jetson, by its release file or, in a container, a Tegra in the device tree."""
    if JETSON_RELEASE.exists():
        return True
    try:
        return b"nvidia,tegra" in DEVICE_TREE.read_bytes()
    except OSError:
        return False


def open_artifact(
    bundle: Bundle,
    artifact: Artifact,
    *,
    device: str = "cpu",
    num_threads: int | None = None,
    fixed_shapes: bool = False,
) -> OnnxRuntimeBackend:
    """Open a file of a bundle with onnxruntime, on the CPU its copy for it, if that can be loaded.

    Args:
        bundle, artifact: the file.
        device, num_threads, fixed_shapes: see `OnnxRuntimeBackend`.

    Raises:
        MissingDependencyError, BackendError: see `OnnxRuntimeBackend`.
    """
    num_threads = _check_num_threads(num_threads)  # checked here, or it would look like a fault of the copy
    graph = _find_cpu_graph(bundle, artifact) if device == "cpu" else None
    options: dict[str, Any] = {
        "precision": artifact.precision,
        "num_threads": num_threads,
        "output_frames": bundle.info.output_frames,
        "fixed_shapes": fixed_shapes,
    }
    if graph is not None:
        try:
            return OnnxRuntimeBackend(graph, rewritten=True, **options)
        except BackendError as error:  # its operators are internal to onnxruntime, and may change
            logger.warning("%s; %s is taken instead", error, artifact.file)
    return OnnxRuntimeBackend(bundle.path / artifact.file, device=device, **options)


def _find_cpu_graph(bundle: Bundle, artifact: Artifact) -> Path | None:
    """Find the artifact as onnxruntime's CPU provider rewrote it, unless this onnxruntime is older."""
    graph = artifact.cpu_graph
    if graph is None:
        return None
    have = load_onnxruntime().__version__
    if _release(have) < _release(graph.onnxruntime):
        logger.info("%s was made by onnxruntime %s, this is %s", graph.file, graph.onnxruntime, have)
        return None
    return bundle.path / graph.file


def _release(version: str) -> tuple[int, ...]:
    """Parse "1.32.0.dev1" as (1, 32)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
