"""Opens by name everything that can turn features into log-probs: onnxruntime, engines, PyTorch.

All take and give host memory, so that their times include the same copies. What this file does not do:
judge or time them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from acceptance.settings import Settings
from edge_asr.bundle.folder import Bundle
from edge_asr.errors import ConfigError, MissingDependencyError
from edge_asr.proof.compare import LogProbModel
from edge_asr.runtime.backends import create_backend

if TYPE_CHECKING:
    import torch

F32Array = npt.NDArray[np.float32]

WITHOUT_GRAPHS = "without CUDA graphs"
BASELINE = "torch eager fp32"


def onnxruntime_name(precision: str) -> str:
    """Return the name of the runner of an artifact on onnxruntime."""
    return f"onnxruntime {precision}"


def engine_names(flavor: str, precision: str) -> tuple[str, str]:
    """Return the names of the runners of an engine, with and without CUDA graphs."""
    return f"{flavor} {precision}", f"{flavor} {precision} {WITHOUT_GRAPHS}"


def torch_names(settings: Settings) -> list[str]:
    """List the PyTorch runners; half precision and CUDA graphs only on a GPU."""
    precisions = ["fp32"] if settings.rehearsal else ["fp32", "fp16"]
    ways = ["eager", "compile"] if settings.compile else ["eager"]
    names = [f"torch {way} {precision}" for way in ways for precision in precisions]
    if settings.compile and not settings.rehearsal:
        names.append("torch compile-graphs fp16")
    return names


def open_runner(name: str, settings: Settings, bundle: Bundle) -> LogProbModel:
    """Open the runner of a name.

    Raises:
        EdgeAsrError: it is not available here; the message says why.
        ImportError: PyTorch is not installed.
        ConfigError: no runner has that name.
    """
    library, _, rest = name.partition(" ")
    openers: dict[str, Callable[[], LogProbModel]] = {
        "onnxruntime": lambda: create_backend(bundle, precision=rest, backend=settings.device),
        "tensorrt": lambda: open_engine(bundle, "tensorrt", rest),
        "tensorrt-rtx": lambda: open_engine(bundle, "tensorrt-rtx", rest),
        "torch": lambda: TorchRunner(settings, *rest.split()),
    }
    if library not in openers:
        raise ConfigError(f"no runner is called {name!r}; known are {', '.join(openers)}")
    return openers[library]()


def open_engine(bundle: Bundle, flavor: str, rest: str) -> LogProbModel:
    """Open an engine of the bundle; `rest` is its precision, and whether CUDA graphs are off."""
    from edge_asr.runtime.engine.backend import TensorRTBackend

    precision, _, options = rest.partition(" ")
    engine = TensorRTBackend(
        bundle,
        precision,  # type: ignore[arg-type]
        flavor=flavor,  # type: ignore[arg-type]
        use_cuda_graphs=options != WITHOUT_GRAPHS,
    )
    engine.warm_up()
    return engine


class TorchRunner:
    """The PyTorch model that the bundle was exported from, on the GPU (a CPU in a rehearsal).

    Args:
        settings: names the checkpoint and the device.
        way: "eager", "compile" (torch.compile with dynamic shapes) or "compile-graphs" (the same with
            mode="reduce-overhead", which adds CUDA graphs).
        precision: "fp32", or "fp16" for torch.autocast in half: the model's positions are float32.

    Raises:
        ConfigError: no checkpoint was named.
        MissingDependencyError: this PyTorch has no CUDA.
    """

    def __init__(self, settings: Settings, way: str, precision: str) -> None:
        import torch

        from edge_asr.checkpoints import load_any

        if settings.checkpoint is None:
            raise ConfigError("no checkpoint was named; give --checkpoint to measure PyTorch")
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise MissingDependencyError(
                f"PyTorch {torch.__version__} cannot use CUDA here; install one that can"
            )
        self._device = settings.device
        self._half = precision == "fp16"
        model = load_any(settings.checkpoint).build_model().eval().to(self._device)
        self._model: Callable[..., Any] = model
        if way != "eager":
            mode = "reduce-overhead" if way == "compile-graphs" else "default"
            self._model = torch.compile(model, dynamic=True, mode=mode)

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        """See `Backend.log_probs`."""
        import torch

        half = torch.autocast(self._device, dtype=torch.float16, enabled=self._half)
        with torch.inference_mode(), half:
            batch = torch.from_numpy(features).to(self._device)
            outputs = self._model(batch, torch.from_numpy(feature_lens).to(self._device))
            log_probs: torch.Tensor = outputs[0]
            result: F32Array = log_probs.float().cpu().numpy()
        return result
