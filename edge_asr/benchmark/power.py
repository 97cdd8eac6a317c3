"""Measures power and energy with the machine's sensors: tegrastats or jtop (Jetson), NVML (GPU), RAPL (x86).

A reader is started, something runs over and over, and it is stopped; energy is the sensor's own counter where
it has one, else mean power times time. Each covers something else (a module's input, a board, a processor
package without its memory), which its `scope` says; they are not added up. Where nothing can be read there is
no number. What this file does not do: model power, or guess it from utilization or TDP.

Sources: NVIDIA Jetson Linux Developer Guide, "tegrastats"; jetson-stats' `jtop` API; NVML's
nvmlDeviceGetTotalEnergyConsumption; Linux Documentation/power/powercap.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_asr.benchmark.gpu import NvmlGpu, open_gpu
from edge_asr.benchmark.offline import Task, repeat
from edge_asr.benchmark.schema import PowerReading
from edge_asr.benchmark.statistics import four_digits
from edge_asr.diagnostics.machine import Machine

INTERVAL_S = 0.1
IDLE_S = 2.0

#: Called with the name of a stage and the share of it that is done.
Progress = Callable[[str, float], None]
_WHOLE_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed a whole module (VIN: Thor); of other modules only parts are reported, without a sum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What a reader saw between start and stop.

    Attributes:
        seconds: how long.
        joules: energy of the whole; None if there are only parts, and `reason` says why.
        parts_watts: mean power of each rail or zone.
    """

    seconds: float
    joules: float | None
    reason: str | None = None
    parts_watts: dict[str, float] = field(default_factory=dict)

    @property
    def watts(self) -> float | None:
        """Return the mean power of the whole."""
        return None if self.joules is None else self.joules / self.seconds


class PowerReader(Protocol):
    """One sensor, which can be started and stopped again and again."""

    name: str
    scope: str

    def start(self) -> None:
        """Start reading."""
        ...

    def stop(self) -> Energy:
        """Stop reading, and return what was seen."""
        ...


def find_readers(machine: Machine, *, uses_gpu: bool) -> tuple[list[PowerReader], list[str]]:
    """Find the readers that work here, and why the others do not.

    Args:
        machine: where system files and programs are.
        uses_gpu: the model runs on a GPU; an idle one's power would say nothing.
    """
    readers: list[PowerReader] = []
    reasons: list[str] = []
    if machine.is_jetson:
        for find in (find_tegrastats, find_jtop):
            reader, reason = find(machine)
            if reader is not None:
                return [reader], []
            reasons.append(reason)
        return [], reasons
    if uses_gpu:
        gpu, nvml_reason = open_gpu()
        nvml, reason = (None, nvml_reason or "") if gpu is None else find_nvml(gpu)
        readers += [nvml] if nvml is not None else []
        reasons += [f"nvml: {reason}"] if nvml is None else []
    rapl, reason = find_rapl(machine)
    readers += [rapl] if rapl is not None else []
    reasons += [f"rapl: {reason}"] if rapl is None else []
    return readers, reasons


class PowerMeter:
    """Reads the power sensors while one task runs over and over, and once while nothing runs."""

    def __init__(self, machine: Machine, uses_gpu: bool, show: Progress) -> None:
        self._readers, reasons = find_readers(machine, uses_gpu=uses_gpu)
        self._reason = "; ".join(reasons) if not self._readers else None
        self._idle: dict[str, float | None] = {}
        for reader in self._readers:
            show(f"power when idle ({reader.name})", 0.0)
            reader.start()
            time.sleep(IDLE_S)
            self._idle[reader.name] = reader.stop().watts

    def read(self, task: Task, seconds: float, show: Progress) -> tuple[list[PowerReading], str | None]:
        """Run the task over and over under each sensor; also return why there is no reading."""
        readings = [self._read_one(reader, task, seconds, show) for reader in self._readers]
        return readings, self._reason

    def _read_one(self, reader: PowerReader, task: Task, seconds: float, show: Progress) -> PowerReading:
        show(f"{task.name}: power ({reader.name})", 0.0)
        reader.start()
        try:
            n_runs = repeat(task, seconds)
        finally:
            energy = reader.stop()
        watts = energy.watts
        return PowerReading(
            reader=reader.name,
            scope=reader.scope,
            seconds=round(energy.seconds, 3),
            watts=None if watts is None else four_digits(watts),
            reason=energy.reason,
            idle_watts=self._idle[reader.name],
            joules_per_audio_s=(
                None if energy.joules is None else four_digits(energy.joules / (n_runs * task.audio_s))
            ),
            parts_watts={name: four_digits(value) for name, value in energy.parts_watts.items()},
        )


# --- tegrastats ---


class TegrastatsReader:
    """Reads the rails that `tegrastats` prints, every 100 ms."""

    name = "tegrastats"
    scope = "the Jetson module's input, all of the module"

    def __init__(self, program: str) -> None:
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._lines: list[str] = []
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def start(self) -> None:
        command = [self._program, "--interval", str(round(INTERVAL_S * 1000))]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        self._lines = []
        self._thread = threading.Thread(target=self._collect, args=(self._process,), daemon=True)
        self._thread.start()
        self._began = time.monotonic()

    def stop(self) -> Energy:
        seconds = time.monotonic() - self._began
        assert self._process is not None
        assert self._thread is not None
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        return energy_from_rails([rails_from_tegrastats(line) for line in self._lines], seconds)

    def _collect(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.append(line)


def find_tegrastats(machine: Machine) -> tuple[PowerReader | None, str]:
    """Find tegrastats, if it is installed."""
    program = shutil.which("tegrastats", path=machine.search_path)
    if program is None:
        return None, "tegrastats: not found (a container needs it mounted from the device)"
    return TegrastatsReader(program), ""


def rails_from_tegrastats(line: str) -> dict[str, float]:
    """Parse the watts of each rail in a line, "VDD_IN 4968mW/5012mW": now, and on average.

    An idle rail of Thor reads a little below zero.
    """
    found = re.findall(r"\b([A-Z][A-Z0-9_]*) (-?\d+)mW/-?\d+mW", line)
    return {name: int(milliwatts) / 1000 for name, milliwatts in found}


def energy_from_rails(samples: list[dict[str, float]], seconds: float) -> Energy:
    """Average the power of rails; the whole is the rail that feeds the module, if there is one."""
    samples = [rails for rails in samples if rails]
    if not samples:
        return Energy(seconds=seconds, joules=None, reason="no line with power came in that time")
    parts = {name: sum(s.get(name, 0.0) for s in samples) / len(samples) for name in samples[0]}
    for name in _WHOLE_RAILS:
        if name in parts:
            return Energy(seconds=seconds, joules=parts[name] * seconds, parts_watts=parts)
    return Energy(
        seconds=seconds,
        joules=None,
        reason="this module has no rail for its whole input; its rails overlap, so they are not added up",
        parts_watts=parts,
    )


# --- jtop ---


class JtopReader:
    """Reads the rails from the service of jetson-stats, where tegrastats is not available."""

    name = "jtop"
    scope = TegrastatsReader.scope

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._samples: list[dict[str, float]] = []
        self._sampler = _Sampler(self._read)
        self._jetson: Any = None

    def start(self) -> None:
        self._samples = []
        self._jetson = self._connect()
        self._jetson.start()
        self._sampler.start()

    def stop(self) -> Energy:
        seconds = self._sampler.stop()
        self._jetson.close()
        return energy_from_rails(self._samples, seconds)

    def _read(self) -> None:
        power = self._jetson.power
        rails = {name: rail["power"] / 1000 for name, rail in power.get("rail", {}).items()}
        total = power.get("tot", {})
        if "name" in total:  # without a name it is jtop's own sum
            rails[total["name"]] = total["power"] / 1000
        self._samples.append(rails)


def find_jtop(machine: Machine) -> tuple[PowerReader | None, str]:
    """Find jtop, if it is installed and its service answers."""
    try:
        module = importlib.import_module("jtop")
    except ImportError:
        return None, "jtop: jetson-stats is not installed"
    try:
        with module.jtop() as jetson:
            _ = jetson.power
    except module.JtopException as error:
        return None, f"jtop: {error}"
    return JtopReader(module.jtop), ""


# --- NVML ---


class NvmlReader:
    """Reads the GPU's energy counter (Volta and later), or its power every 100 ms."""

    name = "nvml"
    scope = "the GPU board, memory included, and not the processor"

    def __init__(self, gpu: NvmlGpu) -> None:
        self._gpu = gpu
        self._sampler = _Sampler(self._read)
        self._watts: list[float] = []
        self._began: tuple[float, int | None] = (0.0, None)

    def start(self) -> None:
        self._watts = []
        self._began = (time.monotonic(), self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption"))
        if self._began[1] is None:
            self._sampler.start()

    def stop(self) -> Energy:
        at, millijoules = self._began
        if millijoules is not None:
            spent = (self._gpu.ask("nvmlDeviceGetTotalEnergyConsumption") - millijoules) / 1000
            return Energy(seconds=time.monotonic() - at, joules=spent)
        seconds = self._sampler.stop()
        if not self._watts:
            return Energy(seconds=seconds, joules=None, reason="NVML gave no power in that time")
        return Energy(seconds=seconds, joules=sum(self._watts) / len(self._watts) * seconds)

    def _read(self) -> None:
        milliwatts = self._gpu.ask("nvmlDeviceGetPowerUsage")
        if milliwatts is not None:
            self._watts.append(milliwatts / 1000)


def find_nvml(gpu: NvmlGpu) -> tuple[PowerReader | None, str]:
    """Find NVML, if this GPU reports energy or power."""
    for query in ("nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage"):
        if gpu.ask(query) is not None:
            return NvmlReader(gpu), ""
    return None, "this GPU reports neither energy nor power"


# --- RAPL ---


class RaplReader:
    """Reads the energy counters of the processor packages; zones inside them are reported as parts."""

    name = "rapl"
    scope = "the processor packages, without memory and the rest of the machine"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = {_zone_name(zone): zone for zone in zones}
        self._began: tuple[float, dict[str, int]] = (0.0, {})

    def start(self) -> None:
        self._began = (time.monotonic(), self._read())

    def stop(self) -> Energy:
        after, (at, before) = self._read(), self._began
        seconds = time.monotonic() - at
        joules = {name: self._difference(name, before[name], after[name]) / 1e6 for name in self._zones}
        return Energy(
            seconds=seconds,
            joules=sum(value for name, value in joules.items() if _is_package(name)),
            parts_watts={name: value / seconds for name, value in joules.items()},
        )

    def _read(self) -> dict[str, int]:
        return {name: int((zone / "energy_uj").read_text()) for name, zone in self._zones.items()}

    def _difference(self, name: str, before: int, after: int) -> int:
        if after >= before:
            return after - before
        return after - before + int((self._zones[name] / "max_energy_range_uj").read_text())  # it wrapped


def find_rapl(machine: Machine) -> tuple[PowerReader | None, str]:
    """Find RAPL, if the kernel has it and lets us read it."""
    zones = [z for z in machine.glob("/sys/class/powercap/intel-rapl:*") if (z / "energy_uj").exists()]
    if not any(_is_package(_zone_name(zone)) for zone in zones):
        return None, "no processor package in /sys/class/powercap (a virtual machine, or no RAPL)"
    try:
        for zone in zones:
            (zone / "energy_uj").read_text()
    except PermissionError:
        return None, (
            "only root may read the energy counters (Linux 5.10): run as root, or "
            "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"
        )
    except OSError as error:
        return None, f"the energy counters cannot be read: {error}"
    return RaplReader(zones), ""


def _zone_name(zone: Path) -> str:
    """Name a zone: "package-0", or "package-0/dram" for one inside intel-rapl:0."""
    name = (zone / "name").read_text().strip()
    parent = re.match(r"(intel-rapl:\d+):\d+$", zone.name)
    return name if parent is None else f"{_zone_name(zone.with_name(parent[1]))}/{name}"


def _is_package(name: str) -> bool:
    return name.startswith("package") and "/" not in name


class _Sampler:
    """Calls a function every `INTERVAL_S` in a thread of its own."""

    def __init__(self, read: Callable[[], None]) -> None:
        self._read = read
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def start(self) -> None:
        self._stopping.clear()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="edge-asr-power", daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the seconds since the start."""
        assert self._thread is not None
        self._stopping.set()
        self._thread.join()
        return time.monotonic() - self._began

    def _run(self) -> None:
        while True:
            self._read()
            if self._stopping.wait(INTERVAL_S):
                return
