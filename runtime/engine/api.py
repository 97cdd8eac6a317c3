"""TensorRT's Python module, shared by builder and runtime: import, versions, and its log.

The flavors `tensorrt` and `tensorrt_rtx` have the same interface under two names. Nothing is imported before
`load_tensorrt` is called. Features are probed where they are used, not looked up by version.
What this file does not do: build engines (edge_asr.export.engine.builder) or run them (backend.py).
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
from collections import deque
from types import ModuleType
from typing import Any

from edge_asr.errors import EngineError, MissingDependencyError
from edge_asr.runtime.engine.sidecar import NV_TEGRA_RELEASE, Flavor

logger = logging.getLogger(__name__)

_MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_INSTALL: dict[Flavor, str] = {
    "tensorrt": "pip install 'edge-asr[tensorrt-cu13]'  (tensorrt-cu12 for a driver of CUDA 12)",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13",
}
_INSTALL_ON_JETSON = (
    "it comes with JetPack (sudo apt install nvidia-jetpack) and is seen from a virtual environment made "
    "with `python3 -m venv --system-site-packages`; pip's is not for Jetson"
)
_KEPT_ERRORS = 20
_LEVELS = {
    "INTERNAL_ERROR": logging.INFO,
    "ERROR": logging.INFO,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
    "VERBOSE": logging.DEBUG,
}


def load_tensorrt(flavor: Flavor) -> ModuleType:
    """Import the Python module of a flavor.

    Raises:
        MissingDependencyError: the module is not installed.
        EngineError: the module does not load (its libraries or the driver are missing or too old).
    """
    name = _MODULES[flavor]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise EngineError(_broken(name, error)) from error
        jetson = flavor == "tensorrt" and NV_TEGRA_RELEASE.exists()
        advice = _INSTALL_ON_JETSON if jetson else f"install it with: {_INSTALL[flavor]}"
        raise MissingDependencyError(f"{name} is needed here and is not installed; {advice}") from error
    except Exception as error:  # by version, a missing libnvinfer is an ImportError, OSError or RuntimeError
        raise EngineError(_broken(name, error)) from error
    if not hasattr(module, "ICudaEngine"):
        raise EngineError(_broken(name, "it has no ICudaEngine"))
    return module


def version_of(trt: ModuleType) -> str:
    """Return the full version, "10.3.0.30".

    Some releases leave the build number out of `__version__` (that of JetPack 6 is "10.3.0"). Then the loaded
    library is asked; if it does not know, three numbers have to suffice.
    """
    version = str(trt.__version__)
    if version.count(".") >= 3:
        return version
    library = "libtensorrt_rtx" if trt.__name__ == "tensorrt_rtx" else "libnvinfer"
    try:
        build = ctypes.CDLL(f"{library}.so.{version.split('.')[0]}").getInferLibBuildVersion()
    except (OSError, AttributeError):
        return version
    return f"{version}.{build}"


@functools.cache
def create_logger(trt: ModuleType) -> Any:
    """Return the TensorRT logger of this process, which forwards to `logging` and keeps the last errors.

    All builders and runtimes share one logger. It is created on first use and never released, because
    TensorRT keeps using the first logger it is given and warns about any other.

    If TensorRT fails, it returns None or False and says why only in its log. `take_errors()` returns these
    messages, oldest first, and forgets them. They belong in the exception, so they are forwarded as INFO.
    TensorRT calls the logger from its own threads.
    """

    class ForwardingLogger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                self._errors.append(msg.strip())
            logger.log(_LEVELS.get(severity.name, logging.DEBUG), "%s: %s", trt.__name__, msg.strip())

        def take_errors(self) -> list[str]:
            taken = list(self._errors)
            self._errors.clear()
            return taken

    return ForwardingLogger()


def _broken(name: str, reason: object) -> str:
    return (
        f"{name} is installed but does not load ({reason}); its libraries, CUDA or the driver are missing "
        "or of another version: run `edge-asr doctor`"
    )
