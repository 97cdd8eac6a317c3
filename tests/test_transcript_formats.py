"""Subtitle and text writers: exact files for scripted words, and what holds for any words."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr import transcript_formats as formats


@dataclass(frozen=True)
class Word:
    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Transcript:
    text: str
    words: tuple[Word, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def spoken(text: str, *, start_s: float = 0.0, word_s: float = 0.3, gap_s: float = 0.1) -> list[Word]:
    words = []
    for word in text.split():
        words.append(Word(word, start_s, start_s + word_s))
        start_s += word_s + gap_s
    return words


def test_srt_file_is_exact() -> None:
    words = [*spoken("turn left", start_s=0.5), *spoken("stop", start_s=3661.0, word_s=0.2)]
    assert formats.format_transcript(Transcript("turn left stop", tuple(words)), "srt") == (
        "1\n00:00:00,500 --> 00:00:01,333\nturn left\n\n2\n01:01:01,000 --> 01:01:01,833\nstop\n\n"
    )


def test_vtt_file_is_exact_and_escaped() -> None:
    words = (Word("a<b>", 0.0, 1.0), Word("&", 1.0, 1.9996))
    assert formats.format_transcript(Transcript("a<b> &", words), "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\na&lt;b&gt; &amp;\n"
    )


def test_silence_gives_valid_files() -> None:
    silence = Transcript("", ())
    assert formats.format_transcript(silence, "txt") == "\n"
    assert formats.format_transcript(silence, "srt") == ""
    assert formats.format_transcript(silence, "vtt") == "WEBVTT\n"
    assert json.loads(formats.format_transcript(silence, "json")) == {"text": "", "words": []}


def test_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="unknown format 'docx'; use one of txt, json, srt, vtt"):
        formats.format_transcript(Transcript("", ()), "docx")


def test_two_lines_are_balanced() -> None:
    (cue,) = formats.split_into_cues(spoken("one two three four five six seven eight nine", word_s=0.2))
    assert cue.lines == ("one two three four five", "six seven eight nine")


def test_a_pause_and_seven_seconds_begin_a_cue() -> None:
    pause = formats.split_into_cues([Word("a", 0.0, 0.5), Word("b", 1.4, 1.6)])
    assert [cue.lines for cue in pause] == [("a",), ("b",)]
    no_pause = formats.split_into_cues([Word("a", 0.0, 0.5), Word("b", 1.3, 1.6)])
    assert [cue.lines for cue in no_pause] == [("a b",)]
    slow = formats.split_into_cues([Word("a", 0.0, 3.0), Word("b", 3.1, 6.0), Word("c", 6.1, 7.2)])
    assert [cue.lines for cue in slow] == [("a b",), ("c",)]


def test_a_short_cue_is_held_only_up_to_the_next() -> None:
    first, second = formats.split_into_cues([Word("a", 0.0, 0.1), Word("b", 0.91, 1.0)])
    assert (first.start_s, first.end_s) == (0.0, pytest.approx(5 / 6))
    assert second.start_s == 0.91
    crowded = "x" * 42 + " " + "y" * 42
    first, second = formats.split_into_cues([*spoken(crowded, word_s=0.1), Word("z", 0.45, 0.5)])
    assert first.end_s == 0.45


def test_a_word_longer_than_a_cue_is_cut_and_shares_its_time() -> None:
    cues = formats.split_into_cues([Word("x" * 100, 1.0, 2.0)])
    assert [cue.lines for cue in cues] == [("x" * 42, "x" * 42), ("x" * 16,)]
    assert [(cue.start_s, cue.end_s) for cue in cues] == [(1.0, 1.5), (1.5, 2.0)]


words_lists = st.lists(
    st.tuples(
        st.text(alphabet="abc<&", min_size=1, max_size=60),
        st.floats(min_value=0, max_value=5),
        st.floats(min_value=0, max_value=9),
    ),
    max_size=40,
)


@given(words_lists)
def test_cues_hold_all_words_in_order_without_overlap(parts: list[tuple[str, float, float]]) -> None:
    words, time_s = [], 0.0
    for text, gap_s, length_s in parts:
        words.append(Word(text, time_s + gap_s, time_s + gap_s + length_s))
        time_s += gap_s + length_s
    cues = formats.split_into_cues(words)
    shown = "".join("".join(cue.lines) for cue in cues).replace(" ", "")
    assert shown == "".join(w.text for w in words)
    for cue in cues:
        assert 1 <= len(cue.lines) <= formats.MAX_LINES
        assert all(1 <= len(line) <= formats.MAX_LINE_CHARACTERS for line in cue.lines)
        assert cue.end_s > cue.start_s
    for one, two in itertools.pairwise(cues):
        assert two.start_s >= one.end_s
    for text in (formats.format_srt(cues), formats.format_vtt(cues)):
        stamps = re.findall(r"(\d\d):(\d\d):(\d\d)[,.](\d\d\d)", text)
        times = [((int(h) * 60 + int(m)) * 60 + int(s)) * 1000 + int(ms) for h, m, s, ms in stamps]
        assert times == sorted(times)
        assert len(times) == 2 * len(cues)
