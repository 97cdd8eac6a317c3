"""Plots the choice of INT8 groups: loss against time and size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edge_asr.calibration.sensitivity import Candidate, Sensitivity
from edge_asr.errors import require


def write_plot(found: Sensitivity, float32_bytes: int, path: Path) -> None:
    """Plot divergence against encoder time and against size as PNG, with the steps joined by a line.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="export")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = dict(zip(_step_names(found.steps), found.steps, strict=True))
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    panels: tuple[tuple[Any, str, Callable[[Candidate], float]], ...] = (
        (left, f"encoder time / float32 ({found.clip_s:g} s of speech, one thread)", lambda c: c.time_ratio),
        (right, "file size / float32", lambda c: c.size_bytes / float32_bytes),
    )
    for axes, label, value in panels:
        for named, style, color, side, legend in (
            (steps, "o-", "tab:blue", "left", "in INT8, one group given back a step"),
            (found.alone, "x", "dimgray", "right", "one group alone in INT8"),
        ):
            x, y = [value(c) for c in named.values()], _divergences(named.values())
            axes.plot(x, y, style, color=color, label=legend)
            _label_points(axes, list(named), x, y, color, side)
        chosen = found.chosen
        axes.plot(
            [value(chosen)], _divergences([chosen]), "o", color="tab:red", ms=9, label="the choice", zorder=3
        )
        axes.axvline(1.0, color="black", lw=0.8, ls=":", label="float32")
        axes.set_xlabel(label)
        # Room for the names.
        axes.set_xlim(0.0, 0.4 + max(1.0, *(value(c) for c in (*found.steps, *found.alone.values()))))
        axes.set_yscale("log")
        axes.margins(y=0.1)
        axes.grid(alpha=0.3)
    left.set_ylabel("divergence from float32, nats / frame")
    right.legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _step_names(steps: Iterable[Candidate]) -> list[str]:
    """Name the steps: "all", then the group that each step gives back to float32."""
    names, before = [], frozenset[str]()
    for step in steps:
        names.append(f"- {', '.join(before.difference(step.int8))}" if before else "all")
        before = frozenset(step.int8)
    return names


def _label_points(axes: Any, names: list[str], x: list[float], y: list[float], color: str, side: str) -> None:
    """Put names left or right of their points, moved up where they would overlap."""
    least_apart = 0.075  # decades
    lowest = -math.inf
    for at, height, name in sorted(zip(x, y, names, strict=True), key=lambda point: point[1]):
        lowest = max(math.log10(height), lowest + least_apart)
        axes.annotate(
            name,
            (at, height),
            xytext=(at - 0.03 if side == "left" else at + 0.03, 10.0**lowest),
            ha="right" if side == "left" else "left",
            va="center",
            fontsize=7,
            zorder=1.5,  # below the points
            color=color,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5},
        )


def _divergences(candidates: Iterable[Candidate]) -> list[float]:
    return [max(c.loss.divergence, 1e-7) for c in candidates]
