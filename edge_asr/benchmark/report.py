"""Shows a benchmark to people: tables on a terminal, bench.md, and the folder of `-o`.

What this file does not do: choose what is in the tables (`tables.py`), lay one out (`table.py`), draw
(`plots.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.atomic import write_file
from edge_asr.benchmark.clocks import Clocks
from edge_asr.benchmark.compare import Comparison
from edge_asr.benchmark.plots import PLOTS, write_plots
from edge_asr.benchmark.provenance import MachineRecord
from edge_asr.benchmark.schema import BenchReport
from edge_asr.benchmark.table import print_lines, print_table
from edge_asr.benchmark.tables import bench_tables, comparison_tables
from edge_asr.errors import ConfigError, MissingDependencyError
from edge_asr.markdown import markdown_document

if TYPE_CHECKING:
    from rich.console import Console

JSON_NAME = "bench.json"
MARKDOWN_NAME = "bench.md"


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse a folder that already has a benchmark, before any work.

    Raises:
        ConfigError: it has one, and `force` is false; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder with -o")
    existing = [name for name in (JSON_NAME, MARKDOWN_NAME, *PLOTS) if (folder / name).exists()]
    if existing and not force:
        raise ConfigError(
            f"{folder / existing[0]} exists already; add --force to overwrite, or give another -o"
        )


def write_folder(report: BenchReport, folder: Path) -> str | None:
    """Write bench.json, bench.md and the plots; return a sentence if there are no plots.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    problem = None
    try:
        plots = write_plots(report, folder)
    except MissingDependencyError as error:
        plots, problem = [], f"no plots: {error}"
    write_file(folder / MARKDOWN_NAME, bench_markdown(report, plots))
    write_file(folder / JSON_NAME, json.dumps(report.to_dict(), ensure_ascii=False) + "\n")
    return problem


def bench_markdown(report: BenchReport, plots: Sequence[str]) -> str:
    """Format bench.md: what was measured where, tables, plots."""
    blocks: list[str | Sequence[str]] = [f"# Benchmark: {report.model.name}"]
    blocks.append([f"- {line}" for line in provenance_lines(report)])
    for table in bench_tables(report):
        blocks += table.markdown()
    blocks += [f"![{Path(name).stem}]({name})" for name in plots]
    return markdown_document(blocks)


def print_report(report: BenchReport, console: Console) -> None:
    """Print provenance and tables on a terminal, or as plain text into a file."""
    print_lines(provenance_lines(report), console)
    for table in bench_tables(report):
        print_table(table, console)


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print what differs, then the ratios."""
    print_lines([f"A: {comparison.a}   B: {comparison.b}"], console)
    print_lines([f"not the same: {difference}" for difference in comparison.differences], console)
    for table in comparison_tables(comparison):
        print_table(table, console)


def provenance_lines(report: BenchReport) -> Iterator[str]:
    """Describe what was measured, on what, where and when."""
    model, settings = report.model, report.settings
    yield (
        f"{model.name} ({model.source}): {model.n_parameters / 1e6:.2f} M parameters, bundle "
        f"{model.bundle_sha256[:12]}"
        + (", RANDOM WEIGHTS: text and error rates mean nothing" if model.is_random else "")
    )
    for c in report.configurations:
        threads = "" if c.threads is None else f", {c.threads} threads"
        chosen = c.backend_reason.partition(";")[0]  # what "auto" passed over is in bench.json
        yield (
            f"{c.precision} on {c.backend}{threads}: {c.file}, {c.size_bytes / 1e6:.2f} MB, "
            f"sha256 {c.sha256[:12]} ({chosen})"
        )
    yield f"audio: {report.audio.source}, {report.audio.duration_s:g} s, sha256 {report.audio.sha256[:12]}"
    yield (
        f"runs: at least {settings.min_runs} and {settings.min_duration_s:g} s of each in "
        f"{settings.sessions} sessions, {settings.warmup} before each to warm up; the text of every run was "
        "that of a plain recognizer in a process of its own"
    )
    yield from _machine_lines(report.machine)
    yield f"{report.created}, {report.seconds_taken:.0f} s, edge-asr {report.machine.edge_asr}"


def _machine_lines(machine: MachineRecord) -> Iterator[str]:
    features = ", ".join(machine.cpu_features) or "no known vector instructions"
    memory = "" if machine.memory_bytes is None else f", {machine.memory_bytes / 2**30:.1f} GiB"
    yield (
        f"machine: {machine.cpu}, {machine.n_cpus} processors, {len(machine.affinity)} of them for this "
        f"process, {features}{memory}"
    )
    for name, value in (("GPU", machine.gpu), ("Jetson", machine.jetson)):
        if value is not None:
            yield f"{name}: {value}"
    inside = [machine.container or "", "a virtual machine" if machine.hypervisor else ""]
    where = ", ".join(word for word in inside if word)
    yield f"system: {machine.system}, kernel {machine.kernel}, {machine.architecture}" + (
        f" ({where})" if where else ""
    )
    steal = "unknown" if machine.steal_share is None else f"{machine.steal_share:.1%}"
    yield f"load average before {machine.load_before}, after {machine.load_after}; stolen time {steal}"
    if machine.is_busy:
        yield "BUSY: other work was running; on a quiet machine times are shorter (compare processor time)"
    yield f"clocks before: {_clocks(machine.clocks_before)}; after: {_clocks(machine.clocks_after)}"
    packages = ", ".join(f"{name} {version}" for name, version in machine.packages.items())
    yield f"{machine.python}, {packages}"
    if machine.environment:
        yield "environment: " + ", ".join(f"{name}={value}" for name, value in machine.environment.items())
    yield f"commit: {machine.git_commit or machine.git_reason}"


def _clocks(clocks: Clocks) -> str:
    words = []
    if clocks.cpu_mhz_mean is None:
        words.append(f"processor unknown ({clocks.cpu_reason})")
    else:
        words.append(f"processor {clocks.cpu_mhz_min:.0f} to {clocks.cpu_mhz_max:.0f} MHz")
        words.append(f"governor {clocks.cpu_governor}")
    if clocks.gpu_sm_mhz is not None:
        words.append(f"GPU {clocks.gpu_sm_mhz:.0f} MHz, {clocks.gpu_celsius:.0f} C")
    if clocks.power_mode is not None:
        words.append(f"power mode {clocks.power_mode}")
    return ", ".join(words)
