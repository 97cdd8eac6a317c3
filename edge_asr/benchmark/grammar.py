"""How well a grammar does on recordings: commands right, wrong and rejected, and false accepts, by threshold.

Each recording goes through the model once; its log-probs are then decoded by the grammar. A command is a
recording whose text is a phrase of the grammar. Everything else must be rejected, and pieces of it too
(`cut_pieces`): a long sentence is rejected easily, what one says in between is short. A threshold is chosen
on some speakers and judged on others (`hold_out`).
What this file does not do: print, choose recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.manifest import Utterance
from edge_asr.runtime.decoding.decoder import Hypothesis, PhraseMatch
from edge_asr.runtime.decoding.grammar.graph import TokenGraph
from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder, Mode, allowed_cost
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

F32Array = npt.NDArray[np.float32]

THRESHOLDS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 2.0, 2.2, 2.5, 3.0)
ROUNDING = 1e-4
N_FOLDS = 5
MAX_PIECE_WORDS = 4


class LogProbsRecorder:
    """A `Decoder` that decodes greedily, and keeps the log-probs of the last utterance.

    Attributes:
        log_probs: [T', V] of the utterance that was flushed last.
    """

    def __init__(self, vocabulary: Vocabulary, home: LogProbsRecorder | None = None) -> None:
        self._vocabulary = vocabulary
        self._home = home or self
        self._pieces: list[F32Array] = []
        self.log_probs: F32Array = np.zeros((0, len(vocabulary)), np.float32)

    def push(self, log_probs: F32Array) -> None:
        """See `Decoder.push`."""
        self._pieces.append(log_probs.copy())

    def peek(self) -> Hypothesis:
        """See `Decoder.peek`."""
        log_probs = np.concatenate([np.zeros((0, len(self._vocabulary)), np.float32), *self._pieces])
        self._home.log_probs = log_probs
        return Hypothesis(tokens=greedy_decode(log_probs, self._vocabulary.blank_id))

    def flush(self) -> Hypothesis:
        """See `Decoder.flush`."""
        return self.peek()

    def fork(self) -> LogProbsRecorder:
        """See `Decoder.fork`."""
        twin = LogProbsRecorder(self._vocabulary, self._home)
        twin._pieces = list(self._pieces)
        return twin


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One recording after the model.

    Attributes:
        text: what was said.
        heard: what greedy search heard.
        duration_s: its length.
        log_probs: [T', V].
        speaker: who said it; "" if unknown.
    """

    text: str
    heard: str
    duration_s: float
    log_probs: F32Array
    speaker: str = ""


def hear_clips(
    recognizer: Recognizer,
    recorder: LogProbsRecorder,
    utterances: Sequence[Utterance],
    progress: Callable[[float], None] | None = None,
) -> list[Clip]:
    """Run the model on recordings.

    Args:
        recognizer: loaded with `decoder=` a function that returns `recorder`.
        recorder: keeps what the model says.
        utterances: the recordings.
        progress: called with the share that is done.

    Raises:
        AudioError, BackendError: a recording cannot be transcribed.
    """
    clips: list[Clip] = []
    for index, utterance in enumerate(utterances):
        transcript = recognizer.transcribe_file(utterance.audio_path)
        clips.append(
            Clip(
                text=" ".join(utterance.text.split()),
                heard=transcript.text,
                duration_s=transcript.duration_s,
                log_probs=recorder.log_probs,
                speaker=utterance.speaker,
            )
        )
        if progress is not None:
            progress((index + 1) / len(utterances))
    return clips


def cut_pieces(clips: Sequence[Clip], vocabulary: Vocabulary) -> list[Clip]:
    """Cut one piece of a few words out of each recording, between words that greedy search hears; seeded."""
    rng = np.random.default_rng(0)
    begins_word = np.array([token.startswith(WORD_BOUNDARY) for token in vocabulary.tokens])
    pieces = []
    for clip in clips:
        heard = clip.log_probs.argmax(axis=1)
        begins = np.flatnonzero(begins_word[heard[1:]] & (heard[1:] != heard[:-1])) + 1
        borders = [0, *begins.tolist(), len(heard)]
        n_words = int(rng.integers(1, MAX_PIECE_WORDS + 1))
        if len(borders) < n_words + 2:
            continue
        first = int(rng.integers(len(borders) - n_words))
        log_probs = clip.log_probs[borders[first] : borders[first + n_words]]
        duration_s = clip.duration_s * len(log_probs) / len(heard)
        pieces.append(replace(clip, text="", heard="", duration_s=duration_s, log_probs=log_probs))
    return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarCounts:
    """What happens at one threshold, or at those that were chosen for each part of the recordings.

    Attributes:
        threshold: of the grammar; None for several.
        n_commands: recordings of commands.
        n_right, n_wrong, n_rejected: of them; a wrong one gave another phrase.
        n_other: other recordings, of `other_s` seconds in all.
        n_false_accepts: of them gave a phrase.
    """

    threshold: float | None
    n_commands: int
    n_right: int
    n_wrong: int
    n_rejected: int
    n_other: int
    other_s: float
    n_false_accepts: int

    @property
    def false_accepts_an_hour(self) -> float:
        """False accepts in an hour of other speech."""
        return self.n_false_accepts * 3600 / self.other_s if self.other_s else 0.0

    def to_dict(self) -> dict[str, float | int]:
        """Return a dict ready for JSON."""
        return {
            **({} if self.threshold is None else {"threshold": self.threshold}),
            "n_commands": self.n_commands,
            "n_right": self.n_right,
            "n_wrong": self.n_wrong,
            "n_rejected": self.n_rejected,
            "n_other": self.n_other,
            "other_s": round(self.other_s, 1),
            "n_false_accepts": self.n_false_accepts,
            "false_accepts_an_hour": round(self.false_accepts_an_hour, 2),
        }


@dataclass(frozen=True, slots=True)
class Found:
    """A recording, and the phrase that it gives at each of some thresholds; None where it is rejected."""

    clip: Clip
    phrases: tuple[str | None, ...]


def find_phrases(
    graph: TokenGraph,
    clips: Sequence[Clip],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    mode: Mode = "whole",
) -> list[Found]:
    """Decode recordings at each threshold.

    Raises:
        ConfigError: no thresholds.
    """
    if not thresholds:
        raise ConfigError("there are no thresholds to count at; give one or more")
    if mode == "spot":  # which phrase is found depends on the threshold
        decoders = [GrammarDecoder(graph, threshold=threshold, mode=mode) for threshold in thresholds]
        found = [[_match(decoder, clip) for decoder in decoders] for clip in clips]
        return [
            Found(clip, tuple(m.phrase or None for m in row)) for clip, row in zip(clips, found, strict=True)
        ]
    widest = GrammarDecoder(graph, threshold=max(thresholds))
    rows = []
    for clip in clips:
        match = _match(widest, clip)
        cost = -(match.score or 0.0) * match.n_letters - ROUNDING
        allowed = [allowed_cost(threshold, np.float32(match.n_letters)) for threshold in thresholds]
        rows.append(Found(clip, tuple(match.phrase or None if cost <= a else None for a in allowed)))
    return rows


def count_by_threshold(
    commands: Sequence[Found], other: Sequence[Found], thresholds: Sequence[float] = THRESHOLDS
) -> list[GrammarCounts]:
    """Count at each of the thresholds that the recordings were decoded at."""
    return [
        _count(t, commands, other, [i] * len(commands), [i] * len(other)) for i, t in enumerate(thresholds)
    ]


def choose_threshold(
    counts: Sequence[GrammarCounts], max_false_accepts_an_hour: float
) -> GrammarCounts | None:
    """Choose the threshold that gets the most commands right among those with few enough false accepts.

    Returns:
        The lowest of the best thresholds; None where every one has too many.
    """
    fitting = [count for count in counts if count.false_accepts_an_hour <= max_false_accepts_an_hour]
    return max(fitting, key=lambda count: (count.n_right, -(count.threshold or 0.0)), default=None)


def hold_out(
    commands: Sequence[Found],
    other: Sequence[Found],
    max_false_accepts_an_hour: float,
    thresholds: Sequence[float] = THRESHOLDS,
) -> GrammarCounts | None:
    """Judge the choice of a threshold on recordings that it did not see: cross-validation by speakers.

    Each fifth of the speakers is counted at the threshold chosen on the others. A recording without a speaker
    is one of its own.

    Returns:
        The sum over all fifths; None where a choice fails, or one kind of recording has less than two
        speakers.
    """
    folds = [_folds(part) for part in (commands, other)]
    if any(len(set(part)) < 2 for part in folds):
        return None
    chosen: list[int] = []
    for fold in range(N_FOLDS):
        rest = [
            [found for found, place in zip(part, places, strict=True) if place != fold]
            for part, places in zip((commands, other), folds, strict=True)
        ]
        best = choose_threshold(count_by_threshold(rest[0], rest[1], thresholds), max_false_accepts_an_hour)
        if best is None:
            return None
        chosen.append([*thresholds].index(best.threshold or 0.0))
    return _count(None, commands, other, *([chosen[fold] for fold in part] for part in folds))


def _folds(found: Sequence[Found]) -> list[int]:
    """Return the fold of each recording; those of one speaker share one."""
    names = [row.clip.speaker or f"recording {index}" for index, row in enumerate(found)]
    speakers = sorted(set(names))
    np.random.default_rng(0).shuffle(speakers)
    place = {speaker: index % N_FOLDS for index, speaker in enumerate(speakers)}
    return [place[name] for name in names]


def _count(
    threshold: float | None,
    commands: Sequence[Found],
    other: Sequence[Found],
    of_commands: Sequence[int],
    of_other: Sequence[int],
) -> GrammarCounts:
    """Count each recording at the threshold of this index."""
    said = [(found.clip.text, found.phrases[i]) for found, i in zip(commands, of_commands, strict=True)]
    n_right = sum(phrase == text for text, phrase in said)
    n_rejected = sum(phrase is None for _, phrase in said)
    return GrammarCounts(
        threshold=threshold,
        n_commands=len(commands),
        n_right=n_right,
        n_wrong=len(commands) - n_right - n_rejected,
        n_rejected=n_rejected,
        n_other=len(other),
        other_s=sum(found.clip.duration_s for found in other),
        n_false_accepts=sum(found.phrases[i] is not None for found, i in zip(other, of_other, strict=True)),
    )


def _match(decoder: GrammarDecoder, clip: Clip) -> PhraseMatch:
    decoder = decoder.fork()
    decoder.push(clip.log_probs)
    match = decoder.flush().match
    assert match is not None, "the decoder has a grammar"
    return match
