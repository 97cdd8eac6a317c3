"""What every `Decoder` must keep to, whatever it makes of the log-probs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.decoding.decoder import Decoder, Hypothesis, TokenRuns


def same(left: Hypothesis, right: Hypothesis) -> bool:
    """Equal to the bit."""
    if (left.match is None) != (right.match is None):
        return False
    if left.match is not None and right.match is not None:
        facts = ("matched", "phrase", "slots", "tags", "score", "confidence")
        if any(getattr(left.match, n) != getattr(right.match, n) for n in facts):
            return False
        if not _same_runs(left.match.heard, right.match.heard):
            return False
    return _same_runs(left.tokens, right.tokens)


def _same_runs(left: TokenRuns, right: TokenRuns) -> bool:
    names = ("ids", "first_frames", "last_frames", "confidences")
    return all(np.array_equal(getattr(left, n), getattr(right, n)) for n in names)


def check_decoder(decoder: Decoder, log_probs: npt.NDArray[np.float32], cuts: Sequence[float]) -> None:
    """Assert the contract on one utterance.

    Args:
        decoder: one that has heard nothing.
        log_probs: [T, V] of the utterance.
        cuts: where it is cut, as shares of it.
    """
    whole = decoder.fork()
    whole.push(log_probs)
    expected = whole.flush()
    runs = expected.tokens
    assert runs.first_frames.dtype == runs.last_frames.dtype == runs.ids.dtype == np.int64
    assert (runs.first_frames <= runs.last_frames).all()
    assert (runs.last_frames[:-1] < runs.first_frames[1:]).all()
    assert len(runs) == 0 or 0 <= runs.first_frames[0] <= runs.last_frames[-1] < len(log_probs)
    assert ((runs.confidences > 0) & (runs.confidences <= 1)).all()

    pieced = decoder.fork()
    for piece in np.split(log_probs, sorted(int(cut * len(log_probs)) for cut in cuts)):
        pieced.push(piece)
        # What a fork hears, its twin does not; and looking changes nothing.
        seen, side = pieced.peek(), pieced.fork()
        side.push(log_probs[::-1])
        side.flush()
        assert same(pieced.peek(), seen)
        assert same(pieced.fork().flush(), seen)
    assert same(pieced.peek(), expected)
    assert same(pieced.flush(), expected)
    assert len(decoder.flush().tokens) == 0  # none of all this was told to the first one
