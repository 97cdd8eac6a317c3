"""Writes safely to the standard streams, even if they are closed, full, or of a narrow encoding.

Results go to standard output, messages to standard error, one line each, whatever they contain.
What this file does not do: exit codes (main.py).
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

#: Errors of the device or its free space, after which nothing more can be written there.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EBADF})


def say(message: str) -> None:
    """Print one line on standard error."""
    click.echo(f"edge-asr: {printable(message)}", err=True)


def print_text(text: str) -> None:
    """Print text on standard output, unchanged and flushed.

    Raises:
        OSError: it cannot be written; the file name is "standard output".
    """
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


def print_line(text: str) -> None:
    """Print one line on standard output, whatever the text contains."""
    print_text(printable(text) + "\n")


def print_json(document: Any) -> None:
    """Print one line of JSON on standard output, in ASCII if the output cannot encode more."""
    text = json_line(document)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(document)
    print_text(text + "\n")


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether the stream is a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def prepare_streams() -> None:
    """Make the standard streams safe to write to.

    A daemon may have closed file descriptors 0 to 2. The next file to be opened, perhaps a model, would get
    the number, and what a library writes to "standard error" would go into it. So the null device takes the
    number, opened so that nothing is lost silently: writing results to a closed output is an error.
    Characters that an output cannot encode are written as Python escapes.
    """
    for number, flags in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - ends with the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def describe_os_error(error: OSError) -> str | None:
    """Describe what the system refused in one line; None if the error says too little to be expected."""
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if error.errno == errno.ENOENT and "temporary directory" in str(error.strerror):
        return f"{error.strerror}: none of them can be written, or all are full"  # tempfile.gettempdir
    if error.errno not in _NO_ROOM:
        return None
    return f"writing failed: {error.strerror}"
