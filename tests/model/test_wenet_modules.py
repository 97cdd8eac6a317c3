"""WeNet's modules as parts of a model: what they refuse, and export.

What they compute is tested against the originals' formulas in tests/checkpoints/test_wenet.py.
"""

import pytest
import torch
from small_models import N_MELS, build_model
from unpadded_models import check_export

from edge_asr.errors import ConfigError
from edge_asr.export.fold import fold_batch_norm

WENET = {
    "attention": "absolute_pos",
    "conv_padding": "before_pointwise",
    "conv_context": "causal",
    "subsampling": "conv2d",
    "subsampling_factor": 4,
    "xscaling": True,
    "output_norm": True,
}


def test_padding_before_the_pointwise_convolution_needs_a_causal_one() -> None:
    with pytest.raises(ConfigError, match="frames of look-ahead"):
        build_model(**{**WENET, "conv_context": [3, 1]})


def test_batch_norm_is_folded() -> None:
    """export/fold.py folds a causal convolution with its padding in front of the first pointwise one too."""
    model = build_model(**WENET)
    features, lens = torch.randn(2, 50, N_MELS), torch.tensor([50, 33])
    with torch.no_grad():
        expected, given = model(features, lens)[0], fold_batch_norm(model)(features, lens)[0]
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_export_at_every_length() -> None:
    check_export(build_model(**WENET), N_MELS)
