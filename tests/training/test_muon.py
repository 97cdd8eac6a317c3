"""Muon: matrices move along orthogonal directions, all else by AdamW; projections in one count as several."""

from __future__ import annotations

import torch
from torch import nn

from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.training.config import OptimConfig
from edge_asr.training.muon import MuonAdamW, orthogonalized
from edge_asr.training.schedule import build_optimizer


def test_orthogonalized() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(3, 24, 96)))
    assert 0.6 < values.min() <= values.max() < 1.3
    scaled = torch.randn(1, 8, 8)
    torch.testing.assert_close(orthogonalized(scaled), orthogonalized(1000 * scaled), atol=0.02, rtol=0.05)


def test_a_tall_matrix_steps_by_its_polar_factor() -> None:
    torch.manual_seed(0)
    weights = nn.Parameter(torch.zeros(32, 8))
    weights.grad = torch.randn(32, 8)
    MuonAdamW([{"params": [weights], "weight_decay": 0.0, "muon": True}], lr=0.1).step()
    u, _, vh = torch.linalg.svd(weights.grad, full_matrices=False)
    step = -weights.detach() / (0.1 * 0.2 * 32**0.5)
    assert torch.nn.functional.cosine_similarity(step.flatten(), (u @ vh).flatten(), dim=0) > 0.97
    assert torch.linalg.svdvals(step).min() > 0.6


def test_parts_are_matrices_of_their_own() -> None:
    torch.manual_seed(0)
    gradient = torch.randn(24, 8)
    together, apart = nn.Parameter(torch.zeros(24, 8)), [nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    together.grad = gradient
    for parameter, part in zip(apart, gradient.chunk(3), strict=True):
        parameter.grad = part
    MuonAdamW([{"params": [together], "weight_decay": 0.0, "muon": True, "parts": 3}], lr=0.1).step()
    MuonAdamW([{"params": apart, "weight_decay": 0.0, "muon": True}], lr=0.1).step()
    torch.testing.assert_close(together.detach(), torch.cat([p.detach() for p in apart]))


def test_only_matrices_of_the_layers_are_its() -> None:
    model = ConformerCTC(ConformerConfig(vocab_size=12, d_model=16, n_heads=2, n_layers=1))
    optimizer = build_optimizer(model, OptimConfig(optimizer="muon"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices = {
        names[id(parameter)]: group["parts"]
        for group in optimizer.param_groups
        if group["muon"]
        for parameter in group["params"]
    }
    assert matrices["encoder.layers.0.attention.qkv.weight"] == 3
    assert matrices["encoder.layers.0.convolution.pointwise_in.weight"] == 2
    assert all(".layers." in name and name.endswith("weight") for name in matrices)
    assert not any("norm" in name or "depthwise" in name for name in matrices)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    everything = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in everything]
    for parameter in everything:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, everything, strict=True))
