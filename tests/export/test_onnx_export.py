"""The exported graph: names, axes, versions, and PyTorch's numbers at every length."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_asr.errors import ConfigError
from edge_asr.export.fold import fold_batch_norm
from edge_asr.export.onnx_export import export_onnx
from edge_asr.model import ConformerCTC


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def largest_error(model: ConformerCTC, session: onnxruntime.InferenceSession, lengths: list[int]) -> float:
    """Of log-probs on valid frames; the shape must be [B, ceil(T / s), V]."""
    factor = model.config.subsampling_factor
    features = torch.randn(len(lengths), max(lengths), 80) * 4 - 8
    with torch.inference_mode():
        expected, expected_lens = model(features, torch.tensor(lengths))
    feeds = {"audio_signal": features.transpose(1, 2).numpy(), "length": np.asarray(lengths, np.int64)}
    (given,) = session.run(None, feeds)
    assert given.shape == (len(lengths), -(-max(lengths) // factor), model.config.vocab_size)
    assert expected_lens.tolist() == [-(-n // factor) for n in lengths]
    return max(
        float(np.abs(expected[row, :n].numpy() - given[row, :n]).max()) for row, n in enumerate(expected_lens)
    )


def dims_of(value: onnx.ValueInfoProto) -> list[str | int]:
    """Names of dynamic axes, sizes of fixed ones."""
    return [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]


def test_names_types_and_dynamic_axes(exported: onnx.ModelProto) -> None:
    audio_signal, length = exported.graph.input
    (log_probs,) = exported.graph.output
    assert (audio_signal.name, length.name, log_probs.name) == ("audio_signal", "length", "logprobs")
    assert dims_of(audio_signal) == ["batch", 80, "time"]
    assert dims_of(length) == ["batch"]
    assert all(isinstance(axis, str) and axis for axis in dims_of(log_probs)[:2])
    assert dims_of(log_probs)[2] == 28
    types = [v.type.tensor_type.elem_type for v in (audio_signal, length, log_probs)]
    assert types == [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT]


def test_versions_and_single_file(exported: onnx.ModelProto) -> None:
    assert exported.ir_version <= 10
    assert [(o.domain, o.version) for o in exported.opset_import] == [("", 18)]
    assert all(i.data_location == onnx.TensorProto.DEFAULT for i in exported.graph.initializer)


def test_nothing_of_this_machine_is_in_the_file(exported: onnx.ModelProto) -> None:
    assert b".py" not in exported.SerializeToString()


@pytest.mark.parametrize("n_frames", range(1, 18))
def test_every_short_length_matches_pytorch(
    n_frames: int, model: ConformerCTC, exported: onnx.ModelProto
) -> None:
    assert largest_error(model, open_session(exported), [n_frames]) < 1e-4


def test_batches_with_padding_match_pytorch(model: ConformerCTC, exported: onnx.ModelProto) -> None:
    session = open_session(exported)
    for lengths in ([500], [64, 64], [1, 300, 8, 9, 16, 17, 299, 120]):
        assert largest_error(model, session, lengths) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"subsampling": "striding", "subsampling_factor": 4, "xscaling": True, "conv_context": "symmetric"},
        {"head": "lstm", "conv_norm": "layer_norm", "cmvn": False},
        {"attention": "linear", "block_order": "parallel"},
        {"block_order": "convolution_first", "conv_kernel_size": 9, "conv_context": [6, 2]},
    ],
    ids=["nemo-x4", "lstm-layer-norm", "linear-attention", "convolution-first"],
)
def test_other_architectures_export(
    overrides: dict[str, Any], build_model: Callable[..., ConformerCTC]
) -> None:
    model = build_model(n_layers=1, **overrides)
    session = open_session(export_onnx(fold_batch_norm(model), 80))
    for lengths in ([1], [2], [9], [33], [130, 4, 57]):
        assert largest_error(model, session, lengths) < 1e-4


@pytest.mark.parametrize("opset", [17, 23])
def test_opset_out_of_range_is_refused(opset: int, model: ConformerCTC) -> None:
    with pytest.raises(ConfigError, match=f"opset is {opset}; give 18 .* to 22"):
        export_onnx(model, 80, opset=opset)


@pytest.mark.slow
def test_exporter_leaves_stdout_and_warnings_alone(
    build_model: Callable[..., ConformerCTC], capsys: pytest.CaptureFixture[str]
) -> None:
    # pytest turns warnings into errors here, so finishing is half of the test.
    export_onnx(fold_batch_norm(build_model(n_layers=1)), 80)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_an_exported_model_can_be_freed(build_model: Callable[..., ConformerCTC]) -> None:
    model = build_model(n_layers=1)
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    export_onnx(model, 80)
    del model
    gc.collect()
    assert [parameter for parameter in parameters if parameter() is not None] == []
