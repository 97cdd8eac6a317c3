"""The options that several commands share, and how progress is shown.

Each option is defined once. Its parameter has the name of the argument that it becomes, so the values of a
group go directly into a call or a dataclass (`Recognizer.load(**recognizer)`). Heavy imports are inside the
functions, as in the commands.
"""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from edge_asr.cli.terminal import is_terminal, say
from edge_asr.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress

    from edge_asr.bundle.manifest import Precision
    from edge_asr.calibration import Int8Options
    from edge_asr.proof.stages import StageProgress
    from edge_asr.runtime.decoding.choice import DecoderOptions

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Decorator = Callable[[Any], Any]

#: The same as in edge_asr.runtime.backends, which is not imported for `--help`; a test compares them.
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "cuda", "cpu")
#: Those of edge_asr.runtime.decoding.choice, likewise.
DECODERS = ("greedy", "beam", "rescoring", "attention")
PRECISION_NAMES = ("fp32", "fp16", "int8")


class FiniteRange(click.FloatRange):
    """A number within bounds; infinity and NaN, which Python accepts as numbers, are a usage error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, or fail with a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def option_group(
    name: str,
    options: Sequence[_Decorator],
    finish: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Callable[[_Function], _Function]:
    """Add options to a command. It gets their values as one dictionary, the argument `name`.

    Args:
        name: of the argument.
        options: from click.
        finish: makes of the values what the argument holds.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(**values: Any) -> Any:
            group = finish({key: values.pop(key) for key in keys})
            return function(**values, **{name: group})

        decorated: Any = call
        n_before = len(getattr(decorated, "__click_params__", []))
        for option in reversed(options):
            decorated = option(decorated)
        keys = [option.name for option in decorated.__click_params__[n_before:] if option.expose_value]
        return cast(_Function, decorated)

    return decorate


def _choose_gpu(context: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Leave one GPU visible to CUDA, of those that are; nothing has used CUDA yet."""
    if value is None:
        return
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if visible and value >= len(visible):
        raise click.BadParameter(
            f"{value} is not among the {len(visible)} GPUs that CUDA_VISIBLE_DEVICES={','.join(visible)} "
            f"leaves; give 0 to {len(visible) - 1}"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[value] if visible else str(value)
    if not visible:
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi numbers them


#: Adds --gpu, which is settled before the command begins.
gpu_option = click.option(
    "--gpu",
    type=click.IntRange(min=0),
    metavar="N",
    expose_value=False,
    is_eager=True,
    callback=_choose_gpu,
    help="Number of the GPU to use, as nvidia-smi counts them. The default is CUDA's first.",
)

_MODEL = click.option(
    "-m",
    "--model",
    "path_or_name",
    metavar="BUNDLE",
    default="tiny-en",
    show_default=True,
    help="Folder of a bundle, or the name of an embedded model.",
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["auto", *PRECISION_NAMES]),
    default="auto",
    show_default=True,
    help="Which model of the bundle to run; auto takes the best one for this device.",
)
_DEVICE = (
    click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="What runs the model; auto takes an engine built for this device, else CUDA, else the CPU.",
    ),
    click.option(
        "--threads",
        "num_threads",
        type=click.IntRange(min=1, max=1024),
        metavar="N",
        help="CPU threads of the model. The default is the backend's choice.",
    ),
    click.option(
        "--allow-unverified",
        is_flag=True,
        help="Also run a bundle or engine that failed its proof, or an engine that has none or that was not "
        "built on this machine.",
    ),
    gpu_option,
)

self_test_option = click.option(
    "--self-test/--no-self-test",
    default=True,
    help="Once for each machine, runtime and bundle, compare what is heard here in the bundle's own clip "
    "with what its exporter heard, and take another precision or backend if the words differ. On by default.",
)


class _FileOrNone(click.Path):
    """A path, or the word none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail with a usage error."""
        return Path(value) if str(value) == "none" else super().convert(value, param, ctx)


_DECODER = (
    click.option(
        "--decoder",
        type=click.Choice(DECODERS),
        help="How text is found: greedy (the default); beam, which is slower and uses the bundle's language "
        "model; and with a bundle that has an attention decoder, rescoring of the beam's texts by it, or "
        "attention, its own search, which is the slowest.",
    ),
    click.option(
        "--ctc-weight",
        type=FiniteRange(min=0, max=1),
        metavar="SHARE",
        help="Share of CTC in the score of a text, the rest is the attention decoder's; for --decoder "
        "rescoring and attention. The default is the bundle's.",
    ),
    click.option(
        "--reverse-weight",
        type=FiniteRange(min=0, max=1),
        metavar="SHARE",
        help="Share of the decoder that reads from right to left, where the bundle has one, in that of the "
        "attention decoder; for --decoder rescoring. The default is the bundle's.",
    ),
    click.option(
        "--beam-size",
        type=click.IntRange(min=1, max=1024),
        metavar="N",
        help="Beginnings of the text that the search keeps; the default is 8, or 32 with a language "
        "model. Implies --decoder beam, unless another one is named.",
    ),
    click.option(
        "--hotwords",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Phrases to favor, one a line, `phrase:boost` if wanted. Implies --decoder beam.",
    ),
    click.option(
        "--lm",
        type=_FileOrNone(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Language model to use, from `edge-asr lm`. Implies --decoder beam, which uses the bundle's own "
        "if it has one; `none` turns that off.",
    ),
    click.option(
        "--grammar",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="The only phrases to recognize, as text or JSGF; what is none of them has no text.",
    ),
    click.option(
        "--grammar-threshold",
        type=FiniteRange(min=0, min_open=True),
        metavar="X",
        help="What a phrase may cost more than any text, a letter; lower rejects more. The default is that "
        "of the compiled grammar, else of the bundle, else 1.5 (spot: 1.1).",
    ),
    click.option(
        "--grammar-mode",
        type=click.Choice(["whole", "spot"]),
        help="Whether a phrase is the whole utterance (the default), or may stand within other speech.",
    ),
)


def make_decoder_options(values: dict[str, Any]) -> DecoderOptions | None:
    """Return the values of `decoder_options` as one object; None where nothing was asked for.

    Raises:
        click.UsageError: options that contradict each other.
    """
    if all(value is None for value in values.values()):
        return None  # and nothing is imported for it
    from edge_asr.runtime.decoding.choice import DecoderOptions

    try:
        return DecoderOptions(**values)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _choose_decoder(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the options of the decoder by the decoder that they mean."""
    asked = make_decoder_options({name: values[name] for name in _DECODER_NAMES})
    rest = {name: value for name, value in values.items() if name not in _DECODER_NAMES}
    return {**rest, "decoder": None if asked is None else asked.factory()}


_DECODER_NAMES = (
    *("decoder", "ctc_weight", "reverse_weight", "beam_size", "hotwords", "lm"),
    *("grammar", "grammar_threshold", "grammar_mode"),
)

#: Adds -m, --precision, --backend, --threads, --allow-unverified, and those of decoding, --decoder to
#: --grammar-mode; `recognizer` holds the arguments of `Recognizer.load`.
recognizer_options = option_group("recognizer", (_MODEL, _PRECISION, *_DEVICE, *_DECODER), _choose_decoder)
#: The same without the options of decoding.
model_options = option_group("recognizer", (_MODEL, _PRECISION, *_DEVICE))
#: Adds how to decode alone; `decoding` goes to `make_decoder_options`.
decoder_options = option_group("decoding", _DECODER)
#: The same for a command with a --precision of its own.
bundle_options = option_group("bundle", (_MODEL, *_DEVICE))

#: Adds --digits.
digits_option = click.option(
    "--digits",
    is_flag=True,
    help="Write English numbers, dates, times, money and units with digits: 23, may 21 1960, 7:30, $5, 3 m.",
)

_MANIFEST = click.Path(exists=True, path_type=Path)

#: Adds the options of quantization; `int8` goes to `make_int8_options`.
int8_options = option_group(
    "int8",
    (
        click.option(
            "--calibration",
            multiple=True,
            type=_MANIFEST,
            metavar="MANIFEST",
            help="Speech to measure ranges and choose what becomes INT8 (and to measure fp16's magnitudes), "
            "not that of --evaluate; may be repeated. The default is the embedded, synthetic speech.",
        ),
        click.option(
            "--evaluate",
            "evaluation",
            multiple=True,
            type=_MANIFEST,
            metavar="MANIFEST",
            help="Speech for the final check, all of it; may be repeated. The default is half of the "
            "calibration speech.",
        ),
        click.option(
            "--calibration-minutes",
            "minutes",
            type=FiniteRange(min=1),
            metavar="MIN",
            help="Length of the calibration set. The default is 10, or all that is embedded.",
        ),
        click.option(
            "--range-method",
            type=click.Choice(["auto", "mse", "percentile", "entropy", "minmax"]),
            default="auto",
            show_default=True,
            help="How to choose the range of a tensor from its values; auto takes what diverges least.",
        ),
        click.option(
            "--percentile",
            type=FiniteRange(min=0, max=100, min_open=True),
            default=99.99,
            show_default=True,
            help="The percentile of --range-method percentile.",
        ),
        click.option(
            "--smoothing",
            type=FiniteRange(min=0, max=1),
            default=0.7,
            show_default=True,
            metavar="ALPHA",
            help="SmoothQuant's alpha: how much of the spread of activations moves into the weights.",
        ),
        click.option("--no-smoothing", is_flag=True, help="Do not apply SmoothQuant."),
        click.option(
            "--max-wer-loss",
            type=FiniteRange(min=0),
            default=0.003,
            show_default=True,
            metavar="FRACTION",
            help="How much INT8 may add to the WER. Above it, the exit code is 3 and nothing is written.",
        ),
        click.option(
            "--min-agreement",
            type=FiniteRange(min=0, max=1),
            default=0.985,
            show_default=True,
            metavar="FRACTION",
            help="Share of the frames that must keep their most likely token.",
        ),
    ),
)


def make_int8_options(values: dict[str, Any]) -> Int8Options:
    """Turn the values of `int8_options` into one object."""
    from edge_asr.calibration import Budget, Int8Options

    rest = dict(values)
    if rest.pop("no_smoothing"):
        rest["smoothing"] = None
    budget = Budget(max_wer_loss=rest.pop("max_wer_loss"), min_agreement=rest.pop("min_agreement"))
    return Int8Options(budget=budget, **rest)


#: Adds the options of streaming; `streaming` holds the fields of `StreamingOptions`.
streaming_options = option_group(
    "streaming",
    (
        click.option(
            "--streaming/--no-streaming",
            "enabled",
            default=None,
            help="Also write stream.onnx, which runs chunk by chunk, or leave it out. By default it is "
            "written if the checkpoint was trained with limited context.",
        ),
        click.option(
            "--lookahead-ms",
            type=FiniteRange(min=0),
            metavar="MS",
            help="Look-ahead to use, for a checkpoint trained with several. By default the checkpoint's own.",
        ),
        click.option(
            "--chunk-ms",
            type=FiniteRange(min=1),
            metavar="MS",
            help="Chunk of stream.onnx, for a model trained with chunks of many sizes. The default is 640.",
        ),
        click.option(
            "--left-context-ms",
            type=FiniteRange(min=1),
            metavar="MS",
            help="How far attention sees before the chunk, if training left it open. The default is 2560.",
        ),
        click.option(
            "--stream-layout",
            "layout",
            type=click.Choice(["kv", "nemo"]),
            help="What the caches of stream.onnx hold: keys and values, which is faster, or NeMo's. "
            "The default is nemo for a NeMo checkpoint, and kv for all others.",
        ),
    ),
)


def progress_bar(*, enabled: bool = True) -> Progress:
    """Return a bar on stderr that vanishes when done; silent unless `enabled` and stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not (enabled and is_terminal(sys.stderr)),
        redirect_stdout=is_terminal(sys.stdout),
    )


def parse_precisions(values: tuple[str, ...]) -> list[Precision]:
    """Parse the precisions of a comma-separated, repeatable option, each once.

    Raises:
        click.BadParameter: a precision is unknown.
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
    """Show stages on stderr: a live bar on a terminal, else one line per stage."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

    if not is_terminal(sys.stderr):
        yield lambda stage, done, total: None if total else say(f"{stage} ...")
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
