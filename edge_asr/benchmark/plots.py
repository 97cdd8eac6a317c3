"""Plots a benchmark: the distribution of latency, its growth with audio, the scaling of batches.

Needs matplotlib, which comes with the extra `bench`; without it the tables are all there is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.benchmark.schema import BenchReport, Cell
from edge_asr.errors import require

PLOTS = ("latency.png", "length.png", "batches.png")


def write_plots(report: BenchReport, folder: Path) -> list[str]:
    """Write the pictures, and return their file names.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="bench")
    for name, draw in zip(PLOTS, (_draw_latency, _draw_length, _draw_batches), strict=True):
        _write(report, folder / name, draw)
    return list(PLOTS)


def _write(report: BenchReport, path: Path, draw: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(report, axes)
    axes.grid(alpha=0.3, which="both")
    axes.set_title(f"{report.model.name} on {report.machine.cpu}", fontsize=9)
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw_latency(report: BenchReport, axes: Any) -> None:
    """Plot the share of runs up to each time, in units of the median, so that all fit in one picture."""
    for configuration in report.configurations:
        for cell in configuration.cells:
            samples = np.sort(cell.stages["total"].samples_ms)
            median = float(np.median(samples))
            label = f"{configuration.precision} {configuration.backend}, {cell.seconds:g} s x {cell.batch}"
            share = np.arange(1, len(samples) + 1) / len(samples)
            axes.step(samples / median, share, where="post", label=f"{label}: {median:.4g} ms")
    axes.set_xlabel("time / median of the same clip and batch")
    axes.set_ylabel("share of runs")


def _draw_length(report: BenchReport, axes: Any) -> None:
    """Plot the median over audio, a band from p10 to p90, a line per precision, for the smallest batch."""
    smallest = min(cell.batch for c in report.configurations for cell in c.cells)
    for configuration in report.configurations:
        cells = sorted((c for c in configuration.cells if c.batch == smallest), key=lambda c: c.seconds)
        lengths = [cell.seconds for cell in cells]
        low, median, high = np.array([_percentiles(cell) for cell in cells]).T
        (line,) = axes.plot(lengths, median, "o-", label=f"{configuration.precision} {configuration.backend}")
        axes.fill_between(lengths, low, high, alpha=0.2, color=line.get_color())
    axes.set_xlabel("audio, s")
    axes.set_ylabel(f"latency, ms (median, p10 to p90; batch {smallest})")
    axes.set_ylim(bottom=0)


def _draw_batches(report: BenchReport, axes: Any) -> None:
    """Plot seconds of audio per second over the batch size, one line per precision and length."""
    for configuration in report.configurations:
        for seconds in dict.fromkeys(cell.seconds for cell in configuration.cells):
            cells = sorted((c for c in configuration.cells if c.seconds == seconds), key=lambda c: c.batch)
            label = f"{configuration.precision} {configuration.backend}, {seconds:g} s"
            axes.plot([cell.batch for cell in cells], [cell.rtfx for cell in cells], "o-", label=label)
    axes.set_xlabel("batch, clips at once")
    axes.set_ylabel("RTFx, seconds of audio in a second")
    axes.set_xscale("log", base=2)
    batches = sorted({cell.batch for c in report.configurations for cell in c.cells})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_ylim(bottom=0)


def _percentiles(cell: Cell) -> tuple[float, float, float]:
    low, median, high = np.percentile(cell.stages["total"].samples_ms, [10, 50, 90])
    return float(low), float(median), float(high)
