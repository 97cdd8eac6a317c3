"""For the tests of ESPnet's and WeNet's modules: a model through the exporter and the simplifier."""

import numpy as np
import pytest
import torch

from edge_asr.model import ConformerCTC


def check_export(model: ConformerCTC, n_mels: int) -> None:
    """onnxruntime gives what PyTorch gives, at lengths around every edge and in padded batches, to 1e-4."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxsim")
    from edge_asr.export.onnx_export import export_onnx
    from edge_asr.export.optimize import simplify_graph

    simplified = simplify_graph(export_onnx(model, n_mels), n_mels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        simplified.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for lengths in ((1,), (6, 1), (7,), (8, 7, 0), (11, 10), (43, 39, 12), (200, 77)):
        features = torch.randn(len(lengths), max(lengths), n_mels)
        lens = torch.tensor(lengths)
        with torch.no_grad():
            expected, counts = model(features, lens)
        inputs = {"audio_signal": features.transpose(1, 2).numpy(), "length": lens.numpy()}
        (given,) = session.run(None, inputs)
        assert given.shape == expected.shape
        assert np.isfinite(given).all()
        for row, n in enumerate(counts.tolist()):
            np.testing.assert_allclose(given[row, :n], expected[row, :n], rtol=0, atol=1e-4)
