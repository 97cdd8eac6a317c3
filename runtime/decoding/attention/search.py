"""Beam search with an attention decoder: it writes a text token by token, and looks at all frames for each.

All beams of a step are one run of the network. A beam that has ended stays among the best until others are
better (WeNet, `attention_beam_search`), or leaves its place to others (ESPnet, espnet/nets/beam_search.py).
Scores are mixed as in rescoring.py; CTC, which the frames hold to their order, keeps the decoder from looping
and from stopping early. The best of all that ended has the highest score over its length to the power of
`length_penalty`. The search is bounded: a text has fewer tokens than its segment has frames.

The tokens' frames come from CTC too: they are aligned with its log-probs (edge_asr.runtime.alignment).
What this file does not do: cut long recordings (segments.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.runtime.alignment.graph import graph_of_tokens
from edge_asr.runtime.alignment.search import LogProbStore, find_path
from edge_asr.runtime.decoding.attention.ctc_prefix import CtcPrefixScorer, PrefixState
from edge_asr.runtime.decoding.attention.network import DecoderNetwork, Memory, State, select_beams
from edge_asr.runtime.decoding.attention.segments import SegmentDecoder
from edge_asr.runtime.decoding.decoder import EMPTY_RUNS, Decoder, F32Array, Hypothesis, I64Array, TokenRuns

F64Array = npt.NDArray[np.float64]

BEAM_SIZE = 8
_TRIED = 1.5
"""Tokens that CTC scores, times the size of the beam: those that the decoder finds most likely (ESPnet)."""
_NEVER = -math.inf
_NO_DETOUR = 1e5  # what a frame beside the text, or a token left out, costs: never worth it


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How a text is searched for.

    Attributes:
        beam_size: beginnings that are kept.
        ctc_weight: share of CTC in the score, 0 to 1.
        length_penalty: power of the length by which scores are divided at the end; 0 compares them as they
            are, which favors short texts.
        max_tokens: of a text, its end included; None is the number of frames, which is also the most.
        keep_ended: whether beams that ended keep their places, as in WeNet, and the length of a text is that
            of its tokens; else, as in ESPnet, its end counts too.
        hopeless: where lengths count, how much worse than a text that ended the best beam must be to be given
            up (ESPnet's `end_detect` has 10); None gives none up.

    Raises:
        ConfigError: a value out of range.
    """

    beam_size: int = BEAM_SIZE
    ctc_weight: float = 0.3
    length_penalty: float = 1.0
    max_tokens: int | None = None
    keep_ended: bool = True
    hopeless: float | None = 10.0

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise ConfigError(f"beam_size is {self.beam_size}; give 1 or more")
        if not 0.0 <= self.ctc_weight <= 1.0:
            raise ConfigError(f"ctc_weight is {self.ctc_weight}; it is a share, give 0 to 1")
        if not 0.0 <= self.length_penalty <= 5.0:
            raise ConfigError(f"length_penalty is {self.length_penalty}; give 0 to 5")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; give 1 or more")


@dataclass(frozen=True, slots=True)
class FoundText:
    """A text that a search found.

    Attributes:
        ids: its tokens, without its beginning and end.
        log_probs: of each by the decoder, [n].
        score: of the whole text.
        ranked: the score with its length, by which texts are compared.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    score: float
    ranked: float


@dataclass(frozen=True, slots=True)
class _Beams:
    """Texts that are still growing.

    Attributes:
        ids, log_probs: as in `FoundText`.
        scores, attention: [B] the score, and the decoder's part of it, unweighted.
        state: of the network.
        prefixes: of CTC.
    """

    ids: list[tuple[int, ...]]
    log_probs: list[tuple[float, ...]]
    scores: F64Array
    attention: F64Array
    state: State
    prefixes: PrefixState | None


def search_texts(
    network: DecoderNetwork,
    memory: Memory,
    options: SearchOptions,
    *,
    ctc: CtcPrefixScorer | None = None,
    banned: Sequence[int] = (),
) -> list[FoundText]:
    """Search for the text of an utterance.

    Args:
        network: the decoder.
        memory: the utterance.
        options: see there.
        ctc: that of the utterance; None leaves it out, whatever its weight.
        banned: tokens that no text has.

    Returns:
        The texts that ended, the best first; at least one.

    Raises:
        BackendError: a run failed.
    """
    scorer = ctc if options.ctc_weight > 0 else None
    share = 0.0 if scorer is None else options.ctc_weight
    n_tokens = min(options.max_tokens or memory.n_frames, memory.n_frames)
    beams = _Beams(
        [()], [()], np.zeros(1), np.zeros(1), network.start(1), None if scorer is None else scorer.start()
    )
    ended: list[FoundText] = []
    for step in range(n_tokens):
        last = np.array([ids[-1] if ids else network.sos_id for ids in beams.ids])
        log_probs, state = network.advance(last[:, None], beams.state, memory)
        rows = log_probs[:, 0].astype(np.float64)  # (B, V)
        rows[:, list(banned)] = _NEVER
        beam, token = _choose_tokens(rows, options.beam_size, None if scorer is None else network.eos_id)
        is_end = token == network.eos_id
        attention = beams.attention[beam] + rows[beam, token]
        scores = (1 - share) * attention
        grown = None
        if scorer is not None and beams.prefixes is not None:
            before = beams.prefixes.select(beam)
            grown = scorer.extend(
                before, last[beam] if step else np.full(len(beam), -1), np.where(is_end, 0, token)
            )
            scores += share * np.where(is_end, scorer.finish(before), grown.scores)
        n_kept = len(ended) if options.keep_ended else 0
        pool = np.concatenate([[text.score for text in ended[:n_kept]], scores])
        best = np.argsort(-pool, kind="stable")[: options.beam_size]
        best = best[pool[best] > _NEVER]
        ended = [ended[place] for place in best if place < n_kept] if n_kept else ended
        chosen = best[best >= n_kept] - n_kept
        ended += [
            _end(beams.ids[beam[c]], beams.log_probs[beam[c]], float(scores[c]), options)
            for c in chosen[is_end[chosen]]
        ]
        chosen = chosen[~is_end[chosen]]
        origin = beam[chosen]
        beams = _Beams(
            [(*beams.ids[o], t) for o, t in zip(origin, token[chosen].tolist(), strict=True)],
            [
                (*beams.log_probs[o], p)
                for o, p in zip(origin, rows[origin, token[chosen]].tolist(), strict=True)
            ],
            scores[chosen],
            attention[chosen],
            select_beams(state, network.batch_axes, origin),
            None if grown is None else grown.select(chosen),
        )
        if not len(chosen) or _is_over(beams, ended, options):
            break
    else:
        # As both projects do, a text that is as long as it may be counts as ended.
        ended += [
            _end(*one, options) for one in zip(beams.ids, beams.log_probs, beams.scores.tolist(), strict=True)
        ]
    return sorted(ended, key=lambda text: -text.ranked)


def _choose_tokens(
    rows: F64Array, beam_size: int, always: int | None
) -> tuple[npt.NDArray[np.intp], I64Array]:
    """Choose the tokens that are tried after each beam: the best ones, and `always` if it is a token.

    Args:
        rows: [B, V] log-probs.
        beam_size: as many, or more where CTC chooses among them.
        always: the end of a text where CTC scores it; else None.

    Returns:
        The beam and the token of each try.
    """
    n_tried = beam_size if always is None else int(_TRIED * beam_size)
    tokens = np.argsort(-rows, axis=1, kind="stable")[:, :n_tried]
    beams = np.repeat(np.arange(len(rows)), tokens.shape[1])
    if always is None:
        return beams, tokens.ravel()
    without = np.flatnonzero((tokens != always).all(axis=1))
    return np.append(beams, without), np.append(tokens, np.full(len(without), always))


def _end(
    ids: tuple[int, ...], log_probs: tuple[float, ...], score: float, options: SearchOptions
) -> FoundText:
    return FoundText(ids, log_probs, score, _rank(score, len(ids), options))


def _rank(score: float, n_tokens: int, options: SearchOptions) -> float:
    """Divide a score by the power of a length."""
    length = max(n_tokens, 1) if options.keep_ended else n_tokens + 1
    ranked: float = score / length**options.length_penalty
    return ranked


def _is_over(beams: _Beams, ended: list[FoundText], options: SearchOptions) -> bool:
    """Tell whether no beam can become the best text. Without lengths that is sure: scores only fall."""
    if not ended:
        return False
    leader = max(ended, key=lambda text: text.ranked)
    live = float(beams.scores.max())
    if _rank(live, len(beams.ids[0]), options) > leader.ranked:
        return False
    if options.length_penalty == 0:
        return True
    return options.hopeless is not None and live < leader.score - options.hopeless


class AttentionDecoder(SegmentDecoder):
    """An `EncodedDecoder` that searches with an attention decoder.

    Args:
        first: follows utterances in progress; it has heard nothing.
        network: the decoder.
        options: how to search.
        blank_id: index of blank.
        boundary_id, max_frames: see `SegmentDecoder`.
    """

    def __init__(
        self,
        first: Decoder,
        network: DecoderNetwork,
        options: SearchOptions,
        *,
        blank_id: int,
        boundary_id: int | None,
        max_frames: int,
    ) -> None:
        super().__init__(blank_id, boundary_id=boundary_id, max_frames=max_frames)
        self._first, self._network, self._options = first, network, options
        # What no text has: blank, and what begins one.
        self._banned = [i for i in {blank_id, network.sos_id} if i < network.n_tokens and i != network.eos_id]

    def first_pass(self) -> Decoder:
        """See `EncodedDecoder`."""
        return self._first.fork()

    def decode_segment(self, log_probs: F32Array, encoded: F32Array) -> Hypothesis:
        """See `SegmentDecoder`."""
        found = search_texts(
            self._network,
            self._network.attend(encoded),
            self._options,
            ctc=CtcPrefixScorer(log_probs, self.blank_id),
            banned=self._banned,
        )[0]
        runs = align_tokens(log_probs, np.array(found.ids, np.int64), self.blank_id)
        confidences = np.clip(np.exp(found.log_probs), np.finfo(np.float32).tiny, 1.0).astype(np.float32)
        return Hypothesis(tokens=replace(runs, confidences=confidences), score=found.score)


def align_tokens(log_probs: F32Array, ids: I64Array, blank_id: int) -> TokenRuns:
    """Find the frames of tokens by CTC's best path through them; confidences are the highest of their frames.

    Args:
        log_probs: [T, V] of the utterance.
        ids: [n] tokens, n <= T.
        blank_id: index of blank.
    """
    n_frames, n = len(log_probs), len(ids)
    if n == 0:
        return EMPTY_RUNS
    first = last = np.arange(n) * n_frames // n
    if n + np.count_nonzero(ids[1:] == ids[:-1]) <= n_frames:  # else CTC has no path, and they are spread
        graph = graph_of_tokens(ids, blank_id)
        with LogProbStore(graph.columns) as store:
            store.add(log_probs)
            arcs = find_path(graph, store, filler_cost=_NO_DETOUR, skip_cost=_NO_DETOUR).arcs
        first = np.searchsorted(np.maximum.accumulate(arcs), np.arange(n))
        last = (
            n_frames
            - 1
            - np.searchsorted(-np.minimum.accumulate(np.where(arcs < 0, n, arcs)[::-1]), -np.arange(n))
        )
    peaks = [float(log_probs[a : b + 1, token].max()) for a, b, token in zip(first, last, ids, strict=True)]
    return TokenRuns(
        ids=ids,
        first_frames=first.astype(np.int64),
        last_frames=last.astype(np.int64),
        confidences=np.clip(np.exp(peaks), np.finfo(np.float32).tiny, 1.0).astype(np.float32),
    )
