"""Embed a trained model: edge_asr/models/tiny-en gets a float16 checkpoint and a proven bundle.

    data=../shared/data
    python scripts/recipes/tiny_en/embed.py runs/tiny_en/best \
        --clips $data/an4_dev.jsonl --clips $data/librispeech_dev.jsonl \
        --calibration $data/an4_train.jsonl --calibration $data/librispeech_train.jsonl --chunk-ms 640

The bundle is exported from the checkpoint as it was rounded to float16, with its weights stored as
float16, and is proven on the clips: float32 ONNX against PyTorch in float64, float32 ONNX against
the stored file by identical greedy text and a reported error. INT8 is calibrated on the training
manifests, and its loss bounded on the manifests of the clips, or of --evaluation. With --chunk-ms the
model streams, in INT8 only: the float32 stream is made and proven, because INT8 is judged by it, but the
wheel has no room for a third copy of the weights in 16 bits. Both folders are written beside the old ones
and swapped in only after everything passed. The language model of the old bundle goes into the new one; its
weights are found anew by tune.py, which also writes the model card. With --sample, clips of the dev sets
become the sample of real speech, if the model hears them right (sample.py, which may do so later too). It
does not train.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
from sample import install_sample

from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.bundle.names import LANGUAGE_MODEL_NAME, STREAM_NAME
from edge_asr.bundle.writer import attach_language_model, write_manifest
from edge_asr.calibration import Budget, Int8Options
from edge_asr.checkpoints import load_any, save_checkpoint
from edge_asr.export import StreamingOptions, export_bundle
from edge_asr.proof.compare import summarize_step
from edge_asr.proof.report import file_sizes, read_report, write_report
from edge_asr.proof.self_test import add_self_test

MAX_CHECKPOINT_BYTES = 16_000_000
MAX_TOTAL_BYTES = 60_000_000
BUDGET = Budget(max_wer_loss=0.005, min_agreement=0.98)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--clips",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Manifests of the dev sets.",
)
@click.option(
    "--calibration",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="Training manifests.",
)
@click.option(
    "--evaluation",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Manifests on which the loss of INT8 is bounded; the default is --clips.",
)
@click.option("--chunk-ms", type=float, help="Also a stream with chunks of this length.")
@click.option("--minutes", type=float, help="Calibration speech; the default is that of the export.")
@click.option("--smoothing", type=float, default=0.7, show_default=True, help="SmoothQuant's alpha.")
@click.option("--sample", multiple=True, metavar="ID", help="Dev clips for the sample, in order.")
@click.option("--name", default="tiny-en", show_default=True)
@click.option(
    "--models",
    type=click.Path(file_okay=False, path_type=Path),
    default=EMBEDDED_MODELS,
    show_default=True,
    help="Folder of the embedded models.",
)
def main(
    checkpoint: Path,
    clips: tuple[Path, ...],
    calibration: tuple[Path, ...],
    evaluation: tuple[Path, ...],
    chunk_ms: float | None,
    minutes: float | None,
    smoothing: float,
    sample: tuple[str, ...],
    name: str,
    models: Path,
) -> None:
    """Round CHECKPOINT to float16, prove its bundle on the clips and put both into the package."""
    started = time.perf_counter()
    home = models / name
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".embed-", dir=home) as temporary:
        source = load_any(checkpoint)
        rounded = save_checkpoint(
            Path(temporary) / "checkpoint",
            source.build_model(),
            source.features,
            source.vocabulary,
            source.provenance,
            dtype="float16",
            tokenizer_model=source.tokenizer_model,
            facts=source.facts,
        )
        checkpoint_bytes = folder_bytes(rounded)
        if checkpoint_bytes > MAX_CHECKPOINT_BYTES:
            sys.exit(f"the checkpoint has {checkpoint_bytes} bytes, more than {MAX_CHECKPOINT_BYTES}")
        report = export_bundle(
            rounded,
            Path(temporary) / "bundle",
            name=name,
            precisions=("fp32", "int8"),
            int8=Int8Options(
                calibration=calibration,
                evaluation=evaluation or clips,
                minutes=minutes,
                smoothing=smoothing,
                budget=BUDGET,
            ),
            streaming=StreamingOptions(chunk_ms=chunk_ms, enabled=chunk_ms is not None),
            weights="fp16",
            clips=clips,
            progress=lambda stage, done, total: None if total else print(f"{stage} ...", file=sys.stderr),
        )
        if report.streaming is not None:
            leave_out_float32_stream(report.output)
        total_bytes = checkpoint_bytes + folder_bytes(report.output)
        if total_bytes > MAX_TOTAL_BYTES:
            sys.exit(f"checkpoint and bundle have {total_bytes} bytes, more than {MAX_TOTAL_BYTES}")
        language_model = home / "bundle" / LANGUAGE_MODEL_NAME
        if language_model.exists():
            attach_language_model(Bundle.load(report.output), language_model)
        for part in ("checkpoint", "bundle"):
            swap_in(Path(temporary) / part, home / part)
    print(f"{name}: {report.n_parameters} parameters, {len(report.clips)} clips")
    for step in report.steps:
        summary = summarize_step(step)
        errors = f"max error {summary['max_log_prob_error']:.2e}, mean {summary['mean_log_prob_error']:.2e}"
        print(f"  {step.name}: {errors}, same text {summary['same_text']}, worst {summary['worst_case']}")
    print(f"  checkpoint {checkpoint_bytes / 1e6:.2f} MB (limit {MAX_CHECKPOINT_BYTES / 1e6:.0f})")
    print(f"  with bundle {total_bytes / 1e6:.2f} MB (limit {MAX_TOTAL_BYTES / 1e6:.0f})")
    print(f"  {time.perf_counter() - started:.0f} s; {home}")
    if sample:
        install_sample(sample, (*clips, *evaluation), Bundle.load(home / "bundle"), models / "samples")


def leave_out_float32_stream(folder: Path) -> None:
    """Make INT8 the only form of a bundle's stream, in its manifest and report too."""
    bundle = Bundle.load(folder)
    int8 = bundle.streaming.int8
    assert int8 is not None
    (folder / STREAM_NAME).unlink()
    streaming = dataclasses.replace(bundle.streaming, artifact=int8, int8=None)
    write_manifest(folder, dataclasses.replace(bundle.info, streaming=streaming))
    add_self_test(folder)  # that of the export has the float32 stream
    write_report(folder, {**read_report(folder), "sizes_bytes": file_sizes(folder)})
    Bundle.load(folder)


def folder_bytes(folder: Path) -> int:
    """Size of all files below `folder`."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def swap_in(new: Path, place: Path) -> None:
    """Move `new` to `place`; the old folder goes into the temporary one and dies with it."""
    if place.exists():
        place.rename(new.with_name(f"old-{new.name}"))
    shutil.move(new, place)


if __name__ == "__main__":
    main()
