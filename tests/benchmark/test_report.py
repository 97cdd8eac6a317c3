"""Tables, bench.md and the output folder: what has to be in them is, and what is missing says why."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from edge_asr.benchmark import schema
from edge_asr.benchmark.compare import compare
from edge_asr.benchmark.plots import PLOTS
from edge_asr.benchmark.report import (
    bench_markdown,
    check_folder,
    print_comparison,
    print_report,
    write_folder,
)
from edge_asr.benchmark.schema import BenchReport
from edge_asr.benchmark.tables import STATISTICS, bench_tables, number
from edge_asr.errors import ConfigError


def printed(report: BenchReport) -> str:
    console = Console(file=io.StringIO(), width=150)
    print_report(report, console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_every_statistic_of_every_stage_is_in_the_table(report: BenchReport) -> None:
    table = next(t for t in bench_tables(report) if t.title == "Stages")
    assert table.columns[-8:] == STATISTICS
    assert len(table.rows) == 4 * 5  # cells; features, encode, decode, total, processor
    (configuration,) = report.configurations
    summary = configuration.cells[0].stages["encode"].summary
    row = next(row for row in table.rows if row[:4] == ("int8 cpu", "1", "1", "encode"))
    assert row[5:] == tuple(number(getattr(summary, name)) for name in STATISTICS)
    assert "p99 of fewer than 100 runs is close to the maximum." in table.notes


def test_what_is_missing_says_why(report: BenchReport) -> None:
    text = printed(report)
    for reason in (
        "No copy to device (int8 cpu): invented: no copy.",
        "No energy: invented: no sensor.",
        "No WER (int8 cpu): not asked for: --manifest FILE.",
        "No GPU memory (int8 cpu): invented: no GPU.",
        "No end to final (int8 cpu, 2 streams): invented: audio was lost.",
        "NO: invented: 1 times audio was lost",
    ):
        assert reason in text


def test_provenance_is_in_both(report: BenchReport) -> None:
    for text in (printed(report), bench_markdown(report, [])):
        for expected in (
            "Invented CPU",
            "avx2",
            "numpy 2.0",
            "governor performance",
            "12" * 6,
            "cd" * 6,
            "abc",
        ):
            assert expected in text
    assert "BUSY" not in printed(report)
    busy = dataclasses.replace(report.machine, load_before=1.1)
    assert "BUSY" in printed(dataclasses.replace(report, machine=busy))
    random = dataclasses.replace(report, model=dataclasses.replace(report.model, is_random=True))
    assert "RANDOM WEIGHTS" in printed(random)


def test_power_has_a_table_when_it_was_read(report: BenchReport) -> None:
    reading = schema.PowerReading(
        reader="rapl",
        scope="the processor packages",
        seconds=2.0,
        watts=12.5,
        reason=None,
        idle_watts=4.0,
        joules_per_audio_s=0.25,
        parts_watts={"package-0": 12.5},
    )
    (configuration,) = report.configurations
    cells = tuple(dataclasses.replace(c, power=(reading,), power_reason=None) for c in configuration.cells)
    measured = dataclasses.replace(report, configurations=(dataclasses.replace(configuration, cells=cells),))
    text = printed(measured)
    assert "rapl measures the processor packages." in text
    assert "0.2500" in text
    assert "No energy" not in text


def test_markdown_tables_are_whole(report: BenchReport) -> None:
    lines = bench_markdown(report, PLOTS).splitlines()
    tables = [i for i, line in enumerate(lines) if re.fullmatch(r"\|(-+:?\|)+", line)]
    assert len(tables) == len(bench_tables(report))
    for begin in tables:
        n_columns = lines[begin].count("|")
        for line in lines[begin - 1 :]:
            if not line.startswith("|"):
                break
            assert line.replace("\\|", "").count("|") == n_columns
    assert [line for line in lines if line.startswith("![")] == [f"![{Path(p).stem}]({p})" for p in PLOTS]


def test_numbers_have_four_digits() -> None:
    given = [0.0, 0.01234567, 0.5, 1.0, 12.3456, 999.99, 1000.0, 123456.7]
    assert [number(v) for v in given] == [
        "0",
        "0.01235",
        "0.5000",
        "1.000",
        "12.35",
        "1000",
        "1000",
        "123457",
    ]


def test_the_folder(report: BenchReport, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert write_folder(report, folder) is None
    assert sorted(p.name for p in folder.iterdir()) == sorted(["bench.json", "bench.md", *PLOTS])
    assert BenchReport.read(folder) == report
    for name in PLOTS:
        assert (folder / name).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match=r"bench\.json exists already; add --force"):
        check_folder(folder, force=False)
    check_folder(folder, force=True)
    check_folder(tmp_path, force=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_folder(tmp_path / "file", force=True)


def test_without_matplotlib_one_sentence_and_no_pictures(
    report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    problem = write_folder(report, tmp_path)
    assert problem is not None
    assert problem.startswith("no plots: ")
    assert "pip install 'edge-asr[bench]'" in problem
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "![" not in (tmp_path / "bench.md").read_text()
    json.loads((tmp_path / "bench.json").read_text())


def test_a_comparison_is_printed(report: BenchReport) -> None:
    console = Console(file=io.StringIO(), width=150)
    other = dataclasses.replace(report, machine=dataclasses.replace(report.machine, cpu="Other"))
    print_comparison(compare(report, other), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "not the same: machine.cpu: 'Invented CPU' in A, 'Other' in B" in text
    assert "within noise" in text
