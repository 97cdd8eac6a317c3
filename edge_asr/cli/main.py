"""The `edge-asr` command: a click group that imports a command only when it is used.

It owns what all commands share: exit codes, one-line errors, logging and `--version`.
`COMMANDS` holds each command's one-line help, so `edge-asr --help` imports none of them.
What this file does not do: the work of any command.

Exit codes: 0 ok; 1 an expected error, in one line on stderr; 2 usage; 3 a gate failed; 130 Ctrl-C.
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import click

from edge_asr import __version__
from edge_asr.cli.terminal import describe_os_error, prepare_streams, say
from edge_asr.errors import EdgeAsrError, GateError
from edge_asr.printable import printable

#: Name of a command -> (module that has it as `command`, one-line help), in the order of the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("edge_asr.cli.train", "Train a model: manifests -> checkpoint."),
    "export": ("edge_asr.cli.export", "Export and prove a model: checkpoint -> bundle."),
    "quantize": ("edge_asr.cli.quantize", "Add INT8 to a bundle, calibrated on speech, with bounded loss."),
    "build": ("edge_asr.cli.build", "Build and prove TensorRT engines of a bundle for this device."),
    "transcribe": ("edge_asr.cli.transcribe", "Transcribe sound files to text, JSON, SRT or VTT."),
    "listen": ("edge_asr.cli.listen", "Transcribe a live microphone."),
    "serve": ("edge_asr.cli.serve", "Serve recognition over HTTP, WebSocket and the OpenAI API."),
    "align": ("edge_asr.cli.align", "Find when each word of a given text is said in a recording."),
    "bench": ("edge_asr.cli.bench", "Measure latency, throughput, memory and power of a bundle here."),
    "evaluate": (
        "edge_asr.cli.evaluate",
        "Measure word and character error rates of a bundle on a manifest.",
    ),
    "grammar": ("edge_asr.cli.grammar", "Check, compile and tune a grammar: the phrases to recognize."),
    "lm": ("edge_asr.cli.lm", "Build, convert, tune and attach a language model: which words are likely."),
    "inspect": ("edge_asr.cli.inspect", "Show what is in a bundle or a checkpoint."),
    "doctor": ("edge_asr.cli.doctor", "Show what this machine can run, and how to fix what it cannot."),
}

EXIT_ERROR = 1
EXIT_GATE = 3
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A click group whose commands are imported on use, and whose errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the names of all commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return its `command`; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does, and name the nearest known command in the message for a misspelled one."""
        near = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if near and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command list of `--help` from `COMMANDS`, importing nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and exit with its code; see the top of this file.

        An expected error is one line on stderr; `-vv` shows its traceback. Any other exception is
        a bug and keeps its traceback.
        """
        extra["standalone_mode"] = False
        prepare_streams()
        try:
            arguments = list(sys.argv[1:] if args is None else args)
            _refuse_empty(arguments)
            code = super().main(arguments, prog_name or "edge-asr", **extra)
        except click.exceptions.Abort:
            code = EXIT_INTERRUPTED
        except click.ClickException as error:
            object.__setattr__(error, "message", printable(error.message))  # the message holds names
            error.show()
            code = error.exit_code
        except EdgeAsrError as error:
            code = _report(error, str(error), EXIT_GATE if isinstance(error, GateError) else EXIT_ERROR)
        except OSError as error:
            message = describe_os_error(error)
            if message is None:
                raise
            code = _report(error, message, EXIT_ERROR)
        sys.exit(code if isinstance(code, int) else 0)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse "", which would mean the current folder; mostly it is an unset variable of a script."""
    for argument in arguments:
        if not argument or re.fullmatch(r"--[\w-]+=", argument):
            what = argument or "an argument"
            raise click.UsageError(f"{what} is empty; leave it out or give a value (. is the current folder)")


def _report(error: Exception, message: str, code: int) -> int:
    logging.getLogger(__name__).debug("traceback of the error below", exc_info=error)
    say(" ".join(message.split()))
    return code


class _Formatter(logging.Formatter):
    """Formats a record on one line, with its traceback, if any, below."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    # StreamHandler[TextIO] would need Python 3.11 at run time.
    """Writes to the current sys.stderr, so that a progress bar can lift the line above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr


def configure_logging(verbosity: int) -> None:
    """Send log records to stderr: warnings always, our info from 1 (`-v`), everything from 2."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, _StderrHandler):
            root.removeHandler(handler)
    handler = _StderrHandler()
    handler.setFormatter(_Formatter("edge-asr: %(levelname)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    logging.getLogger("edge_asr").setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-asr")
@click.option(
    "-v", "--verbose", count=True, help="Show more log lines on stderr; -vv shows all, with tracebacks."
)
def cli(verbose: int) -> None:
    """Conformer-CTC speech recognition for the edge: train, export, prove, run.

    Exit codes: 0 ok, 1 an expected error (one line on stderr), 2 wrong usage, 3 an artifact failed
    its proof, 130 Ctrl-C.
    """
    configure_logging(verbose)


def main() -> NoReturn:
    """Entry point of the `edge-asr` script.

    It ends the process without freeing the interpreter and its libraries object by object, which after
    `transcribe` took longer than the recognition of a short clip. All exit handlers run first.
    """
    codes: list[int] = []
    atexit.register(_end_at_once, codes)  # handlers run in reverse order, so this one runs last
    try:
        cli.main()
    except SystemExit as end:
        if isinstance(end.code, int):
            codes.append(end.code)
        raise
    except KeyboardInterrupt:  # raised outside of click, which handles its own
        codes.append(EXIT_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # from now on Ctrl-C ends the process without a traceback


def _end_at_once(codes: list[int]) -> None:
    if not codes:  # Python still has to print a traceback or a message
        return
    code = codes[0]
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except BrokenPipeError:  # the reader has left
            code = code or EXIT_ERROR
        except OSError as error:
            if not code:
                code = EXIT_ERROR
                os.write(2, f"edge-asr: standard output: {error.strerror}\n".encode())
    os._exit(code)
