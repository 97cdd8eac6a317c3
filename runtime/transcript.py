"""What recognition gives back: text, words, tokens and segments, as plain data.

A segment is a stretch of speech between pauses. What this file does not do: subtitle layout
(`edge_asr.cli.formats`), decoding (`ctc.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_asr.runtime.decoding.greedy import Token, Word

SEGMENT_PAUSE_S = 0.8
"""Silence between two words that begins a new segment, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Words without a pause between them.

    Attributes:
        text: the words, joined by spaces.
        start_s, end_s: from the first word's start to the last word's end, seconds.
        confidence: mean of its words' confidences.
        words: at least one.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """A recognised recording.

    Attributes:
        text: all words, joined by spaces; "" when nothing was said.
        tokens: with times and confidences.
        words: with times and confidences.
        segments: words grouped at pauses of `SEGMENT_PAUSE_S`.
        duration_s: length of the recording, seconds.
    """

    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    segments: tuple[Segment, ...]
    duration_s: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; a segment's words are not repeated inside it."""
        return {
            "text": self.text,
            "duration_s": self.duration_s,
            "segments": [
                {"text": s.text, "start_s": s.start_s, "end_s": s.end_s, "confidence": s.confidence}
                for s in self.segments
            ],
            "words": [dataclasses.asdict(word) for word in self.words],
            "tokens": [dataclasses.asdict(token) for token in self.tokens],
        }


def split_segments(words: Sequence[Word], pause_s: float = SEGMENT_PAUSE_S) -> tuple[Segment, ...]:
    """Words grouped at pauses of at least `pause_s` seconds."""
    groups: list[list[Word]] = []
    for word in words:
        if not groups or word.start_s - groups[-1][-1].end_s >= pause_s:
            groups.append([])
        groups[-1].append(word)
    return tuple(
        Segment(
            text=" ".join(word.text for word in group),
            start_s=group[0].start_s,
            end_s=group[-1].end_s,
            confidence=sum(word.confidence for word in group) / len(group),
            words=tuple(group),
        )
        for group in groups
    )
