"""Checks TensorRT: which flavors are installed, which version, and whether they can make a builder.

`tensorrt` is reported where there is a GPU for it. TensorRT-RTX is reported only where it is installed,
because it is used only if it is named. On a Jetson, TensorRT belongs to JetPack.
What this file does not do: build or run an engine.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.diagnostics.check import Check, first_line
from edge_asr.diagnostics.cuda import CudaState
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.probe import run_probe

if TYPE_CHECKING:
    from edge_asr.runtime.engine.sidecar import Flavor

#: Prints the problem instead of a traceback: TensorRT tells its logger what is wrong, not the exception.
PROBE = """
import importlib, json, sys
name = sys.argv[1]
try:
    trt = importlib.import_module(name)
except ModuleNotFoundError as error:
    if error.name != name:
        raise
    print(json.dumps({"installed": False}))
    raise SystemExit
class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []
    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)
logger = Logger()
problem = ""
try:
    trt.Builder(logger)
except Exception as error:
    problem = logger.errors[0] if logger.errors else str(error)
from edge_asr.runtime.engine.api import version_of
print(json.dumps({"installed": True, "version": version_of(trt), "file": trt.__file__, "problem": problem}))
"""
_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRTState:
    """A flavor that works here.

    Attributes:
        flavor: "tensorrt" or "tensorrt-rtx".
        version: its full version.
    """

    flavor: Flavor
    version: str


def check_tensorrt(machine: Machine, cuda: CudaState) -> tuple[list[Check], list[TensorRTState]]:
    """Return a line for each flavor that is installed, or that belongs here and is missing."""
    checks: list[Check] = []
    working: list[TensorRTState] = []
    flavors: tuple[Flavor, ...] = ("tensorrt", "tensorrt-rtx")
    for flavor in flavors:
        name = "TensorRT" if flavor == "tensorrt" else "TensorRT-RTX"
        answer, error = run_probe(PROBE, _MODULES[flavor])
        if answer is not None and not answer["installed"]:
            if flavor == "tensorrt" and (cuda.works or machine.is_jetson):
                detail = "engines need it; onnxruntime works without"
                checks.append(Check(name=name, status="missing", detail=detail, fix=_install(machine, cuda)))
            continue
        if answer is None:
            fix = _fix_import(machine, cuda, flavor, error)
            checks.append(Check(name=name, status="broken", detail=first_line(error), fix=fix))
            continue
        version = str(answer["version"])
        if answer["problem"] and not cuda.works and flavor == "tensorrt" and not machine.has_nvidia_gpu:
            # Its builder needs a GPU; on a machine without one there is nothing to fix.
            detail = f"{version}, builds and runs engines only on a machine with an NVIDIA GPU"
            checks.append(Check(name=name, status="ok", detail=detail))
            continue
        if answer["problem"]:
            detail = f"{version} cannot make a builder: {first_line(answer['problem'])}"
            fix = _fix_builder(machine, cuda, flavor, str(answer["file"]))
            checks.append(Check(name=name, status="broken", detail=detail, fix=fix))
            continue
        can = "builds and runs engines" if cuda.works else "builds engines, and cannot run them without a GPU"
        checks.append(Check(name=name, status="ok", detail=f"{version}, {can}"))
        working.append(TensorRTState(flavor=flavor, version=version))
    return checks, working


def _install(machine: Machine, cuda: CudaState) -> str:
    if not machine.is_jetson:
        major = (cuda.version or "").partition(".")[0]
        package = f"tensorrt-cu{major}" if major in ("12", "13") else "tensorrt"
        return f"pip install {package}"
    found = machine.glob("/usr/lib/python3*/dist-packages/tensorrt")
    if not found:
        return "sudo apt-get update && sudo apt-get install nvidia-jetpack  (never pip's tensorrt)"
    if sys.prefix == sys.base_prefix:
        return "use JetPack's Python: /usr/bin/python3 has TensorRT, this one does not"
    return (
        "JetPack's TensorRT is installed, but this environment hides it: "
        "/usr/bin/python3 -m venv --system-site-packages VENV, and install edge-asr there"
    )


def _fix_import(machine: Machine, cuda: CudaState, flavor: Flavor, error: str) -> str:
    if flavor == "tensorrt-rtx":
        return "pip install --force-reinstall tensorrt-rtx-cu13"
    if not machine.is_jetson:
        return f"pip uninstall tensorrt, then {_install(machine, cuda)}"
    if "libnvdla_compiler" in error:
        # Seen on several JetPack 6 and 7 systems: TensorRT links to it, but no package requires it.
        return "sudo apt-get install nvidia-l4t-dla-compiler"
    return (
        "sudo apt-get install --reinstall python3-libnvinfer, and use /usr/bin/python3 in a venv with "
        "--system-site-packages"
    )


def _fix_builder(machine: Machine, cuda: CudaState, flavor: Flavor, file: str) -> str:
    if not cuda.works:
        return "fix the CUDA driver (above) first"
    if flavor == "tensorrt-rtx":
        return "TensorRT-RTX does not know this GPU; use TensorRT itself (--flavor tensorrt)"
    if machine.is_jetson and "dist-packages" not in file:
        return "pip uninstall tensorrt: it hides JetPack's, which is the one for this device"
    return f"install the TensorRT that fits the driver (CUDA {cuda.version}), then run edge-asr doctor again"
