"""Reads the NVIDIA GPU through NVML: memory of this process, clocks, energy, power. It needs nvidia-ml-py.

NVML counts GPUs in PCI order and knows nothing of CUDA_VISIBLE_DEVICES, so which of several GPUs a process
uses is only said where it is certain. Whatever cannot be had is None beside a reason. Jetsons older than
JetPack 7 have no NVML; their tools are in `power.py` and `clocks.py`.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

INSTALL = "NVML needs nvidia-ml-py: pip install 'edge-asr[bench]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvmlGpu:
    """The GPU that CUDA uses here: the module pynvml and a device handle of it."""

    nvml: Any
    handle: Any

    def ask(self, function: str, *arguments: Any) -> Any:
        """Return the answer of an NVML query on this GPU; None if the GPU or driver does not support it."""
        try:
            return getattr(self.nvml, function)(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


def open_gpu() -> tuple[NvmlGpu | None, str | None]:
    """Find the GPU that CUDA uses in this process, or say why it is unknown."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, INSTALL
    try:
        nvml.nvmlInit()
        n_gpus = nvml.nvmlDeviceGetCount()
        visible = [
            name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()
        ]
        if n_gpus == 0:
            return None, "NVML sees no GPU"
        if visible and visible[0].startswith("GPU-"):
            return NvmlGpu(nvml=nvml, handle=nvml.nvmlDeviceGetHandleByUUID(visible[0])), None
        if n_gpus == 1:
            return NvmlGpu(nvml=nvml, handle=nvml.nvmlDeviceGetHandleByIndex(0)), None
        ordered = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
        if ordered and visible and visible[0].isdigit():
            return NvmlGpu(nvml=nvml, handle=nvml.nvmlDeviceGetHandleByIndex(int(visible[0]))), None
    except nvml.NVMLError as error:
        return None, f"NVML does not start: {error}"
    return None, (
        f"{n_gpus} GPUs, and which one CUDA takes is not certain: set CUDA_DEVICE_ORDER=PCI_BUS_ID and "
        "CUDA_VISIBLE_DEVICES"
    )


def process_memory_bytes() -> tuple[int | None, str | None]:
    """Read the GPU memory that this process holds, or say why it is unknown."""
    gpu, reason = open_gpu()
    if gpu is None:
        return None, reason
    for process in gpu.ask("nvmlDeviceGetComputeRunningProcesses") or []:
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory), None
    return None, "NVML does not list this process (in a container it sees other process numbers)"
