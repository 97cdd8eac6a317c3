"""The result of alignment: words and tokens with times, as plain data made from a path.

A CTC model gives a token once, as a spike, some time into its sound: when enough of it was heard. So the
borders of words are set from the spikes by constants, measured on speech whose borders are known
(scripts/bench_alignment.py). They count from the middle of a frame, which holds for frames of 40 and 80 ms.
The last spike of a word says little about where it ends when another word follows at once; the first spike of
that one says more.
What this file does not do: search (search.py), file formats (edge_asr.cli.align).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.alignment.graph import TextGraph
from edge_asr.runtime.alignment.search import BestPath
from edge_asr.runtime.transcript import Token
from edge_asr.vocabulary import Vocabulary

FloatArray = npt.NDArray[np.floating[Any]]

BEGIN_LAG_S = 0.1
"""From the beginning of a word to the middle of the frame of its first spike, within speech."""
PAUSE_LAG_S = 0.07
"""The same after a pause."""
END_LAG_S = 0.05
"""From the end of a word to the middle of the frame of its last spike, before a pause."""
JOINT_S = 0.07
"""From the end of a word to the beginning of the next one, without a pause between them."""
PAUSE_S = 0.22
"""Between spikes of two words: from here on the first ends, and the second begins, by its own spike."""
MIN_WORD_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedWord:
    """A word of the text and when it is said.

    Attributes:
        text: as it was written, with its punctuation.
        start_s, end_s: seconds; None if it was not found.
        score: geometric mean of the probabilities of its tokens, 0 to 1; 0 if it was not found.
        found: whether it is in the sound: whether to leave it out would cost more than to find it there.
    """

    text: str
    start_s: float | None
    end_s: float | None
    score: float
    found: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """A text and when it is said.

    Attributes:
        words: all words of the text, in order, found or not.
        tokens: those of the words that were found; `start_s` and `end_s` are of the model's frames, with the
            lag of its spikes.
        duration_s: length of the recording, seconds.
    """

    words: tuple[AlignedWord, ...]
    tokens: tuple[Token, ...]
    duration_s: float

    @property
    def found(self) -> tuple[AlignedWord, ...]:
        """The words that were found."""
        return tuple(word for word in self.words if word.found)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict ready for JSON."""
        return {
            "duration_s": self.duration_s,
            "n_words": len(self.words),
            "n_found": len(self.found),
            "words": [dataclasses.asdict(word) for word in self.words],
            "tokens": [dataclasses.asdict(token) for token in self.tokens],
        }


def make_alignment(
    texts: list[str],
    graph: TextGraph,
    path: BestPath,
    log_probs: npt.NDArray[np.float32],
    vocabulary: Vocabulary,
    frame_s: float,
    duration_s: float,
) -> Alignment:
    """Make the alignment of a path.

    Args:
        texts: of the written words.
        graph, path: of these words.
        log_probs: [n_frames] of the path's token in each frame.
        vocabulary: the model's.
        frame_s: length of an output frame.
        duration_s: of the recording.
    """
    starts = np.flatnonzero(np.diff(path.arcs, prepend=-9))
    ends = np.append(starts[1:], len(path.arcs))
    peaks = np.maximum.reduceat(log_probs, starts)
    arcs = path.arcs[starts]
    spoken = arcs >= 0
    spoken[spoken] = ~graph.is_separator[arcs[spoken]]
    starts, ends, peaks, arcs = starts[spoken], ends[spoken], np.minimum(peaks[spoken], 0.0), arcs[spoken]
    words, first = np.unique(graph.word[arcs], return_index=True)
    last = np.append(first, len(arcs))[1:] - 1
    scores = np.exp(np.add.reduceat(peaks, first) / (last + 1 - first)) if len(first) else np.zeros(0)
    begin_s, end_s = _borders((starts[first] + 0.5) * frame_s, (ends[last] - 0.5) * frame_s, duration_s)
    found = dict(zip(words.tolist(), range(len(words)), strict=True))
    aligned = []
    for index, text in enumerate(texts):
        place = found.get(index)
        aligned.append(
            AlignedWord(text=text, start_s=None, end_s=None, score=0.0, found=False)
            if place is None
            else AlignedWord(
                text=text,
                start_s=round(float(begin_s[place]), 3),
                end_s=round(float(end_s[place]), 3),
                score=round(float(scores[place]), 4),
                found=True,
            )
        )
    ids = graph.columns[graph.token[arcs]].tolist()
    tokens = tuple(
        Token(
            text=vocabulary.token_text(token),
            id=token,
            start_s=round(begin * frame_s, 3),
            end_s=round(min(end * frame_s, duration_s), 3),
            confidence=round(confidence, 4),
        )
        for token, begin, end, confidence in zip(
            ids, starts.tolist(), ends.tolist(), np.exp(peaks).tolist(), strict=True
        )
    )
    return Alignment(words=tuple(aligned), tokens=tokens, duration_s=duration_s)


def _borders(first_s: FloatArray, last_s: FloatArray, duration_s: float) -> tuple[FloatArray, FloatArray]:
    """Set where words begin and end.

    Args:
        first_s, last_s: of each word, the middles of the frames of its first and its last spike.
        duration_s: no border is later.
    """
    gaps = first_s[1:] - last_s[:-1]
    joint = gaps < PAUSE_S
    lags = np.where(np.append(False, joint), BEGIN_LAG_S, PAUSE_LAG_S)[: len(first_s)]
    begin = np.maximum(first_s - lags, 0.0)
    following = np.append(begin[1:], np.inf)[: len(begin)]
    end = last_s - END_LAG_S
    joined = np.append(joint, False)[: len(end)]
    end[joined] = following[joined] - JOINT_S
    end = np.minimum(np.maximum(end, begin + MIN_WORD_S), duration_s)
    return np.minimum(begin, end), np.minimum(end, np.maximum(following, begin))
