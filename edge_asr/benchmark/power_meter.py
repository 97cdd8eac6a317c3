"""The machine's power sensors read while one task runs over and over, and once while nothing runs.

Where no sensor can be read nothing is run for it, and the reasons are told. What this file does not do: know
any sensor (`power.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_asr.benchmark.offline import Task, repeat
from edge_asr.benchmark.power import PowerReader, find_readers
from edge_asr.benchmark.schema import PowerReading
from edge_asr.benchmark.statistics import four_digits
from edge_asr.diagnostics.machine import Machine

IDLE_S = 2.0

#: Called with the name of a stage and the share of it that is done.
Progress = Callable[[str, float], None]


class PowerMeter:
    """The machine's power sensors, and what they say when nothing runs."""

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
        """Run the task over and over under each sensor; why there is no reading."""
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
