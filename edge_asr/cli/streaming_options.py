"""The options of `export` that say whether and how a model streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from edge_asr.export import StreamingOptions

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--streaming/--no-streaming",
        "enabled",
        default=None,
        help="Also write stream.onnx, which runs chunk by chunk, or leave it out; by default it is "
        "written when the checkpoint was trained with limited context.",
    ),
    click.option(
        "--lookahead-ms",
        type=click.FloatRange(min=0),
        metavar="MS",
        help="Of a checkpoint trained with several look-aheads, which one; by default its own default.",
    ),
    click.option(
        "--chunk-ms",
        type=click.FloatRange(min=1),
        metavar="MS",
        help="Chunk of stream.onnx, for a model trained with chunks of many sizes; by default 640.",
    ),
    click.option(
        "--left-context-ms",
        type=click.FloatRange(min=1),
        metavar="MS",
        help="What attention sees before the chunk, where training left it open; by default 2560.",
    ),
)


def streaming_options(command: _Command) -> _Command:
    """Add the options; their values go to `make_streaming_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def make_streaming_options(
    *,
    enabled: bool | None,
    lookahead_ms: float | None,
    chunk_ms: float | None,
    left_context_ms: float | None,
) -> StreamingOptions:
    """The options as one object."""
    from edge_asr.export import StreamingOptions

    return StreamingOptions(
        enabled=enabled, lookahead_ms=lookahead_ms, chunk_ms=chunk_ms, left_context_ms=left_context_ms
    )
