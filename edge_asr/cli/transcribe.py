"""`edge-asr transcribe`: sound files to text, JSON, SRT or WebVTT.

It finds the files, hands them to the recognizer (several at a time), and writes each transcript as
soon as it and those before it are ready. A file that cannot be read is reported on stderr, the others are
transcribed, and the exit code is 1.
What this file does not do: recognize (edge_asr.runtime), lay out subtitles (edge_asr.transcript_formats).
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.cluster import cluster_options, transcribe_archive
from edge_asr.cli.options import digits_option, progress_bar, recognizer_options, self_test_option
from edge_asr.cli.terminal import is_terminal, print_json, print_text, say
from edge_asr.errors import ConfigError
from edge_asr.printable import printable
from edge_asr.transcript_formats import FORMATS, format_transcript

if TYPE_CHECKING:
    from rich.progress import Progress

    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.transcript import Transcript

_log = logging.getLogger(__name__)

STDIN = "-"
_PROGRESS_FROM_S = 20.0
#: Errors that concern one file name; any other would hit the next file too.
_BAD_NAME = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EISDIR})


@dataclass(frozen=True, slots=True)
class _Source:
    """A sound to transcribe: where it is, and its place below the output folder, without suffix."""

    path: str
    output_stem: Path


@dataclass(slots=True)
class _Summary:
    """What has been done so far."""

    transcripts: list[dict[str, Any]]
    errors: list[dict[str, str]]
    n_delivered: int = 0
    audio_s: float = 0.0
    compute_s: float = 0.0


@click.command(name="transcribe")
@click.argument("files", nargs=-1, metavar="FILE|DIR...")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="txt",
    show_default=True,
    help="Format of each transcript; json is one object with token and word times.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document of all files.")
@click.option(
    "-o",
    "--output-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write one file per sound to DIR instead of printing.",
)
@click.option("--force", is_flag=True, help="Overwrite existing transcripts.")
@cluster_options
@digits_option
@recognizer_options
@self_test_option
def command(
    files: tuple[str, ...],
    self_test: bool,
    output_format: str,
    as_json: bool,
    output_dir: str | None,
    force: bool,
    cluster: dict[str, Any],
    digits: bool,
    recognizer: dict[str, Any],
) -> None:
    """Transcribe sound files, all those in folders, or `-` for a sound on stdin.

    Without -m the embedded model tiny-en is used. Files may have any sample rate and any number of channels.
    A file that cannot be read is reported, the others are transcribed, and the exit code is 1.

    \b
    edge-asr transcribe meeting.wav
    edge-asr transcribe talks/ --format srt -o subtitles/
    arecord -d 5 -f S16_LE -r 16000 | edge-asr transcribe -
    edge-asr transcribe --manifest archive.jsonl -o results/ --ray
    """
    if any(value is not None for value in cluster.values()):
        transcribe_archive(
            **cluster,
            output=output_dir,
            recognizer=recognizer,
            self_test=self_test,
            digits=digits,
            force=force,
            as_json=as_json,
        )
        return
    if not files:
        raise click.UsageError("Missing argument 'FILE|DIR...'.")
    if as_json and output_dir is None and output_format in ("srt", "vtt"):
        raise click.UsageError(
            f"--json prints JSON, not {output_format}; add -o DIR to write {output_format} files"
        )
    sources, problems = _find_sources(files)
    if output_dir is None and output_format in ("srt", "vtt") and len(sources) > 1:
        raise click.UsageError(f"{len(sources)} sounds do not fit one {output_format} on stdout; add -o DIR")
    folder = None if output_dir is None else Path(output_dir)
    if folder is not None:
        _check_outputs(sources, folder, output_format, force=force)

    several = len(sources) + len(problems) > 1
    delivery = _Delivery(output_format, as_json=as_json, output_dir=folder, several=several, digits=digits)
    summary = _Summary([], [])
    for path, message in problems:
        _report_error(summary, path, message)
    if sources:
        with _no_garbage():
            from edge_asr.runtime.onnxruntime_backend import default_num_threads
            from edge_asr.runtime.recognizer import Recognizer
            from edge_asr.runtime.tested import load_tested

            # Several files on one thread each are faster than one file on all threads.
            n_threads = recognizer["num_threads"] or default_num_threads()
            n_workers = min(n_threads, len(sources))
            load = load_tested if self_test else Recognizer.load
            loaded = load(**{**recognizer, "num_threads": n_threads // n_workers})
        with loaded:
            _transcribe(loaded, sources, delivery, summary, n_workers)
    rate = summary.audio_s / summary.compute_s if summary.compute_s else 0.0
    _log.info("%.1f s of audio in %.2f s: %.1f x real time", summary.audio_s, summary.compute_s, rate)
    if as_json:
        document = {
            "model": recognizer["path_or_name"],
            "transcripts": summary.transcripts,
            "errors": summary.errors,
            "audio_s": round(summary.audio_s, 3),
            "compute_s": round(summary.compute_s, 4),
            "rtfx": round(rate, 2),
        }
        print_json(document)
    if summary.errors:
        sys.exit(1)


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Delivers transcripts: to stdout as they come, to files, or in one JSON document at the end."""

    output_format: str
    as_json: bool
    output_dir: Path | None
    several: bool
    digits: bool

    def output(self, source: _Source) -> Path | None:
        """Return the file of a transcript; None if it is printed."""
        return None if self.output_dir is None else _output(source, self.output_dir, self.output_format)

    def write(self, source: _Source, transcript: Transcript) -> dict[str, Any]:
        """Write or print one transcript, and return its entry in the JSON document."""
        if self.digits:
            from edge_asr.runtime.digits import write_transcript_digits

            transcript = write_transcript_digits(transcript)
        entry = {"file": source.path, **transcript.to_dict()}
        output = self.output(source)
        if output is not None:
            from edge_asr.atomic import write_file

            write_file(output, format_transcript(transcript, self.output_format))
            entry["output"] = str(output)
        elif self.output_format == "json" and not self.as_json:
            print_json(entry)
        elif not self.as_json:
            label = f"{printable(source.path)}: " if self.several and self.output_format == "txt" else ""
            print_text(label + format_transcript(transcript, self.output_format))
        return entry


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Disable garbage collection during imports and loading, then freeze their objects.

    They stay until the command ends, and searching them for garbage took a twentieth of the time to the first
    text.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        click.get_current_context().call_on_close(gc.unfreeze)
        if enabled:
            gc.enable()


def _transcribe(
    recognizer: Recognizer,
    sources: Sequence[_Source],
    delivery: _Delivery,
    summary: _Summary,
    n_workers: int,
) -> None:
    from edge_asr.runtime.bulk import BATCH_S, GPU_BATCH_S, GPU_WORKERS, transcribe_files

    batch_s = BATCH_S
    if recognizer.backend.name != "cpu":
        n_workers, batch_s = min(GPU_WORKERS, len(sources)), GPU_BATCH_S
    sounds = [sys.stdin.buffer if source.path == STDIN else source.path for source in sources]
    started = time.perf_counter()
    with ExitStack() as stack:
        # Without a terminal, rich, which draws the bar, is not even loaded.
        heard = _Bar([source.path for source in sources], stack).show if is_terminal(sys.stderr) else None
        for result in transcribe_files(
            recognizer, sounds, num_workers=n_workers, batch_s=batch_s, heard=heard
        ):
            source = sources[result.index]
            if result.transcript is None:
                _log.debug("traceback of the error below", exc_info=result.error)
                _report_error(summary, source.path, str(result.error))
                continue
            summary.audio_s += result.transcript.duration_s
            try:
                entry = delivery.write(source, result.transcript)
            except OSError as error:
                output = delivery.output(source)
                if output is None:
                    raise
                problem = f"{output} cannot be written: {error.strerror}"
                if error.errno in _BAD_NAME:
                    _report_error(summary, source.path, problem)
                    continue
                _report_error(
                    summary, source.path, f"{problem}; {summary.n_delivered} transcripts are written"
                )
                break
            summary.n_delivered += 1
            if delivery.as_json:
                summary.transcripts.append(entry)
    summary.compute_s = time.perf_counter() - started


class _Bar:
    """Shows progress in seconds of sound, on a terminal, once there is enough sound to wait for.

    Files are opened in turn, so the total is an estimate until the last one is open.
    """

    def __init__(self, paths: Sequence[str], stack: ExitStack) -> None:
        from rich.markup import escape

        self._names = [escape(printable(Path(path).name)) for path in paths]
        self._stack = stack
        self._lengths_s: dict[int, float] = {}
        self._heard_s: dict[int, float] = {}
        self._progress: Progress | None = None
        self._lock = threading.Lock()

    def show(self, index: int, heard_s: float, length_s: float) -> None:
        """Note that a file was opened, or how much of it was read; see `edge_asr.runtime.bulk.Heard`."""
        with self._lock:
            self._lengths_s[index], self._heard_s[index] = length_s, heard_s
            total_s = sum(self._lengths_s.values()) / len(self._lengths_s) * len(self._names)
            if self._progress is None:
                if total_s <= _PROGRESS_FROM_S:
                    return
                self._progress = self._stack.enter_context(progress_bar())
                self._progress.add_task("transcribing")
            (task,) = self._progress.task_ids
            done_s = sum(self._heard_s.values())
            self._progress.update(task, total=total_s, completed=done_s, description=self._names[index])


def _find_sources(arguments: Sequence[str]) -> tuple[list[_Source], list[tuple[str, str]]]:
    """List the sounds that the arguments name, in order, and (name, problem) of what cannot be used."""
    if arguments.count(STDIN) > 1:
        raise click.UsageError("- (stdin) can be given once only")
    sources: list[_Source] = []
    problems: list[tuple[str, str]] = []
    for argument in arguments:
        path = Path(argument)
        if argument == STDIN:
            if sys.stdin is None:
                problems.append((STDIN, "standard input is closed; pipe a sound into it"))
            else:
                sources.append(_Source(STDIN, Path("stdin")))
            continue
        try:
            mode = path.stat().st_mode
        except OSError as error:
            problems.append((argument, _describe_missing(path, error)))
            continue
        if stat.S_ISDIR(mode):
            found, unreadable = _search(path)
            sources.extend(_Source(str(p), p.relative_to(path).with_suffix("")) for p in found)
            problems.extend(unreadable)
            if not found and not unreadable:
                problems.append((argument, f"no sound file below the folder {argument}"))
        elif stat.S_ISREG(mode):
            sources.append(_Source(argument, Path(path.stem)))
        else:
            problems.append((argument, "a pipe, socket or device, not a file; give it as: - < NAME"))
    return sources, problems


def _describe_missing(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to something that is not there" if path.is_symlink() else "no such file or folder"
    return str(error.strerror)


def _search(folder: Path) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the sound files below a folder, sorted, and what could not be searched."""
    from edge_asr.audio import has_sound_suffix

    found: list[Path] = []
    problems: list[tuple[str, str]] = []

    def note(error: OSError) -> None:
        problems.append((os.fsdecode(error.filename), f"this folder cannot be read: {error.strerror}"))

    for parent, _, names in os.walk(folder, onerror=note):
        for path in (Path(parent, name) for name in names):
            if not has_sound_suffix(path):
                continue
            try:
                if stat.S_ISREG(path.stat().st_mode):
                    found.append(path)
            except OSError as error:
                problems.append((str(path), _describe_missing(path, error)))
    return sorted(found), problems


def _output(source: _Source, folder: Path, output_format: str) -> Path:
    return folder / f"{source.output_stem}.{output_format}"


def _check_outputs(sources: Sequence[_Source], folder: Path, output_format: str, *, force: bool) -> None:
    """Refuse two sounds with one output, and existing outputs, before any work."""
    taken: dict[Path, str] = {}
    for source in sources:
        output = _output(source, folder, output_format)
        if output in taken:
            raise ConfigError(
                f"{taken[output]} and {source.path} would both be written to {output}; "
                "transcribe them in two runs with two folders"
            )
        taken[output] = source.path
    existing = [output for output in taken if os.path.exists(output)]
    if existing and not force:
        others = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise ConfigError(
            f"{existing[0]}{others} exist already; add --force to overwrite, or give another -o"
        )


def _report_error(summary: _Summary, path: str, message: str) -> None:
    message = " ".join(message.split())
    summary.errors.append({"file": path, "error": message})
    say(message if path in message else f"{path}: {message}")
