"""ESPnet's modules as parts of a model: frame counts of the unpadded subsampling, the old shift, export.

What they compute is tested against the originals' formulas in tests/checkpoints/test_espnet.py.
"""

from typing import Any

import pytest
import torch
from small_models import N_MELS, build_model
from unpadded_models import check_export

from edge_asr.errors import ConfigError
from edge_asr.model.attention.legacy import legacy_shift

UNPADDED: dict[str, Any] = {"subsampling": "conv2d", "xscaling": True, "output_norm": True}


@pytest.mark.parametrize(("factor", "first"), [(4, 7), (6, 11), (8, 15)])
def test_frames_of_unpadded_convolutions(factor: int, first: int) -> None:
    """ESPnet: ((n - 1) // 2 - 1) // 2 and the like; the tensor has ceil(n / factor) frames as graphs do."""
    model = build_model(n_mels=31, subsampling_factor=factor, **UNPADDED)
    assert model.config.first_output_frames == first
    for n in range(1, 50):
        expected = {
            4: ((n - 1) // 2 - 1) // 2,
            6: ((n - 1) // 2 - 2) // 3,
            8: (((n - 1) // 2 - 1) // 2 - 1) // 2,
        }[factor]
        with torch.no_grad():
            log_probs, lens = model(torch.randn(1, n, 31), torch.tensor([n]))
        assert lens.tolist() == [max(expected, 0)]
        assert log_probs.shape[1] == -(-n // factor)


def test_too_few_bands_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaves nothing of 6 mel bands"):
        build_model(n_mels=6, subsampling_factor=4, **UNPADDED)


def test_the_old_shift_entry_by_entry() -> None:
    scores = torch.randn(2, 3, 7, 7)
    shifted = legacy_shift(scores)
    for i in range(7):
        for j in range(7):
            if j <= i:
                expected = scores[:, :, i, 6 - i + j]
            elif j == i + 1:
                expected = torch.zeros(2, 3)
            else:
                expected = scores[:, :, i + 1, j - i - 2]
            assert torch.equal(shifted[:, :, i, j], expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_export_at_every_length() -> None:
    """Table rows below and above the clip's frames, rows of a batch of both kinds."""
    model = build_model(attention="rel_pos_legacy", position_table=9, subsampling_factor=4, **UNPADDED)
    check_export(model, N_MELS)
