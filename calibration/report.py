"""The INT8 section of a bundle's report: tables from which the choice can be followed, a plot, a summary.

Words and drawing only; what was measured comes from int8.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_asr.bundle.names import PLOT_NAME
from edge_asr.calibration.int8 import Int8Result
from edge_asr.calibration.measure import Loss
from edge_asr.calibration.sensitivity import Candidate
from edge_asr.errors import require

if TYPE_CHECKING:
    pass

SECTION = "# INT8"


def int8_summary_lines(result: Int8Result) -> list[str]:
    """What INT8 costs and gains, in a few lines for a terminal."""
    loss, chosen = result.gate, result.sensitivity.chosen
    lines = []
    if result.calibration.is_synthetic:
        lines.append(
            "INT8: calibrated on the embedded, synthetic speech; --calibration with your own is better"
        )
    float_groups = [group for group in result.sensitivity.alone if group not in chosen.int8]
    lines.append(f"INT8: {', '.join(chosen.int8)}; float32: {', '.join(float_groups) or 'none'}")
    if loss.wer_loss is not None and loss.wer_loss_low is not None and loss.wer_loss_high is not None:
        lines.append(
            f"INT8: WER {loss.wer_reference:.2%} -> {loss.wer_candidate:.2%}, loss "
            f"{100 * loss.wer_loss:+.2f} points ({100 * loss.wer_loss_low:+.2f} to "
            f"{100 * loss.wer_loss_high:+.2f}) on {loss.n_words} words"
        )
    speed = f"encoder time {result.time_ratio:.2f} of float32's on one thread here"
    if result.time_ratio >= 1:
        speed += ": slower, so --precision auto passes it over"
    return [*lines, f"INT8: {loss.agreement:.2%} of the frames keep their most likely token; {speed}"]


def int8_markdown_lines(result: Int8Result, float32_bytes: int) -> list[str]:
    """The section of report.md, beginning with `SECTION`.

    Args:
        result: what was done.
        float32_bytes: size of the float32 graph with float32 weights.
    """
    found, options = result.sensitivity, result.options
    chosen, budget = found.chosen, found.budget
    slower = (
        "" if chosen.time_ratio < 1 else " **Slower than float32 here: `--precision auto` passes it over.**"
    )
    method = (
        f"percentile {options.percentile:g}" if result.range_method == "percentile" else result.range_method
    )
    others = ", ".join(f"{name} {divergence:.5f}" for name, divergence in result.methods.items())
    smoothing = (
        "off" if options.smoothing is None else f"alpha {options.smoothing:g}, {result.n_smoothed} tensors"
    )
    return [
        SECTION,
        "",
        f"In INT8: {', '.join(chosen.int8)}. {chosen.size_bytes / 1e6:.2f} MB, "
        f"{chosen.size_bytes / float32_bytes:.1%} of float32; encoder time {chosen.time_ratio:.2f} of "
        f"float32's ({found.clip_s:g} s of speech, one thread, this machine's onnxruntime).{slower}",
        "",
        *([] if result.failure is None else [f"**Failed: {result.failure}.**", ""]),
        f"Ranges: {method} (divergence with every group in INT8: {others}). Smoothing: {smoothing}. "
        f"{_calibration(result)}",
        "",
        f"Allowed: a WER loss of {100 * budget.max_wer_loss:g} points and a change of the most likely token "
        f"in {1 - budget.min_agreement:.2%} of the frames. The choice aims at four fifths of these frames; "
        "there a WER loss counts when its 95 % interval is above 0.",
        "",
        *_gate_lines(result),
        "## The choice",
        "",
        "From the top, each row gives one more group back to float32, the one with the most divergence per "
        "multiply-add (next table); the row in bold is the choice.",
        "",
        _HEAD.format("in INT8"),
        _RULE,
        *[
            _candidate_line(", ".join(step.int8), step, float32_bytes, bold=step is chosen)
            for step in found.steps
        ],
        "",
        "## Each group alone in INT8",
        "",
        _HEAD.format("group") + " multiply-adds | divergence per 1e9 |",
        _RULE + "---:|---:|",
        *[
            f"{_candidate_line(group, one, float32_bytes)} {found.multiply_adds[group] / 1e6:.1f} M "
            f"| {1e9 * one.loss.divergence / max(found.multiply_adds[group], 1):.2g} |"
            for group, one in found.alone.items()
        ],
        "",
        "Divergence is the mean Kullback-Leibler divergence from float32, nats a frame, over "
        f"{len(result.measured_on)} clips ({chosen.loss.n_frames} frames, {chosen.loss.n_words} words) "
        "outside the calibration. Times are noisy to a few percent.",
        "",
        f"![Loss against time and size]({PLOT_NAME})",
        "",
    ]


_HEAD = "| {} | divergence | frames agreeing | WER loss, points | size | time |"
_RULE = "|---|---:|---:|---:|---:|---:|"


def _calibration(result: Int8Result) -> str:
    chosen = result.calibration
    speech = (
        "the embedded, synthetic speech (your own microphone's recordings are better)"
        if chosen.is_synthetic
        else ", ".join(manifest.name for manifest in chosen.manifests)
    )
    shortfall = f" {chosen.shortfall}." if chosen.shortfall else ""
    return (
        f"Calibrated on {len(result.calibrated_on)} clips, measured on {len(result.measured_on)}, together "
        f"{chosen.minutes:.1f} minutes of {speech}; set {chosen.sha256[:12]}.{shortfall}"
    )


def _gate_lines(result: Int8Result) -> list[str]:
    if not result.evaluation:
        return ["The gate looked at the measured clips; no manifest to evaluate on was given.", ""]
    lines = ["| evaluated on | float32 WER | INT8 WER | loss, points (95 % interval) | frames agreeing |"]
    lines.append("|---|---:|---:|---:|---:|")
    lines += [f"| {name} {_loss_cells(loss)}" for name, loss in result.evaluation.items()]
    return [*lines, ""]


def _loss_cells(loss: Loss) -> str:
    if loss.wer_loss is None:
        return f"| - | - | - | {loss.agreement:.2%} |"
    assert loss.wer_reference is not None
    assert loss.wer_candidate is not None
    assert loss.wer_loss_low is not None
    assert loss.wer_loss_high is not None
    return (
        f"| {loss.wer_reference:.2%} | {loss.wer_candidate:.2%} | {100 * loss.wer_loss:+.2f} "
        f"({100 * loss.wer_loss_low:+.2f} to {100 * loss.wer_loss_high:+.2f}) | {loss.agreement:.2%} |"
    )


def _candidate_line(label: str, candidate: Candidate, float32_bytes: int, *, bold: bool = False) -> str:
    loss = candidate.loss
    wer = "-" if loss.wer_loss is None else f"{100 * loss.wer_loss:+.2f}"
    cells = (
        label,
        f"{loss.divergence:.5f}",
        f"{loss.agreement:.2%}",
        wer,
        f"{candidate.size_bytes / float32_bytes:.1%}",
        f"{candidate.time_ratio:.2f}",
    )
    return "| " + " | ".join(f"**{cell}**" if bold else cell for cell in cells) + " |"


def write_plot(result: Int8Result, float32_bytes: int, path: Path) -> None:
    """Divergence against encoder time and against size, PNG; steps of the choice joined by a line.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    require("matplotlib", extra="export")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = result.sensitivity
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
    """ "all", then the group that each step gives back to float32."""
    names, before = [], frozenset[str]()
    for step in steps:
        names.append(f"- {', '.join(before.difference(step.int8))}" if before else "all")
        before = frozenset(step.int8)
    return names


def _label_points(axes: Any, names: list[str], x: list[float], y: list[float], color: str, side: str) -> None:
    """Names left or right of their points, moved up where they would lie on each other."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Section:
    """The last section of a report: what report.json holds under "int8", the lines of report.md, a summary.

    The lines begin with a heading of the first rank, so that a later quantization can replace the section.
    """

    data: Mapping[str, Any]
    markdown: tuple[str, ...]
    summary: tuple[str, ...]
