"""Standard streams: closed ones, full ones, narrow encodings, and what may be written to them.

Results go to standard output, messages to standard error, one line each, whatever is in them. What this file
does not do: exit codes (`main.py`).
"""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from typing import Any, TextIO

import click

from edge_asr.printable import json_line, printable

#: The device or its room is at fault, so nothing more can be written there.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF})


def say(message: str) -> None:
    """One line on standard error."""
    click.echo(f"edge-asr: {printable(message)}", err=True)


def print_text(text: str) -> None:
    """Text on standard output as it is, flushed.

    Raises:
        OSError: it cannot be written, by the name of "standard output".
    """
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def print_line(text: str) -> None:
    """One line on standard output, whatever is in the text."""
    print_text(printable(text) + "\n")


def print_json(document: Any) -> None:
    """One line of JSON on standard output; in ASCII where the output cannot have more."""
    text = json_line(document)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document)
    print_text(text + "\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person watches this stream."""
    return stream is not None and not stream.closed and stream.isatty()


def prepare_streams() -> None:
    """Make the standard streams safe to write to.

    A daemon may have closed the numbers 0 to 2. The next file that is opened, a model perhaps, would take the
    number, and what a library writes to "standard error" would go into it; so the null device takes it, for
    the direction in which nothing is lost silently: results into a closed output are an error. What an output
    cannot encode is written as a Python escape.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest number that is free, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - ends with the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def describe_os_error(error: OSError) -> str | None:
    """What the system refused, in one line; None when the error says too little to be an expected one."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno == errno.ENOENT and "temporary directory" in str(error.strerror):
        return f"{error.strerror}: none of them can be written, or all are full"  # tempfile.gettempdir
    if error.errno not in _NO_ROOM:
        return None
    return f"writing failed: {error.strerror}"
