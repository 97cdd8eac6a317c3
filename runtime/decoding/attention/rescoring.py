"""Scores whole texts with an attention decoder: those of CTC's prefix beam search, in one batched run.

A text is scored by the decoder from left to right and, in models that have one, by a second decoder from
right to left; the sum of the log-probabilities of its tokens and of its end is its score (WeNet,
wenet/transformer/search.py, `attention_rescoring`; U2++, Wu et al. 2021, equation 6). What an application
knows is in the score of the first search, and stays there:

    (1 - c) * ((1 - r) * left + r * right) + c * CTC + what hotwords and a language model add

WeNet's weight w of CTC beside an attention decoder of weight 1 is the share c = w / (1 + w).
What this file does not do: find the texts (beam.py), cut long recordings (segments.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.attention.network import DecoderNetwork, Memory
from edge_asr.runtime.decoding.attention.segments import SegmentDecoder
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.decoding.decoder import F32Array, Hypothesis, I64Array

F64Array = npt.NDArray[np.float64]

N_BEST = 8
"""Texts that are rescored: as many as the first search keeps."""
_BATCH_VALUES = 1 << 24
"""Most log-probs of one run, 64 MB; more texts take several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWeights:
    """How the parts of a score are mixed.

    Attributes:
        ctc: share of CTC, 0 to 1; the rest is the decoder's.
        reverse: share of the decoder from right to left in that, 0 to 1.

    Raises:
        ConfigError: a share outside 0 to 1.
    """

    ctc: float = 0.3
    reverse: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("ctc_weight", self.ctc), ("reverse_weight", self.reverse)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} is {value}; it is a share, give 0 to 1")


def score_texts(
    network: DecoderNetwork, memory: Memory, texts: Sequence[I64Array], *, reverse: bool = False
) -> F64Array:
    """Return the log-probability of each text of token ids, its end included, [n].

    Args:
        network: the decoder.
        memory: the utterance.
        texts: without the tokens that begin and end a text.
        reverse: read each from its last token to its first.

    Raises:
        BackendError: a run failed.
    """
    scores = np.zeros(len(texts))
    longest = max((len(text) for text in texts), default=0) + 1
    n_rows = max(_BATCH_VALUES // (longest * network.n_tokens), 1)
    for begin in range(0, len(texts), n_rows):
        batch = texts[begin : begin + n_rows]
        width = max(len(text) for text in batch) + 1
        # What stands behind the end of a text is not read: the decoder looks at earlier tokens alone.
        given = np.full((len(batch), width), network.eos_id, np.int64)
        asked = np.full((len(batch), width), network.eos_id, np.int64)
        given[:, 0] = network.sos_id
        for row, text in enumerate(batch):
            ordered = text[::-1] if reverse else text
            given[row, 1 : len(text) + 1] = asked[row, : len(text)] = ordered
        log_probs, _ = network.advance(given, network.start(len(batch)), memory)
        found = np.take_along_axis(log_probs, asked[:, :, None], axis=2)[:, :, 0].astype(np.float64)
        lengths = np.array([len(text) for text in batch])
        found[np.arange(width) > lengths[:, None]] = 0.0
        scores[begin : begin + n_rows] = found.sum(axis=1)
    return scores


class RescoringDecoder(SegmentDecoder):
    """An `EncodedDecoder` that chooses among the texts of a prefix beam search.

    Args:
        first: the search that finds the texts; it has heard nothing.
        network: scores them from left to right.
        right: scores them from right to left; None without.
        weights: how the scores are mixed.
        boundary_id: see `SegmentDecoder`.
        max_frames: see `SegmentDecoder`.

    Raises:
        ConfigError: a share of a decoder that is not there.
    """

    def __init__(
        self,
        first: BeamDecoder,
        network: DecoderNetwork,
        right: DecoderNetwork | None = None,
        *,
        weights: ScoreWeights,
        boundary_id: int | None,
        max_frames: int,
    ) -> None:
        super().__init__(first.blank_id, boundary_id=boundary_id, max_frames=max_frames)
        if weights.reverse > 0 and right is None:
            raise ConfigError(
                f"reverse_weight is {weights.reverse}, and the bundle has no decoder from right to left; "
                "leave it out"
            )
        self._first = first
        self._network = network
        self._right = right if weights.reverse > 0 else None
        self._weights = weights

    def first_pass(self) -> BeamDecoder:
        """See `EncodedDecoder`."""
        return self._first.fork()

    def decode_segment(self, log_probs: F32Array, encoded: F32Array) -> Hypothesis:
        """See `SegmentDecoder`."""
        return self.rescore(log_probs, encoded)[0]

    def rescore(self, log_probs: F32Array, encoded: F32Array) -> list[Hypothesis]:
        """Return what the first search finds in an utterance, ranked anew, the best first.

        Args:
            log_probs, encoded: [T, V] and [T, D] of the whole utterance, T >= 1.

        Raises:
            BackendError: the decoder failed.
        """
        search = self._first.fork()
        search.push(log_probs)
        found = search.n_best()
        share = self._weights.ctc
        if len(found) == 1 or share == 1.0:
            return found
        texts = [self._spoken(hypothesis.tokens.ids) for hypothesis in found]
        scores = score_texts(self._network, self._network.attend(encoded), texts)
        if self._right is not None:
            reverse = score_texts(self._right, self._right.attend(encoded), texts, reverse=True)
            scores = (1 - self._weights.reverse) * scores + self._weights.reverse * reverse
        mixed = []
        for hypothesis, score in zip(found, scores.tolist(), strict=True):
            assert hypothesis.score is not None  # a BeamDecoder gives both
            assert hypothesis.log_prob is not None
            added = hypothesis.score - hypothesis.log_prob
            total = (1 - share) * score + share * hypothesis.log_prob + added
            mixed.append(dataclasses.replace(hypothesis, score=total))
        return sorted(mixed, key=lambda hypothesis: -(hypothesis.score or 0.0))

    def _spoken(self, ids: I64Array) -> I64Array:
        """Leave out word boundaries at both ends, which CTC may hear in a pause and no text has."""
        if self.boundary_id is None:
            return ids
        inner = np.flatnonzero(ids != self.boundary_id)
        return ids[inner[0] : inner[-1] + 1] if len(inner) else ids[:0]
