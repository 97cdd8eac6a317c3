"""Half's rounding really happens, as onnx's own reference evaluator rounds; peaks are the true ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edge_asr.export.fp16.rounding as half_rounding
from edge_asr.bundle.names import INPUT_NAMES, OUTPUT_NAME
from edge_asr.errors import GateError
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.rounding import (
    RoundedModel,
    float16_values,
    measure_peaks,
    round_every_value,
    unoptimized_session,
)

FEATURES = np.random.default_rng(0).standard_normal((2, 90, 80)).astype(np.float32)
LENGTHS = np.asarray([90, 41], np.int64)
FEED = {INPUT_NAMES[0]: np.ascontiguousarray(FEATURES.transpose(0, 2, 1)), INPUT_NAMES[1]: LENGTHS}


def scaled(factor: float) -> onnx.ModelProto:
    """The log-softmax of [B, 80, T] over its channels, after a product with `factor` and a division by it."""
    weight = np.eye(80, dtype=np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["audio_signal"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", "w"], ["h"]),
            helper.make_node("Mul", ["h", "factor"], ["large"]),
            helper.make_node("Div", ["large", "factor"], ["small"]),
            helper.make_node("Cast", ["length"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("LogSoftmax", ["small"], ["logprobs"]),
        ],
        "scaled",
        [
            helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["b", 80, "t"]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["b"]),
        ],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["b", "t", 80])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(factor), "factor")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


@pytest.fixture(scope="module")
def fp16(simplified: onnx.ModelProto) -> onnx.ModelProto:
    return convert_to_fp16(simplified)


def test_every_float16_value_of_the_rounded_run_is_a_half(fp16: onnx.ModelProto) -> None:
    rounded = round_every_value(fp16)
    names = float16_values(fp16)
    assert len(names) > 100
    del rounded.graph.output[:]
    rounded.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    found = unoptimized_session(rounded).run(None, FEED)
    changed = 0
    for name, values in zip(names, found, strict=True):
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values, err_msg=name)
        changed += bool(np.any(values != np.trunc(values)))
    assert changed > 50  # else whole numbers alone would pass


def test_reference_evaluator_rounds_alike(fp16: onnx.ModelProto) -> None:
    from onnx.reference import ReferenceEvaluator

    (expected,) = ReferenceEvaluator(fp16).run(None, FEED)
    given = RoundedModel(fp16).log_probs(FEATURES, LENGTHS)
    for row, length in enumerate(-(-LENGTHS // 8)):
        # Both round after every node, the evaluator also inside its norms and products: some units of half
        # at the logits' size (8 to 32: 2^-7 to 2^-6).
        difference = np.abs(given[row, :length] - expected[row, :length])
        assert difference.max() < 0.2
        assert (given[row, :length].argmax(1) == expected[row, :length].argmax(1)).all()


def test_overflow_shows_that_onnxruntime_hides() -> None:
    converted = convert_to_fp16(scaled(60000.0))
    features = np.full((1, 3, 80), 3.0, np.float32)
    lengths = np.asarray([3], np.int64)
    with np.errstate(invalid="ignore"):
        rounded = RoundedModel(converted).log_probs(features, lengths)
    assert not np.isfinite(rounded).all()
    hidden = unoptimized_session(converted).run(
        [OUTPUT_NAME], {INPUT_NAMES[0]: features.transpose(0, 2, 1).copy(), INPUT_NAMES[1]: lengths}
    )[0]
    assert np.isfinite(
        hidden
    ).all()  # when this fails, onnxruntime has begun to round: simplify half_rounding.py


def test_run_without_its_rounding_is_refused(
    fp16: onnx.ModelProto, simplified: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_rounding(_: onnx.ModelProto) -> onnx.ModelProto:
        bare = onnx.ModelProto()
        bare.CopyFrom(simplified)
        last = simplified.graph.node[-1].input[0]
        bare.graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, None))
        return bare

    monkeypatch.setattr(half_rounding, "round_every_value", no_rounding)
    with pytest.raises(GateError, match="onnxruntime removed the rounding of"):
        RoundedModel(fp16).log_probs(FEATURES, LENGTHS)


def test_peaks_are_the_largest_magnitudes_of_all_batches_and_weights() -> None:
    model = scaled(1000.0)
    loud = FEATURES.copy()
    loud[1, 7, 3] = -13.0
    batches = [(FEATURES, LENGTHS), (loud[1:], LENGTHS[1:])]
    peaks = measure_peaks(model, convert_to_fp16(model), batches)
    assert peaks == pytest.approx(
        {"large": 13000.0, "factor": 1000.0, "h": 13.0, "t_float16": 13.0, "small": 13.0, "w": 1.0}
    )
    assert next(iter(peaks)) == "large"


def test_values_that_are_not_numbers_are_infinite_peaks() -> None:
    model = scaled(2.0)
    spoiled = FEATURES.copy()
    spoiled[0, 0, 0] = np.nan
    peaks = measure_peaks(model, convert_to_fp16(model), [(spoiled, LENGTHS)])
    assert peaks["h"] == np.inf
    assert peaks["w"] == 1.0
