"""Checks the CUDA driver and the GPUs that it sees.

The driver is asked through ctypes, as engines do, so nothing else has to be installed. On a machine without
an NVIDIA GPU one line says so, and nothing counts as missing.
What this file does not do: check TensorRT.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.diagnostics.check import Check, first_line
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.probe import run_probe

#: Attributes 75, 76: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (CUDA driver API, cuda.h).
DRIVER_PROBE = """
import ctypes, json
try:
    cuda = ctypes.CDLL("libcuda.so.1")
except OSError as error:
    print(json.dumps({"library": False, "error": str(error)}))
    raise SystemExit

def error_name(code):
    text = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(text))
    return (text.value or b"unknown error").decode()

version = ctypes.c_int()
cuda.cuDriverGetVersion(ctypes.byref(version))
answer = {
    "library": True,
    "version": f"{version.value // 1000}.{version.value % 1000 // 10}",
    "code": 0,
    "error": "",
    "gpus": [],
}
answer["code"] = cuda.cuInit(0)
if answer["code"]:
    answer["error"] = error_name(answer["code"])
else:
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        memory = ctypes.c_size_t()
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, 256, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        answer["gpus"].append({
            "name": name.value.decode(errors="replace"),
            "compute_capability": f"{major.value}.{minor.value}",
            "memory_bytes": memory.value,
        })
print(json.dumps(answer))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaState:
    """What the driver said.

    Attributes:
        works: whether there is a driver, it starts, and it sees a GPU.
        version: newest CUDA version that the driver supports, "12.6"; None without a driver.
    """

    works: bool
    version: str | None


def check_cuda(machine: Machine) -> tuple[list[Check], CudaState]:
    """Check driver and GPUs; on a machine without an NVIDIA GPU one line says so."""
    answer, error = run_probe(DRIVER_PROBE)
    nothing = CudaState(works=False, version=None)
    if answer is None:
        fix = "look at `nvidia-smi`; if that fails too, install the NVIDIA driver again and restart"
        if machine.is_jetson:
            fix = "restart; if that does not help, flash Jetson Linux again"
        return [Check(name="CUDA driver", status="broken", detail=first_line(error), fix=fix)], nothing
    if not answer["library"]:
        if not machine.has_nvidia_gpu:
            return [
                Check(name="GPU", status="ok", detail="no NVIDIA GPU here; the CPU runs the models")
            ], nothing
        fix = (
            "install the NVIDIA driver (Ubuntu: sudo ubuntu-drivers install), or give a container --gpus all"
        )
        if machine.is_jetson:
            fix = "a container needs --runtime nvidia; on the device itself, flash Jetson Linux again"
        return [Check(name="CUDA driver", status="missing", detail=answer["error"], fix=fix)], nothing
    version = str(answer["version"])
    if answer["code"] or not answer["gpus"]:
        # Containers made for GPUs often have a libcuda without a GPU; nothing is wrong with a CPU machine.
        if not machine.has_nvidia_gpu:
            detail = f"no NVIDIA GPU here (libcuda for CUDA {version} finds none); the CPU runs the models"
            return [Check(name="GPU", status="ok", detail=detail)], CudaState(works=False, version=version)
        return [_broken_driver(machine, version, answer["error"])], CudaState(works=False, version=version)
    kernel = (machine.read("/sys/module/nvidia/version") or "").split("\n")[0]
    detail = f"for CUDA up to {version}" + (f", kernel module {kernel}" if kernel else "")
    checks = [Check(name="CUDA driver", status="ok", detail=detail)]
    for index, gpu in enumerate(answer["gpus"]):
        memory = f"{gpu['memory_bytes'] / 2**30:.1f} GiB{' shared with the CPU' if machine.is_jetson else ''}"
        detail = f"{gpu['name']}, compute capability {gpu['compute_capability']}, {memory}"
        checks.append(Check(name=f"GPU {index}", status="ok", detail=detail))
    return checks, CudaState(works=True, version=version)


def _broken_driver(machine: Machine, version: str, error: str) -> Check:
    detail = f"for CUDA up to {version}, and does not start: {error or 'it sees no GPU'}"
    if error == "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH":
        fix = "restart: the kernel still runs another version of the driver"
    elif machine.is_jetson:
        fix = "a container needs --runtime nvidia; a user needs the groups video and render"
    else:
        fix = "look at `nvidia-smi`; a container needs --gpus all"
    return Check(name="CUDA driver", status="broken", detail=detail, fix=fix)
