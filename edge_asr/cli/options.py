"""What commands share: the options that choose and load a recognizer, and the progress bar.

Heavy imports stand inside the functions, as in the commands.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import click

if TYPE_CHECKING:
    from edge_asr.bundle.manifest import Precision
    from edge_asr.proof.stages import StageProgress

if TYPE_CHECKING:
    from rich.progress import Progress

#: Those of edge_asr.runtime.backends, which is not imported for `--help`; a test compares them.
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@overload
def recognizer_options(function: _Function) -> _Function: ...
@overload
def recognizer_options(*, precision: bool) -> Callable[[_Function], _Function]: ...
def recognizer_options(function: Any = None, *, precision: bool = True) -> Any:
    """Add -m, --precision, --backend, --threads and --allow-unverified.

    They arrive as `model`, `precision`, `backend`, `threads` and `allow_unverified`, the arguments
    that `Recognizer.load` takes (`threads` as `num_threads`). With `precision=False` the command has a
    --precision of its own.
    """
    if function is None:
        return functools.partial(recognizer_options, precision=precision)
    options = [
        click.option(
            "-m",
            "--model",
            metavar="BUNDLE",
            default="tiny-en",
            show_default=True,
            help="Folder of a bundle, or the name of an embedded model.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "fp16", "int8"]),
            default="auto",
            show_default=True,
            help="Which model of the bundle to run; auto takes the best for this device.",
        ),
        click.option(
            "--backend",
            type=click.Choice(BACKENDS),
            default="auto",
            show_default=True,
            help="What runs the model; auto takes an engine built for this device, else CUDA, else the CPU.",
        ),
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            metavar="N",
            help="CPU threads of the model; by default what the backend chooses.",
        ),
        click.option(
            "--allow-unverified",
            is_flag=True,
            help="Also run a bundle or engine that failed its proof, or an engine that has none.",
        ),
    ]
    if not precision:
        del options[1]
    for option in reversed(options):
        function = option(function)
    return function


def progress_bar(*, enabled: bool = True) -> Progress:
    """A bar on stderr that vanishes when done; silent unless `enabled` and stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (enabled and sys.stderr.isatty()),
        redirect_stdout=sys.stdout.isatty(),
    )


PRECISION_NAMES = ("fp32", "fp16", "int8")


def parse_precisions(values: tuple[str, ...]) -> list[Precision]:
    """The precisions of a comma-separated, repeatable option, each once.

    Raises:
        click.BadParameter: an unknown one.
    """
    found: list[Precision] = []
    for name in (name.strip() for value in values for name in value.split(",")):
        if name not in PRECISION_NAMES:
            names = ", ".join(PRECISION_NAMES)
            raise click.BadParameter(f"{name!r} is not one of {names}", param_hint="'--precision'")
        if name not in found:
            found.append(cast("Precision", name))
    return found


@contextmanager
def stage_display() -> Iterator[StageProgress]:
    """Stages on stderr: a live bar on a terminal, one line a stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    if not sys.stderr.isatty():
        yield lambda stage, done, total: None if total else click.echo(f"edge-asr: {stage} ...", err=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, total=1, completed=1)
                tasks[stage] = bars.add_task(stage, total=None)
            if total:
                bars.update(tasks[stage], total=total, completed=done)

        yield show
        for task in tasks.values():
            bars.update(task, total=1, completed=1)
