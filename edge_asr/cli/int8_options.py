"""The options of INT8 that `export` and `quantize` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edge_asr.calibration import Int8Options

_Command = TypeVar("_Command", bound=Callable[..., Any])
_MANIFEST = click.Path(exists=True, path_type=Path)

_OPTIONS = (
    click.option(
        "--calibration",
        multiple=True,
        type=_MANIFEST,
        metavar="MANIFEST",
        help="Speech for the ranges and for choosing what becomes INT8 (and for fp16's magnitudes), never "
        "that of --evaluate; may be repeated. Without it the embedded, synthetic speech serves.",
    ),
    click.option(
        "--evaluate",
        "evaluation",
        multiple=True,
        type=_MANIFEST,
        metavar="MANIFEST",
        help="Speech for the gate, all of it; may be repeated. Without it half of the calibration speech "
        "serves.",
    ),
    click.option(
        "--calibration-minutes",
        "minutes",
        type=click.FloatRange(min=1),
        metavar="MIN",
        help="Length of the calibration set; by default 10, or all that is embedded.",
    ),
    click.option(
        "--range-method",
        type=click.Choice(["auto", "mse", "percentile", "entropy", "minmax"]),
        default="auto",
        show_default=True,
        help="How the range of a tensor is found from its values; auto: what diverges least.",
    ),
    click.option(
        "--percentile",
        type=click.FloatRange(min=0, max=100, min_open=True),
        default=99.99,
        show_default=True,
        help="For --range-method percentile.",
    ),
    click.option(
        "--smoothing",
        type=click.FloatRange(min=0, max=1),
        default=0.7,
        show_default=True,
        metavar="ALPHA",
        help="SmoothQuant's alpha: how much of the spread of activations moves into weights.",
    ),
    click.option("--no-smoothing", is_flag=True, help="Leave the scales where they are."),
    click.option(
        "--max-wer-loss",
        type=click.FloatRange(min=0),
        default=0.003,
        show_default=True,
        metavar="FRACTION",
        help="What INT8 may add to the WER; over it, the exit code is 3 and nothing is written.",
    ),
    click.option(
        "--min-agreement",
        type=click.FloatRange(min=0, max=1),
        default=0.985,
        show_default=True,
        metavar="FRACTION",
        help="How many frames must keep their most likely token.",
    ),
)


def int8_options(command: _Command) -> _Command:
    """Add the options; their values go to `make_int8_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_int8_options(
    *,
    calibration: tuple[Path, ...],
    evaluation: tuple[Path, ...],
    minutes: float | None,
    range_method: Any,
    percentile: float,
    smoothing: float,
    no_smoothing: bool,
    max_wer_loss: float,
    min_agreement: float,
) -> Int8Options:
    """The options as one object."""
    from edge_asr.calibration import Budget, Int8Options

    return Int8Options(
        calibration=calibration,
        evaluation=evaluation,
        minutes=minutes,
        range_method=range_method,
        percentile=percentile,
        smoothing=None if no_smoothing else smoothing,
        budget=Budget(max_wer_loss=max_wer_loss, min_agreement=min_agreement),
    )
