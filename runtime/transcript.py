"""The result of recognition: text, words, tokens and segments, as plain data made from a decoder's output.

Here frames become seconds and tokens become words. The confidence of a word is that of its least certain
token or, where the bundle has a table for it, the probability that the word is right. A segment is a stretch
of speech between pauses.
What this file does not do: subtitle layout (`edge_asr.transcript_formats`), decoding (decoding/).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_asr.bundle.confidence import ConfidenceTable
from edge_asr.runtime.decoding.decoder import Hypothesis, I64Array, TokenRuns
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary, join_pieces

SEGMENT_PAUSE_S = 0.8
"""Silence between two words that begins a new segment, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token and when it was spoken.

    Attributes:
        text: the token as written, with a word boundary as a space (" go", "o", " ").
        id: index in the vocabulary.
        start_s, end_s: from the first frame of its run to the end of the last, seconds.
        confidence: 0 to 1, as the decoder defines it (greedy: the highest probability in the run).
    """

    text: str
    id: int
    start_s: float
    end_s: float
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word, from its first token's start to its last token's end.

    Attributes:
        text: the word.
        start_s, end_s: seconds.
        confidence: lowest token confidence; calibrated, if the bundle has a table: the share of the words
            with this confidence that were right on the speech that the table was made from.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


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
class PhraseSlot:
    """What was said in a slot of a phrase.

    Attributes:
        name: name of the slot.
        value: its words; number: what they are in a slot for numbers, else None.
        start_s, end_s: of its words; None where the tokens do not separate words.
    """

    name: str
    value: str
    number: int | None
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarResult:
    """Which phrase of a grammar was said, if any.

    Attributes:
        matched: whether one was; if not, text, tokens and words of the transcript are empty.
        phrase: as the grammar writes it; "" if not matched.
        slots, tags: of the phrase, in its order.
        score: log-probability of the phrase's path less that of the best path of all, for each letter of the
            phrase, at most 0; None if not matched.
        confidence: exp(score), 0 to 1; 0 if not matched.
        heard: tokens of greedy search, whatever the grammar.
        heard_text: their text.
    """

    matched: bool
    phrase: str
    slots: tuple[PhraseSlot, ...]
    tags: tuple[str, ...]
    score: float | None
    confidence: float
    heard: tuple[Token, ...]
    heard_text: str

    def to_dict(self) -> dict[str, Any]:
        """Return a dict ready for JSON, without the tokens heard."""
        return {
            "matched": self.matched,
            "phrase": self.phrase,
            "slots": [dataclasses.asdict(slot) for slot in self.slots],
            "tags": list(self.tags),
            "score": None if self.score is None else round(self.score, 6),
            "confidence": round(self.confidence, 6),
            "heard": self.heard_text,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """The transcript of a recording.

    Attributes:
        text: all words, joined by spaces; "" if nothing was said.
        tokens: all tokens, with times and confidences.
        words: all words, with times and confidences.
        segments: words grouped at pauses of `SEGMENT_PAUSE_S`.
        duration_s: length of the recording, seconds.
        grammar: of a recognizer with a grammar; None for all others.
    """

    text: str
    tokens: tuple[Token, ...]
    words: tuple[Word, ...]
    segments: tuple[Segment, ...]
    duration_s: float
    grammar: GrammarResult | None = None

    @property
    def heard(self) -> tuple[Token, ...]:
        """The tokens, or what greedy search heard where they match no phrase of the grammar."""
        return self.tokens if self.grammar is None or self.grammar.matched else self.grammar.heard

    def to_dict(self) -> dict[str, Any]:
        """Return a dict ready for JSON; the words of a segment are not repeated inside it."""
        return {
            "text": self.text,
            **({} if self.grammar is None else self.grammar.to_dict()),
            "duration_s": self.duration_s,
            "segments": [
                {"text": s.text, "start_s": s.start_s, "end_s": s.end_s, "confidence": s.confidence}
                for s in self.segments
            ],
            "words": [dataclasses.asdict(word) for word in self.words],
            "tokens": [dataclasses.asdict(token) for token in self.tokens],
        }


def transcript_from_hypothesis(
    hypothesis: Hypothesis,
    vocabulary: Vocabulary,
    frame_s: float,
    duration_s: float,
    table: ConfidenceTable | None = None,
) -> Transcript:
    """Make the transcript of what a decoder found in a recording; `table` calibrates confidences of words."""
    tokens = tokens_from_runs(hypothesis.tokens, vocabulary, frame_s, end_s=duration_s)
    words = words_from_tokens(tokens, vocabulary)
    if table is not None:
        words = calibrate_words(words, table)
    return Transcript(
        text=" ".join(word.text for word in words),
        tokens=tokens,
        words=words,
        segments=split_segments(words),
        duration_s=duration_s,
        grammar=grammar_result(hypothesis, words, vocabulary, frame_s, duration_s),
    )


def tokens_from_runs(
    runs: TokenRuns,
    vocabulary: Vocabulary,
    frame_s: float,
    *,
    offset_s: float = 0.0,
    end_s: float | None = None,
) -> tuple[Token, ...]:
    """Convert tokens with frames to tokens with times in seconds.

    Args:
        runs: decoded runs.
        vocabulary: the model's vocabulary.
        frame_s: length of an output frame: hop_length * subsampling_factor / sample_rate.
        offset_s: time of frame 0.
        end_s: no time is later than this (an output frame can reach past the audio).
    """
    limit = float("inf") if end_s is None else end_s

    def seconds(frames: I64Array) -> list[float]:
        times: list[float] = np.round(np.minimum(offset_s + frames * frame_s, limit), 6).tolist()
        return times

    rows = zip(
        runs.ids.tolist(),
        seconds(runs.first_frames),
        seconds(runs.last_frames + 1),
        runs.confidences.tolist(),
        strict=True,
    )
    return tuple(
        Token(
            text=vocabulary.token_text(token_id), id=token_id, start_s=start, end_s=end, confidence=confidence
        )
        for token_id, start, end, confidence in rows
    )


def grammar_result(
    hypothesis: Hypothesis,
    words: Sequence[Word],
    vocabulary: Vocabulary,
    frame_s: float,
    end_s: float,
) -> GrammarResult | None:
    """Convert the match of a hypothesis; None if its decoder has no grammar.

    Args:
        hypothesis: of a decoder.
        words: those of its tokens.
        vocabulary, frame_s, end_s: as for `tokens_from_runs`.
    """
    match = hypothesis.match
    if match is None:
        return None
    heard = tokens_from_runs(match.heard, vocabulary, frame_s, end_s=end_s)
    is_aligned = len(words) == len(match.phrase.split())
    return GrammarResult(
        matched=match.matched,
        phrase=match.phrase,
        slots=tuple(
            PhraseSlot(
                name=slot.name,
                value=slot.value,
                number=slot.number,
                start_s=words[slot.first_word].start_s if is_aligned else None,
                end_s=words[slot.last_word].end_s if is_aligned else None,
            )
            for slot in match.slots
        ),
        tags=match.tags,
        score=match.score,
        confidence=match.confidence,
        heard=heard,
        heard_text=" ".join(word.text for word in words_from_tokens(heard, vocabulary)),
    )


def shift_grammar_result(result: GrammarResult, offset_s: float) -> GrammarResult:
    """Shift the times of a segment's result to those of the stream, in which it begins at `offset_s`."""

    def shift(time_s: float | None) -> float | None:
        return None if time_s is None else time_s + offset_s

    slots = tuple(
        dataclasses.replace(slot, start_s=shift(slot.start_s), end_s=shift(slot.end_s))
        for slot in result.slots
    )
    return dataclasses.replace(result, slots=slots, heard=shift_tokens(result.heard, offset_s))


def shift_tokens(tokens: tuple[Token, ...], offset_s: float) -> tuple[Token, ...]:
    """Shift the tokens of a segment to the times of the stream, in which it begins at `offset_s`."""
    return tuple(
        dataclasses.replace(token, start_s=token.start_s + offset_s, end_s=token.end_s + offset_s)
        for token in tokens
    )


def words_from_tokens(tokens: Sequence[Token], vocabulary: Vocabulary) -> tuple[Word, ...]:
    """Join tokens to words; a word boundary (U+2581, or a space in the text) begins a new one.

    Joined by spaces, the words are `vocabulary.decode` of the ids.
    """
    words: list[Word] = []
    pieces: list[tuple[str, Token]] = []

    def close() -> None:
        text = " ".join(join_pieces(text for text, _ in pieces).split())
        if text:
            words.append(
                Word(
                    text=text,
                    start_s=pieces[0][1].start_s,
                    end_s=pieces[-1][1].end_s,
                    confidence=min(token.confidence for _, token in pieces),
                )
            )
        pieces.clear()

    for token in tokens:
        for index, part in enumerate(vocabulary.tokens[token.id].split(WORD_BOUNDARY)):
            if index > 0:
                close()
            if part:
                pieces.append((part, token))
    close()
    return tuple(words)


def calibrate_words(words: Sequence[Word], table: ConfidenceTable) -> tuple[Word, ...]:
    """Replace the confidences of words by those of a table: knots, linear in between, constant outside."""
    confidences = np.interp([word.confidence for word in words], table.raw, table.calibrated).tolist()
    return tuple(
        dataclasses.replace(word, confidence=confidence)
        for word, confidence in zip(words, confidences, strict=True)
    )


def split_segments(words: Sequence[Word], pause_s: float = SEGMENT_PAUSE_S) -> tuple[Segment, ...]:
    """Group words at pauses of at least `pause_s` seconds."""
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
