"""Checks a Jetson: JetPack and Jetson Linux (L4T), the module, its power mode and clocks.

On other machines it reports nothing.
What this file does not do: check JetPack's libraries (cuda.py, tensorrt.py).
"""

from __future__ import annotations

import re

from edge_asr.diagnostics.check import Check
from edge_asr.diagnostics.machine import Machine

_OLDEST_L4T = 36
"""Oldest supported Jetson Linux: 36 is JetPack 6, the first with a Python (3.10) that edge-asr supports."""


def check_jetson(machine: Machine) -> list[Check]:
    """Check JetPack and power mode; return nothing on a machine that is no Jetson."""
    if not machine.is_jetson:
        return []
    return [_check_jetpack(machine), _check_power(machine)]


def l4t_release(machine: Machine) -> str | None:
    """Return "R36.4.3" from "# R36 (release), REVISION: 4.3, ..."; None if the file is missing."""
    text = machine.read("/etc/nv_tegra_release") or ""
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return None if match is None else f"R{match[1]}.{match[2]}"


def _check_jetpack(machine: Machine) -> Check:
    release = l4t_release(machine)
    model = machine.read("/proc/device-tree/model") or "unknown module"
    package = (machine.run("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack") or "").strip()
    jetpack = f"JetPack {package}" if package else "package nvidia-jetpack not installed"
    detail = f"{jetpack}, L4T {release or 'unknown (no /etc/nv_tegra_release: a container?)'}, {model}"
    if release is not None and int(release[1:].partition(".")[0]) < _OLDEST_L4T:
        fix = (
            "flash JetPack 6 or later: older ones have a Python and a TensorRT that edge-asr does not run on"
        )
        return Check(name="JetPack", status="broken", detail=detail, fix=fix)
    return Check(name="JetPack", status="ok", detail=detail)


def _check_power(machine: Machine) -> Check:
    name = "power mode"
    answer = machine.run("nvpmodel", "-q")
    mode = re.search(r"NV Power Mode:\s*(\S.*)", answer or "")
    if mode is None:
        return Check(
            name=name,
            status="missing",
            detail="nvpmodel does not say (a container has none)",
            fix="sudo nvpmodel -q",
        )
    number = re.search(r"^(\d+)\s*$", answer or "", re.MULTILINE)
    detail = mode[1].strip() + (f" (mode {number[1]})" if number else "")
    return Check(name=name, status="ok", detail=f"{detail}; {_describe_clocks(machine)}")


def _describe_clocks(machine: Machine) -> str:
    answer = machine.run("jetson_clocks", "--show") or ""
    gpu = re.search(r"GPU MinFreq=(\d+) MaxFreq=(\d+) CurrentFreq=(\d+)", answer)
    if gpu is None:
        return "clocks are shown to root only: sudo jetson_clocks --show"
    low, high, current = (int(value) / 1e6 for value in gpu.groups())
    if low == high:
        return f"GPU clock fixed at {high:.0f} MHz"
    return (
        f"GPU clock {low:.0f} to {high:.0f} MHz, now {current:.0f} (sudo jetson_clocks fixes it at its top)"
    )
