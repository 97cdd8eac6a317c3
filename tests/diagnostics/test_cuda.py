"""CUDA driver and GPUs: the real probe against a fake libcuda made by the C compiler,
and each ailment from answers put in the probe's place.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from edge_asr.diagnostics import cuda

# Two GPUs, as cuda.h declares the calls; EDGE_ASR_FAKE_CUDA is what cuInit returns.
FAKE_LIBCUDA = r"""
#include <stdlib.h>
#include <string.h>
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuInit(unsigned flags) { const char *code = getenv("EDGE_ASR_FAKE_CUDA"); return code ? atoi(code) : 0; }
int cuGetErrorName(int code, const char **name)
    { *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device)
    { strncpy(name, device == 40 ? "Fake A" : "Fake B", size); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
    { *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 39) << 33; return 0; }
"""


def answer(**values: object) -> str:
    return f"print({json.dumps(json.dumps(values))})"


@pytest.fixture
def fake_libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to make the fake libcuda")
    (tmp_path / "fake.c").write_text(FAKE_LIBCUDA)
    command = [compiler, "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "fake.c"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


@pytest.fixture
def desktop(fake_machine):
    """A fake PC with an NVIDIA display controller and the driver's kernel module."""
    device = "/sys/bus/pci/devices/0000:01:00.0"
    return fake_machine(
        {
            f"{device}/vendor": "0x10de\n",
            f"{device}/class": "0x030000\n",
            "/sys/module/nvidia/version": "580.95",
        }
    )


def test_fake_libcuda_with_two_gpus(fake_libcuda, desktop) -> None:
    checks, state = cuda.check_cuda(desktop)
    assert (state.works, state.version) == (True, "12.6")
    assert [(c.name, c.status, c.detail) for c in checks] == [
        ("CUDA driver", "ok", "for CUDA up to 12.6, kernel module 580.95"),
        ("GPU 0", "ok", "Fake A, compute capability 8.7, 8.0 GiB"),
        ("GPU 1", "ok", "Fake B, compute capability 8.7, 16.0 GiB"),
    ]


@pytest.mark.parametrize(("code", "fix"), [("100", "--gpus all"), ("803", "restart")])
def test_fake_libcuda_that_does_not_start(fake_libcuda, desktop, monkeypatch, code: str, fix: str) -> None:
    monkeypatch.setenv("EDGE_ASR_FAKE_CUDA", code)
    (check,), state = cuda.check_cuda(desktop)
    assert (check.status, state.works) == ("broken", False)
    assert "CUDA_ERROR_" in check.detail
    assert fix in check.fix


def test_no_gpu_is_one_line_and_nothing_is_missing(fake_machine, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_PROBE", answer(library=False, error="libcuda.so.1: no such file"))
    (check,), state = cuda.check_cuda(fake_machine())
    assert (check.name, check.status, check.fix, state.works) == ("GPU", "ok", "", False)
    network_card = {
        "/sys/bus/pci/devices/0000:02:00.0/vendor": "0x10de",
        "/sys/bus/pci/devices/0000:02:00.0/class": "0x020000",
    }
    (check,), _ = cuda.check_cuda(fake_machine(network_card))
    assert check.status == "ok"


def test_libcuda_of_a_container_on_a_cpu_machine_is_no_fault(fake_machine, monkeypatch) -> None:
    probe = answer(library=True, version="13.0", code=100, error="CUDA_ERROR_NO_DEVICE", gpus=[])
    monkeypatch.setattr(cuda, "DRIVER_PROBE", probe)
    (check,), _ = cuda.check_cuda(fake_machine())
    assert (check.name, check.status) == ("GPU", "ok")


def test_a_gpu_without_a_driver_is_missing(desktop, fake_jetson, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_PROBE", answer(library=False, error="libcuda.so.1: no such file"))
    (check,), _ = cuda.check_cuda(desktop)
    assert (check.status, "install the NVIDIA driver" in check.fix) == ("missing", True)
    (check,), _ = cuda.check_cuda(fake_jetson())
    assert "--runtime nvidia" in check.fix


def test_a_driver_that_crashes_is_broken(desktop, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_PROBE", "import os; os.kill(os.getpid(), 11)")
    (check,), _ = cuda.check_cuda(desktop)
    assert (check.status, check.detail) == ("broken", "crashed with signal 11")
