"""`edge-asr doctor`: what this machine can run, what is missing or broken, and how to fix it.

It prints what `edge_asr.diagnostics` finds. The exit code is 0 if sound files can be transcribed here with
the embedded model and nothing is broken, else 1. A missing extra, GPU or microphone is no failure.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edge_asr.cli.terminal import print_json
from edge_asr.printable import printable

if TYPE_CHECKING:
    from edge_asr.diagnostics.check import Check


@click.command(name="doctor")
@click.option(
    "-m", "--model", metavar="BUNDLE", help="Check this bundle and its engines instead of the embedded model."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
def command(model: str | None, as_json: bool) -> None:
    """Check what this machine can run; each line that is not ok says how to fix it.

    The exit code is 0 if sound files can be transcribed here and nothing is broken, else 1. A missing extra,
    TensorRT or microphone is no failure. Things that do not belong on this machine, such as JetPack on a PC,
    are not shown.
    """
    from edge_asr.diagnostics.check import is_healthy
    from edge_asr.diagnostics.report import run_checks

    checks: list[Check] = []
    for check in run_checks(model):
        checks.append(check)
        if not as_json:
            _print(check)
    healthy = is_healthy(checks)
    if as_json:
        print_json({"healthy": healthy, "checks": [asdict(c) for c in checks]})
    sys.exit(0 if healthy else 1)


def _print(check: Check) -> None:
    color = {"ok": "green", "missing": "yellow", "broken": "red"}[check.status]
    click.echo(f"{click.style(f'{check.status:8}', fg=color)} {check.name:28} {printable(check.detail)}")
    if check.fix:
        click.echo(f"{'':8} {'':28} -> {printable(check.fix)}")
