"""metrics.csv, one row per logged step, and plots drawn from it: of one run, or of several in one.

What this file does not do: compute the numbers (`evaluate`, `trainer`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_asr.atomic import write_file, writing_file
from edge_asr.errors import TrainingError, require
from edge_asr.records import read_json
from edge_asr.training.evaluate import SCORE_NAMES

COLUMNS = (
    "step",
    "minutes",
    "audio_hours",
    "epoch",
    "loss",
    "ctc_loss",
    "attention_loss",
    "lr",
    "grad_norm",
    "utterances_per_s",
    "audio_s_per_s",
    "skipped_steps",
)
_SIMILARITIES = {"damerau_levenshtein": "-", "jaccard": "--", "cosine": ":"}


class MetricsLog:
    """Appends rows to RUN/metrics.csv; numbers are written so that they read back exactly."""

    def __init__(self, path: Path, dev_names: list[str], *, resume_step: int | None = None) -> None:
        self.path = path
        self.columns = [*COLUMNS, *(f"{name}_{score}" for name in dev_names for score in SCORE_NAMES)]
        kept: list[dict[str, str]] = []
        if resume_step is not None and path.is_file():
            # A killed run may have logged steps that its last saved state does not know.
            kept = [row for row in read_metrics(path) if int(row["step"]) <= resume_step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        write_file(path, text.getvalue())

    def write(self, row: dict[str, float | int]) -> None:
        """Append one row; missing columns stay empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a metrics.csv, values as text.

    Raises:
        TrainingError: the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row.get("step")]
    except OSError as error:
        raise TrainingError(f"cannot read {path}: {error}") from error


def read_summary(run: Path) -> dict[str, Any]:
    """What a finished run ended with; nothing for one that has not ended.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        data = read_json(
            run / "summary.json", error=TrainingError, remedy="train again, or leave the run out"
        )
    except FileNotFoundError:
        return {}
    return data if isinstance(data, dict) else {}


def draw_curves(metrics: Path, output: Path) -> None:
    """Draw loss, WER and similarity of one run against steps: a line for each dev set."""
    rows = read_metrics(metrics)

    def draw(panels: Sequence[Any]) -> None:
        for column, label in (("loss", "training"), ("ctc_loss", "CTC"), ("attention_loss", "decoder")):
            _plot(panels[0], rows, column, label=label, linewidth=0.8)
        for index, name in enumerate(_dev_names(rows)):
            color = f"C{index + 3}"
            _plot(panels[0], rows, f"{name}_loss", label=name, color=color, marker=".")
            _plot_wer(panels[1], rows, [name], label=name, color=color)
            _plot_similarities(panels[2], rows, [name], label=name, color=color)

    _draw(draw, output)


def compare_runs(runs: Sequence[Path], output: Path) -> None:
    """Draw loss, WER and similarity of several runs against steps: a color for each, means over dev sets.

    Raises:
        TrainingError: a folder has no metrics.csv, or an unreadable one.
    """
    logs = {run.resolve().name: read_metrics(run / "metrics.csv") for run in runs}
    if len(logs) < len(runs):
        raise TrainingError(
            "two of the runs have the same folder name; rename one, because names label lines"
        )

    def draw(panels: Sequence[Any]) -> None:
        for index, (label, rows) in enumerate(logs.items()):
            color, names = f"C{index}", _dev_names(rows)
            _plot(panels[0], rows, "loss", label=label, color=color, linewidth=0.7, alpha=0.6)
            _plot(
                panels[0], rows, [f"{name}_loss" for name in names], color=color, marker="o", linestyle="--"
            )
            _plot_wer(panels[1], rows, names, label=label, color=color)
            _plot_similarities(panels[2], rows, names, label=label, color=color)

    _draw(draw, output)


def _draw(draw: Callable[[Sequence[Any]], None], output: Path) -> None:
    require("matplotlib", extra="train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    draw(panels)
    panels[0].set(ylabel="loss per token", title="loss; dev with markers")
    panels[0].set_yscale("log")
    panels[1].set(ylabel="WER, %", title="dev WER; dashed: attention decoder")
    panels[1].set_ylim(bottom=0)
    panels[2].set(ylabel="similarity", title="dev; - Damerau-Levenshtein, -- Jaccard, : cosine")
    panels[2].set_ylim(0, 1.02)
    for panel in panels:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=8)
    with writing_file(output) as file:
        figure.savefig(file, dpi=110, format="png")


def _dev_names(rows: list[dict[str, str]]) -> list[str]:
    """Find the dev sets of a log by their columns."""
    found = [column.removesuffix("_cer") for column in (rows[0] if rows else ()) if column.endswith("_cer")]
    return [name for name in found if not name.endswith(("_ctc", "_attention"))]


def _plot(panel: Any, rows: list[dict[str, str]], columns: str | list[str], **style: Any) -> None:
    """Plot the mean of columns where all are known; nothing if they are nowhere."""
    wanted = [columns] if isinstance(columns, str) else columns
    known = [row for row in rows if wanted and all(row.get(column) for column in wanted)]
    if known:
        means = [sum(float(row[column]) for column in wanted) / len(wanted) for row in known]
        panel.plot([int(row["step"]) for row in known], means, **style)


def _plot_wer(panel: Any, rows: list[dict[str, str]], names: list[str], **style: Any) -> None:
    percent = [{key: _percent(key, value) for key, value in row.items()} for row in rows]
    _plot(panel, percent, [f"{name}_wer" for name in names], marker=".", **style)
    del style["label"]
    _plot(panel, percent, [f"{name}_attention_wer" for name in names], marker=".", linestyle="--", **style)


def _percent(column: str, value: str) -> str:
    return str(100 * float(value)) if value and column.endswith("_wer") else value


def _plot_similarities(panel: Any, rows: list[dict[str, str]], names: list[str], **style: Any) -> None:
    for score, line in _SIMILARITIES.items():
        _plot(panel, rows, [f"{name}_{score}" for name in names], linestyle=line, **style)
        style.pop("label", None)
