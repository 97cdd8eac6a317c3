"""metrics.csv, one row per logged step, and curves.png drawn from it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edge_asr.atomic import write_file, writing_file
from edge_asr.errors import TrainingError, require

COLUMNS = (
    "step",
    "minutes",
    "audio_hours",
    "epoch",
    "loss",
    "ctc_loss",
    "lr",
    "grad_norm",
    "utterances_per_s",
    "audio_s_per_s",
    "skipped_steps",
)


class MetricsLog:
    """Appends rows to RUN/metrics.csv; numbers are written so that they read back exactly."""

    def __init__(self, path: Path, dev_names: list[str], *, resume_step: int | None = None) -> None:
        self.path = path
        self.columns = [*COLUMNS, *(f"{name}_{rate}" for name in dev_names for rate in ("wer", "cer"))]
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


def draw_curves(metrics: Path, output: Path) -> None:
    """Loss, and WER per dev set, against steps."""
    require("matplotlib", extra="train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [int(row["step"]) for row in rows if row["loss"]]
    left.plot(steps, [float(row["loss"]) for row in rows if row["loss"]], label="loss", linewidth=0.8)
    left.plot(
        steps, [float(row["ctc_loss"]) for row in rows if row["loss"]], label="final CTC", linewidth=0.8
    )
    left.set(xlabel="step", ylabel="loss per token", title="training loss")
    left.set_yscale("log")
    left.legend()
    for column in rows[0] if rows else []:
        points = [
            (int(row["step"]), 100 * float(row[column]))
            for row in rows
            if column.endswith("_wer") and row[column]
        ]
        if points:
            right.plot([p[0] for p in points], [p[1] for p in points], marker=".", label=column[:-4])
    right.set(xlabel="step", ylabel="WER, %", title="dev WER, greedy")
    right.set_ylim(0, 105)
    right.grid(alpha=0.3)
    if right.lines:
        right.legend()
    with writing_file(output) as file:
        figure.savefig(file, dpi=110, format="png")
