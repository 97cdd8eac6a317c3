"""Power readers against fake sensors: sysfs trees, a program and modules of these tests, no real sensor."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from edge_asr.benchmark import power
from edge_asr.benchmark.offline import Task
from edge_asr.benchmark.power import (
    PowerMeter,
    RaplReader,
    energy_from_rails,
    find_jtop,
    find_rapl,
    find_readers,
    find_tegrastats,
    rails_from_tegrastats,
)
from edge_asr.benchmark.stages import RunTimes
from edge_asr.diagnostics.machine import Machine

# As NVIDIA's Jetson Linux Developer Guide prints them, shortened.
ORIN_NANO = (
    "11-24-2026 10:00:00 RAM 2722/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729,0%@729] EMC_FREQ "
    "0%@2133 GR3D_FREQ 0%@[305] cpu@47.9C VDD_IN 4968mW/5012mW VDD_CPU_GPU_CV 1480mW/1490mW "
    "VDD_SOC 1440mW/1440mW"
)
THOR = (
    "RAM 2/3MB VDD_GPU -12mW/0mW VDD_CPU_SOC_MSS 7800mW/7800mW VIN_SYS_5V0 5000mW/5000mW VIN 27000mW/27100mW"
)
AGX_ORIN = "RAM 2/3MB VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 800mW/800mW VIN_SYS_5V0 4000mW/4100mW"
ZONE = "/sys/class/powercap/intel-rapl:"


def rapl_files(**energy_uj: int) -> dict[str, str]:
    """A fake powercap tree of a package with cores inside, and of a psys zone."""
    names = {"0": "package-0", "0:0": "core", "1": "psys"}
    files = {}
    for zone, name in names.items():
        files[f"{ZONE}{zone}/name"] = name + "\n"
        files[f"{ZONE}{zone}/energy_uj"] = str(energy_uj.get(name.replace("-0", ""), 1_000_000)) + "\n"
        files[f"{ZONE}{zone}/max_energy_range_uj"] = "262143328850\n"
    return files


def test_fake_rapl_counts_packages_only_and_tells_their_parts(fake_machine: Any) -> None:
    machine: Machine = fake_machine(rapl_files())
    reader, _ = find_rapl(machine)
    assert isinstance(reader, RaplReader)
    reader.start()
    time.sleep(0.05)
    for zone, spent in (("0", 3_000_000), ("0:0", 2_000_000), ("1", 9_000_000)):
        (machine.root / f"{ZONE}{zone}/energy_uj".lstrip("/")).write_text(str(1_000_000 + spent))
    energy = reader.stop()
    assert energy.joules == 3.0
    assert energy.watts == pytest.approx(3.0 / energy.seconds)
    assert {name: watts * energy.seconds for name, watts in energy.parts_watts.items()} == pytest.approx(
        {"package-0": 3.0, "package-0/core": 2.0, "psys": 9.0}
    )


def test_fake_rapl_counter_that_wraps(fake_machine: Any) -> None:
    machine: Machine = fake_machine(rapl_files(package=262_143_328_849))
    reader, _ = find_rapl(machine)
    assert reader is not None
    reader.start()
    (machine.root / f"{ZONE}0/energy_uj".lstrip("/")).write_text("999999")
    assert reader.stop().joules == pytest.approx(1.0)


def test_rapl_that_is_not_there_or_not_for_us(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, reason = find_rapl(fake_machine())
    assert reader is None
    assert "no processor package" in reason
    machine = fake_machine(rapl_files())
    real = Path.read_text

    def refuse(path: Path, *arguments: Any, **named: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", refuse)
    reader, reason = find_rapl(machine)
    assert reader is None
    assert "only root" in reason
    assert "chmod" in reason


def test_lines_of_tegrastats() -> None:
    thor = rails_from_tegrastats(THOR)
    assert (thor["VDD_GPU"], thor["VIN"]) == (-0.012, 27.0)
    assert energy_from_rails([thor, thor], 2.0).watts == 27.0  # VIN feeds the whole module
    assert rails_from_tegrastats(ORIN_NANO) == {"VDD_IN": 4.968, "VDD_CPU_GPU_CV": 1.48, "VDD_SOC": 1.44}
    assert rails_from_tegrastats("RAM 2722/7620MB CPU [2%@729]") == {}


def test_the_whole_is_a_rail_and_never_a_sum() -> None:
    nano = energy_from_rails([rails_from_tegrastats(ORIN_NANO)] * 2, 2.0)
    assert (nano.watts, nano.joules) == (pytest.approx(4.968), pytest.approx(9.936))
    agx = energy_from_rails([rails_from_tegrastats(AGX_ORIN)], 2.0)
    assert (agx.watts, agx.joules) == (None, None)
    assert agx.reason is not None
    assert "overlap" in agx.reason
    assert agx.parts_watts == {"VDD_GPU_SOC": 2.4, "VDD_CPU_CV": 0.8, "VIN_SYS_5V0": 4.0}
    assert energy_from_rails([], 1.0).reason == "no line with power came in that time"


JETSON = {"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}


def test_fake_tegrastats_program_is_read_and_ended(fake_machine: Any, tmp_path: Path) -> None:
    body = f"echo $$ > {tmp_path}/pid; while true; do echo '{ORIN_NANO}'; sleep 0.02; done"
    readers, reasons = find_readers(fake_machine(JETSON, {"tegrastats": body}), uses_gpu=True)
    (reader,) = readers
    assert (reader.name, reasons) == ("tegrastats", [])
    for _ in range(2):
        reader.start()
        time.sleep(0.3)
        energy = reader.stop()
        assert energy.watts == pytest.approx(4.968)
        assert energy.seconds >= 0.3
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_jetson_without_sensors_says_why(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jtop", None)
    readers, reasons = find_readers(fake_machine(JETSON), uses_gpu=True)
    assert readers == []
    assert [reason.partition(":")[0] for reason in reasons] == ["tegrastats", "jtop"]
    assert find_tegrastats(fake_machine())[0] is None


class FakeJtop:
    """As jetson-stats' jtop: a context manager that is also started and closed."""

    total: ClassVar[dict[str, Any]] = {"power": 4968, "name": "VDD_IN"}

    @property
    def power(self) -> dict[str, Any]:
        return {"rail": {"VDD_SOC": {"power": 1440}}, "tot": dict(self.total)}

    def __enter__(self) -> FakeJtop:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass


def fake_jtop(monkeypatch: pytest.MonkeyPatch, connect: Any) -> types.ModuleType:
    module = types.ModuleType("jtop")
    module.jtop, module.JtopException = connect, RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)
    return module


def test_fake_jtop(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_jtop(monkeypatch, FakeJtop)
    reader, _ = find_jtop(fake_machine())
    assert reader is not None
    reader.start()
    time.sleep(0.05)
    assert reader.stop().watts == pytest.approx(4.968)
    # jtop's own sum over rails has no name; it is not the module's input.
    monkeypatch.setattr(FakeJtop, "total", {"power": 1440})
    reader.start()
    energy = reader.stop()
    assert energy.watts is None
    assert energy.parts_watts == {"VDD_SOC": 1.44}


def test_jtop_whose_service_does_not_run(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The jtop.service is not active")

    fake_jtop(monkeypatch, refuse)
    assert find_jtop(fake_machine()) == (None, "jtop: The jtop.service is not active")


def test_a_cpu_only_run_does_not_read_a_gpu(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("NVML was asked")

    monkeypatch.setattr(power, "open_gpu", fail)
    readers, reasons = find_readers(fake_machine(rapl_files()), uses_gpu=False)
    assert [reader.name for reader in readers] == ["rapl"]
    assert reasons == []


class FakeTask(Task):
    """Fake: a run of 2 s of audio takes 10 ms and 4 J of the counter at `counter`."""

    counter: Path
    n_runs = 0

    def run(self) -> RunTimes:
        time.sleep(0.01)
        self.counter.write_text(str(int(self.counter.read_text()) + 4_000_000))
        FakeTask.n_runs += 1
        return RunTimes(total_s=0.01)


def test_the_meter_relates_energy_to_audio(fake_machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine: Machine = fake_machine(rapl_files())
    monkeypatch.setattr(power, "IDLE_S", 0.01)
    meter = PowerMeter(machine, False, lambda stage, share: None)
    nothing: Any = None
    clip = np.zeros(32_000, np.float32)
    task = FakeTask(name="fake", recognizer=nothing, clips=[clip], sample_rate=16_000, text_sha256="")
    FakeTask.counter = machine.root / f"{ZONE}0/energy_uj".lstrip("/")
    (reading,), reason = meter.read(task, 0.05, lambda stage, share: None)
    assert reason is None
    assert reading.joules_per_audio_s == pytest.approx(2.0)
    assert reading.idle_watts == 0.0
    # Rounded to four digits and milliseconds.
    assert reading.watts == pytest.approx(4.0 * FakeTask.n_runs / reading.seconds, rel=0.02)
    assert "package" in reading.scope


def test_the_meter_without_sensors_runs_nothing(fake_machine: Any) -> None:
    meter = PowerMeter(fake_machine(), False, lambda stage, share: None)
    readings, reason = meter.read(None, 60.0, lambda stage, share: None)  # type: ignore[arg-type]
    assert readings == []
    assert reason is not None
    assert reason.startswith("rapl: no processor package")
