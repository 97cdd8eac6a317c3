"""Train the stages of a recipe in order, each from the weights of the one before, and tell what each gave.

    python scripts/recipes/tiny_en/make.py                         # the stages of tiny-en
    python scripts/recipes/tiny_en/make.py train.yaml my.yaml    # or others

Stop it at any time with Ctrl-C, or by a kill; the same command goes on where it was: finished stages are
skipped, an unfinished one is resumed exactly. The table is written to TABLE after every stage. It neither
fetches speech (README.md does) nor embeds the result (embed.py does).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import load_config
from edge_asr.training.state import find_states

HERE = Path(__file__).parent
STAGES = ("flat_start.yaml", "train.yaml", "muon.yaml", "finish.yaml", "settle.yaml")
STOPPED = 130


@click.command()
@click.argument("stages", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True, help="One a core.")
@click.option("--table", type=click.Path(dir_okay=False, path_type=Path), default=Path("runs/stages.md"))
def main(stages: tuple[Path, ...], processes: int, table: Path) -> None:
    """Train STAGES (YAML files of `edge-asr train`) in order."""
    paths = stages or tuple(HERE / name for name in STAGES)
    for path in paths:
        config = load_config(path)
        if not is_finished(config):
            code = run_stage(path, config, processes)
            if code or not is_finished(config):
                print(f"{path.name} is not finished; the same command goes on with it", file=sys.stderr)
                sys.exit(code or STOPPED)
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text(format_table(paths), encoding="utf-8")
    print(table.read_text(encoding="utf-8"), end="")


def run_stage(path: Path, config: TrainConfig, processes: int) -> int:
    """Start or resume one stage; the exit code."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"]
    resume = ["--resume"] if find_states(Path(config.run_dir)) else []
    return subprocess.run([*launcher, "edge_asr", "train", str(path), *resume]).returncode


def read_summary(config: TrainConfig) -> dict[str, Any] | None:
    """summary.json of the stage's run, which is written when a run ends or is stopped."""
    path = Path(config.run_dir) / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def is_finished(config: TrainConfig) -> bool:
    """Tell whether the run reached its last step or minute."""
    summary, optim = read_summary(config), config.optim
    if summary is None:
        return False
    return (optim.max_steps is not None and summary["step"] >= optim.max_steps) or (
        optim.max_minutes is not None and summary["minutes"] >= optim.max_minutes - 0.01
    )


def format_table(paths: Sequence[Path]) -> str:
    """A Markdown table of the finished stages: what each took, and WER on each dev set after it."""
    rows = []
    for path in paths:
        config = load_config(path)
        summary = read_summary(config)
        if summary is not None and is_finished(config):
            rows.append((path, config, summary))
    names = list(dict.fromkeys(name for _, _, summary in rows for name in summary["dev"]))
    header = ["stage", "seed", "steps", "minutes", "hours of speech", *(f"{name}, WER" for name in names)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for path, config, summary in rows:
        cells = [
            f"{100 * summary['dev'][name]['wer']:.1f} %" if name in summary["dev"] else "" for name in names
        ]
        took = f"{summary['step']} | {summary['minutes']:.0f} | {summary['audio_hours']:.1f}"
        lines.append(f"| {path.name} | {config.seed} | {took} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
