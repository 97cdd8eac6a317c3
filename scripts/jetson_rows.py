#!/usr/bin/env python3
"""Print the rows of docs/jetson.md's table from a folder of scripts/jetson_report.

    python scripts/jetson_rows.py jetson-report

What was not measured stays empty; nothing is estimated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def cells(folder: Path) -> dict[float, dict[str, Any]]:
    """Read the single clips of one bench.json, by seconds; empty if there is none."""
    path = folder / "bench.json"
    if not path.is_file():
        return {}
    (configuration,) = json.loads(path.read_text(encoding="utf-8"))["configurations"]
    return {cell["seconds"]: cell for cell in configuration["cells"] if cell["batch"] == 1}


def row(report: Path, engine: str) -> list[str]:
    """Return one row: module, model, engine, and what was measured of it."""
    told = report / "jetson.txt"
    machine = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    measured, cpu = cells(report / engine), cells(report / "cpu")

    def total_ms(found: dict[float, dict[str, Any]], seconds: float) -> float | None:
        summary = found[seconds]["stages"]["total"]["summary"] if seconds in found else None
        return None if summary is None else float(summary["p50"])

    ten, one = measured.get(10.0), total_ms(measured, 1.0)
    memory = None if ten is None else ten["memory"]["gpu_bytes"]
    watts = next((p["watts"] for p in ten["power"] if p["watts"] is not None), None) if ten else None
    ours, theirs = total_ms(measured, 10.0), total_ms(cpu, 10.0)
    model = ""
    for path in sorted(report.glob("*/bench.json")):
        model = str(json.loads(path.read_text(encoding="utf-8"))["model"]["name"])
    numbers = [
        one,
        ours,
        None if ten is None else ten["rtfx"],
        None if memory is None else memory / 1e6,
        watts,
        None if ours is None or theirs is None else theirs / ours,
    ]
    return [" ".join(machine[:1])[:60], model, engine, *("" if n is None else f"{n:.4g}" for n in numbers)]


def main() -> int:
    """Print a row for each engine."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("give the folder that scripts/jetson_report wrote")
    for engine in ("fp16", "int8"):
        print(f"| {' | '.join(row(Path(sys.argv[1]), engine))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
