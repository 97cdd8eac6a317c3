"""Folding BatchNorm changes nothing but rounding, and refuses what it cannot fold."""

from __future__ import annotations

import pytest
import torch

from edge_asr.errors import CheckpointError
from edge_asr.export.fold import fold_batch_norm, fold_into_convolution
from edge_asr.model import ConformerCTC


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folded_convolution_equals_convolution_and_norm(bias: bool, affine: bool) -> None:
    torch.manual_seed(1)
    convolution = torch.nn.Conv1d(6, 6, 5, groups=6, bias=bias).double()
    norm = torch.nn.BatchNorm1d(6, affine=affine).double().eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3.0)
    if affine:
        norm.weight.data.normal_()
        norm.bias.data.normal_()
    x = torch.randn(2, 6, 40, dtype=torch.float64)
    folded = fold_into_convolution(convolution, norm)
    assert folded.weight.dtype == torch.float32
    # The folded weights are rounded to float32: 2^-24 relative, on sums of five products.
    assert torch.allclose(folded.double()(x), norm(convolution(x)), rtol=1e-5, atol=1e-5)


def test_folded_model_gives_the_same_log_probs(model: ConformerCTC) -> None:
    features, lengths = torch.randn(3, 120, 80) * 4 - 8, torch.tensor([120, 77, 1])
    folded = fold_batch_norm(model)
    with torch.inference_mode():
        expected, expected_lens = model(features, lengths)
        given, given_lens = folded(features, lengths)
    assert torch.equal(expected_lens, given_lens)
    for row, n_frames in enumerate(expected_lens):
        assert (expected[row, :n_frames] - given[row, :n_frames]).abs().max() < 2e-5


def test_no_batch_norm_is_left_and_the_original_is_untouched(model: ConformerCTC) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    assert any(isinstance(m, torch.nn.BatchNorm1d) for m in model.modules())
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in folded.modules())
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_batch_norm_that_no_convolution_feeds_is_refused() -> None:
    with pytest.raises(CheckpointError, match="feeds these BatchNorm layers: 1"):
        fold_batch_norm(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)))


def test_norm_without_statistics_is_refused(model: ConformerCTC) -> None:
    import copy

    broken = copy.deepcopy(model)
    broken.encoder.layers[0].convolution.batch_norm.running_mean = None
    with pytest.raises(CheckpointError, match="no running statistics"):
        fold_batch_norm(broken)
