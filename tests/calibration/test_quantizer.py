"""Q/DQ graphs: valid, symmetric, biases in float, and really run as integer kernels by onnxruntime."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration.int8_groups import GROUPS, Group, group_nodes, nodes_of
from edge_asr.calibration.quantizer import activation_tensors, quantize_model
from edge_asr.calibration.ranges import collect_statistics
from edge_asr.errors import ConfigError
from edge_asr.export.optimize import set_metadata
from edge_asr.graph.check import check_graph

Feeds = Mapping[str, npt.NDArray[np.generic]]
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat")
FLOAT_KERNELS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")


@pytest.fixture(scope="module")
def quantized(tiny_en: onnx.ModelProto, tiny_en_amax: dict[str, float]) -> onnx.ModelProto:
    """tiny-en with every group in INT8."""
    return quantize_model(tiny_en, tiny_en_amax, GROUPS)


@pytest.fixture(params=["all groups", "shipped"])
def any_quantized(request: pytest.FixtureRequest, tiny_en_bundle: Bundle) -> onnx.ModelProto:
    """What is made here, and the file that ships."""
    if request.param == "shipped":
        return onnx.load(tiny_en_bundle.artifact_path("int8"))
    model: onnx.ModelProto = request.getfixturevalue("quantized")
    return model


def initializers(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def run(model: onnx.ModelProto, feeds: Feeds, *, as_written: bool = False) -> npt.NDArray[np.float32]:
    """Outputs; `as_written` without integer kernels: quantize, dequantize, multiply floats."""
    options = onnxruntime.SessionOptions()
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    log_probs: npt.NDArray[np.float32] = session.run(None, dict(feeds))[0]
    return log_probs


def optimize(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The graph that onnxruntime runs."""
    path = folder / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4  # it warns that the file is for this machine only
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


def small_feeds() -> dict[str, npt.NDArray[np.generic]]:
    audio = np.random.default_rng(1).standard_normal((2, 8, 40)).astype(np.float32)
    return {"audio_signal": audio, "length": np.asarray([40, 40], np.int64)}


def amax_of(model: onnx.ModelProto, groups: Sequence[Group] = GROUPS) -> dict[str, float]:
    statistics = collect_statistics(model, activation_tensors(model, groups), [small_feeds()])
    return dict(statistics.amax("minmax"))


def test_graph_is_valid_and_in_order(any_quantized: onnx.ModelProto) -> None:
    check_graph(any_quantized)  # the full checker refuses a graph that is not in topological order
    assert {entry.domain for entry in any_quantized.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in any_quantized.graph.node} <= {"", "ai.onnx"}


def test_everything_is_symmetric_int8_and_no_bias_is_quantized(any_quantized: onnx.ModelProto) -> None:
    values = initializers(any_quantized)
    pairs = [n for n in any_quantized.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 100
    for node in pairs:
        assert len(node.input) == 3, node.name
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8, node.name
        assert not zero_point.any(), node.name
        scale = values[node.input[1]]
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert np.isfinite(scale).all()
    assert not any(value.dtype == np.int32 for value in values.values())  # what a quantized bias would be
    biases = [n.input[2] for n in any_quantized.graph.node if n.op_type in ("Conv", "Gemm") and n.input[2:]]
    assert biases
    assert all(values[name].dtype == np.float32 for name in biases)


def test_weights_are_within_half_a_step_per_channel(
    quantized: onnx.ModelProto, tiny_en: onnx.ModelProto
) -> None:
    before, after = initializers(tiny_en), initializers(quantized)
    n_weights = 0
    for node in quantized.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in after:
            continue
        integers, scale = after[node.input[0]], after[node.input[1]].astype(np.float64)
        exact = before[node.input[0].removesuffix("_quantized")]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % exact.ndim
        if scale.ndim:
            assert len(scale) == exact.shape[axis]
            scale = scale.reshape([-1 if a == axis else 1 for a in range(exact.ndim)])
        else:
            assert exact.ndim == 3, "one scale only for the batched weights of a product"
        assert np.abs(integers).max() == 64, node.name
        # float32 rounding of w / scale decides ties
        assert np.abs(integers * scale - exact).max() <= 0.5 * scale.max() * (1 + 1e-4)
        assert (np.abs(integers * scale - exact) <= 0.5 * scale * (1 + 1e-4)).all(), node.name
        n_weights += 1
    # One a node, but for two products of activations a layer and the table of angles.
    assert n_weights == sum(len(nodes) for nodes in group_nodes(tiny_en).values()) - 8 * 2 - 8


def test_activation_steps_are_the_range_over_127_and_over_64_on_the_right_of_a_product(
    quantized: onnx.ModelProto, tiny_en: onnx.ModelProto, tiny_en_amax: dict[str, float]
) -> None:
    values = initializers(quantized)
    rights = {node.input[1] for node in tiny_en.graph.node if node.op_type == "MatMul"}
    seen = set()
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            # A twin's is the next few float32 up.
            step = tiny_en_amax[node.input[0]] / (64 if node.input[0] in rights else 127)
            assert values[node.input[1]] == pytest.approx(step, rel=1e-5)
            seen.add(node.input[0])
    assert seen == tiny_en_amax.keys()


def test_integer_kernels_of_this_machine_compute_what_the_graph_says(
    any_quantized: onnx.ModelProto, sample_feeds: Feeds
) -> None:
    found, expected = run(any_quantized, sample_feeds), run(any_quantized, sample_feeds, as_written=True)
    # Values at a tie round either way with the order of float32 sums, 0.08 in the end. Pairs of 8-bit
    # products that saturate (AVX2) were 0.37 and 5 % of the frames.
    assert np.abs(found - expected).mean() < 0.15
    assert (found.argmax(-1) == expected.argmax(-1)).mean() > 0.985


@pytest.mark.parametrize("constant", [True, False], ids=["weights", "a shared activation"])
def test_the_largest_values_of_a_product_do_not_saturate(constant: bool) -> None:
    """Both sides at the end of their range everywhere: the worst that two products can add up to."""
    right = np.full((64, 4), 0.5, np.float32)
    feeds = {name: np.full((4, 64), 3.0, np.float32) for name in ("first", "second")}
    if not constant:
        feeds["right"] = right
    graph = helper.make_graph(
        [
            helper.make_node(
                "MatMul", [left, "right"], [f"{left}_product"], f"layers.{left}.attention.qkv/MatMul"
            )
            for left in ("first", "second")
        ],
        "products",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, value.shape) for n, value in feeds.items()],
        [
            helper.make_tensor_value_info(f"{n}_product", TensorProto.FLOAT, [4, 4])
            for n in ("first", "second")
        ],
        [numpy_helper.from_array(right, "right")] if constant else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    quantized = quantize_model(model, {"first": 3.0, "second": 3.0, "right": 0.5}, GROUPS)
    np.testing.assert_allclose(run(quantized, feeds), np.full((4, 4), 64 * 1.5), rtol=1e-6)


@pytest.mark.parametrize("groups", [GROUPS, *((group,) for group in GROUPS)], ids=lambda g: ",".join(g)[:30])
def test_every_chosen_node_runs_as_an_integer_kernel(
    groups: tuple[Group, ...], tiny_en: onnx.ModelProto, tiny_en_amax: dict[str, float], tmp_path: Path
) -> None:
    optimized = optimize(quantize_model(tiny_en, tiny_en_amax, groups), tmp_path)
    counts = Counter(node.op_type for node in optimized.graph.node)
    chosen = nodes_of(tiny_en, groups)
    all_nodes = sum(len(names) for names in group_nodes(tiny_en).values())
    assert sum(counts[kernel] for kernel in INTEGER_KERNELS) == len(chosen)
    # The rest, and the first convolution, are as they were.
    assert sum(counts[kernel] for kernel in FLOAT_KERNELS) == all_nodes - len(chosen) + 1
    producers = {output: node.op_type for node in optimized.graph.node for output in node.output}
    for node in optimized.graph.node:
        if node.op_type in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm"):
            assert "DequantizeLinear" not in [producers.get(tensor) for tensor in node.input[:2]], node.name


def test_shipped_file_runs_every_quantized_product_as_integers(
    tiny_en_bundle: Bundle, tmp_path: Path
) -> None:
    model = onnx.load(tiny_en_bundle.artifact_path("int8"))
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    n_quantized = sum(
        node.op_type in ("MatMul", "Gemm", "Conv") and producers.get(node.input[0]) == "DequantizeLinear"
        for node in model.graph.node
    )
    counts = Counter(node.op_type for node in optimize(model, tmp_path).graph.node)
    assert sum(counts[kernel] for kernel in INTEGER_KERNELS) == n_quantized > 80


def test_shared_left_inputs_are_separated(hand_made: onnx.ModelProto, tmp_path: Path) -> None:
    quantized = quantize_model(hand_made, amax_of(hand_made), GROUPS)
    check_graph(quantized)
    values = initializers(quantized)
    products = [n for n in quantized.graph.node if "by_distance" in n.name]
    assert [n.op_type for n in products] == ["MatMul", "MatMul"]
    lefts = [n.input[0] for n in products]
    assert lefts[0] != lefts[1]
    quantizers = [n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "heads"]
    assert len(quantizers) == 2
    scales = [values[n.input[1]] for n in quantizers]
    assert scales[1] == np.nextafter(scales[0], np.float32(np.inf))
    counts = Counter(n.op_type for n in optimize(quantized, tmp_path).graph.node)
    assert sum(counts[kernel] for kernel in INTEGER_KERNELS) == 7
    assert not any(counts[kernel] for kernel in FLOAT_KERNELS)


def test_a_graph_whose_products_share_runs_them_in_float_otherwise(
    hand_made: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why inputs are separated; when this fails, onnxruntime has learned it and the twins can go."""
    import edge_asr.calibration.quantizer as quantizer

    monkeypatch.setattr(quantizer, "_separate_shared_inputs", lambda model: None)
    quantized = quantize_model(hand_made, amax_of(hand_made), GROUPS)
    counts = Counter(n.op_type for n in optimize(quantized, tmp_path).graph.node)
    assert sum(counts[kernel] for kernel in FLOAT_KERNELS) > 0


def test_log_probs_stay_near_and_batches_may_be_of_any_size(hand_made: onnx.ModelProto) -> None:
    quantized = quantize_model(hand_made, amax_of(hand_made), GROUPS)
    expected, found = run(hand_made, small_feeds()), run(quantized, small_feeds())
    # Five layers of steps of 1/127 of the largest value, on log-probs of some tens.
    assert 0 < np.abs(expected - found).mean() < 0.03 * np.abs(expected).mean()
    one = {"audio_signal": small_feeds()["audio_signal"][:1, :, :7], "length": np.asarray([7], np.int64)}
    assert run(quantized, one).shape == (1, 7, 5)


def test_embedded_model_with_every_group_keeps_most_frames(
    quantized: onnx.ModelProto, tiny_en: onnx.ModelProto, sample_feeds: Feeds
) -> None:
    expected, found = run(tiny_en, sample_feeds), run(quantized, sample_feeds)
    assert expected.shape == found.shape
    assert (expected.argmax(-1) == found.argmax(-1)).mean() > 0.93


def test_no_groups_is_an_unchanged_copy(hand_made: onnx.ModelProto) -> None:
    found = quantize_model(hand_made, {}, ())
    assert found is not hand_made
    assert found == hand_made


def test_the_model_itself_is_not_touched_and_its_metadata_kept(hand_made: onnx.ModelProto) -> None:
    set_metadata(hand_made, {"vocab_size": "5", "model_type": "a model"})
    before = hand_made.SerializeToString(deterministic=True)
    quantized = quantize_model(hand_made, amax_of(hand_made), ("feed_forward", "head"))
    assert hand_made.SerializeToString(deterministic=True) == before
    assert {p.key: p.value for p in quantized.metadata_props} == {"vocab_size": "5", "model_type": "a model"}
    assert quantized.graph.input == hand_made.graph.input
    assert quantized.graph.output == hand_made.graph.output
    assert quantized.ir_version <= 10


def test_only_the_chosen_groups_change(hand_made: onnx.ModelProto) -> None:
    quantized = quantize_model(hand_made, amax_of(hand_made, ("pointwise",)), ("pointwise",))
    assert Counter(n.op_type for n in quantized.graph.node)["QuantizeLinear"] == 1
    old, new = initializers(hand_made), initializers(quantized)
    assert {name for name in old if name not in new} == {"pointwise"}


def test_tensors_whose_range_is_needed(hand_made: onnx.ModelProto) -> None:
    """Inputs that are no weights; outputs of convolutions only; each once."""
    assert activation_tensors(hand_made, GROUPS) == ["x", "e_active", "p", "w_turned", "d", "heads", "mean"]
    assert activation_tensors(hand_made, ("head",)) == ["mean"]
    assert activation_tensors(hand_made, ()) == []


@pytest.mark.parametrize("bad", [None, 0.0, -1.0, float("nan"), float("inf")])
def test_a_range_that_is_no_range_is_refused(hand_made: onnx.ModelProto, bad: float | None) -> None:
    amax = amax_of(hand_made)
    if bad is None:
        del amax["w_turned"]
    else:
        amax["w_turned"] = bad
    with pytest.raises(ConfigError, match=r"the range of w_turned is .*; collect it before quantizing"):
        quantize_model(hand_made, amax, GROUPS)
    quantize_model(hand_made, amax, ("head",))  # not needed there


def test_the_log_is_left_as_it_was(hand_made: onnx.ModelProto, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger().level
    quantize_model(hand_made, amax_of(hand_made), GROUPS)
    assert logging.getLogger().level == level
    assert not caplog.records


def test_nodes_left_in_float_read_values_as_they_were(
    tiny_en: onnx.ModelProto, tiny_en_amax: dict[str, float]
) -> None:
    """The queries go into a product by content, here in INT8, and into an addition for that by distance."""
    quantized = quantize_model(tiny_en, tiny_en_amax, ("attention_products",))
    rounded = {n.output[0] for n in quantized.graph.node if n.op_type == "DequantizeLinear"}
    readers = Counter(n.op_type for n in quantized.graph.node for name in n.input if name in rounded)
    assert readers == {"MatMul": 2 * 2 * 8}
