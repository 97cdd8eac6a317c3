"""The part of bench.json that says where it was measured; see `schema.py` for the rest.

Every number that the machine does not tell is null beside a reason.
"""

from __future__ import annotations

from dataclasses import dataclass

BUSY_LOAD = 0.5
"""Load average a processor above which times say more about the neighbours than about the model."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRecord:
    """Where it was measured.

    Attributes:
        cpu, cpu_features: model name; the instructions that matter to inference.
        n_cpus, affinity: processors online; those this process may use.
        memory_bytes: of the machine.
        gpu, jetson: name and compute capability; module and Jetson Linux; null where there is none.
        system, kernel, architecture, container, hypervisor: what it runs on.
        python, packages: versions. environment: variables that set threads.
        edge_asr: version. git_commit: of the work tree, "+dirty" when changed; git_reason: why null.
        load_before, load_after: load average over a minute.
        steal_share: share of processor time that other virtual machines took while measuring; null where the
            kernel does not tell.
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
        """Other work was running when the benchmark began."""
        return self.load_before is not None and self.load_before > BUSY_LOAD * self.n_cpus
