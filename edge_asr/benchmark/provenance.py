"""Reads where and with what a benchmark ran: processor, system, packages, commit, load.

The record is a part of bench.json (`schema.py`); every number that the machine does not report is null beside
a reason.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import edge_asr
from edge_asr.benchmark.clocks import Clocks, read_clocks
from edge_asr.diagnostics.jetson import l4t_release
from edge_asr.diagnostics.machine import Machine
from edge_asr.runtime.engine.cuda import query_gpu

PACKAGES = (
    "numpy",
    "scipy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "soxr",
    "soundfile",
)
#: Instructions that matrix products of float32, float16 and int8 use, as Linux names them.
CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "asimdhp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
ENVIRONMENT = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)


BUSY_LOAD = 0.5
"""Load average per processor above which times say more about other work than about the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """The machine that was measured.

    Attributes:
        cpu, cpu_features: model name; the instructions that matter to inference.
        n_cpus, affinity: processors online; those this process may use.
        memory_bytes: memory of the machine.
        gpu, jetson: name and compute capability; module and Jetson Linux; null where there is none.
        system, kernel, architecture, container, hypervisor: what it runs on.
        python, packages: versions. environment: variables that set threads.
        edge_asr: version. git_commit: of the work tree, "+dirty" when changed; git_reason: why null.
        load_before, load_after: load average over a minute.
        steal_share: share of processor time that other virtual machines took while measuring; null where the
            kernel does not say.
        clocks_before, clocks_after: around the measurement.
    """

    cpu: str
    cpu_features: tuple[str, ...]
    n_cpus: int
    affinity: tuple[int, ...]
    memory_bytes: int | None
    gpu: str | None
    jetson: str | None
    system: str
    kernel: str
    architecture: str
    container: str | None
    hypervisor: bool
    python: str
    packages: dict[str, str]
    environment: dict[str, str]
    edge_asr: str
    git_commit: str | None
    git_reason: str | None
    load_before: float | None
    load_after: float | None
    steal_share: float | None
    clocks_before: Clocks
    clocks_after: Clocks

    @property
    def is_busy(self) -> bool:
        """Tell whether other work was running when the benchmark began."""
        return self.load_before is not None and self.load_before > BUSY_LOAD * self.n_cpus


class Surroundings:
    """Reads the machine on creation, and again in `describe`, to report what happened in between.

    Args:
        machine: where system files and programs are.
        uses_gpu: the model runs on a GPU.
    """

    def __init__(self, machine: Machine, *, uses_gpu: bool) -> None:
        self._machine = machine
        self._uses_gpu = uses_gpu
        self._load = _load_average()
        self._times = _processor_times(machine)
        self._clocks = read_clocks(machine, uses_gpu=uses_gpu)

    def describe(self) -> MachineRecord:
        """Describe everything as of now."""
        machine = self._machine
        clocks = read_clocks(machine, uses_gpu=self._uses_gpu)
        cpu, flags = read_cpu(machine)
        commit, commit_reason = git_commit(Path(edge_asr.__file__).resolve().parent)
        return MachineRecord(
            cpu=cpu,
            cpu_features=tuple(name for name in CPU_FEATURES if name in flags),
            n_cpus=os.cpu_count() or 1,
            affinity=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (),
            memory_bytes=_memory_bytes(machine),
            gpu=_gpu(),
            jetson=_jetson(machine),
            system=_system(machine),
            kernel=platform.release(),
            architecture=platform.machine(),
            container=_container(machine),
            hypervisor="hypervisor" in flags,
            python=f"{platform.python_implementation()} {platform.python_version()}",
            packages=package_versions(PACKAGES),
            environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
            edge_asr=edge_asr.__version__,
            git_commit=commit,
            git_reason=commit_reason,
            load_before=self._load,
            load_after=_load_average(),
            steal_share=_steal_share(self._times, _processor_times(machine)),
            clocks_before=self._clocks,
            clocks_after=clocks,
        )


def read_cpu(machine: Machine) -> tuple[str, frozenset[str]]:
    """Return the name of the processor, and its instructions by their Linux names."""
    info = machine.read("/proc/cpuinfo") or ""
    name = _cpu_field(info, "model name", "Model", "Hardware") or _arm_cpu(machine) or platform.machine()
    return name, frozenset(_cpu_field(info, "flags", "Features").split())


def describe_cpu(machine: Machine) -> str:
    """Describe processor, relevant instructions, cores and load in one line."""
    name, flags = read_cpu(machine)
    known = ", ".join(feature for feature in CPU_FEATURES if feature in flags)
    return f"{name} ({known}), {os.cpu_count()} cores, load {_load_average()}"


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> tuple[str | None, str | None]:
    """Return the commit of the work tree of `folder`, with "+dirty" if files changed; or why unknown."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package can lie below an unrelated work tree, that of the project which uses it.
    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "__init__.py") else None
    if not commit:
        return None, "edge-asr does not run from a git work tree"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit + ("+dirty" if changed else ""), None


def _cpu_field(cpu_info: str, *names: str) -> str:
    for name in names:
        match = re.search(rf"^{name}\s*:\s*(\S.*)$", cpu_info, re.MULTILINE)
        if match:
            return match[1].strip()
    return ""


def _arm_cpu(machine: Machine) -> str:
    """Read the processor names ("arm,cortex-a78") from the device tree, as Arm's cpuinfo has only numbers."""
    names = [
        (machine.read(str(path.relative_to(machine.root))) or "").split(" ")[0]
        for path in machine.glob("/proc/device-tree/cpus/cpu@*/compatible")
    ]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names) if name)


def _memory_bytes(machine: Machine) -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", machine.read("/proc/meminfo") or "", re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def _gpu() -> str | None:
    gpu = query_gpu()
    return (
        None if gpu is None else f"{gpu.name}, compute capability {gpu.compute_capability}, CUDA {gpu.driver}"
    )


def _jetson(machine: Machine) -> str | None:
    if not machine.is_jetson:
        return None
    model = machine.read("/proc/device-tree/model") or "unknown module"
    return f"{model}, L4T {l4t_release(machine) or 'unknown'}"


def _system(machine: Machine) -> str:
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', machine.read("/etc/os-release") or "", re.MULTILINE)
    return platform.system() if match is None else match[1]


def _container(machine: Machine) -> str | None:
    for path, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if machine.read(path) is not None:
            return name
    return None


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _processor_times(machine: Machine) -> list[int]:
    """Read user, nice, system, idle, iowait, irq, softirq and steal (proc(5)); empty if unknown."""
    match = re.match(r"cpu\s+([\d ]+)", machine.read("/proc/stat") or "")
    return [] if match is None else [int(value) for value in match[1].split()][:8]


def _steal_share(before: list[int], after: list[int]) -> float | None:
    if len(before) < 8 or len(after) < 8:
        return None
    passed = [b - a for a, b in zip(before, after, strict=True)]
    return round(passed[7] / sum(passed), 4) if sum(passed) > 0 else None
