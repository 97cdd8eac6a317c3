"""`edge-asr bench`: latency, throughput, memory and power of a bundle on this machine, proven.

It parses, shows progress on stderr, prints tables and writes files.
What this file does not do: measure (edge_asr.benchmark).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import (
    FiniteRange,
    bundle_options,
    decoder_options,
    make_decoder_options,
    progress_bar,
)
from edge_asr.cli.terminal import is_terminal, print_json, say

if TYPE_CHECKING:
    from edge_asr.benchmark.power import Progress


class _List(click.ParamType):  # type: ignore[type-arg]
    """Comma-separated values of one kind."""

    def __init__(self, name: str, convert: Callable[[str], Any], choices: tuple[str, ...] = ()) -> None:
        self.name = name
        self._convert = convert
        self._choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        items = [item.strip() for item in value.split(",")]
        try:
            values = tuple(self._convert(item) for item in items)
        except ValueError:
            self.fail(f"{value!r} is not a comma-separated list of {self.name}", param, ctx)
        unknown = [item for item in items if self._choices and item not in self._choices]
        if unknown:
            self.fail(f"{unknown[0]!r} is not one of {', '.join(self._choices)}", param, ctx)
        return values


class _Streams(click.ParamType):  # type: ignore[type-arg]
    """A number of streams, or "max"."""

    name = "streams"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "max" or isinstance(value, int):
            return value
        if not str(value).isdigit() or int(value) < 1:
            self.fail(f"{value!r} is neither a number of at least 1 nor max", param, ctx)
        return int(value)


@click.command(name="bench")
@click.option(
    "--precision",
    "precisions",
    type=_List("precisions", str, ("auto", "fp32", "fp16", "int8")),
    default="auto",
    show_default=True,
    metavar="P[,P...]",
    help="Models of the bundle to measure, in turns: auto, fp32, fp16, int8.",
)
@click.option(
    "--seconds",
    type=_List("numbers", float),
    default="1,5,10,30",
    show_default=True,
    metavar="S[,S...]",
    help="Lengths of the clips.",
)
@click.option(
    "--batch",
    "batches",
    type=_List("whole numbers", int),
    default="1,8",
    show_default=True,
    metavar="N[,N...]",
    help="Clips at once: 1 measures transcribe, more measure transcribe_batch.",
)
@click.option(
    "--streams",
    type=_Streams(),
    metavar="N|max",
    help="Also measure 1 and N live streams at real-time pace; max finds how many can be sustained.",
)
@click.option(
    "--utterances",
    type=click.IntRange(min=1),
    default=6,
    show_default=True,
    metavar="N",
    help="Each stream hears N phrases with pauses, about 3 s each.",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    metavar="N",
    help="Unmeasured runs of each clip and batch, in each of the five sessions.",
)
@click.option(
    "--min-duration",
    "min_duration_s",
    type=FiniteRange(min=0, max=3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Measure each clip and batch for at least S seconds, sessions together, and at least 10 runs.",
)
@click.option(
    "--audio",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Speech to measure with, instead of the embedded sample.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="MANIFEST",
    help="Also measure error rates on this manifest.",
)
@click.option(
    "--normalize",
    "normalization",
    type=click.Choice(["none", "basic"]),
    default="none",
    show_default=True,
    help="How to normalize both texts, for --manifest.",
)
@click.option(
    "--random",
    metavar="SIZE",
    help="Measure a model with random weights instead of a bundle: a preset of `train`, conformer-ctc-s, "
    "-m, -l, fastconformer-l or parakeet-ctc-0.6b.",
)
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(exists=True, path_type=Path),
    metavar="A.json B.json",
    help="Compare two results, B over A, and measure nothing.",
)
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write bench.json, bench.md and plots there.",
)
@click.option("--force", is_flag=True, help="Overwrite results that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the content of bench.json instead of tables.")
@decoder_options
@bundle_options
def command(
    compare: tuple[Path, Path] | None,
    output_dir: Path | None,
    force: bool,
    as_json: bool,
    bundle: dict[str, Any],
    decoding: dict[str, Any],
    **options: Any,
) -> None:
    """Measure a bundle here: time by stage, cold start, memory, power, streams, error rates.

    The text of every measured run is compared with that of a plain recognizer in a process of its own. If one
    differs, the exit code is 3 and no number is printed. docs/bench.md explains every field.

    \b
    edge-asr bench -m bundle/ --precision fp32,int8 -o result/
    edge-asr bench --seconds 2,10 --batch 1 --streams 4
    edge-asr bench --random fastconformer-l --seconds 10
    edge-asr bench --compare before/bench.json after/bench.json
    """
    if compare is not None:
        _compare(*compare, as_json=as_json)
        return
    source = click.get_current_context().get_parameter_source("path_or_name")
    if options["random"] is not None and source is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--random measures a model of its own; leave -m out")
    from edge_asr.benchmark.options import BenchOptions
    from edge_asr.benchmark.report import check_folder, print_report, write_folder
    from edge_asr.benchmark.run import run_benchmark
    from edge_asr.benchmark.table import make_console
    from edge_asr.runtime.decoding.choice import DecoderOptions

    if output_dir is not None:
        check_folder(output_dir, force=force)
    asked = BenchOptions(
        model=bundle.pop("path_or_name"),
        threads=bundle.pop("num_threads"),
        decoding=make_decoder_options(decoding) or DecoderOptions(),
        **bundle,
        **options,
    )
    with _progress() as show:
        report = run_benchmark(asked, progress=show)
    problem = None if output_dir is None else write_folder(report, output_dir)
    if problem is not None:
        say(problem)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report, make_console())


def _compare(a: Path, b: Path, *, as_json: bool) -> None:
    from edge_asr.benchmark.compare import compare
    from edge_asr.benchmark.report import print_comparison
    from edge_asr.benchmark.schema import BenchReport
    from edge_asr.benchmark.table import make_console

    comparison = compare(BenchReport.read(a), BenchReport.read(b))
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison, make_console())


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar on a terminal, else a line on stderr as each stage begins."""
    import sys

    with progress_bar() as bar:
        task = bar.add_task("", total=1.0)
        last = ""

        def show(stage: str, share: float) -> None:
            nonlocal last
            bar.update(task, description=stage, completed=share)
            if stage != last and not is_terminal(sys.stderr):
                say(f"{stage} ...")
            last = stage

        yield show
