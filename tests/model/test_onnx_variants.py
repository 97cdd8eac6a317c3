"""Every architectural option exports to ONNX with dynamic batch and time, from one feature frame up.

The export pipeline itself is tested in tests/export, on the default options; here it is the network's own
code that must stay free of anything the exporter would freeze.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import N_MELS, VOCAB_SIZE, build_model
from torch import Tensor

pytestmark = pytest.mark.slow

KINDS: dict[str, dict[str, Any]] = {
    "striding, symmetric": {"subsampling": "striding", "subsampling_factor": 4, "xscaling": True},
    "lstm head, layer norm, look-ahead": {"head": "lstm", "conv_norm": "layer_norm", "conv_context": [3, 1]},
    "linear attention, parallel": {
        "attention": "linear",
        "block_order": "parallel",
        "conv_context": "causal",
    },
    "linear attention, five terms": {"attention": "linear", "taylor_terms": 5, "n_heads": 4},
    "transformer": {
        "encoder": "transformer",
        "subsampling": "conv1d",
        "subsampling_factor": 2,
        "attention": "no_pos",
        "added_positions": True,
    },
    "linear input, added positions, tanh": {
        "subsampling": "linear",
        "subsampling_factor": 1,
        "attention": "no_pos",
        "added_positions": True,
        "xscaling": True,
        "activation": "tanh",
    },
    "conv2d by 2, selu": {"subsampling": "conv2d", "subsampling_factor": 2, "activation": "selu"},
    "conv2d by 1, hardtanh": {"subsampling": "conv2d", "subsampling_factor": 1, "activation": "hardtanh"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@torch.inference_mode()
def test_onnx_equals_torch_at_every_length(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = build_model(n_layers=1, **KINDS[kind])  # a second one costs seconds and shows nothing new

    class LogProbs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Tensor, lens: Tensor) -> Tensor:
            log_probs: Tensor = self.model(features, lens)[0]
            return log_probs

    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.onnx.export(
        LogProbs().eval(),
        (torch.randn(2, 67, N_MELS), torch.tensor([67, 30])),
        dynamo=True,
        opset_version=18,
        dynamic_shapes={"features": {0: batch, 1: time}, "lens": {0: batch}},
        input_names=["features", "lens"],
        output_names=["log_probs"],
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    for n_frames in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 67, 500, 3000):
        n_rows = 1 + n_frames % 3
        features = torch.randn(n_rows, n_frames, N_MELS)
        lens = torch.tensor([n_frames, n_frames // 2, 0][:n_rows])
        expected, expected_lens = model(features, lens)
        (actual,) = session.run(None, {"features": features.numpy(), "lens": lens.numpy()})
        assert actual.shape == (n_rows, expected.shape[1], VOCAB_SIZE)
        assert np.isfinite(actual).all()
        for row in range(n_rows):
            end = int(expected_lens[row])
            np.testing.assert_allclose(actual[row, :end], expected[row, :end], rtol=0, atol=1e-4)
