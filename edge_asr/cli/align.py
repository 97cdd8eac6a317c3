"""`edge-asr align`: when each word of a given text is said in a recording.

It reads the text, shows progress and writes the formats. What this file does not do: align
(edge_asr.runtime.alignment), lay out subtitles (edge_asr.transcript_formats).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_asr.cli.options import model_options, progress_bar
from edge_asr.cli.terminal import print_text, say
from edge_asr.errors import ConfigError

if TYPE_CHECKING:
    from edge_asr.runtime.alignment.result import AlignedWord, Alignment

FORMATS = ("json", "ctm", "textgrid", "srt", "vtt")
MAX_TEXT_BYTES = 64 << 20
STDIN = "-"


@click.command(name="align")
@click.argument("audio", metavar="AUDIO")
@click.argument("text_file", metavar="[TEXT]", required=False)
@click.option("--text", "words", metavar="WORDS", help="The text itself, in the place of a file.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(FORMATS),
    default="json",
    show_default=True,
    help="json has every word with its score; the others have those that were found.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE instead of printing.",
)
@click.option("--force", is_flag=True, help="Overwrite a file that exists.")
@model_options
def command(
    audio: str,
    text_file: str | None,
    words: str | None,
    output_format: str,
    output: Path | None,
    force: bool,
    recognizer: dict[str, Any],
) -> None:
    """Find when each word of TEXT, a file or `-` for stdin, is said in AUDIO.

    The text is in ordinary spelling. AUDIO may hold more than the text, before, after and within it; words of
    the text that it lacks are marked in json and left out elsewhere. A recording may be hours long.

    \b
    edge-asr align talk.wav talk.txt --format textgrid -o talk.TextGrid
    edge-asr align command.wav --text "turn left"
    """
    if (text_file is None) == (words is None):
        raise click.UsageError("give the text once: the name of a file, - for stdin, or --text WORDS")
    if audio == STDIN and text_file == STDIN:
        raise click.UsageError("- (stdin) can be the sound or the text, not both")
    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output} exists already; add --force to overwrite it, or give another -o")
    text = _read_text(text_file) if text_file is not None else words or ""

    from edge_asr.audio import AudioFile
    from edge_asr.runtime.recognizer import Recognizer

    with (
        AudioFile(sys.stdin.buffer if audio == STDIN else audio) as file,
        Recognizer.load(**recognizer) as loaded,
        progress_bar() as bar,
    ):
        task = bar.add_task("aligning", total=file.duration_s)
        alignment = loaded.align_file(
            file, text, progress=lambda heard_s: bar.update(task, completed=heard_s)
        )
    name = "stdin" if audio == STDIN else Path(audio).stem
    content = format_alignment(alignment, output_format, name)
    if output is None:
        print_text(content)
    else:
        from edge_asr.atomic import write_file

        write_file(output, content)
    n_missing = len(alignment.words) - len(alignment.found)
    if n_missing:
        say(f"{n_missing} of {len(alignment.words)} words were not found in the sound")


def _read_text(name: str) -> str:
    if name == STDIN:
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    else:
        with open(name, "rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    if len(data) > MAX_TEXT_BYTES:
        raise ConfigError(f"{name} has more than {MAX_TEXT_BYTES >> 20} MiB; that is no text of a recording")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text ({error}); give a text file") from error


def format_alignment(alignment: Alignment, output_format: str, name: str) -> str:
    """Format an alignment.

    Args:
        alignment: what was found.
        output_format: one of `FORMATS`.
        name: of the recording, for ctm.

    Raises:
        ValueError: the format is unknown.
    """
    if output_format == "json":
        from edge_asr.printable import json_line

        return json_line(alignment.to_dict()) + "\n"
    timed = [(word, word.start_s, word.end_s) for word in alignment.words]
    found = [(w, start, end) for w, start, end in timed if start is not None and end is not None]
    if output_format == "ctm":
        label = "_".join(name.split())
        return "".join(
            f"{label} 1 {start:.3f} {end - start:.3f} {'_'.join(w.text.split())} {w.score:.3f}\n"
            for w, start, end in found
        )
    if output_format == "textgrid":
        return _format_textgrid(found, alignment.duration_s)
    if output_format in ("srt", "vtt"):
        from edge_asr.runtime.transcript import Word
        from edge_asr.transcript_formats import format_srt, format_vtt, split_into_cues

        cues = split_into_cues(
            [Word(text=w.text, start_s=start, end_s=end, confidence=w.score) for w, start, end in found]
        )
        return format_srt(cues) if output_format == "srt" else format_vtt(cues)
    raise ValueError(f"unknown format {output_format!r}; use one of {', '.join(FORMATS)}")


def _format_textgrid(found: list[tuple[AlignedWord, float, float]], duration_s: float) -> str:
    """Format a Praat TextGrid with one tier, whose intervals leave no gap."""
    intervals: list[tuple[float, float, str]] = []
    here = 0.0
    for word, start, end in found:
        if start > here:
            intervals.append((here, start, ""))
        begin = max(start, here)
        here = max(end, begin + 0.001)
        intervals.append((begin, here, word.text))
    last = max(duration_s, here)
    if last > here or not intervals:
        intervals.append((here, last, ""))
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {last:.6f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {last:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, (begin, end, text) in enumerate(intervals, start=1):
        quoted = text.replace('"', '""')
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {begin:.6f}",
            f"            xmax = {end:.6f}",
            f'            text = "{quoted}"',
        ]
    return "\n".join(lines) + "\n"
