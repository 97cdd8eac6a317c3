"""Finds how much a language model has to say on recordings: the word errors by its weights.

Each recording goes through the model once (`edge_asr.benchmark.grammar.hear_clips`); its log-probs are then
decoded with each pair of weights. What this file does not do: print, write the weights (the command does).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge_asr.benchmark.grammar import Clip
from edge_asr.errors import ConfigError
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.decoding.beam import BEAM_SIZE_LM, BeamDecoder
from edge_asr.runtime.decoding.lm.model_file import LanguageModel, LmWeights
from edge_asr.runtime.decoding.lm.scorer import LanguageModelScorer
from edge_asr.vocabulary import Vocabulary

ALPHAS = (0.3, 0.45, 0.6, 0.75, 0.9, 1.05)
BETAS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a pair of weights gave.

    Attributes:
        weights: of the language model.
        wer: over all clips.
    """

    weights: LmWeights
    wer: float


def word_error_rate(
    clips: Sequence[Clip], vocabulary: Vocabulary, scorers: Sequence[LanguageModelScorer], beam_size: int
) -> float:
    """Decode all clips by beam search, and return the WER."""
    first = BeamDecoder(vocabulary.blank_id, beam_size=beam_size, scorers=scorers)
    found = []
    for clip in clips:
        decoder = first.fork()
        decoder.push(clip.log_probs)
        found.append(vocabulary.decode(decoder.flush().tokens.ids.tolist()))
    return compute_error_rates([clip.text for clip in clips], found).wer


def tune_weights(
    model: LanguageModel,
    vocabulary: Vocabulary,
    clips: Sequence[Clip],
    *,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
    beam_size: int = BEAM_SIZE_LM,
    progress: Callable[[float], None] | None = None,
) -> list[Tried]:
    """Try weights one after the other, each with the best of the other, until nothing gets better.

    Args:
        model: the language model; it starts with the weights in its file.
        vocabulary: the recognizer's.
        clips: what was said, and what the recognizer's model makes of it.
        alphas, betas: what to try.
        beam_size: prefixes that the search keeps.
        progress: called with about the share that is done.

    Returns:
        All that was tried, the best one first, of equal ones the one with the least alpha.

    Raises:
        ConfigError: no clip with text, or nothing to try.
        MissingDependencyError: jiwer is not installed.
    """
    if not any(clip.text for clip in clips):
        raise ConfigError("no recording has a text, so no weights are better than others; give speech")
    if not alphas or not betas:
        raise ConfigError("there are no weights to try; give an alpha and a beta")
    tried: dict[tuple[float, float], Tried] = {}

    def try_weights(alpha: float, beta: float) -> None:
        if (alpha, beta) in tried:
            return
        weights = replace(model.header.weights, alpha=alpha, beta=beta)
        scorer = LanguageModelScorer(model, vocabulary, weights)
        wer = word_error_rate(clips, vocabulary, [scorer], beam_size)
        tried[alpha, beta] = Tried(weights=weights, wer=wer)
        if progress is not None:
            progress(min(1.0, len(tried) / (2 * len(alphas) + 2 * len(betas))))

    def best() -> Tried:
        return min(tried.values(), key=lambda t: (t.wer, t.weights.alpha, abs(t.weights.beta)))

    beta, found = min(betas, key=lambda b: abs(b - model.header.weights.beta)), None
    while found is None or found != beta:
        beta = beta if found is None else found
        for alpha in alphas:
            try_weights(alpha, beta)
        for other in betas:
            try_weights(best().weights.alpha, other)
        found = best().weights.beta
    return sorted(tried.values(), key=lambda t: (t.wer, t.weights.alpha, abs(t.weights.beta)))
