"""The search for the weights of a language model, on log-probs whose best weights are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_asr.benchmark.grammar import Clip
from edge_asr.benchmark.language_model import tune_weights
from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.lm.kneser_ney import build_ngrams
from edge_asr.runtime.decoding.lm.model_file import LanguageModel, write_model
from edge_asr.vocabulary import Vocabulary

LETTERS = Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz ")


def say(heard: str, meant: str) -> Clip:
    """A clip that says two texts of one length, `heard` a little more clearly."""
    log_probs = np.full((2 * len(heard), len(LETTERS)), -12.0, np.float32)
    log_probs[1::2, LETTERS.blank_id] = -0.01
    for text, share in ((meant, 0.4), (heard, 0.55)):
        log_probs[np.arange(0, len(log_probs), 2), LETTERS.encode_characters(text)] = np.log(share)
    return Clip(text=meant, heard=heard, duration_s=1.0, log_probs=log_probs)


def test_the_weight_that_gives_the_fewest_errors_comes_first(tmp_path: Path) -> None:
    write_model(tmp_path / "lm.bin", build_ngrams([["the", "cat", "sat"], ["a", "hat"]] * 3, 3))
    model = LanguageModel.load(tmp_path / "lm.bin")
    clips = [say("the kat sat", "the cat sat"), say("a hit", "a hat"), say("a hat", "a hat")]
    shares: list[float] = []
    tried = tune_weights(
        model, LETTERS, clips, alphas=(0.0, 0.5, 1.0), betas=(0.0, 1.0), progress=shares.append
    )
    assert (tried[0].weights.alpha, tried[0].wer) == (0.5, 0.0)
    assert [t.wer for t in tried if t.weights.alpha == 0] == [pytest.approx(2 / 7)] * 2
    assert len(tried) == len({(t.weights.alpha, t.weights.beta) for t in tried}) == len(shares)
    assert shares == sorted(shares)
    one = tune_weights(model, LETTERS, clips, alphas=(0.25,), betas=(2.0,))
    assert [(t.weights.alpha, t.weights.beta) for t in one] == [(0.25, 2.0)]
    with pytest.raises(ConfigError, match="no recording has a text"):
        tune_weights(model, LETTERS, [])
    with pytest.raises(ConfigError, match="no weights to try"):
        tune_weights(model, LETTERS, clips, alphas=())
