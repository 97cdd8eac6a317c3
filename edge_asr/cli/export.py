"""`edge-asr export`: a checkpoint becomes a proven bundle.

It parses, shows the stages on stderr, and prints a summary or, with --json, the whole report.
What this file does not do: export or prove anything (edge_asr.export).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import (
    int8_options,
    make_int8_options,
    parse_precisions,
    stage_display,
    streaming_options,
)
from edge_asr.cli.terminal import print_json, print_line, say
from edge_asr.errors import require

if TYPE_CHECKING:
    from edge_asr.export.graphs import Weights
    from edge_asr.export.report import ExportReport
    from edge_asr.runtime.engine.sidecar import Flavor


@click.command(name="export")
@click.argument("checkpoint", metavar="CHECKPOINT", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="BUNDLE",
    help="Folder of the bundle to write.",
)
@click.option("--name", metavar="NAME", help="Name of the model. The default is that of the folder.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="LIST",
    help="fp32, fp16, int8: a comma-separated list; may be repeated. fp32 is always written.",
)
@click.option(
    "--weights",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="How the fp32 file stores weights. fp16 halves its size; the graph still computes in float32.",
)
@click.option("--opset", type=click.IntRange(18, 22), default=18, show_default=True, help="ONNX opset.")
@click.option(
    "--clips",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="MANIFEST|FILE|DIR",
    help="Real speech for the proof; may be repeated. The default is the embedded samples.",
)
@click.option(
    "--feature-preset",
    metavar="NAME",
    help="Front end of a NeMo checkpoint whose file does not say: nemo (2.5 and later) or nemo-2.4.",
)
@streaming_options
@int8_options
@click.option(
    "--decoder/--no-decoder",
    default=True,
    help="Also export the attention decoder of a checkpoint that has one, or leave it out.",
)
@click.option("--engine", is_flag=True, help="Also build TensorRT engines for this device, as `build` does.")
@click.option(
    "--flavor",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="Which TensorRT to use for --engine.",
)
@click.option(
    "--triton",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also write a model repository for NVIDIA's Triton. Without -o, CHECKPOINT is a bundle, by default "
    "tiny-en, and nothing is exported (docs/scale.md).",
)
@click.option(
    "--bench",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|DIR",
    help="With --triton: a bench.json of the bundle, which says what batches are worth waiting for.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle, once the new one is proven.")
@click.option(
    "--keep-failed",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep a bundle that failed its proof in DIR, marked as not verified.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as one JSON document.")
def command(
    checkpoint: str | None,
    output: Path | None,
    name: str | None,
    precisions: tuple[str, ...],
    weights: Weights,
    opset: int,
    clips: tuple[Path, ...],
    feature_preset: str | None,
    streaming: dict[str, Any],
    int8: dict[str, Any],
    decoder: bool,
    engine: bool,
    flavor: Flavor,
    triton: Path | None,
    bench: Path | None,
    force: bool,
    keep_failed: Path | None,
    as_json: bool,
) -> None:
    """Export CHECKPOINT to ONNX, prove it against PyTorch, and write a bundle.

    CHECKPOINT is a folder that `edge-asr train` wrote, the name of an embedded model (tiny-en), or a
    checkpoint of NeMo, Hugging Face, ESPnet, WeNet or torchaudio (docs/checkpoints.md).
    The proof compares log-probs on real clips, at lengths around every edge, in padded batches, on
    silence and noise. If it fails, the exit code is 3 and nothing is written. sherpa-onnx and onnx-asr load
    the folder too. A model trained with limited context also gets stream.onnx, which runs chunk by chunk
    (docs/streaming.md) and is proven against the same model run at once.

    \b
    edge-asr export runs/mine/best -o mine
    edge-asr export tiny-en -o tiny-en --clips dev.jsonl
    edge-asr export tiny-en -o tiny-en --precision fp16,int8 --calibration train.jsonl
    edge-asr export streaming.nemo -o mine --lookahead-ms 480
    edge-asr export mine --triton models
    """
    if bench is not None and triton is None:
        raise click.UsageError("--bench sets the batches of --triton; add --triton DIR, or leave it out")
    if triton is not None and output is None:
        _write_triton(checkpoint or "tiny-en", triton, bench, force=force, as_json=as_json)
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    wanted = parse_precisions(precisions)
    require("torch", extra="export")
    from edge_asr.checkpoints import LoadOptions, load_any
    from edge_asr.export import StreamingOptions, export_bundle

    loaded = load_any(checkpoint, LoadOptions(feature_preset=feature_preset, decoder=decoder))
    for note in loaded.notes:
        say(note)
    with stage_display() as progress:
        report = export_bundle(
            loaded,
            output,
            name=name,
            precisions=wanted,
            int8=make_int8_options(int8) if {"fp16", "int8"}.intersection(wanted) else None,
            streaming=StreamingOptions(**streaming),
            decoder=decoder,
            weights=weights,
            opset=opset,
            clips=clips,
            force=force,
            keep_failed=keep_failed,
            progress=progress,
        )
    document = report.to_dict() if as_json else None
    if document is None:
        _print_summary(report)
    if engine:
        from edge_asr.cli.build import build_engines

        build_engines(output, document=document, flavor=flavor, clips=clips, force=force)
    elif document is not None:
        print_json(document)
    if triton is not None:
        _write_triton(output, triton, bench, force=force, as_json=None)


def _write_triton(
    path_or_name: str | Path, target: Path, bench: Path | None, *, force: bool, as_json: bool | None
) -> None:
    """Write the repository of a bundle; say so on stdout, or, if `as_json` is None, on stderr."""
    require("onnx", extra="export")
    from edge_asr.bundle.folder import Bundle
    from edge_asr.export.triton import write_triton_repository

    bundle = Bundle.load(path_or_name)
    batches = None
    if bench is not None:
        from edge_asr.benchmark.batches import preferred_batches

        batches = preferred_batches(bench, bundle)
    names = write_triton_repository(bundle, target, batches=batches, force=force)
    if as_json:
        print_json({"triton": str(target), "models": names})
    else:
        tell = say if as_json is None else print_line
        tell(f"{target}: {', '.join(names)}; serve it with: tritonserver --model-repository {target}")


def _print_summary(report: ExportReport) -> None:
    from rich.console import Console
    from rich.table import Table

    from edge_asr.proof.int8_report import int8_decoder_line, int8_summary_lines

    table = Table(title=f"{report.name}: verified")
    for column in ("comparison", "cases", "max error", "mean error", "same text", "worst case"):
        table.add_column(column)
    for step in report.to_dict()["steps"]:
        table.add_row(
            f"{step['reference']} -> {step['candidate']}",
            str(step["n_cases"]),
            f"{step['max_log_prob_error']:.1e}",
            f"{step['mean_log_prob_error']:.1e}",
            "yes" if step["same_text"] else "not in all",
            step["worst_case"],
        )
    console = Console()
    console.print(table)
    for line in () if report.int8 is None else int8_summary_lines(report.int8):
        print_line(line)
    if report.int8_stream is not None:
        print_line(*int8_summary_lines(report.int8_stream, stream=True))
    if report.int8_decoder is not None:
        print_line(f"INT8, decoder: {int8_decoder_line(report.int8_decoder)}")
    if report.streaming is not None:
        print_line(f"stream.onnx: {report.streaming.describe()}")
    elif report.not_streaming is not None:
        print_line(f"no stream.onnx: {report.not_streaming}")
    size = sum(report.sizes_bytes.values()) / 1e6
    print_line(f"{report.output}: {size:.2f} MB, {report.timings_s['total']:.1f} s, details in report.md")
