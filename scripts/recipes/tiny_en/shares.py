"""Train on shares of the real speech, all else equal, to tell whether data or time is what is short.

    python scripts/recipes/tiny_en/shares.py finish.yaml --init runs/tiny_en_flat_start/last \\
        -o docs/results/shares.md --set optim.max_steps=1000

Each run starts from the same weights with the same seed and steps, and hears the same number of hours: of a
smaller share the same clips come back sooner. A share holds the clips of every smaller one. Synthetic sets
(`--whole NAME`) stay whole. Finished runs are skipped and unfinished ones resumed.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import click

from edge_asr.benchmark.provenance import package_versions
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import load_config, parse_value
from edge_asr.training.curves import compare_runs, read_metrics, read_summary
from edge_asr.training.run import train
from edge_asr.training.state import find_states


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--init", required=True, help="Checkpoint that every run starts from.")
@click.option("--share", "shares", type=click.FloatRange(0, 1), multiple=True, default=(0.25, 0.5, 1.0))
@click.option("--whole", multiple=True, default=("kokoro", "hibari"), show_default=True, metavar="NAME")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/shares"), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Page, .md.")
def main(
    config: Path,
    init: str,
    shares: tuple[float, ...],
    whole: tuple[str, ...],
    overrides: tuple[str, ...],
    runs: Path,
    output: Path,
) -> None:
    """Train CONFIG on each share, then write a page with a table and a plot."""
    pairs = (override.partition("=") for override in overrides)
    values: dict[str, Any] = {key: parse_value(text, f"--set {key}") for key, _, text in pairs}
    base = dataclasses.replace(load_config(config, values), init_from=init)
    rows = []
    for share in sorted(shares):
        run = runs / f"share_{round(100 * share)}"
        chosen, hours = with_share(base, share, set(whole), run)
        if read_summary(run).get("step", -1) < (chosen.optim.max_steps or 0):
            print(f"{100 * share:.0f} % of the real speech, {hours:.1f} h -> {run}", flush=True)
            train(chosen, resume=bool(find_states(run)), quiet=True)
        rows.append(read_row(run, share, hours))
        write_page(output, base, rows, [runs / f"share_{round(100 * row['share'])}" for row in rows])
    print(json.dumps({"bench": "shares", "rows": rows}))


def with_share(base: TrainConfig, share: float, whole: set[str], run: Path) -> tuple[TrainConfig, float]:
    """The configuration with reduced manifests, written into `run`, and their hours of real speech."""
    sources, hours = [], 0.0
    (run / "data").mkdir(parents=True, exist_ok=True)
    for number, source in enumerate(base.data.train):
        if source.name in whole:
            sources.append(source)
            continue
        path = Path(source.path)
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        random.Random(f"{base.seed} {source.name}").shuffle(lines)
        kept = lines[: max(1, round(share * len(lines)))]
        for line in kept:
            line["audio_filepath"] = str(path.absolute().parent / line["audio_filepath"])
        target = run / "data" / f"{number}.jsonl"
        target.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        sources.append(dataclasses.replace(source, path=str(target)))
        hours += sum(float(line["duration"]) for line in kept) / 3600
    data = dataclasses.replace(base.data, train=tuple(sources))
    return dataclasses.replace(base, run_dir=str(run), data=data), hours


def read_row(run: Path, share: float, hours: float) -> dict[str, Any]:
    """What a run heard and reached; the loss is the mean of its last tenth, on what it was trained on."""
    summary = read_summary(run)
    logged = [row for row in read_metrics(run / "metrics.csv") if row["ctc_loss"]]
    last = logged[-max(1, len(logged) // 10) :]
    return {
        "share": share,
        "hours": round(hours, 1),
        "heard": summary["audio_hours"],
        "steps": summary["step"],
        "loss": sum(float(row["ctc_loss"]) for row in last) / len(last),
        "dev": {
            name: {key: scores[key] for key in ("wer", "cer", "loss")}
            for name, scores in summary["dev"].items()
        },
    }


def write_page(output: Path, base: TrainConfig, rows: list[dict[str, Any]], runs: list[Path]) -> None:
    """Table and plot."""
    names = list(rows[0]["dev"])
    output.parent.mkdir(parents=True, exist_ok=True)
    plot = output.with_suffix(".png")
    compare_runs(runs, plot)
    found = ", ".join(f"{name} {version}" for name, version in package_versions(("torch",)).items())
    lines = [
        "# Shares of the real speech",
        "",
        f"Each run starts from the same weights ({Path(base.init_from or '').parent.name}) with seed "
        f"{base.seed}, takes {rows[0]['steps']} steps of up to {base.data.max_batch_s:.0f} s and hears the "
        "same hours; only how much real speech there is differs. WER is greedy and float32, on clips of the "
        f"dev sets; losses are CTC per token. `scripts/recipes/tiny_en/shares.py` made this page ({found}).",
        "",
        f"| share | real speech | heard | training loss | dev loss | {' | '.join(names)} |",
        "|---:" * (5 + len(names)) + "|",
    ]
    for row in rows:
        wer = " | ".join(f"{100 * row['dev'][name]['wer']:.1f} %" for name in names)
        loss = sum(row["dev"][name]["loss"] for name in names) / len(names)
        lines.append(
            f"| {100 * row['share']:.0f} % | {row['hours']:.1f} h | {row['heard']:.1f} h | {row['loss']:.2f} "
            f"| {loss:.2f} | {wer} |"
        )
    lines += ["", f"![Curves of the runs]({plot.name})", ""]
    output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
