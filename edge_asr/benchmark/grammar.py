"""How well a grammar does on recordings: commands right, wrong and rejected, and false accepts, by threshold.

Each recording goes through the model once; its log-probs are then decoded by the grammar. A command is a
recording whose text is a phrase of the grammar. Everything else must be rejected.
What this file does not do: print, choose recordings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.manifest import Utterance
from edge_asr.runtime.decoding.decoder import Hypothesis
from edge_asr.runtime.decoding.grammar.graph import TokenGraph
from edge_asr.runtime.decoding.grammar.recognition import GrammarDecoder, Mode
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.3)


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
    """

    text: str
    heard: str
    duration_s: float
    log_probs: F32Array


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
            )
        )
        if progress is not None:
            progress((index + 1) / len(utterances))
    return clips


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarCounts:
    """What happens at one threshold.

    Attributes:
        threshold: of the grammar.
        n_commands: recordings of commands.
        n_right, n_wrong, n_rejected: of them; a wrong one gave another phrase.
        n_other: other recordings, of `other_s` seconds in all.
        n_false_accepts: of them gave a phrase.
    """

    threshold: float
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
            "threshold": self.threshold,
            "n_commands": self.n_commands,
            "n_right": self.n_right,
            "n_wrong": self.n_wrong,
            "n_rejected": self.n_rejected,
            "n_other": self.n_other,
            "other_s": round(self.other_s, 1),
            "n_false_accepts": self.n_false_accepts,
            "false_accepts_an_hour": round(self.false_accepts_an_hour, 2),
        }


def count_by_threshold(
    graph: TokenGraph,
    commands: Sequence[Clip],
    other: Sequence[Clip],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    mode: Mode = "whole",
) -> list[GrammarCounts]:
    """Decode all clips at each threshold.

    Raises:
        ConfigError: no thresholds.
    """
    if not thresholds:
        raise ConfigError("there are no thresholds to count at; give one or more")
    return [_count(GrammarDecoder(graph, threshold=t, mode=mode), commands, other) for t in thresholds]


def choose_threshold(
    counts: Sequence[GrammarCounts], max_false_accepts_an_hour: float
) -> GrammarCounts | None:
    """Choose the threshold that rejects the fewest commands among those with few enough false accepts.

    Returns:
        The lowest of the best thresholds; None where every one has too many.
    """
    fitting = [count for count in counts if count.false_accepts_an_hour <= max_false_accepts_an_hour]
    return max(fitting, key=lambda count: (count.n_right, -count.threshold), default=None)


def _count(decoder: GrammarDecoder, commands: Sequence[Clip], other: Sequence[Clip]) -> GrammarCounts:
    found = [(clip.text, _phrase(decoder, clip)) for clip in commands]
    n_right = sum(phrase == text for text, phrase in found)
    n_rejected = sum(phrase is None for _, phrase in found)
    return GrammarCounts(
        threshold=decoder.threshold,
        n_commands=len(commands),
        n_right=n_right,
        n_wrong=len(commands) - n_right - n_rejected,
        n_rejected=n_rejected,
        n_other=len(other),
        other_s=sum(clip.duration_s for clip in other),
        n_false_accepts=sum(_phrase(decoder, clip) is not None for clip in other),
    )


def _phrase(decoder: GrammarDecoder, clip: Clip) -> str | None:
    """Return the phrase of a clip; None if it is none."""
    decoder = decoder.fork()
    decoder.push(clip.log_probs)
    match = decoder.flush().match
    return match.phrase if match is not None and match.matched else None
