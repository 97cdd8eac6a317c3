"""The graph of an engine: what a bundle's file computes, in the types and the form that TensorRT wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.calibration.int8_groups import group_nodes
from edge_asr.errors import GateError
from edge_asr.export.engine import graph_proof
from edge_asr.export.engine.graph_proof import prove_int8_graph, prove_stream_graph
from edge_asr.export.engine.int8 import HALF_GROUPS, fit_scales
from edge_asr.export.engine.model import make_engine_model
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.fp16.attention import (
    join_biases,
    multiply_sums,
    use_attention_operators,
    widen_softmax,
)
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.inference_form import to_inference_form
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import simplify_graph
from edge_asr.graph.session import open_graph
from edge_asr.graph.weights import load_float32
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.engine.api import create_logger

F32Array = npt.NDArray[np.float32]
FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
MAX_FRAMES = 800


@pytest.fixture(scope="module")
def streaming(streaming_int8_bundle: Path) -> Bundle:
    return Bundle.load(streaming_int8_bundle)


@pytest.fixture(scope="module")
def embedded() -> Bundle:
    return Bundle.load("tiny-en")


@pytest.fixture(scope="module")
def waveforms(embedded: Bundle) -> dict[str, F32Array]:
    return load_clips(find_clips(None), embedded.info.features.sample_rate)


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def run(model: onnx.ModelProto, lengths: list[int]) -> list[F32Array]:
    features = np.random.default_rng(0).normal(-6, 3, (len(lengths), max(lengths), 80)).astype(np.float32)
    with open_graph(model) as backend:
        log_probs = backend.log_probs(features, np.asarray(lengths, np.int64))
    factor = max(lengths) / log_probs.shape[1]
    return [row[: int(n / factor)] for row, n in zip(log_probs, lengths, strict=True)]


@pytest.mark.parametrize("lengths", [[1], [9], [97, 41, 8], [MAX_FRAMES]])
def test_positions_as_constants_and_one_bias_change_no_number(embedded: Bundle, lengths: list[int]) -> None:
    float32 = load_float32(embedded.artifact_path("fp32"))
    made = make_engine_model(embedded, "fp32", max_frames=MAX_FRAMES)
    assert not any(".position" in node.name and node.op_type == "MatMul" for node in made.graph.node)
    assert len(made.graph.node) < len(float32.graph.node)
    for found, expected in zip(run(made, lengths), run(float32, lengths), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("stream", [False, True])
def test_attention_is_two_half_products_an_addition_and_a_half_softmax(
    streaming: Bundle, precision: Precision, stream: bool
) -> None:
    made = make_engine_model(streaming, precision, max_frames=MAX_FRAMES, stream=stream)
    writers = {name: node for node in made.graph.node for name in node.output}
    types = types_of(made)
    softmaxes = [node for node in made.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2  # layers
    for softmax in softmaxes:
        addition = writers[softmax.input[0]]
        operators = Counter(writers[name].op_type for name in addition.input)
        assert (addition.op_type, operators["MatMul"]) == ("Add", 1)
        (reader,) = (node for node in made.graph.node if softmax.output[0] in node.input)
        assert reader.op_type == "MatMul"
        for name in (*addition.input, *softmax.input, *softmax.output, *reader.input):
            assert types[name] == FLOAT16, name


@pytest.mark.parametrize("stream", [False, True])
def test_int8_is_in_the_products_with_weights_and_all_scales_are_half(
    streaming: Bundle, stream: bool
) -> None:
    made = make_engine_model(streaming, "int8", max_frames=MAX_FRAMES, stream=stream)
    assert made.opset_import[0].version == 19
    scales = {node.input[1] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    assert {i.data_type for i in made.graph.initializer if i.name in scales} == {FLOAT16}
    writers = {name: node.op_type for node in made.graph.node for name in node.output}
    groups = group_nodes(made)
    halves = {name for group in HALF_GROUPS for name in groups.get(group, ())}
    for node in made.graph.node:
        inputs = [writers.get(name) for name in node.input[:2]]
        if node.name in halves:
            assert "DequantizeLinear" not in inputs, node.name
    assert sum(inputs.count("DequantizeLinear") for inputs in [list(writers.values())]) > 20


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("stream", [False, True])
def test_rtx_builder_on_cpu_execution_not_tested_parses_the_attention_operator(
    rtx: ModuleType, streaming: Bundle, precision: Precision, stream: bool
) -> None:
    options: dict[str, Any] = {"max_frames": MAX_FRAMES, "stream": stream, "attention_operator": True}
    made = make_engine_model(streaming, precision, **options)
    assert not any(node.op_type == "Softmax" for node in made.graph.node)
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = rtx.Builder(create_logger(rtx)).create_network(flag)
    parse_network(rtx, network, made.SerializeToString(), "engine.onnx")
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    assert kinds.count(rtx.LayerType.ATTENTION_OUTPUT) == 2


def test_the_attention_operator_gives_the_same_numbers(embedded: Bundle) -> None:
    plain = make_engine_model(embedded, "fp32", max_frames=MAX_FRAMES)
    for found, expected in zip(
        run(use_attention_operators(plain), [97, 41]), run(plain, [97, 41]), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_parses_every_graph(
    rtx: ModuleType, streaming: Bundle, precision: Precision, stream: bool
) -> None:
    made = make_engine_model(streaming, precision, max_frames=MAX_FRAMES, stream=stream)
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = rtx.Builder(create_logger(rtx)).create_network(flag)
    parse_network(rtx, network, made.SerializeToString(), "engine.onnx")
    assert network.num_inputs == (5 if stream else 2)


def test_the_embedded_int8_keeps_what_int8_understands(
    embedded: Bundle, waveforms: dict[str, F32Array]
) -> None:
    proof = prove_int8_graph(embedded, waveforms, 3000)
    assert min(proof.rounded_agreement, proof.shipped_agreement) > 0.97


def test_an_int8_graph_that_lost_more_than_its_file_is_refused(
    embedded: Bundle, waveforms: dict[str, F32Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrange(*arguments: Any, **options: Any) -> onnx.ModelProto:
        return spoil(original(*arguments, **options))

    original: Callable[..., onnx.ModelProto] = graph_proof.arrange_model
    monkeypatch.setattr(graph_proof, "arrange_model", arrange)
    with pytest.raises(GateError, match=r"less often than model.int8.onnx does: .* of the frames agree"):
        prove_int8_graph(embedded, waveforms, 3000)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_streams_keep_their_frames_with_half_rounding(
    streaming: Bundle,
    precision: Precision,
    waveforms: dict[str, F32Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if precision == "int8":  # quantized on a minute of speech, so many of its frames are nearly ties
        monkeypatch.setattr(graph_proof, "_MAX_LOSS", 0.03)
    assert prove_stream_graph(streaming, precision, waveforms) > (0.9 if precision == "fp16" else 0.0)


def test_a_stream_in_int8_alone_is_proven_beside_its_file(
    embedded: Bundle, waveforms: dict[str, F32Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded model has no float32 stream."""
    assert [artifact.precision for artifact in embedded.streaming.artifacts] == ["int8"]
    assert prove_stream_graph(embedded, "int8", waveforms) >= 0.97  # few frames: one is 0.6 %
    monkeypatch.setattr(graph_proof, "round_every_value", spoil)
    with pytest.raises(GateError, match=r"int8 stream of an engine agrees with stream.int8.onnx in .*97"):
        prove_stream_graph(embedded, "int8", waveforms)


def spoil(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type = "Relu"
    return model


def make_sums(
    weights: np.ndarray, values: list[int | str], *, axis: int = -1, keepdims: int = 0
) -> onnx.ModelProto:
    """One weighted sum."""
    make = onnx.helper.make_node
    arrays = {"weights": weights.astype(np.float32), "axes": np.asarray([axis], np.int64)}
    graph = onnx.helper.make_graph(
        [
            make("Mul", ["values", "weights"], ["product"]),
            make("ReduceSum", ["product", "axes"], ["sum"], "sum", keepdims=keepdims),
            make("Neg", ["sum"], ["y"]),
        ],
        "sums",
        [onnx.helper.make_tensor_value_info("values", FLOAT, ["B", *values[1:]])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [None] * (len(values) - 1 + keepdims))],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("weights", "values", "options", "multiplies"),
    [
        ((4, 1, 8), ["B", 4, "T", 8], {}, True),
        ((4, 8), ["B", "T", 4, 8], {}, True),
        ((4, 8), ["B", 4, 8], {"axis": 2}, True),
        ((4, 8), ["B", "T", 4, 8], {"axis": -2}, False),
        ((4, 8), ["B", "T", 4, 8], {"keepdims": 1}, False),
        ((8,), ["B", "T", 4, 8], {}, False),
        ((4, 7, 8), ["B", 4, 7, 8], {}, False),
    ],
)
def test_weighted_sums_over_channels_are_products(
    weights: tuple[int, ...], values: list[int | str], options: dict[str, int], multiplies: bool
) -> None:
    random = np.random.default_rng(0)
    model = make_sums(random.normal(size=weights), values, **options)
    made = multiply_sums(model)
    onnx.checker.check_model(made)
    assert [node.op_type == "MatMul" for node in made.graph.node].count(True) == multiplies
    assert any(node.op_type == "ReduceSum" for node in made.graph.node) != multiplies
    shape = [n if isinstance(n, int) else {"B": 2, "T": 5}[n] for n in values]
    feeds = {"values": random.normal(size=shape).astype(np.float32)}
    (found,), (expected,) = (ReferenceEvaluator(m).run(None, feeds) for m in (made, model))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_attention_of_wenet_is_half_too(build_model: Callable[..., Any]) -> None:
    """Its scores of positions are sums over channels, which half would leave in float32."""
    network = build_model(attention="absolute_pos", conv_norm="layer_norm")
    for layer in network.encoder.layers:
        layer.attention.pos_bias_u.data.normal_(0, 0.5)
        layer.attention.pos_bias_v.data.normal_(0, 0.5)
    float32 = simplify_graph(export_onnx(to_inference_form(network), 80), 80)
    arranged = join_biases(multiply_sums(float32))
    for found, expected in zip(run(arranged, [97, 41, 8]), run(float32, [97, 41, 8]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    for made, kind in ((convert_to_fp16(join_biases(float32)), FLOAT), (convert_to_fp16(arranged), FLOAT16)):
        types = types_of(made)
        softmaxes = [node for node in made.graph.node if node.op_type == "Softmax"]
        assert [types[node.output[0]] for node in softmaxes] == [kind] * 2  # layers


def test_scales_too_small_for_half_are_raised_and_weights_follow() -> None:
    scales = np.asarray([1e-6, 1e-2], np.float32)
    levels = np.asarray([[100, 100], [-100, -100]], np.int8)
    node = onnx.helper.make_node("DequantizeLinear", ["levels", "scales", "zero"], ["y"], axis=1)
    arrays = {"levels": levels, "scales": scales, "zero": np.zeros(2, np.int8)}
    graph = onnx.helper.make_graph(
        [node],
        "scales",
        [],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [2, 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    fitted = fit_scales(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]))
    found = {i.name: onnx.numpy_helper.to_array(i) for i in fitted.graph.initializer}
    assert found["scales"].tolist() == [np.float32(2.0**-14), np.float32(1e-2)]
    np.testing.assert_array_equal(found["levels"], [[2, 100], [-2, -100]])


def test_a_float32_softmax_between_half_products_and_back_to_equal_numbers(embedded: Bundle) -> None:
    half = make_engine_model(embedded, "fp16", max_frames=MAX_FRAMES)
    wide = make_engine_model(embedded, "fp16", max_frames=MAX_FRAMES, wide_softmax=True)
    types = types_of(wide)
    softmaxes = [node for node in wide.graph.node if node.op_type == "Softmax"]
    assert {types[name] for node in softmaxes for name in (*node.input, *node.output)} == {FLOAT}
    onnx.checker.check_model(wide, full_check=True)
    assert len(wide.graph.node) == len(half.graph.node) + 2 * len(softmaxes)
    assert len(widen_softmax(wide).graph.node) == len(wide.graph.node)
    assert len(join_biases(half).graph.node) == len(half.graph.node)
