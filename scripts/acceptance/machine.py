"""Says who measures in an acceptance run: GPU, clocks, power, versions, and what the doctor says.

What this file does not do: measure.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
from typing import Any

from acceptance.settings import Settings
from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.diagnostics.check import Check
from edge_asr.diagnostics.machine import Machine

PACKAGES = (
    "edge-asr",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "torch",
    "triton",
)
NVIDIA_SMI = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
)


def describe_machine(lines: list[Check], settings: Settings) -> dict[str, Any]:
    """Describe who measured: GPU, clocks, versions, and the doctor's report."""
    gpu = next((check.detail.split(",")[0] for check in lines if check.name.startswith("GPU ")), "no GPU")
    return {
        "name": "rehearsal on a CPU" if settings.rehearsal else gpu,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "os": platform.platform(),
        "cpu": describe_cpu(Machine()),
        "gpu_before": query_nvidia_smi(),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "doctor": [dataclasses.asdict(check) for check in lines],
    }


def query_nvidia_smi() -> str:
    """Read clocks, power and temperature of the GPUs now; empty if nvidia-smi does not say."""
    answer = Machine().run("nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader")
    rows = (answer or "").strip().splitlines()
    return "; ".join(
        ", ".join(f"{key} {value.strip()}" for key, value in zip(NVIDIA_SMI, row.split(","), strict=False))
        for row in rows
    )
