"""`edge-asr train`: parses, calls `edge_asr.training`, prints. Torch is imported when run, not for --help."""

from __future__ import annotations

from pathlib import Path

import click

from edge_asr.cli.terminal import print_json, print_line
from edge_asr.errors import ConfigError, require


@click.command(name="train")
@click.argument("config", required=False, type=click.Path(path_type=Path))
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
    "-o", "--output", type=click.Path(path_type=Path), help="Checkpoint folder to write, for --average."
)
@click.option("--force", is_flag=True, help="Overwrite the output of --average.")
@click.option("--json", "as_json", is_flag=True, help="End stdout with one JSON document.")
def command(
    config: Path | None,
    resume: bool,
    strict: bool,
    overrides: tuple[str, ...],
    print_config: bool,
    average: int | None,
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
    if config is None:
        raise click.UsageError("Missing argument 'CONFIG'; --print-config prints one to begin with.")
    require("torch", extra="train")
    require("yaml", extra="train")
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

    from edge_asr.training.run import train

    summary = train(loaded, resume=resume, strict=strict)
    if as_json:
        print_json(summary)
        return
    rates = "  ".join(f"{name} WER {100 * rate['wer']:.2f} %" for name, rate in summary["dev"].items())
    print_line(f"{summary['step']} steps in {summary['minutes']:.1f} min  {rates}  {summary['run_dir']}/best")


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
