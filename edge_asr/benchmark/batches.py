"""What bench.json says about batches: how many rows are worth waiting for.

What this file does not do: measure (run.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_asr.benchmark.schema import BenchReport, Cell
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.names import MANIFEST_NAME
from edge_asr.errors import ConfigError

GAIN = 1.05
"""How much faster a batch has to be than each smaller one."""


def preferred_batches(path: Path, bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """Return, by precision, the measured batches that are faster than all smaller ones.

    Raises:
        ConfigError: no bench.json, or of another bundle, or of single clips only.
    """
    report = BenchReport.read(path)
    if report.model.bundle_sha256 != sha256_of(bundle.path / MANIFEST_NAME):
        raise ConfigError(
            f"{path} is of another bundle ({report.model.source}); measure this one: edge-asr bench -m "
            f"{bundle.path}"
        )
    found = {c.precision: _preferred(c.cells) for c in report.configurations}
    if not any(found.values()):
        raise ConfigError(
            f"in {path} no batch is faster than single clips; measure more: edge-asr bench --batch 1,2,4,8"
        )
    return {precision: rows for precision, rows in found.items() if rows}


def _preferred(cells: Sequence[Cell]) -> tuple[int, ...]:
    """Compare batches by the mean of their speeds over the lengths that all batches were measured at."""
    speeds = {(cell.batch, cell.seconds): cell.rtfx for cell in cells}
    batches = sorted({batch for batch, _ in speeds})
    lengths = [s for s in {seconds for _, seconds in speeds} if all((b, s) in speeds for b in batches)]
    kept: list[int] = []
    best = 0.0
    for batch in batches if lengths else ():
        speed = sum(speeds[batch, seconds] for seconds in lengths) / len(lengths)
        if speed > GAIN * best or not best:
            kept.append(batch)
            best = speed
    return tuple(batch for batch in kept if batch > 1)
