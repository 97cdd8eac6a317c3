"""Greedy decoding between steps: the text of each clip alone, whatever the batch."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch

from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.training.evaluate import decode_greedy
from edge_asr.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_characters("abcd ")


@pytest.fixture(scope="module")
def model() -> ConformerCTC:
    torch.manual_seed(1)
    config = ConformerConfig.from_preset(
        "tiny", vocab_size=len(VOCABULARY), d_model=16, n_layers=1, n_heads=2, subsampling_channels=8
    )
    model = ConformerCTC(config)
    with torch.no_grad():  # sharpen, so that random weights emit tokens
        model.head.projection.weight.mul_(20)
    return model


@pytest.mark.parametrize("max_batch_frames", [1, 500, 100_000])
def test_same_text_as_one_by_one(model: ConformerCTC, max_batch_frames: int) -> None:
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, 80)).astype(np.float32) * 3 for n in (120, 7, 350, 1, 64)]
    texts = decode_greedy(model, features, VOCABULARY, max_batch_frames=max_batch_frames)
    expected = []
    for row in features:
        with torch.no_grad():
            log_probs, lens = model(torch.from_numpy(row)[None], torch.tensor([len(row)]))
        best = log_probs[0, : int(lens[0])].argmax(dim=-1).tolist()
        expected.append(VOCABULARY.decode([i for i, _ in groupby(best) if i != VOCABULARY.blank_id]))
    assert texts == expected
    assert any(texts)
