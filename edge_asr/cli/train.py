"""`edge-asr train`: parses, calls `edge_asr.training`, prints. Torch is imported when run, not for --help."""

from __future__ import annotations

from pathlib import Path

import click

from edge_asr.cli.terminal import print_json, print_line
from edge_asr.errors import ConfigError, require

#: Scores of a run that --compare prints, and their columns.
_COMPARED = {
    "loss": "loss",
    "ctc_loss": "CTC loss",
    "attention_loss": "decoder loss",
    "wer": "WER %",
    "cer": "CER %",
    "ctc_wer": "CTC WER %",
    "attention_wer": "attention WER %",
    "damerau_levenshtein": "Dam.-Lev.",
    "jaccard": "Jaccard",
    "cosine": "cosine",
}


@click.command(name="train")
@click.argument("configs", type=click.Path(path_type=Path), nargs=-1, metavar="[CONFIG]...")
@click.option("--resume", is_flag=True, help="Continue from the newest state of the run.")
@click.option("--strict", is_flag=True, help="Refuse to start if any row is bad, instead of skipping it.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. optim.lr=5e-4."
)
@click.option(
    "--print-config", is_flag=True, help="Print the default YAML with every key explained, and exit."
)
@click.option(
    "--average",
    type=click.IntRange(min=1),
    metavar="N",
    help="Average the last N checkpoints of CONFIG, which is then a run folder, into -o.",
)
@click.option(
    "--compare",
    is_flag=True,
    help="Draw the curves of several runs, whose folders take the place of CONFIG, into the PNG file -o.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="What --average or --compare writes.")
@click.option("--force", is_flag=True, help="Overwrite that.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with one JSON document.")
def command(
    configs: tuple[Path, ...],
    resume: bool,
    strict: bool,
    overrides: tuple[str, ...],
    print_config: bool,
    average: int | None,
    compare: bool,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Train a Conformer-CTC as the YAML file CONFIG says: manifests -> checkpoint.

    Ctrl-C, SIGTERM or a file STOP in the run folder stop it cleanly; --resume continues exactly there. To use
    several processes: torchrun --nproc-per-node N -m edge_asr train CONFIG.
    """
    if print_config:
        from edge_asr.training.config_io import format_default_config

        click.echo(format_default_config(), nl=False)
        return
    if not configs:
        raise click.UsageError("Missing argument 'CONFIG'; --print-config prints one to begin with.")
    require("torch", extra="train")
    require("yaml", extra="train")
    if compare:
        _compare(configs, output, force=force, as_json=as_json)
        return
    if len(configs) > 1:
        raise click.UsageError(f"One CONFIG at a time, got {len(configs)}; --compare takes several runs.")
    config = configs[0]
    if average is not None:
        _average(config, average, output, force=force, as_json=as_json)
        return
    from edge_asr.training.config_io import load_config, parse_value

    values = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set needs KEY=VALUE, got {item!r}")
        values[key] = parse_value(text, f"--set {item}")
    loaded = load_config(config, values)

    from edge_asr.training.allocator import keep_freed_memory
    from edge_asr.training.run import train

    keep_freed_memory()
    summary = train(loaded, resume=resume, strict=strict)
    if as_json:
        print_json(summary)
        return
    rates = "  ".join(
        f"{name} WER {100 * scores['wer']:.2f} %"
        for part in ("dev", "test")
        for name, scores in summary[part].items()
    )
    print_line(f"{summary['step']} steps in {summary['minutes']:.1f} min  {rates}  {summary['run_dir']}/best")


def _compare(runs: tuple[Path, ...], output: Path | None, *, force: bool, as_json: bool) -> None:
    from edge_asr.benchmark.table import Table, make_console, print_table
    from edge_asr.training.curves import compare_runs, read_summary

    if output is None:
        raise click.UsageError("--compare needs -o FILE.png.")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; give --force to overwrite it")
    summaries = {run.resolve().name: read_summary(run) for run in runs}
    compare_runs(runs, output)
    if as_json:
        print_json({"plot": str(output), "runs": summaries})
        return
    rows = [
        (name, part, set_name, *(_cell(key, scores.get(key)) for key in _COMPARED))
        for name, summary in summaries.items()
        for part in ("dev", "test")
        for set_name, scores in summary.get(part, {}).items()
    ]
    columns = ("run", "part", "set", *_COMPARED.values())
    print_table(Table(title="final scores", columns=columns, rows=tuple(rows), n_labels=3), make_console())
    print_line(str(output))


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.2f}" if key.endswith(("wer", "cer")) else f"{value:.3f}"


def _average(run_dir: Path, n_last: int, output: Path | None, *, force: bool, as_json: bool) -> None:
    from edge_asr.errors import ConfigError
    from edge_asr.training.averaging import average_run

    if output is None:
        raise click.UsageError("--average needs -o CHECKPOINT.")
    if output.exists() and not force:
        raise ConfigError(f"{output} exists; give --force to overwrite it")
    written = average_run(run_dir, n_last, output)
    if as_json:
        print_json({"checkpoint": str(written)})
    else:
        print_line(str(written))
