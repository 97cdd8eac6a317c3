"""For the tests here: a model's graph, exported and simplified, against PyTorch at many lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from edge_asr.model import ConformerCTC


@torch.inference_mode()
def check_graph(model: ConformerCTC, lengths: Sequence[int], *, tolerance: float = 1e-4) -> None:
    """The graph gives what the model gives, with rows of other lengths, and n_graph(T) frames.

    The tolerance is the export gate's (DESIGN.md): float32 rounding of another order of sums.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from edge_asr.export.onnx_export import export_onnx
    from edge_asr.export.optimize import simplify_graph

    n_mels = model.config.n_mels
    graph = simplify_graph(export_onnx(model, n_mels), n_mels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(0)
    for n_frames in lengths:
        n_rows = 1 + n_frames % 3
        features = torch.randn(n_rows, n_frames, n_mels, generator=generator)
        lens = torch.tensor([n_frames, (n_frames + 1) // 2, 0][:n_rows])
        expected, expected_lens = model(features, lens)
        (given,) = session.run(
            None, {"audio_signal": features.transpose(1, 2).contiguous().numpy(), "length": lens.numpy()}
        )
        assert given.shape == (
            n_rows,
            model.config.output_frames.n_graph(n_frames),
            model.config.vocab_size,
        )
        assert np.isfinite(given).all()
        for row, end in enumerate(expected_lens.tolist()):
            np.testing.assert_allclose(given[row, :end], expected[row, :end], rtol=0, atol=tolerance)
