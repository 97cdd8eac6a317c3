"""Aligns tokens evenly to frames, so that a CTC model starts to learn.

A fresh CTC model first learns to emit blank everywhere, and may stay there for thousands of steps. The
classic cure is a flat start (as in HTK's and Kaldi's monophone training): spread each clip's tokens
over its loud part by length, train on that by cross-entropy for a few hundred steps, then switch to
CTC, which corrects the alignment. Nothing here is used after that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.vocabulary import WORD_BOUNDARY, Vocabulary

IGNORED = -100
"""Label of padding; torch's default ignore_index."""


def token_weights(vocabulary: Vocabulary) -> npt.NDArray[np.float64]:
    """Estimate the relative length of each token, f64 [V]: its letters, and at least two for a word."""
    weights = []
    for token in vocabulary.tokens:
        n_letters = len(token.replace(WORD_BOUNDARY, ""))
        weights.append(float(max(n_letters, 2 if token.startswith(WORD_BOUNDARY) else 1)))
    return np.array(weights)


def spread_tokens(
    waveform: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    weights: npt.NDArray[np.float64],
    *,
    hop_length: int,
    blank_id: int,
) -> npt.NDArray[np.int64]:
    """Label one clip, one label per hop: its tokens over the loud part, blank before and after.

    Args:
        waveform: f32 [S], clean.
        tokens: i64 [N].
        weights: f64 [V], from `token_weights`.
        hop_length: samples per feature frame.
        blank_id: label of silence.

    Returns:
        i64 [S // hop_length].
    """
    n_frames = len(waveform) // hop_length
    labels = np.full(n_frames, blank_id, np.int64)
    if n_frames == 0 or len(tokens) == 0:
        return labels
    power = np.square(waveform[: n_frames * hop_length].reshape(n_frames, hop_length)).mean(axis=1)
    level = np.log(power + 1e-8)
    low, high = np.quantile(level, (0.1, 0.95))
    loud = np.flatnonzero(level >= low + 0.35 * (high - low))
    first, last = int(loud[0]), int(loud[-1]) + 1
    ends = np.cumsum(weights[tokens])
    places = (np.arange(first, last) - first + 0.5) / (last - first) * ends[-1]
    labels[first:last] = tokens[np.minimum(np.searchsorted(ends, places), len(tokens) - 1)]
    return labels


def join_labels(
    parts: Sequence[npt.NDArray[np.int64]],
    starts: Sequence[int],
    n_frames: int,
    *,
    factor: int,
    blank_id: int,
) -> npt.NDArray[np.int64]:
    """Label joined clips at the encoder's rate: i64 [ceil(n_frames / factor)].

    Args:
        parts: labels of each clip, one per feature frame.
        starts: feature frame at which each begins.
        n_frames: feature frames of the whole.
        factor: subsampling factor; the label in the middle of an output frame is taken.
        blank_id: label of the gaps.
    """
    labels = np.full(n_frames, blank_id, np.int64)
    for part, start in zip(parts, starts, strict=True):
        end = min(start + len(part), n_frames)
        labels[start:end] = part[: max(end - start, 0)]
    centers = np.minimum(np.arange(0, n_frames, factor) + factor // 2, n_frames - 1)
    return labels[centers]
