"""The opset-17 copy computes the same, TensorRT's parser reads it, and what it cannot say is refused.

Not run on TensorRT 8.6 itself: no such machine was at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.errors import GateError
from edge_asr.export.engine.opset17 import check_opset17, convert_to_opset17
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.rounding import unoptimized_session
from edge_asr.export.optimize import set_metadata
from edge_asr.graph.check import check_graph

X = np.random.default_rng(0).standard_normal((2, 5, 6)).astype(np.float32)


def graph_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    outputs: tuple[str, ...] = ("y",),
    *,
    shape: tuple[str | int, ...] = ("n", 5, 6),
    opset: int = 18,
) -> onnx.ModelProto:
    """A float32 model with the input x of `shape`."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])
    inferred = onnx.shape_inference.infer_shapes(model)
    for value, known in zip(graph.output, inferred.graph.output, strict=True):
        value.CopyFrom(known)
    model.graph.CopyFrom(graph)
    return model


def outputs_of(model: onnx.ModelProto, x: Any = X) -> list[Any]:
    found: list[Any] = unoptimized_session(model).run(None, {"x": x})
    return found


def quantize(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Symmetric, per-channel Q/DQ by onnxruntime's quantizer, calibrated on noise."""
    from onnxruntime import quantization

    class Noise(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            noise = np.random.default_rng(0).standard_normal((2, 1, 80, 120)).astype(np.float32)
            self._feeds = [{"audio_signal": clip, "length": np.asarray([120])} for clip in noise]

        def get_next(self) -> dict[str, Any] | None:
            return self._feeds.pop() if self._feeds else None

    onnx.save(model, folder / "float32.onnx")
    quantization.quantize_static(
        folder / "float32.onnx",
        folder / "int8.onnx",
        Noise(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return onnx.load(folder / "int8.onnx")


@pytest.fixture(scope="module")
def by_precision(
    simplified: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, onnx.ModelProto]:
    return {
        "fp32": simplified,
        "fp16": convert_to_fp16(simplified),
        "int8": quantize(simplified, tmp_path_factory.mktemp("int8")),
    }


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_copy_of_each_precision_is_equal_and_valid(
    precision: str, by_precision: dict[str, onnx.ModelProto]
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(by_precision[precision])
    set_metadata(model, {"vocab_size": "27"})
    before = model.SerializeToString(deterministic=True)
    copy = convert_to_opset17(model)
    assert model.SerializeToString(deterministic=True) == before
    assert [o.version for o in copy.opset_import if o.domain == ""] == [17]
    assert copy.ir_version == 8
    check_graph(copy)  # dynamic axes and names
    check_opset17(model, copy, 80)
    assert list(copy.metadata_props) == list(model.metadata_props)
    assert list(copy.graph.output) == list(model.graph.output)
    assert [n.name for n in copy.graph.node] == [n.name for n in model.graph.node]
    splits = [n for n in copy.graph.node if n.op_type == "Split"]
    assert splits
    assert all(len(n.input) == 2 and not any(a.name == "num_outputs" for a in n.attribute) for n in splits)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_rtx_builder_on_cpu_execution_not_tested_parses_the_copy(
    precision: str, by_precision: dict[str, onnx.ModelProto]
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (Linux x86-64 only)")
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(convert_to_opset17(by_precision[precision]).SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    assert network.num_outputs == 1
    assert network.get_output(0).dtype == trt.float32


@pytest.mark.parametrize(
    "operator", ["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd", "ReduceLogSumExp"]
)
@pytest.mark.parametrize("axes", [[-1], [1, 2], None])
def test_reduction_axes_become_an_attribute(operator: str, axes: list[int] | None) -> None:
    inputs, constants = (["x"], {}) if axes is None else (["x", "axes"], {"axes": np.asarray(axes)})
    model = graph_of([helper.make_node(operator, inputs, ["y"], keepdims=0)], constants)
    copy = convert_to_opset17(model)
    assert len(copy.graph.node[0].input) == 1
    assert len(copy.graph.initializer) == 0
    np.testing.assert_array_equal(outputs_of(copy)[0], outputs_of(model)[0])


def test_reduce_sum_is_left_alone() -> None:
    model = graph_of([helper.make_node("ReduceSum", ["x", "axes"], ["y"])], {"axes": np.asarray([1])})
    copy = convert_to_opset17(model)
    assert list(copy.graph.node) == list(model.graph.node)  # its axes are an input since opset 13


def test_axes_that_others_read_stay() -> None:
    model = graph_of(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
            helper.make_node("ReduceSum", ["x", "axes"], ["sum"]),
            helper.make_node("Add", ["mean", "sum"], ["y"]),
        ],
        {"axes": np.asarray([1])},
    )
    copy = convert_to_opset17(model)
    np.testing.assert_array_equal(outputs_of(copy)[0], outputs_of(model)[0])


@pytest.mark.parametrize(("count", "sizes"), [(2, [3, 2]), (5, [1] * 5), (3, [2, 2, 1])])
def test_split_by_count_gets_its_sizes(count: int, sizes: list[int]) -> None:
    names = tuple(f"y{i}" for i in range(count))
    model = graph_of([helper.make_node("Split", ["x"], names, axis=1, num_outputs=count)], outputs=names)
    copy = convert_to_opset17(model)
    assert numpy_helper.to_array(copy.graph.initializer[0]).tolist() == sizes
    for given, expected in zip(outputs_of(copy), outputs_of(model), strict=True):
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_of_named_axes_pads_all(mode: str) -> None:
    model = graph_of(
        [helper.make_node("Pad", ["x", "pads", "value", "axes"], ["y"], mode=mode)],
        {"pads": np.asarray([1, 2, 3, 0]), "value": np.float32(7.0), "axes": np.asarray([-1, 1])},
    )
    copy = convert_to_opset17(model)
    assert len(copy.graph.node[0].input) == 3
    np.testing.assert_array_equal(outputs_of(copy)[0], outputs_of(model)[0])


def test_pad_without_axes_or_value_is_kept() -> None:
    model = graph_of(
        [helper.make_node("Pad", ["x", "pads"], ["y"])], {"pads": np.asarray([0, 1, 2, 0, 0, 1])}
    )
    copy = convert_to_opset17(model)
    assert list(copy.graph.node) == list(model.graph.node)
    np.testing.assert_array_equal(outputs_of(copy)[0], outputs_of(model)[0])


def test_operators_that_only_gained_types_are_taken_from_opset_22() -> None:
    model = graph_of(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["same"]),
            helper.make_node("Transpose", ["same"], ["turned"], perm=[0, 2, 1]),
            helper.make_node("Conv", ["turned", "kernel"], ["mixed"]),
            helper.make_node("QuantizeLinear", ["mixed", "scale", "zero"], ["q"], saturate=1),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=1, block_size=0),
            helper.make_node("Cast", ["d"], ["c"], to=TensorProto.FLOAT, saturate=1),
            helper.make_node("Sin", ["c"], ["y"]),
        ],
        {
            "kernel": np.ones((6, 6, 1), np.float32),
            "scale": np.float32(0.1),
            "zero": np.int8(0),
        },
        opset=22,
    )
    copy = convert_to_opset17(model)
    np.testing.assert_array_equal(outputs_of(copy)[0], outputs_of(model)[0])


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "newer operator": (
        graph_of([helper.make_node("Gelu", ["x"], ["y"], name="activation")], opset=20),
        "Gelu activation has no form at opset 17: it is of opset 20",
    ),
    "Resize": (
        graph_of(
            [helper.make_node("Resize", ["x", "", "scales"], ["y"], name="zoom")],
            {"scales": np.asarray([1.0, 1.0, 2.0], np.float32)},
        ),
        "Resize zoom has no form at opset 17: it is of opset 18",
    ),
    "ScatterElements": (
        graph_of(
            [helper.make_node("ScatterElements", ["x", "where", "x"], ["y"], name="scatter")],
            {"where": np.zeros((2, 5, 6), np.int64)},
            shape=(2, 5, 6),
        ),
        "ScatterElements scatter",
    ),
    "dynamic split": (
        graph_of([helper.make_node("Split", ["x"], ["y", "z"], axis=0, num_outputs=2)], outputs=("y", "z")),
        "it splits the dynamic axis 0",
    ),
    "computed axes": (
        graph_of(
            [
                helper.make_node("Identity", ["axes"], ["computed"]),
                helper.make_node("ReduceMean", ["x", "computed"], ["y"]),
            ],
            {"axes": np.asarray([1])},
        ),
        r"input 1 \(computed\) is computed",
    ),
    "no axes, kept": (
        graph_of([helper.make_node("ReduceMean", ["x"], ["y"], noop_with_empty_axes=1)]),
        "noop_with_empty_axes is set",
    ),
    "later attribute": (
        graph_of([helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT, saturate=0)], opset=19),
        "its attribute saturate = 0 came later",
    ),
    "wrap": (
        graph_of(
            [helper.make_node("Pad", ["x", "pads"], ["y"], mode="wrap")],
            {"pads": np.asarray([0, 0, 1, 0, 0, 1])},
            opset=19,
        ),
        "mode wrap",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_opset_17_cannot_say_is_refused_by_name(what: str) -> None:
    model, message = REFUSED[what]
    with pytest.raises(GateError, match=message):
        convert_to_opset17(model)


def test_older_graph_is_copied_as_it_is() -> None:
    model = graph_of([helper.make_node("Relu", ["x"], ["y"])], opset=16)
    copy = convert_to_opset17(model)
    assert copy == model
    assert copy is not model


def test_copy_that_differs_is_refused(simplified: onnx.ModelProto) -> None:
    copy = convert_to_opset17(simplified)
    (bias,) = (i for i in copy.graph.initializer if i.name.endswith("projection.bias"))
    values = numpy_helper.to_array(bias).copy()
    values[3] += np.float32(1e-3)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    with pytest.raises(GateError, match="the opset-17 copy differs at batch 1, 1 frames"):
        check_opset17(simplified, copy, 80)


def test_copy_that_onnxruntime_cannot_load_is_refused(simplified: onnx.ModelProto) -> None:
    copy = convert_to_opset17(simplified)
    next(n for n in copy.graph.node if n.op_type == "LogSoftmax").op_type = "NoSuchOperator"
    with pytest.raises(GateError, match="cannot load the graph"):
        check_opset17(simplified, copy, 80)
