"""Makes a model smaller: leaves out the n-grams whose loss changes its probabilities least.

Source: Stolcke 1998, "Entropy-based pruning of backoff language models", equations 8 to 10: what goes is
weighed by how often its context occurs, and what stays keeps its probability. What goes is found in one pass
from the longest n-grams down, and the back-off weights are computed anew.
What this file does not do: cut-offs by count (kneser_ney.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edge_asr.errors import LanguageModelError
from edge_asr.runtime.decoding.lm.model_file import file_bytes
from edge_asr.runtime.decoding.lm.ngrams import BEGIN, END, F64Array, I64Array, Ngrams

Mask = npt.NDArray[np.bool_]
_SMALLEST = 1e-12


def prune(model: Ngrams, threshold: float) -> Ngrams:
    """Leave out n-grams that change the entropy by less than `threshold` (relative, as SRILM's -prune).

    Raises:
        LanguageModelError: a threshold below 0.
    """
    if not threshold >= 0:
        raise LanguageModelError(f"the threshold of pruning is {threshold}; give 0 or more, such as 1e-8")
    return _prune(model, _losses(model), threshold) if threshold else model


def prune_to_size(model: Ngrams, max_bytes: float) -> Ngrams:
    """Leave out as few n-grams as it takes for a file of at most `max_bytes`.

    Raises:
        LanguageModelError: the single words alone are larger.
    """
    if file_bytes([len(level) for level in model.levels], model.words) <= max_bytes:
        return model
    losses = _losses(model)
    ranked = np.sort(np.concatenate(losses[1:] or [np.zeros(0)]))
    first, last = 0, len(ranked)  # how many may go
    while first < last:
        middle = (first + last) // 2
        kept = _kept(model, losses, ranked[middle])
        counts = [n for n in (int(mask.sum()) for mask in kept) if n]
        if file_bytes(counts, model.words) <= max_bytes:
            last = middle
        else:
            first = middle + 1
    least = file_bytes([len(model.words)], model.words)
    if least > max_bytes:
        raise LanguageModelError(
            f"{len(model.words)} words alone take {least / 1e6:.2f} MB, more than {max_bytes / 1e6:g} MB; "
            "allow more, or fewer words (--vocabulary)"
        )
    return _prune(model, losses, ranked[last] if last < len(ranked) else np.inf)


def _prune(model: Ngrams, losses: list[F64Array], threshold: float) -> Ngrams:
    kept = _kept(model, losses, threshold)
    return _with_weights(model, kept).keep(kept)


def _kept(model: Ngrams, losses: list[F64Array], threshold: float) -> list[Mask]:
    """Return which n-grams stay: those that cost enough, and all that these need."""
    kept = [loss >= threshold for loss in losses]
    for n in range(model.order - 1, 0, -1):
        above = model.levels[n]
        for needed in (above.contexts, above.suffixes):
            kept[n - 1][needed[kept[n]]] = True
    kept[0][:] = True
    return kept


def _losses(model: Ngrams) -> list[F64Array]:
    """Return how much the entropy of the model rises without each n-gram."""
    losses = [np.full(len(model.levels[0]), np.inf)]
    first = model.levels[0].log_probs.copy()
    first[BEGIN] = first[END]  # a sentence begins as often as one ends
    contexts = first  # natural log of how often the words of each n-gram of the level below occur
    for below, level in zip(model.levels, model.levels[1:], strict=False):
        shorter = below.log_probs[level.suffixes]
        probs = np.exp(level.log_probs)
        left, left_shorter = _masses(level.contexts, probs, np.exp(shorter), len(below))
        weight = below.backoffs[level.contexts]
        without = np.log((left[level.contexts] + probs) / (left_shorter[level.contexts] + np.exp(shorter)))
        change = probs * (shorter + without - level.log_probs)
        change += (without - weight) * left[level.contexts]
        # Relative change of the perplexity, as SRILM takes it.
        losses.append(np.expm1(np.maximum(-np.exp(contexts[level.contexts]) * change, 0.0)))
        contexts = contexts[level.contexts] + level.log_probs
    return losses


def _masses(
    contexts: I64Array, probs: F64Array, shorter: F64Array, n_contexts: int
) -> tuple[F64Array, F64Array]:
    """Return what the n-grams of each context leave, by their own probabilities and by shorter ones'."""
    left = 1.0 - np.bincount(contexts, probs, minlength=n_contexts)
    left_shorter = 1.0 - np.bincount(contexts, shorter, minlength=n_contexts)
    return np.maximum(left, _SMALLEST), np.maximum(left_shorter, _SMALLEST)


def _with_weights(model: Ngrams, kept: list[Mask]) -> Ngrams:
    """Return the model with the back-off weights that fit what stays."""
    levels = [model.levels[0]]
    actual = model.levels[0].log_probs  # of all n-grams of the level, as the smaller model has them
    for mask, level in zip(kept[1:], model.levels[1:], strict=True):
        shorter = actual[level.suffixes]
        left, left_shorter = _masses(
            level.contexts[mask], np.exp(level.log_probs[mask]), np.exp(shorter[mask]), len(levels[-1])
        )
        has_any = np.bincount(level.contexts[mask], minlength=len(levels[-1])) > 0
        weights = np.where(has_any, np.log(left / left_shorter), 0.0)
        levels[-1] = replace(levels[-1], backoffs=weights)
        actual = np.where(mask, level.log_probs, weights[level.contexts] + shorter)
        levels.append(level)
    return replace(model, levels=tuple(levels))
