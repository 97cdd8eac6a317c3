"""Reads clocks, governor, temperature and power mode of this machine at one moment, and sets nothing.

A processor's clock is known only where the kernel has cpufreq: the "cpu MHz" of /proc/cpuinfo is a nominal
number in a virtual machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_asr.benchmark.gpu import open_gpu
from edge_asr.diagnostics.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """Clocks, governor, power mode at one moment; a `*_reason` says why something is null."""

    cpu_governor: str | None
    cpu_mhz_min: float | None
    cpu_mhz_mean: float | None
    cpu_mhz_max: float | None
    cpu_reason: str | None
    gpu_sm_mhz: float | None
    gpu_memory_mhz: float | None
    gpu_celsius: float | None
    gpu_reason: str | None
    power_mode: str | None
    power_mode_reason: str | None


def read_clocks(machine: Machine, *, uses_gpu: bool) -> Clocks:
    """Read the clocks now.

    Args:
        machine: where system files and programs are.
        uses_gpu: the model runs on a GPU.
    """
    governor, mhz = _cpu(machine)
    gpu_reason: str | None = "the model does not run on a GPU"
    gpu: tuple[float | None, float | None, float | None] = (None, None, None)
    if uses_gpu:
        gpu, gpu_reason = _gpu()
    mode, mode_reason = _power_mode(machine)
    return Clocks(
        cpu_governor=governor,
        cpu_mhz_min=min(mhz) if mhz else None,
        cpu_mhz_mean=round(sum(mhz) / len(mhz), 1) if mhz else None,
        cpu_mhz_max=max(mhz) if mhz else None,
        cpu_reason=None if mhz else "no cpufreq in /sys/devices/system/cpu (a virtual machine or container)",
        gpu_sm_mhz=gpu[0],
        gpu_memory_mhz=gpu[1],
        gpu_celsius=gpu[2],
        gpu_reason=gpu_reason,
        power_mode=mode,
        power_mode_reason=mode_reason,
    )


def _cpu(machine: Machine) -> tuple[str | None, list[float]]:
    """Read the governors of all processors, each once, and their clocks in MHz."""
    governors, mhz = [], []
    for folder in machine.glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        governor = _read(machine, folder / "scaling_governor")
        clock = _read(machine, folder / "scaling_cur_freq")
        governors += [governor] if governor else []
        mhz += [int(clock) / 1000] if clock and clock.isdigit() else []
    return ", ".join(dict.fromkeys(governors)) or None, mhz


def _gpu() -> tuple[tuple[float | None, float | None, float | None], str | None]:
    gpu, reason = open_gpu()
    if gpu is None:
        return (None, None, None), reason
    nvml = gpu.nvml
    values = (
        gpu.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
        gpu.ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
        gpu.ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
    )
    sm, memory, celsius = (None if value is None else float(value) for value in values)
    return (sm, memory, celsius), None if sm is not None else "this GPU does not report its clocks"


def _power_mode(machine: Machine) -> tuple[str | None, str | None]:
    if not machine.is_jetson:
        return None, "power modes are a Jetson's"
    answer = machine.run("nvpmodel", "-q") or ""
    mode = re.search(r"NV Power Mode:\s*(\S.*)", answer)
    if mode is None:
        return None, "nvpmodel does not say (a container has none)"
    return mode[1].strip(), None


def _read(machine: Machine, path: Path) -> str | None:
    return machine.read(str(path.relative_to(machine.root)))
