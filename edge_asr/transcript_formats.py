"""Writes a transcript as plain text, JSON, SRT or WebVTT.

`split_into_cues` turns words with times into subtitle cues: at most two lines of 42 characters and
7 s, and a new cue at a pause, as subtitle guidelines of broadcasters require (BBC Subtitle Guidelines;
Netflix Timed Text Style Guide: 42 characters, two lines, 7 s, at least 5/6 s). It needs only words, so it
works with any word timing.
What this file does not do: read audio, choose file names.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FORMATS = ("txt", "json", "srt", "vtt")

MAX_LINE_CHARACTERS = 42
MAX_LINES = 2
MAX_CUE_S = 7.0
MIN_CUE_S = 5 / 6
PAUSE_S = 0.8
"""Silence between two words that begins a new cue."""


class TimedWord(Protocol):
    """A word and when it was spoken."""

    @property
    def text(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


class TimedTranscript(Protocol):
    """The part of `edge_asr.runtime.Transcript` that the writers need."""

    @property
    def text(self) -> str: ...
    @property
    def words(self) -> Sequence[TimedWord]: ...
    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """One subtitle: when it is shown (s) and its one or two lines."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


def format_transcript(transcript: TimedTranscript, output_format: str) -> str:
    """Format the content of a transcript file, ending in a line break (an SRT file of silence is empty).

    Args:
        transcript: text, words with times, and `to_dict()` for JSON.
        output_format: one of `FORMATS`.

    Raises:
        ValueError: the format is unknown.
    """
    if output_format == "txt":
        return transcript.text + "\n"
    if output_format == "json":
        return json.dumps(transcript.to_dict(), ensure_ascii=False) + "\n"
    if output_format == "srt":
        return format_srt(split_into_cues(transcript.words))
    if output_format == "vtt":
        return format_vtt(split_into_cues(transcript.words))
    raise ValueError(f"unknown format {output_format!r}; use one of {', '.join(FORMATS)}")


def format_srt(cues: Sequence[Cue]) -> str:
    """Format SubRip text: numbered cues, `HH:MM:SS,mmm --> HH:MM:SS,mmm`, a blank line after each."""
    return "".join(
        f"{number}\n{_timestamp(cue.start_s, ',')} --> {_timestamp(cue.end_s, ',')}\n"
        + "".join(line + "\n" for line in cue.lines)
        + "\n"
        for number, cue in enumerate(cues, start=1)
    )


def format_vtt(cues: Sequence[Cue]) -> str:
    """Format WebVTT text (W3C WebVTT: Candidate Recommendation, section 4), with `&`, `<` and `>` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        times = f"{_timestamp(cue.start_s, '.')} --> {_timestamp(cue.end_s, '.')}\n"
        blocks.append(times + "".join(_escape_vtt(line) + "\n" for line in cue.lines))
    return "\n".join(blocks)


def split_into_cues(words: Sequence[TimedWord]) -> list[Cue]:
    """Group words into cues that can be read.

    A cue ends before the word that would need a third line, make it longer than 7 s, or follow a
    pause of more than 0.8 s. A short cue stays up for 5/6 s if the next one leaves room. Cues
    never overlap, and each lasts at least a millisecond.

    Args:
        words: in the order spoken.

    Returns:
        Cues in order. The words of all lines together are the given words (a word of more than 42
        characters is cut where the line ends).
    """
    groups: list[list[TimedWord]] = []
    for word in words:
        group = groups[-1] if groups else None
        if group is None or _begins_cue(group, word):
            groups.append([word])
        else:
            group.append(word)
    cues: list[Cue] = []
    previous_end_s = 0.0
    for index, group in enumerate(groups):
        start_s = max(group[0].start_s, previous_end_s)
        end_s = max(group[-1].end_s, start_s + MIN_CUE_S)
        if index + 1 < len(groups):
            end_s = min(end_s, groups[index + 1][0].start_s)
        end_s = max(end_s, start_s + 0.001)
        lines = _break_lines(" ".join(w.text for w in group))
        cues.extend(_share_time(lines, start_s, end_s))
        previous_end_s = end_s
    return cues


def _begins_cue(group: Sequence[TimedWord], word: TimedWord) -> bool:
    return (
        word.start_s - group[-1].end_s > PAUSE_S
        or word.end_s - group[0].start_s > MAX_CUE_S
        or len(_break_lines(" ".join(w.text for w in (*group, word)))) > MAX_LINES
    )


def _share_time(lines: Sequence[str], start_s: float, end_s: float) -> list[Cue]:
    """Return one cue or, for a single word of more than two lines, several with equal shares of time."""
    n_cues = -(-len(lines) // MAX_LINES)
    step_s = (end_s - start_s) / max(n_cues, 1)
    return [
        Cue(
            start_s=start_s + i * step_s,
            end_s=start_s + (i + 1) * step_s,
            lines=tuple(lines[i * MAX_LINES : (i + 1) * MAX_LINES]),
        )
        for i in range(n_cues)
    ]


def _break_lines(text: str) -> list[str]:
    """Break a text into lines of at most 42 characters; two lines get about equal lengths."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= MAX_LINE_CHARACTERS:
            lines[-1] += " " + word
            continue
        lines.extend(word[i : i + MAX_LINE_CHARACTERS] for i in range(0, len(word), MAX_LINE_CHARACTERS))
    if len(lines) != 2:
        return lines
    words = " ".join(text.split()).split(" ")
    splits = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    fitting = [s for s in splits if max(map(len, s)) <= MAX_LINE_CHARACTERS]
    return list(min(fitting, key=lambda s: max(map(len, s)))) if fitting else lines


def _timestamp(time_s: float, separator: str) -> str:
    total_ms = round(time_s * 1000)
    seconds, ms = divmod(total_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{separator}{ms:03d}"


def _escape_vtt(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
