#!/usr/bin/env python3
"""Train small models that differ from a base in one thing, on equal steps and seeds, and draw their curves.

    python scripts/ablate.py --train an4_train.jsonl --dev an4_dev.jsonl -o docs/results/ablations.md
    python scripts/ablate.py ... --only heads kernel       # some of the families
    python scripts/ablate.py ... --page                    # draw again what has been trained

Each run takes a minute or two of a core, full context, no augmentation. Finished runs are skipped and
unfinished ones resumed, so it can be stopped at any time. What holds for minutes of training on a small task
may not hold for long runs: the page says how things begin. Weights are not kept beyond the run folders.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.diagnostics.machine import Machine
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import config_from_dict
from edge_asr.training.curves import read_metrics
from edge_asr.training.run import train
from edge_asr.training.state import find_states

BASE: dict[str, Any] = {
    "preset": "tiny",
    "d_model": 96,
    "n_layers": 4,
    "n_heads": 4,
    "conv_kernel_size": 15,
    "subsampling_channels": 32,
    "dropout": 0.0,
    "dropout_attention": 0.0,
    "intermediate_ctc_layers": [],
}
# Family -> title, and label -> what differs from the base; an empty difference is the base itself.
FAMILIES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "order": (
        "Order of the block",
        {
            "attention first": {},
            "convolution first": {"block_order": "convolution_first"},
            "parallel": {"block_order": "parallel"},
        },
    ),
    "heads": ("Attention heads", {str(n): {"n_heads": n} if n != 4 else {} for n in (1, 2, 4, 8)}),
    "width": ("Width (d_model)", {str(n): {"d_model": n} if n != 96 else {} for n in (64, 96, 144)}),
    "layers": ("Layers", {str(n): {"n_layers": n} if n != 4 else {} for n in (2, 4, 8)}),
    "kernel": (
        "Kernel of the convolution",
        {str(n): {"conv_kernel_size": n} if n != 15 else {} for n in (7, 15, 31)},
    ),
    "attention": ("Attention", {"softmax, relative positions": {}, "linear": {"attention": "linear"}}),
    "norm": ("Norm of the convolution", {"BatchNorm": {}, "LayerNorm": {"conv_norm": "layer_norm"}}),
    "head": ("Head", {"linear": {}, "LSTM": {"head": "lstm"}}),
    "optimizer": ("Optimizer", {"AdamW": {}, "Muon": {"optimizer": "muon"}}),
}


def main() -> None:
    """Train what is missing, then write the page and its plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("--dev", type=Path, required=True, metavar="MANIFEST")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/ablations.md"))
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the runs")
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    for family in arguments.only:
        for label, difference in FAMILIES[family][1].items():
            config = build_config(difference, arguments)
            run = Path(config.run_dir)
            if arguments.page or ((run / "summary.json").is_file() and is_done(run, arguments.steps)):
                continue
            print(f"{family}: {label} -> {run}", flush=True)
            train(config, resume=bool(find_states(run)), quiet=True)
    rows = write_page(arguments)
    print(json.dumps({"bench": "ablations", "machine": describe_cpu(Machine()), "rows": rows}))


def build_config(difference: Mapping[str, Any], arguments: argparse.Namespace) -> TrainConfig:
    """The run of the base with `difference`; its folder is named after it, so families share the base."""
    name = "-".join(f"{key}={value}" for key, value in difference.items()) or "base"
    optimizer = difference.get("optimizer", "adamw")
    difference = {key: value for key, value in difference.items() if key != "optimizer"}
    return config_from_dict(
        {
            "run_dir": str(arguments.runs / f"{name}-seed{arguments.seed}"),
            "seed": arguments.seed,
            "features": {"preset": "nemo", "normalize": "none"},
            "model": {**BASE, **difference},
            "data": {
                "train": [{"path": str(path)} for path in arguments.train],
                "dev": [{"path": str(arguments.dev), "name": "dev"}],
                "cache_dir": str(arguments.runs / "cache"),
                "max_batch_s": 20.0,
                "n_workers": 0,
            },
            "augment": {"enabled": False},
            "tokenizer": {"kind": "char"},
            "streaming": {"full_context_prob": 1.0},
            "optim": {
                "optimizer": optimizer,
                "lr": 1.5e-3,
                "warmup_steps": 100,
                "schedule": "cosine",
                "max_steps": arguments.steps,
                "flat_start_steps": min(150, arguments.steps // 4),
                "intermediate_weight": 0.0,
                "ema_decay": 0.98,
            },
            "run": {
                "accelerator": "cpu",
                "n_threads": 1,
                "eval_every_steps": max(1, arguments.steps // 8),
                "state_every_steps": 100,
                "checkpoint_every_steps": 0,
            },
        }
    )


def is_done(run: Path, steps: int) -> bool:
    """Tell whether the run in this folder reached its last step."""
    return int(json.loads((run / "summary.json").read_text(encoding="utf-8"))["step"]) >= steps


def write_page(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The Markdown page and one plot a family beside it; returns the rows of its tables."""
    folder = arguments.output.parent / arguments.output.stem
    folder.mkdir(parents=True, exist_ok=True)
    sections, rows = [], []
    for family in arguments.only:
        title, variants = FAMILIES[family]
        curves = {}
        for label, difference in variants.items():
            run = Path(build_config(difference, arguments).run_dir)
            if (run / "summary.json").is_file():
                curves[label] = read_metrics(run / "metrics.csv")
                rows.append({"family": family, "variant": label, **read_result(run)})
        if not curves:
            continue
        draw(curves, title, folder / f"{family}.png")
        lines = [
            "| variant | parameters | steps | loss, last 100 steps | CER | WER |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        lines += [
            f"| {row['variant']} | {row['parameters'] / 1e6:.2f} M | {row['steps']} | {row['loss']:.3f} "
            f"| {row['cer']:.1f} % | {row['wer']:.1f} % |"
            for row in rows
            if row["family"] == family
        ]
        sections.append(
            f"## {title}\n\n" + "\n".join(lines) + f"\n\n![{title}]({folder.name}/{family}.png)\n"
        )
    found = ", ".join(f"{name} {version}" for name, version in package_versions(("torch",)).items())
    trained_on = ", ".join(path.stem for path in arguments.train)
    base = (
        f"{BASE['d_model']} wide, {BASE['n_layers']} layers, {BASE['n_heads']} heads, "
        f"kernel {BASE['conv_kernel_size']}, characters, x4"
    )
    introduction = (
        f"# Ablations\n\nEach model here differs in one thing from a small base ({base}). All were trained "
        f"on {trained_on} for {arguments.steps} steps of 20 s of speech with seed {arguments.seed}, a flat "
        f"start and no augmentation, and evaluated on {arguments.dev.stem}. `scripts/ablate.py` made this "
        f"page ({found}). With one seed, a difference of a point or two may be luck, and minutes of "
        "training do not say what hours would.\n"
    )
    arguments.output.write_text("\n".join([introduction, *sections]), encoding="utf-8")
    return rows


def read_result(run: Path) -> dict[str, Any]:
    """Parameters, steps, last losses and error rates of a finished run."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    metrics = [row for row in read_metrics(run / "metrics.csv") if row["loss"]]
    last = [float(row["ctc_loss"]) for row in metrics if int(row["step"]) > summary["step"] - 100]
    values = load_checkpoint(run / "last").build_model().parameters()
    return {
        "parameters": sum(value.numel() for value in values),
        "steps": summary["step"],
        "loss": sum(last) / max(len(last), 1),
        "cer": 100 * summary["dev"]["dev"]["cer"],
        "wer": 100 * summary["dev"]["dev"]["wer"],
    }


def draw(curves: Mapping[str, Sequence[Mapping[str, str]]], title: str, path: Path) -> None:
    """Training loss and dev CER against steps, a line a variant."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for label, metrics in curves.items():
        logged = [row for row in metrics if row["loss"]]
        left.plot([int(r["step"]) for r in logged], [float(r["ctc_loss"]) for r in logged], label=label)
        measured = [row for row in metrics if row["dev_cer"]]
        right.plot(
            [int(r["step"]) for r in measured],
            [100 * float(r["dev_cer"]) for r in measured],
            marker=".",
            label=label,
        )
    left.set(xlabel="step", ylabel="CTC loss per token", title=title)
    right.set(xlabel="step", ylabel="dev CER, %", ylim=(0, 100))
    right.legend(fontsize="small")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
