"""`edge-asr build`: TensorRT engines of a bundle, for this device, proven on it.

It parses, shows the stages on stderr, and prints one line per engine or, with --json, the reports.
What this file does not do: build or prove anything (edge_asr.export.engine.builder).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import gpu_option, parse_precisions, stage_display
from edge_asr.cli.terminal import print_json, print_line, say
from edge_asr.errors import BundleError, MissingDependencyError

if TYPE_CHECKING:
    from edge_asr.bundle.folder import Bundle
    from edge_asr.bundle.manifest import Precision
    from edge_asr.export.engine.put import EngineReport
    from edge_asr.proof.stages import StageProgress
    from edge_asr.runtime.engine.sidecar import Flavor


class _NumberList(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated numbers, such as 0.1,2,8,30."""

    name = "list"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | float, ...]:
        """Return the numbers, or fail with a usage error."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            return tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of numbers", param, ctx)


@click.command(name="build")
@click.argument("bundle", metavar="BUNDLE")
@click.option(
    "-p",
    "--precision",
    "precisions",
    multiple=True,
    metavar="LIST",
    help="fp32, fp16, int8: a comma-separated list, may be repeated. The default is the smaller precisions "
    "that the bundle has, else fp32.",
)
@click.option(
    "--profile-seconds",
    type=_NumberList(float),
    default="0.1,2,8,30",
    show_default=True,
    metavar="EDGES",
    help="Lengths of sound in seconds. Each neighboring pair is one optimization profile, tuned for "
    "their geometric middle (1,4 for 2).",
)
@click.option(
    "--batch",
    type=_NumberList(int),
    metavar="MIN,OPT,MAX",
    help="Smallest, best and largest number of rows in a batch. The default is 1,1,8, and 1,1,1 where the "
    "GPU shares the processor's memory.",
)
@click.option(
    "--streams",
    type=_NumberList(int),
    metavar="LIST",
    help="Numbers of live streams that the engine of stream.onnx computes at once, 0 to build none. "
    "The default is 1,8,32,64, and 1 where the GPU shares the processor's memory.",
)
@click.option(
    "--workspace-mb",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Limit of the builder's scratch memory. The default is TensorRT's own, all of the GPU; where that "
    "is the processor's memory too, a quarter of it, at most 2048.",
)
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    metavar="0-5",
    help="How long TensorRT searches for kernels. The default is TensorRT's own, 3.",
)
@click.option(
    "--aux-streams",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Streams that kernels may use besides the main one.",
)
@click.option(
    "--timing-iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs that a kernel's time is averaged over; more help on a busy device. The default is TensorRT's.",
)
@click.option(
    "--attention-operator",
    is_flag=True,
    help="Build attention with TensorRT's own operator (10.14 and later), which fuses, or the build fails.",
)
@click.option(
    "--timing-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Timing cache to read and to update. The default is the one beside the engine.",
)
@click.option(
    "--flavor",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="Which TensorRT. TensorRT-RTX builds without a GPU, but does not support Jetson.",
)
@click.option(
    "--clips",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="MANIFEST|FILE|DIR",
    help="Real speech for the proof; may be repeated. The default is the embedded samples.",
)
@click.option(
    "--manifest",
    type=click.Path(exists=True, path_type=Path),
    help="Speech with its text, on which the proof also compares word errors.",
)
@gpu_option
@click.option("--force", is_flag=True, help="Replace existing engines, once the new ones are proven.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as one JSON document.")
def command(
    bundle: str,
    precisions: tuple[str, ...],
    profile_seconds: tuple[float, ...],
    batch: tuple[int, ...] | None,
    streams: tuple[int, ...] | None,
    workspace_mb: int | None,
    optimization_level: int | None,
    aux_streams: int,
    timing_iterations: int | None,
    attention_operator: bool,
    timing_cache: Path | None,
    flavor: Flavor,
    clips: tuple[Path, ...],
    manifest: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines of BUNDLE for this device and prove them on it.

    BUNDLE is a folder that `edge-asr export` wrote. A model that streams gets two engines, one of them for
    live partials. Engines go into its folder engines/, each with a
    JSON file that says for which device, library and model it was built. The proof compares each engine with
    the fp32 model on onnxruntime. If it fails, the exit code is 3 and the engine is deleted. The first build
    of a model can take many minutes on a Jetson.

    \b
    edge-asr build mine
    edge-asr build mine -p fp16,int8 --profile-seconds 0.1,1,4,30 --batch 1,1,1
    """
    from edge_asr.export.engine.plan import SearchOptions

    search = SearchOptions(
        optimization_level=optimization_level, aux_streams=aux_streams, timing_iterations=timing_iterations
    )
    build_engines(
        bundle,
        parse_precisions(precisions),
        document={} if as_json else None,
        flavor=flavor,
        profile_seconds=profile_seconds,
        batch=batch,
        streams=streams,
        workspace_mb=workspace_mb,
        search=search,
        attention_operator=attention_operator,
        timing_cache=timing_cache,
        clips=clips,
        manifest=manifest,
        force=force,
    )


def build_engines(
    bundle: str | Path,
    precisions: Sequence[Precision] = (),
    *,
    document: Mapping[str, Any] | None = None,
    streams: Sequence[int] | None = None,
    **options: Any,
) -> None:
    """Build the engines of several precisions, and print the results.

    Args:
        bundle: folder or name of a bundle.
        precisions: what to build; empty for the smaller precisions that the bundle has.
        document: print one JSON document, this one plus "engines"; None prints lines.
        streams: see `edge_asr.export.engine.streams.build_stream_engine`; (0,) builds no such engine.
        options: options of `edge_asr.export.engine.builder.build_engine`.
    """
    from edge_asr.bundle.folder import Bundle
    from edge_asr.export.engine.builder import build_engine, default_precisions

    reports: list[EngineReport] = []
    try:
        loaded = Bundle.load(bundle)
        with stage_display() as progress:
            for precision in precisions or default_precisions(loaded):
                reports.append(build_engine(loaded, precision, progress=progress, **options))
                if loaded.info.streaming is not None and streams != (0,):
                    reports += _build_stream(loaded, precision, streams, progress, options)
    finally:  # report what was built, whatever happens to the next one
        _print_reports(reports, document)


def _build_stream(
    bundle: Bundle,
    precision: Precision,
    streams: Sequence[int] | None,
    progress: StageProgress,
    options: Mapping[str, Any],
) -> list[EngineReport]:
    """Build the engine of the streaming graph; none, with a reason, if its file or a library is missing."""
    from edge_asr.export.engine.put import BuildOptions
    from edge_asr.export.engine.streams import build_stream_engine

    how = {
        name: options[name]
        for name in ("flavor", "workspace_mb", "timing_cache", "force", "search", "attention_operator")
        if name in options
    }
    try:
        return [
            build_stream_engine(
                bundle,
                precision,
                BuildOptions(**how),
                streams=streams,
                clips=options.get("clips"),
                progress=progress,
            )
        ]
    except (BundleError, MissingDependencyError) as error:
        say(f"no {precision} engine of the streaming graph: {error}")
        return []


def _print_reports(reports: list[EngineReport], document: Mapping[str, Any] | None) -> None:
    if document is not None:
        engines = [report.to_dict() for report in reports]
        print_json({**document, "engines": engines})
        return
    for report in reports:
        print_line(report.describe())
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        say(note)
