"""Which batches a benchmark recommends."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_asr.benchmark.batches import preferred_batches
from edge_asr.benchmark.schema import BenchReport
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.errors import ConfigError

SPEEDS = {1: 100.0, 2: 102.0, 4: 140.0, 8: 139.0, 16: 150.0}


def write(report: BenchReport, path: Path, speeds: dict[int, float], bundle: Bundle) -> Path:
    first = report.configurations[0]
    cells = [
        dataclasses.replace(first.cells[0], seconds=seconds, batch=batch, rtfx=speed * factor)
        for batch, speed in speeds.items()
        for seconds, factor in ((2.0, 1.0), (10.0, 2.0))
    ]
    cells.append(dataclasses.replace(first.cells[0], seconds=60.0, batch=1, rtfx=1.0))  # of one batch alone
    report = dataclasses.replace(
        report,
        model=dataclasses.replace(report.model, bundle_sha256=sha256_of(bundle.path / "bundle.json")),
        configurations=(dataclasses.replace(first, precision="fp32", cells=tuple(cells)),),
    )
    path.write_text(json.dumps(report.to_dict()))
    return path


def test_batches_that_are_faster_than_all_smaller_ones(
    make_report: Callable[..., BenchReport], tmp_path: Path
) -> None:
    bundle = Bundle.load("tiny-en")
    path = write(make_report(), tmp_path / "bench.json", SPEEDS, bundle)
    assert preferred_batches(path, bundle) == {"fp32": (4, 16)}


def test_what_says_nothing_of_batches_is_refused(
    make_report: Callable[..., BenchReport], tmp_path: Path
) -> None:
    bundle = Bundle.load("tiny-en")
    path = write(make_report(), tmp_path / "bench.json", {1: 100.0, 2: 90.0}, bundle)
    with pytest.raises(
        ConfigError, match="no batch is faster than single clips; measure more: edge-asr bench"
    ):
        preferred_batches(path, bundle)
    path.write_text(json.dumps(make_report().to_dict()))
    with pytest.raises(ConfigError, match=r"is of another bundle .*; measure this one: edge-asr bench -m"):
        preferred_batches(path, bundle)
