"""GPU, clocks and provenance: fake NVML, fake system files, and what can be known of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from edge_asr.benchmark.clocks import read_clocks
from edge_asr.benchmark.gpu import open_gpu, process_memory_bytes
from edge_asr.benchmark.power import NvmlReader, find_nvml, find_readers
from edge_asr.benchmark.provenance import Surroundings, git_commit
from edge_asr.diagnostics.machine import Machine


class FakeNvmlError(Exception):
    """As pynvml's NVMLError."""


class FakeNvml(types.ModuleType):
    """As pynvml with `n_gpus` GPUs; `answers` maps a query to its answer, others are not supported."""

    NVMLError = FakeNvmlError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, n_gpus: int = 1, **answers: Any) -> None:
        super().__init__("pynvml")
        self.n_gpus = n_gpus
        self.answers = answers

    def nvmlInit(self) -> None:
        if self.n_gpus < 0:
            raise FakeNvmlError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return self.n_gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def __getattr__(self, name: str) -> Any:
        def query(handle: Any, *arguments: Any) -> Any:
            if name not in self.answers:
                raise FakeNvmlError("Not Supported")
            answer = self.answers[name]
            return answer(handle, *arguments) if callable(answer) else answer

        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)
        return query


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`install(FakeNvml(...))` puts it where imports find it."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return lambda module: monkeypatch.setitem(sys.modules, "pynvml", module)


def handle() -> Any:
    gpu, _ = open_gpu()
    return None if gpu is None else gpu.handle


def test_fake_nvml_which_gpu(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(None)
    assert "pip install 'edge-asr[bench]'" in (open_gpu()[1] or "")
    install(FakeNvml(-1))
    assert open_gpu() == (None, "NVML does not start: Driver Not Loaded")
    install(FakeNvml(0))
    assert open_gpu() == (None, "NVML sees no GPU")
    install(FakeNvml(1))
    assert handle() == "gpu 0"
    install(FakeNvml(2))
    assert "not certain" in (open_gpu()[1] or "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert handle() is None  # CUDA's default order is not NVML's
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert handle() == "gpu 1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    assert handle() == "GPU-1234"


def test_fake_nvml_memory_of_this_process_only(install: Any) -> None:
    mine = types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=512 << 20)
    other = types.SimpleNamespace(pid=1, usedGpuMemory=4 << 30)
    install(FakeNvml(nvmlDeviceGetComputeRunningProcesses=[other, mine]))
    assert process_memory_bytes() == (512 << 20, None)
    install(FakeNvml(nvmlDeviceGetComputeRunningProcesses=[other]))
    assert "does not list this process" in (process_memory_bytes()[1] or "")


def test_fake_nvml_energy_by_counter_else_by_power(install: Any, fake_machine: Any) -> None:
    counter = iter([1_000, 1_000, 6_000])
    install(FakeNvml(nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counter)))
    readers, reasons = find_readers(fake_machine(), uses_gpu=True)
    (reader,) = readers
    assert isinstance(reader, NvmlReader)
    assert [reason.partition(":")[0] for reason in reasons] == ["rapl"]
    reader.start()
    assert reader.stop().joules == 5.0
    install(FakeNvml(nvmlDeviceGetPowerUsage=20_000))
    gpu, _ = open_gpu()
    assert gpu is not None
    by_power, _ = find_nvml(gpu)
    assert by_power is not None
    by_power.start()
    assert by_power.stop().watts == pytest.approx(20.0)
    install(FakeNvml())
    gpu, _ = open_gpu()
    assert gpu is not None
    assert find_nvml(gpu) == (None, "this GPU reports neither energy nor power")


CPUFREQ = {
    f"/sys/devices/system/cpu/cpu{index}/cpufreq/{name}": value
    for index, mhz in ((0, "1500000"), (1, "2400000"))
    for name, value in (("scaling_governor", "schedutil\n"), ("scaling_cur_freq", mhz + "\n"))
}


def test_clocks_of_a_fake_machine(fake_machine: Any, install: Any) -> None:
    clocks = read_clocks(fake_machine(CPUFREQ), uses_gpu=False)
    assert (clocks.cpu_mhz_min, clocks.cpu_mhz_mean, clocks.cpu_mhz_max) == (1500.0, 1950.0, 2400.0)
    assert (clocks.cpu_governor, clocks.cpu_reason) == ("schedutil", None)
    assert clocks.gpu_reason == "the model does not run on a GPU"
    install(FakeNvml(nvmlDeviceGetClockInfo=lambda handle, which: 100 * which, nvmlDeviceGetTemperature=40))
    clocks = read_clocks(fake_machine(), uses_gpu=True)
    assert (clocks.gpu_sm_mhz, clocks.gpu_memory_mhz, clocks.gpu_celsius) == (100.0, 200.0, 40.0)
    install(FakeNvml())
    assert read_clocks(fake_machine(), uses_gpu=True).gpu_reason == "this GPU does not report its clocks"


def test_a_machine_without_cpufreq_gives_no_clock(fake_machine: Any) -> None:
    clocks = read_clocks(fake_machine({"/proc/cpuinfo": "cpu MHz\t\t: 2445.404\n"}), uses_gpu=False)
    assert clocks.cpu_mhz_mean is None
    assert clocks.cpu_reason is not None


def test_power_mode_of_a_fake_jetson(fake_machine: Any) -> None:
    jetson = {"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}
    program = {"nvpmodel": '[ $1 = -q ] && printf "NV Power Mode: MAXN_SUPER\\n2\\n"'}
    assert read_clocks(fake_machine(jetson, program), uses_gpu=False).power_mode == "MAXN_SUPER"


def test_other_machines_have_no_power_mode(fake_machine: Any) -> None:
    assert read_clocks(fake_machine(), uses_gpu=False).power_mode_reason == "power modes are a Jetson's"


ARM = {
    "/proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd42\n",
    "/proc/device-tree/cpus/cpu@0/compatible": "arm,cortex-a78\0",
    "/proc/device-tree/cpus/cpu@100/compatible": "arm,cortex-a78\0",
    "/proc/meminfo": "MemTotal:        7802952 kB\n",
    "/etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
    "/run/.containerenv": "",
    "/proc/stat": "cpu  100 0 100 700 0 0 0 100 0 0\n",
}


def test_a_fake_arm_machine(fake_machine: Any) -> None:
    machine: Machine = fake_machine(ARM)
    surroundings = Surroundings(machine, uses_gpu=False)
    (machine.root / "proc/stat").write_text("cpu  150 0 150 750 0 0 0 150 0 0\n")
    found = surroundings.describe()
    assert found.cpu == "2 x arm,cortex-a78"
    assert found.cpu_features == ("asimd", "asimddp", "i8mm")
    assert (found.memory_bytes, found.system) == (7_802_952 * 1024, "Ubuntu 22.04.5 LTS")
    assert (found.container, found.hypervisor, found.jetson) == ("podman", False, None)
    assert found.steal_share == 0.25  # 50 of 200


def test_this_machine() -> None:
    found = Surroundings(Machine(), uses_gpu=False).describe()
    assert found.n_cpus == os.cpu_count()
    assert found.cpu
    assert found.packages["numpy"]
    assert (found.git_commit is None) is (found.git_reason is not None)


def test_commit_of_a_work_tree_and_of_none(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == (None, "edge-asr does not run from a git work tree")

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "other.txt").write_text("")
    git("add", "other.txt")
    git("commit", "-m", "x")
    assert git_commit(tmp_path / "package")[0] is None  # below a work tree, and not part of it
    git("add", ".")
    git("commit", "-m", "y")
    commit, reason = git_commit(tmp_path / "package")
    assert reason is None
    assert commit is not None
    assert len(commit) == 40
    (tmp_path / "other.txt").write_text("changed")
    assert git_commit(tmp_path / "package")[0] == f"{commit}+dirty"
