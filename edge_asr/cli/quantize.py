"""`edge-asr quantize`: adds INT8 to an existing bundle, within a budget.

It parses, shows the stages on stderr, and prints a summary or, with --json, all that was measured.
What this file does not do: quantize or measure anything (edge_asr.calibration).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edge_asr.cli.options import int8_options, make_int8_options, stage_display
from edge_asr.cli.terminal import print_json, print_line


@click.command(name="quantize")
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the new bundle. By default BUNDLE itself is replaced, once the check has passed.",
)
@int8_options
@click.option(
    "--clips",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="MANIFEST|FILE|DIR",
    help="Real speech that the INT8 graph must run on; may be repeated. The default is the embedded samples.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle at --output.")
@click.option(
    "--keep-failed",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep a bundle that is over the budget in DIR, marked as not verified, for its tables.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that was measured as one JSON document.")
def command(
    bundle: str,
    output: Path | None,
    clips: tuple[Path, ...],
    force: bool,
    keep_failed: Path | None,
    as_json: bool,
    int8: dict[str, Any],
) -> None:
    """Add an INT8 model to BUNDLE, calibrated on speech, its loss measured and bounded.

    A bundle with stream.onnx gets stream.int8.onnx as well.

    Each group of layers is measured alone; then as few groups as the budget demands stay in float32. The
    tables and the plot are in the bundle's report.md. If the result is over the budget, the exit code is 3
    and BUNDLE does not change.

    \b
    edge-asr quantize mine --calibration train.jsonl
    edge-asr quantize tiny-en -o tiny-int8 --calibration train.jsonl --evaluate dev.jsonl
    """
    from edge_asr.calibration import quantize_bundle
    from edge_asr.proof.int8_report import int8_summary_lines
    from edge_asr.proof.report import read_report

    with stage_display() as progress:
        written, result = quantize_bundle(
            bundle,
            make_int8_options(int8),
            output=output,
            clips=clips,
            force=force,
            keep_failed=keep_failed,
            progress=progress,
        )
    if as_json:
        print_json(result.to_dict())
    else:
        for line in int8_summary_lines(result.to_dict()):
            print_line(line)
        stream = read_report(written.path).get("int8_stream")
        if stream is not None:
            print_line(*int8_summary_lines(stream, stream=True))
        print_line(
            f"{written.path}: {written.artifact('int8').size_bytes / 1e6:.2f} MB, details in report.md"
        )
