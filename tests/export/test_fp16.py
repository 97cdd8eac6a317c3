"""The typed FP16 graph: what is half, what stays float32, and that nothing else changes.

Types are read from onnx's own shape inference of the result, numbers from onnxruntime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.errors import GateError
from edge_asr.export.fold import fold_batch_norm
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.rounding import RoundedModel, measure_peaks, unoptimized_session
from edge_asr.export.inference_form import to_inference_form
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import set_metadata, simplify_graph
from edge_asr.graph.check import check_graph

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return types | {i.name: i.data_type for i in graph.initializer}


def types_by_operator(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Which types the first outputs of each operator have."""
    types = types_of(model)
    found: dict[str, set[int]] = {}
    for node in model.graph.node:
        found.setdefault(node.op_type, set()).add(types[node.output[0]])
    return found


def graph_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any],
    outputs: tuple[str, ...] = ("y",),
    shape: tuple[str | int, ...] = ("n", 8),
) -> onnx.ModelProto:
    """A float32 model with the input x of `shape`, at opset 18."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
LAYER = helper.make_node("MatMul", ["x", "w"], ["h"])  # after it, values are half


@pytest.fixture(scope="module")
def fp16(simplified: onnx.ModelProto) -> onnx.ModelProto:
    return convert_to_fp16(simplified)


def test_layers_norms_and_weights_are_half_and_islands_are_not(fp16: onnx.ModelProto) -> None:
    found = types_by_operator(fp16)
    halves = ("MatMul", "Gemm", "Conv", "LayerNormalization", "Sigmoid", "Relu", "Split", "Softmax")
    for operator in halves:
        assert found[operator] == {FLOAT16}, operator
    for operator in ("LogSoftmax", "Sin", "Cos"):
        assert found[operator] == {FLOAT}, operator
    norms = [n for n in fp16.graph.node if n.op_type == "LayerNormalization"]
    assert {a.i for n in norms for a in n.attribute if a.name == "stash_type"} == {1}  # float32 statistics
    sizes = Counter[int]()
    for initializer in fp16.graph.initializer:
        sizes[initializer.data_type] += int(np.prod(initializer.dims))
    assert sizes[FLOAT] < 300  # CMVN, the positions' frequencies and a mask's value
    assert sizes[FLOAT16] > 30_000


def test_features_stay_float32_up_to_the_first_convolution(fp16: onnx.ModelProto) -> None:
    types = types_of(fp16)
    producers = {name: node for node in fp16.graph.node for name in node.output}
    node = next(n for n in fp16.graph.node if n.op_type == "Conv")
    seen = []
    while node.input[0] in producers:
        node = producers[node.input[0]]
        seen.append(node.op_type)
        if node.op_type == "Where":
            node = producers[node.input[1]]
            seen.append(node.op_type)
        if len(seen) > 1:
            assert types[node.output[0]] == FLOAT
    assert seen[0] == "Cast"
    assert {"Mul", "Sub", "Where"} <= set(seen)


def test_all_costs_a_handful_of_casts_and_attention_none(
    simplified: onnx.ModelProto, fp16: onnx.ModelProto
) -> None:
    def n_casts(model: onnx.ModelProto) -> int:
        return sum(n.op_type == "Cast" for n in model.graph.node)

    # Features, positions and mask into half, logits out of it.
    assert n_casts(fp16) - n_casts(simplified) <= 4
    cast_outputs = {n.output[0] for n in fp16.graph.node if n.op_type == "Cast"}
    chained = [n.name for n in fp16.graph.node if n.op_type == "Cast" and n.input[0] in cast_outputs]
    assert chained == []


def test_interface_names_and_metadata_are_kept_and_the_original_too(simplified: onnx.ModelProto) -> None:
    described = onnx.ModelProto()
    described.CopyFrom(simplified)
    set_metadata(described, {"vocab_size": "27"})
    before = described.SerializeToString(deterministic=True)
    converted = convert_to_fp16(described)
    assert described.SerializeToString(deterministic=True) == before
    check_graph(converted)
    assert list(converted.graph.input) == list(described.graph.input)
    assert list(converted.graph.output) == list(described.graph.output)
    assert list(converted.metadata_props) == list(described.metadata_props)
    assert list(converted.opset_import) == list(described.opset_import)
    names = {n.name for n in converted.graph.node}
    assert {n.name for n in described.graph.node} <= names
    assert {i.name for i in described.graph.initializer} == {i.name for i in converted.graph.initializer}
    assert converted.ByteSize() < 0.65 * described.ByteSize()


def test_shapes_that_were_not_stored_change_nothing(
    simplified: onnx.ModelProto, fp16: onnx.ModelProto
) -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(simplified)
    del bare.graph.value_info[:]
    assert list(convert_to_fp16(bare).graph.node) == list(fp16.graph.node)


@pytest.mark.slow
def test_other_members_of_the_family_are_valid_and_keep_their_numbers_with_half_rounding(
    build_model: Callable[..., Any],
) -> None:
    shape = {"head": "lstm", "conv_norm": "layer_norm", "subsampling": "striding", "subsampling_factor": 4}
    model = build_model(**shape, block_order="parallel", xscaling=True)
    float32 = simplify_graph(export_onnx(to_inference_form(model), 80), 80)
    converted = convert_to_fp16(float32)
    check_graph(converted)
    found = types_by_operator(converted)
    assert found["Conv"] == found["LayerNormalization"] == found["MatMul"] == found["LSTM"] == {FLOAT16}
    features = np.random.default_rng(0).standard_normal((2, 700, 80)).astype(np.float32)
    lengths = np.asarray([700, 333], np.int64)
    feed = {"audio_signal": np.ascontiguousarray(features.transpose(0, 2, 1)), "length": lengths}
    expected = unoptimized_session(float32).run(None, feed)[0]
    given = RoundedModel(converted).log_probs(features, lengths)
    assert np.isfinite(given).all()
    # Half's spacing is 2^-7 of numbers of 8 to 16, as the logits are here; a few roundings of that.
    assert np.abs(given[0] - expected[0]).max() < 0.1
    assert np.mean(given[0].argmax(1) == expected[0].argmax(1)) > 0.97


@pytest.mark.slow
def test_linear_attention_sums_beyond_half_range_stay_float32(build_model: Callable[..., Any]) -> None:
    import torch

    model = build_model(attention="linear")
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attention.qkv.weight.mul_(12.0)
    float32 = simplify_graph(export_onnx(fold_batch_norm(model), 80), 80)
    converted = convert_to_fp16(float32)
    check_graph(converted)
    assert types_by_operator(converted)["MatMul"] == {FLOAT, FLOAT16}
    features = np.random.default_rng(0).standard_normal((1, 3000, 80)).astype(np.float32)
    lengths = np.asarray([3000], np.int64)
    products = [n.output[0] for n in float32.graph.node if n.op_type == "MatMul"]
    everything = onnx.ModelProto()
    everything.CopyFrom(float32)
    everything.graph.output.extend(helper.make_tensor_value_info(n, FLOAT, None) for n in products)
    feed = {"audio_signal": np.ascontiguousarray(features.transpose(0, 2, 1)), "length": lengths}
    expected, *sums = unoptimized_session(everything).run(None, feed)
    assert max(float(np.abs(s).max()) for s in sums) > 65504  # else this test shows nothing
    peaks = measure_peaks(float32, converted, [(features, lengths)])
    assert next(iter(peaks.values())) < 65504 / 4
    given = RoundedModel(converted).log_probs(features, lengths)
    assert np.isfinite(given).all()
    assert np.mean(given[0].argmax(1) == expected[0].argmax(1)) > 0.97


def test_norm_of_many_nodes_is_one_island() -> None:
    model = graph_of(
        [
            LAYER,
            helper.make_node("ReduceMean", ["h", "axes"], ["mean"]),
            helper.make_node("Sub", ["h", "mean"], ["centered"]),
            helper.make_node("Pow", ["centered", "two"], ["square"]),
            helper.make_node("ReduceMean", ["square", "axes"], ["variance"]),
            helper.make_node("Add", ["variance", "epsilon"], ["guarded"]),
            helper.make_node("Sqrt", ["guarded"], ["deviation"]),
            helper.make_node("Div", ["centered", "deviation"], ["normal"]),
            helper.make_node("MatMul", ["normal", "w"], ["y"]),
        ],
        {"w": WEIGHT, "axes": np.asarray([-1]), "two": np.float32(2.0), "epsilon": np.float32(1e-12)},
    )
    converted = convert_to_fp16(model)
    types = types_of(converted)
    assert types["h"] == FLOAT16
    for name in ("mean", "centered", "square", "variance", "guarded", "deviation", "normal"):
        assert types[name] == FLOAT, name
    casts = [(n.input[0], n.output[0]) for n in converted.graph.node if n.op_type == "Cast"]
    assert casts == [
        ("x", "x_float16"),
        ("h", "h_float32"),
        ("normal", "normal_float16"),
        ("y_float16", "y"),
    ]
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    expected, given = (unoptimized_session(m).run(None, {"x": x})[0] for m in (model, converted))
    np.testing.assert_allclose(given, expected, atol=0.01)


@pytest.mark.parametrize("value", [-1e9, -np.inf, np.float32(np.finfo(np.float32).min)])
def test_mask_beyond_half_range_is_applied_in_float32(value: float) -> None:
    model = graph_of(
        [
            LAYER,
            helper.make_node("Greater", ["x", "zero"], ["masked"]),
            helper.make_node("Where", ["masked", "low", "h"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["y"]),
        ],
        {"w": WEIGHT, "zero": np.float32(0.0), "low": np.float32(value)},
    )
    converted = convert_to_fp16(model)
    types = types_of(converted)
    assert (types["h"], types["scores"], types["low"]) == (FLOAT16, FLOAT, FLOAT)
    x = np.asarray([[1, -1, 1, -1, 1, -1, 1, -1]], np.float32)
    (given,) = unoptimized_session(converted).run(None, {"x": x})
    assert (given[x > 0] == 0).all()
    assert np.isclose(given.sum(), 1.0)


def test_quantized_graph_at_opset_19_has_half_around_its_products() -> None:
    levels = np.clip(np.rint(WEIGHT * 40), -127, 127).astype(np.int8)
    zero, scale = np.int8(0), np.float32(0.02)
    model = graph_of(
        [
            LAYER,
            helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["hq"]),
            helper.make_node("DequantizeLinear", ["hq", "scale", "zero"], ["hd"]),
            helper.make_node("DequantizeLinear", ["levels", "scale", "zero"], ["wd"]),
            helper.make_node("MatMul", ["hd", "wd"], ["y"]),
        ],
        {"w": WEIGHT, "levels": levels, "zero": zero, "scale": scale},
    )
    model.opset_import[0].version = 19
    types = types_of(convert_to_fp16(model))
    assert {types[name] for name in ("h", "hd", "wd", "scale")} == {FLOAT16}
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    expected, given = (unoptimized_session(m).run(None, {"x": x})[0] for m in (model, convert_to_fp16(model)))
    np.testing.assert_allclose(given, expected, rtol=0, atol=0.05)


def test_caches_that_were_half_before_may_be_half() -> None:
    nodes = [LAYER, helper.make_node("Add", ["h", "cache"], ["kept"])]
    nodes.append(helper.make_node("MatMul", ["kept", "w"], ["y"]))
    model = graph_of(nodes, {"w": WEIGHT})
    model.graph.input.append(helper.make_tensor_value_info("cache", FLOAT, [None, 8]))
    assert types_of(convert_to_fp16(model))["kept"] == FLOAT
    converted = convert_to_fp16(model, half_inputs=("cache",))
    assert types_of(converted)["kept"] == FLOAT16
    assert [value.type.tensor_type.elem_type for value in converted.graph.input] == [FLOAT, FLOAT]


def test_no_half_constant_is_infinite_or_beyond_range(fp16: onnx.ModelProto) -> None:
    for initializer in fp16.graph.initializer:
        if initializer.data_type == FLOAT16:
            assert np.isfinite(numpy_helper.to_array(initializer)).all(), initializer.name


def test_weight_matrix_beyond_half_range_keeps_its_layer_in_float32() -> None:
    weight = WEIGHT.copy()
    weight[2, 3] = 1e5
    model = graph_of([LAYER, helper.make_node("MatMul", ["h", "big"], ["y"])], {"w": WEIGHT, "big": weight})
    types = types_of(convert_to_fp16(model))
    assert (types["h"], types["big"], types["y"]) == (FLOAT16, FLOAT, FLOAT)


def test_constant_and_value_that_are_read_both_ways_exist_twice() -> None:
    model = graph_of(
        [
            helper.make_node("Add", ["x", "shared"], ["moved"]),
            helper.make_node("MatMul", ["moved", "w"], ["h"]),
            helper.make_node("Add", ["h", "shared"], ["y"]),
            helper.make_node("Relu", ["y"], ["relu"]),
            helper.make_node("MatMul", ["relu", "w"], ["z"]),
            helper.make_node("Cast", ["y"], ["same"], to=FLOAT),
            helper.make_node("Sigmoid", ["same"], ["s"]),
        ],
        {"w": WEIGHT, "shared": np.float32(0.5)},
        outputs=("y", "z", "s"),
    )
    converted = convert_to_fp16(model)
    types = types_of(converted)
    assert (types["shared"], types["shared_float16"], types["w"]) == (FLOAT, FLOAT16, FLOAT16)
    assert (types["y_float16"], types["y"], types["relu"]) == (FLOAT16, FLOAT, FLOAT16)
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    for expected, given in zip(
        unoptimized_session(model).run(None, {"x": x}),
        unoptimized_session(converted).run(None, {"x": x}),
        strict=True,
    ):
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, expected, atol=0.05)


def test_averages_over_time_may_be_half_and_free_sums_may_not() -> None:
    def model(*between: onnx.NodeProto) -> onnx.ModelProto:
        return graph_of(
            [
                helper.make_node("MatMul", ["x", "w"], ["h"]),
                helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
                helper.make_node("MatMul", ["h", "t"], ["scores"]),
                *between,
                helper.make_node("MatMul", ["weights", "h"], ["context"]),
                helper.make_node("Identity", ["context"], ["y"]),
            ],
            {"w": WEIGHT, "zero": np.float32(0.0)},
            shape=("n", "time", 8),
        )

    averaging = (
        helper.make_node("Softmax", ["scores"], ["softmax"]),
        helper.make_node("Greater", ["softmax", "zero"], ["seen"]),
        helper.make_node("Where", ["seen", "softmax", "zero"], ["weights"]),
    )
    summing = (helper.make_node("Relu", ["scores"], ["weights"]),)
    types = types_of(convert_to_fp16(model(*averaging)))
    assert (types["scores"], types["softmax"], types["context"]) == (FLOAT16, FLOAT16, FLOAT16)
    types = types_of(convert_to_fp16(model(*summing)))
    assert (types["scores"], types["weights"], types["context"]) == (FLOAT16, FLOAT16, FLOAT)


def test_product_with_a_constant_on_the_left_is_a_layer() -> None:
    model = graph_of(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["w", "t"], ["h"]),
            helper.make_node("Relu", ["h"], ["y"]),
        ],
        {"w": WEIGHT},
        shape=("n", "time", 8),
    )
    types = types_of(convert_to_fp16(model))
    assert (types["t"], types["w"], types["h"]) == (FLOAT, FLOAT16, FLOAT16)


def test_resize_keeps_its_float32_scales() -> None:
    model = graph_of(
        [LAYER, helper.make_node("Resize", ["h", "", "scales"], ["y"], mode="nearest")],
        {"w": WEIGHT, "scales": np.asarray([1.0, 2.0], np.float32)},
    )
    types = types_of(convert_to_fp16(model))
    assert types["scales"] == FLOAT


def refused() -> dict[str, tuple[onnx.ModelProto, str]]:
    half = graph_of([LAYER], {"w": WEIGHT.astype(np.float16)}, outputs=("h",))
    quantized = graph_of(
        [helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], name="quantize")],
        {"scale": np.float32(0.1)},
    )
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", FLOAT, None)],
    )
    control = graph_of(
        [helper.make_node("If", ["which"], ["y"], name="choice", then_branch=branch, else_branch=branch)],
        {"which": np.asarray(True)},
    )
    foreign = graph_of([helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")], {})
    called = graph_of([LAYER], {"w": WEIGHT}, outputs=("h",))
    called.functions.append(
        helper.make_function(
            "local", "swish", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], called.opset_import
        )
    )
    return {
        "float16 weights": (half, "weight w is float16 already"),
        "Q/DQ": (quantized, "quantize quantizes at opset 18, which has no half scales"),
        "control flow": (control, "If choice has a graph inside"),
        "other domain": (foreign, "of the domain com.microsoft"),
        "function": (called, "calls the function swish"),
    }


@pytest.mark.parametrize("what", refused())
def test_graph_that_cannot_be_converted_is_refused_by_name(what: str) -> None:
    model, message = refused()[what]
    with pytest.raises(GateError, match=message):
        convert_to_fp16(model)


def test_rtx_builder_on_cpu_execution_not_tested_builds_a_strongly_typed_engine(
    fp16: onnx.ModelProto,
) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (Linux x86-64 only)")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(fp16.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    types: dict[Any, set[Any]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        types.setdefault(layer.type, set()).add(layer.get_output(0).dtype)
    # The parser took the types of the file: the islands too, and LayerNormalization as one half layer.
    assert types[trt.LayerType.MATRIX_MULTIPLY] == types[trt.LayerType.CONVOLUTION] == {trt.float16}
    assert types[trt.LayerType.NORMALIZATION] == {trt.float16}
    assert types[trt.LayerType.SOFTMAX] == {trt.float16, trt.float32}  # attention's, and LogSoftmax
    assert network.get_output(0).dtype == trt.float32
    profile = builder.create_optimization_profile()
    profile.set_shape("audio_signal", (1, 80, 9), (1, 80, 200), (4, 80, 800))
    profile.set_shape("length", (1,), (1,), (4,))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
