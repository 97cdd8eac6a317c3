"""bench.json round trips, and what is not exactly of the schema is refused with its place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edge_asr.benchmark import schema
from edge_asr.benchmark.clocks import Clocks
from edge_asr.benchmark.schema import SCHEMA_VERSION, BenchReport, Times
from edge_asr.errors import ConfigError
from edge_asr.records import record_from_json


def test_round_trip(report: BenchReport) -> None:
    assert BenchReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_keys_of_the_file_are_the_fields(report: BenchReport) -> None:
    assert list(report.to_dict()) == [field.name for field in dataclasses.fields(BenchReport)]


def place(data: dict[str, Any], *keys: Any) -> Any:
    for key in keys:
        data = data[key]
    return data


CELL = ("configurations", 0, "cells", 0)


@pytest.mark.parametrize(
    ("keys", "key", "where"),
    [
        ((), "colour", "BenchReport"),
        (("machine",), "colour", "BenchReport: machine"),
        (CELL, "colour", "BenchReport: configurations[0].cells[0]"),
        ((*CELL, "stages", "encode"), "colour", "stages.encode"),
    ],
)
def test_unknown_and_missing_keys_are_errors_with_their_place(
    report: BenchReport, keys: tuple[Any, ...], key: str, where: str
) -> None:
    data = report.to_dict()
    place(data, *keys)[key] = 1
    with pytest.raises(ConfigError, match="unknown key 'colour'") as error:
        BenchReport.from_dict(data)
    assert where in str(error.value)
    data = report.to_dict()
    target = place(data, *keys)
    gone = next(iter(target)) if keys else "created"
    del target[gone]
    with pytest.raises(ConfigError, match=f"lacks '{gone}'"):
        BenchReport.from_dict(data)


@pytest.mark.parametrize(
    ("keys", "key", "value"),
    [
        ((), "created", 5),
        ((), "configurations", {}),
        (("machine",), "packages", []),
        (("machine",), "affinity", ["0"]),
        (CELL, "rtfx", "fast"),
        (CELL, "n_runs", True),
        (CELL, "n_runs", 2.5),
        (CELL, "memory", None),
        (("model",), "is_random", 0),
    ],
)
def test_wrong_types_are_errors(report: BenchReport, keys: tuple[Any, ...], key: str, value: Any) -> None:
    data = report.to_dict()
    place(data, *keys)[key] = value
    with pytest.raises(ConfigError, match=key):
        BenchReport.from_dict(data)


def test_whole_numbers_serve_as_floats(report: BenchReport) -> None:
    data = report.to_dict()
    data["seconds_taken"] = 12
    assert BenchReport.from_dict(data).seconds_taken == 12.0


def test_another_version_says_so_first(report: BenchReport) -> None:
    data = {**report.to_dict(), "schema_version": SCHEMA_VERSION + 1, "new": 1}
    with pytest.raises(ConfigError, match=f"this edge-asr reads {SCHEMA_VERSION}"):
        BenchReport.from_dict(data)


def test_reading_files(report: BenchReport, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no benchmark at"):
        BenchReport.read(tmp_path)
    (tmp_path / "bench.json").write_text("{not json")
    with pytest.raises(ConfigError, match=r"bench\.json"):
        BenchReport.read(tmp_path)
    (tmp_path / "bench.json").write_text(json.dumps(report.to_dict()))
    assert BenchReport.read(tmp_path) == BenchReport.read(tmp_path / "bench.json") == report


def test_times_have_numbers_or_a_reason_never_both_nor_neither() -> None:
    assert Times.of([], "none came").reason == "none came"
    assert Times.of([0.001, 0.003]).samples_ms == (1.0, 3.0)
    with pytest.raises(ConfigError):
        Times(summary=None, reason=None)
    with pytest.raises(ConfigError):
        Times(summary=Times.of([1.0]).summary, reason="why")


def test_every_field_is_explained_in_the_document(repository: Path) -> None:
    text = (repository / "docs" / "bench.md").read_text(encoding="utf-8")
    records = [
        value
        for value in (*vars(schema).values(), Clocks)
        if dataclasses.is_dataclass(value) and isinstance(value, type)
    ]
    assert len(records) >= 15
    missing = [
        f"{record.__name__}.{field.name}"
        for record in records
        for field in dataclasses.fields(record)
        if f"`{field.name}`" not in text
    ]
    assert missing == []
    assert f"schema_version {SCHEMA_VERSION}" in text


def test_records_are_read_from_objects_only() -> None:
    with pytest.raises(ConfigError, match="must be an object"):
        record_from_json(schema.Audio, [1, 2])
