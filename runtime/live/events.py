"""The events of live recognition: partial, final, unmatched, gap, device, error.

An event is one frozen object in Python and one line of JSON (`to_dict`). Times are
seconds of the 16 kHz stream since listening began, so they are also positions in the recording.
What this file does not do: decide when an event happens (recognizer.py), print it (cli/live_output.py).

    partial    the text of the utterance in progress so far; the next one replaces it
    final      the text of one utterance; immutable, never followed by another of the same id
    unmatched  the same for an utterance that is no phrase of the grammar, with what it sounded like
    gap        audio was lost: how much and why
    device     the microphone went away, came back, gives only zeros
    error      listening ended, and why
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.runtime.transcript import GrammarResult, Token, Word

FinalReason = Literal["pause", "max_length", "gap", "end"]
GapReason = Literal["queue_overflow", "device_overflow", "missing", "device_lost"]
DeviceState = Literal["waiting", "lost", "back", "silent", "audible"]

_GAP_WORDS: dict[GapReason, str] = {
    "queue_overflow": "recognition was too slow and the queue was full",
    "device_overflow": "the sound driver reported an overflow",
    "missing": "less audio arrived than time passed",
    "device_lost": "the microphone was away",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """The utterance in progress. An empty text withdraws an earlier partial of the same id.

    Attributes:
        id: number of the utterance; its final will carry the same.
        text: the whole text so far.
        start_s: where the utterance begins.
        end_s: how far the audio has been decoded.
    """

    id: int
    text: str
    start_s: float
    end_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": "partial",
            "id": self.id,
            "text": self.text,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """One finished utterance: `Recognizer.transcribe` of exactly the samples of its segment.

    Attributes:
        id: number of the utterance, 0, 1, 2, ...
        text: its text, never empty.
        start_s: start of the first token.
        end_s: end of the last token.
        tokens: tokens with stream times and confidence.
        words: words with stream times and confidence.
        segment_start_samples: first sample of the stream that was transcribed.
        segment_end_samples: one past the last; the next segment begins here or later.
        reason: what ended the utterance: a "pause", the "max_length", a "gap", the "end" of listening.
        endpoint_wait_s: audio between the end of speech and the decision that the utterance had ended.
        compute_s: wall time from that decision to this event.
        grammar: the phrase, its slots and tags, with stream times; None without a grammar.
    """

    id: int
    text: str
    start_s: float
    end_s: float
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    segment_start_samples: int
    segment_end_samples: int
    reason: FinalReason
    endpoint_wait_s: float
    compute_s: float
    grammar: GrammarResult | None = None

    @property
    def segment_start_s(self) -> float:
        """Start of the transcribed segment, exact, because samples / 16000 has at most seven decimals."""
        return self.segment_start_samples / STREAM_SAMPLE_RATE

    @property
    def segment_end_s(self) -> float:
        """End of the transcribed segment, exact."""
        return self.segment_end_samples / STREAM_SAMPLE_RATE

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; `segment_*_s` are not rounded, so `round(x * 16000)` gives the samples."""
        return {
            "type": "final",
            "id": self.id,
            "text": self.text,
            **({} if self.grammar is None else self.grammar.to_dict()),
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "segment_start_s": self.segment_start_s,
            "segment_end_s": self.segment_end_s,
            "reason": self.reason,
            "endpoint_wait_s": round(self.endpoint_wait_s, 3),
            "compute_s": round(self.compute_s, 4),
            "tokens": [_rounded(asdict(token)) for token in self.tokens],
            "words": [_rounded(asdict(word)) for word in self.words],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmatched:
    """One finished utterance that is no phrase of the grammar; there is no final of this id.

    Attributes:
        id: number of the utterance, in one count with the finals.
        heard: what greedy search heard, never empty.
        start_s, end_s: from its first token to its last.
        score: how near the best phrase came, as in `GrammarResult`; None if none came near.
        segment_start_samples, segment_end_samples, reason, endpoint_wait_s, compute_s: as in `Final`.
    """

    id: int
    heard: str
    start_s: float
    end_s: float
    score: float | None
    segment_start_samples: int
    segment_end_samples: int
    reason: FinalReason
    endpoint_wait_s: float
    compute_s: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form; as that of `Final`, with an empty text."""
        return {
            "type": "unmatched",
            "id": self.id,
            "text": "",
            "matched": False,
            "heard": self.heard,
            "score": None if self.score is None else round(self.score, 6),
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "segment_start_s": self.segment_start_samples / STREAM_SAMPLE_RATE,
            "segment_end_s": self.segment_end_samples / STREAM_SAMPLE_RATE,
            "reason": self.reason,
            "endpoint_wait_s": round(self.endpoint_wait_s, 3),
            "compute_s": round(self.compute_s, 4),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Audio that was lost. The stream goes on right after it; its times do not count the loss.

    Attributes:
        at_s: where in the stream the audio is missing, or where its absence was noticed.
        lost_s: how much was lost.
        reason: "queue_overflow", "device_overflow", "missing" or "device_lost".
        estimated: whether `lost_s` comes from the clock rather than from counted samples.
    """

    at_s: float
    lost_s: float
    reason: GapReason
    estimated: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "type": "gap",
            "at_s": round(self.at_s, 3),
            "lost_s": round(self.lost_s, 3),
            "reason": self.reason,
            "estimated": self.estimated,
        }

    def __str__(self) -> str:
        about = "about " if self.estimated else ""
        return f"{about}{self.lost_s:.2f} s of audio lost at {self.at_s:.2f} s: {_GAP_WORDS[self.reason]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChange:
    """The microphone changed; listening goes on.

    Attributes:
        state: "waiting" for a device that is not there yet; "lost", with what was heard before it already
            final; "back", with a `Gap` before it; "silent" if it gives nothing but zeros, as a muted one
            does, and "audible" when it no longer does.
        device: the device, as people know it.
        message: one sentence.
        at_s: where in the stream.
    """

    state: DeviceState
    device: str
    message: str
    at_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"type": "device", **asdict(self), "at_s": round(self.at_s, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """Listening ended because of this; the last event of a stream.

    Attributes:
        message: one sentence: what is wrong, the value seen, how to fix it.
        kind: name of the exception class, such as "DeviceError".
        at_s: how much of the stream had been heard.
    """

    message: str
    kind: str
    at_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"type": "error", "message": self.message, "kind": self.kind, "at_s": round(self.at_s, 3)}


Event = Partial | Final | Unmatched | Gap | DeviceChange | Error


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
