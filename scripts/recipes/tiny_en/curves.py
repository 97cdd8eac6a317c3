"""Draw the error rates of runs that follow one another against all the hours that the model has heard.

    python scripts/recipes/tiny_en/curves.py runs/tiny_en runs/tiny_en_finish -o curves.png

A stage begins where the one before it ended. Vertical lines are their ends; the title has their minutes.
`--heard` tells what was heard before the first, where its run is not there any more.
"""

from __future__ import annotations

from pathlib import Path

import click
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from edge_asr.training.curves import read_metrics, read_summary


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--heard", default=0.0, show_default=True, metavar="HOURS")
def main(runs: tuple[Path, ...], output: Path, heard: float) -> None:
    """Draw dev WER of RUNS, in order."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points: dict[str, list[tuple[float, float]]] = {}
    parts = []
    for run in runs:
        hours = 0.0
        for row in read_metrics(run / "metrics.csv"):
            hours = float(row.get("audio_hours") or hours)
            for name in [column.removesuffix("_dev_wer") for column in row if column.endswith("_dev_wer")]:
                if hours and row[f"{name}_dev_wer"]:
                    point = (heard + hours, 100 * float(row[f"{name}_dev_wer"]))
                    points.setdefault(name, []).append(point)
        if not hours:
            raise click.ClickException(f"{run}/metrics.csv does not tell the hours heard; leave the run out")
        heard += hours
        minutes = read_summary(run).get("minutes", 0.0)
        parts.append(f"{run.absolute().name} {minutes:.0f} min")
        axes.axvline(heard, color="gray", linewidth=0.7)
    for name, line in points.items():
        axes.plot(*zip(*line, strict=True), marker=".", label=name)
    axes.set(xlabel="hours of speech heard", ylabel="WER, %", title=", ".join(parts), ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main()
