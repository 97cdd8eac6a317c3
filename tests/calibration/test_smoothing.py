"""Smoothing: equal in float32, exact in its formula, only where the graph allows it, and worth it in int8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.audio import read_audio
from edge_asr.calibration.ranges import collect_channel_amax
from edge_asr.calibration.smoothing import find_smoothable_tensors, smooth_model
from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.graph.weights import load_float32
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]
C = 8


def random(*shape: int, seed: int = 0) -> F32Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def make_model(
    nodes: list[onnx.NodeProto], weights: Mapping[str, F32Array], outputs: tuple[str, ...] = ("y",)
) -> onnx.ModelProto:
    """A graph over x [T, 8]; two-dimensional, so that Gemm may read it too."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", C])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in outputs],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def norm(output: str, gamma: str = "gamma", beta: str = "beta", source: str = "x") -> onnx.NodeProto:
    inputs = [source, gamma, beta] if beta else [source, gamma]
    return helper.make_node("LayerNormalization", inputs, [output], f"norm_{output}")


def product(left: str, right: str, output: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [left, right], [output], f"product_{output}")


def run(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[np.generic]]) -> list[F32Array]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[F32Array] = session.run(None, dict(feeds))
    return outputs


def weights_of(model: onnx.ModelProto) -> dict[str, F32Array]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def with_outliers() -> dict[str, F32Array]:
    """gamma with two channels fifty times the others, beta, and two matrices with little weight on those."""
    gamma, w, v = 1 + 0.1 * random(C), random(C, 5, seed=2), random(7, C, seed=3)
    gamma[[2, 5]] *= 50
    w[[2, 5]] /= 50
    v[:, [2, 5]] /= 50
    return {"gamma": gamma, "beta": random(C, seed=1), "w": w, "v": v}


def two_readers() -> onnx.ModelProto:
    """One normalization read by a MatMul and by a Gemm with transB."""
    gemm = helper.make_node("Gemm", ["n", "v"], ["z"], "gemm", transB=1, alpha=0.5)
    return make_model([norm("n"), product("n", "w", "y"), gemm], with_outliers(), ("y", "z"))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_outputs_stay_and_scales_are_the_papers(alpha: float) -> None:
    model, x = two_readers(), random(100, C, seed=9)
    amax = collect_channel_amax(model, ["n"], [{"x": x}])
    smoothed, (site,) = smooth_model(model, amax, alpha)
    for before, after in zip(run(model, {"x": x}), run(smoothed, {"x": x}), strict=True):
        # float32 rounding of sums of eight products of up to a hundred
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)
    old, new = weights_of(model), weights_of(smoothed)
    joint = np.maximum(np.abs(old["w"]).max(axis=1), np.abs(old["v"]).max(axis=0))
    scale = amax["n"] ** alpha / joint ** (1 - alpha)  # Xiao et al. 2023, equation 4
    np.testing.assert_allclose(new["gamma"], old["gamma"] / scale, rtol=1e-5)
    np.testing.assert_allclose(new["beta"], old["beta"] / scale, rtol=1e-5)
    np.testing.assert_allclose(new["w"], old["w"] * scale[:, None], rtol=1e-5)
    np.testing.assert_allclose(new["v"], old["v"] * scale, rtol=1e-5)
    again = collect_channel_amax(smoothed, ["n"], [{"x": x}])["n"]
    assert site.spread_before == pytest.approx(amax["n"].max() / np.median(amax["n"]), rel=1e-5)
    assert site.spread_after == pytest.approx(again.max() / np.median(again), rel=1e-5)
    assert (site.producer, site.linears) == ("norm_n", ("product_y", "gemm"))
    assert site.tensor == "n"


def test_silu_is_scaled_by_one_product_more() -> None:
    """A SiLU that two products read: one Mul by 1 / s for both, and the formula of the normalizations."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["gate", "x"], ["s"], "silu"),
        product("s", "w", "y"),
        helper.make_node("Gemm", ["s", "v"], ["z"], "gemm", transB=1),
    ]
    weights = {name: values for name, values in with_outliers().items() if name in "wv"}
    model, x = make_model(nodes, weights, ("y", "z")), 3 * random(200, C, seed=4)
    amax = collect_channel_amax(model, find_smoothable_tensors(model), [{"x": x}])
    smoothed, (site,) = smooth_model(model, amax, 0.7)
    assert (site.tensor, site.producer, site.linears) == ("s", "silu", ("product_y", "gemm"))
    assert [node.op_type for node in smoothed.graph.node] == ["Sigmoid", "Mul", "Mul", "MatMul", "Gemm"]
    for before, after in zip(run(model, {"x": x}), run(smoothed, {"x": x}), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)
    joint = np.maximum(np.abs(weights["w"]).max(axis=1), np.abs(weights["v"]).max(axis=0))
    scale = amax["s"] ** 0.7 / joint**0.3
    np.testing.assert_allclose(weights_of(smoothed)["w"], weights["w"] * scale[:, None], rtol=1e-5)


def test_a_product_of_other_things_is_no_silu() -> None:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["gate", "other"], ["s"]),
        product("s", "w", "y"),
    ]
    model = make_model(nodes, {"w": random(C, 5), "other": random(C)})
    assert find_smoothable_tensors(model) == []


def test_int8_error_of_outlier_channels_falls() -> None:
    """Fake-quantised in numpy: per-tensor activations, per-column weights. The reason for all this."""
    model, x = two_readers(), random(500, C, seed=9)
    smoothed, _ = smooth_model(model, collect_channel_amax(model, ["n"], [{"x": x}]))

    def error(candidate: onnx.ModelProto) -> float:
        weights = weights_of(candidate)
        normalized = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        activation = normalized * weights["gamma"] + weights["beta"]
        exact = activation @ weights["w"]
        found = round_to_int8(activation, None) @ round_to_int8(weights["w"], 0)
        return float(np.abs(found - exact).mean())

    assert error(smoothed) < 0.2 * error(model)


def round_to_int8(values: F32Array, axis: int | None) -> F32Array:
    scale = np.abs(values).max(axis=axis, keepdims=True) / 127
    rounded: F32Array = np.rint(values / scale) * scale
    return rounded


def test_normalization_without_beta() -> None:
    weights = {name: values for name, values in with_outliers().items() if name in ("gamma", "w")}
    model, x = make_model([norm("n", beta=""), product("n", "w", "y")], weights), random(30, C)
    smoothed, sites = smooth_model(model, collect_channel_amax(model, ["n"], [{"x": x}]))
    assert len(sites) == 1
    np.testing.assert_allclose(run(smoothed, {"x": x})[0], run(model, {"x": x})[0], rtol=1e-5, atol=1e-4)


def test_shared_weights_are_copied_for_the_smoothed_side() -> None:
    """gamma, beta and w also serve a second normalization whose output leaves the graph."""
    nodes = [norm("n"), product("n", "w", "y"), norm("m"), product("m", "w", "z")]
    weights = {name: values for name, values in with_outliers().items() if name != "v"}
    model, x = make_model(nodes, weights, ("y", "m", "z")), random(30, C)
    assert find_smoothable_tensors(model) == ["n"]
    smoothed, (site,) = smooth_model(model, collect_channel_amax(model, ["n"], [{"x": x}]))
    assert site.linears == ("product_y",)
    for before, after in zip(run(model, {"x": x}), run(smoothed, {"x": x}), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-4)
    onnx.checker.check_model(smoothed, full_check=True)


def test_dead_channels_keep_their_scale() -> None:
    weights = with_outliers()
    weights["gamma"][3] = weights["beta"][3] = 0.0
    weights["w"][4] = 0.0
    model = make_model([norm("n"), product("n", "w", "y")], weights)
    amax = collect_channel_amax(model, ["n"], [{"x": random(30, C)}])
    new = weights_of(smooth_model(model, amax)[0])
    assert amax["n"][3] == 0
    np.testing.assert_array_equal(new["w"][3:5], weights["w"][3:5])
    assert new["gamma"][4] == weights["gamma"][4]
    assert all(np.isfinite(values).all() for values in new.values())


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([norm("n"), product("n", "w", "h"), helper.make_node("ReduceSum", ["n"], ["y"])], "another reader"),
        ([norm("y"), product("y", "w", "h")], "an output of the graph"),
        ([norm("n"), product("v", "transposed", "y")], "no reader of n"),
        ([norm("n"), helper.make_node("Gemm", ["n", "rows"], ["y"], "g", transA=1)], "rows are time"),
        ([norm("n"), product("n", "x_turned", "y")], "the other side is no constant"),
        ([norm("n", gamma="x_row"), product("n", "w", "y")], "gamma is no constant"),
        ([norm("n"), helper.make_node("Gemm", ["n", "square", "n"], ["y"], "g")], "read twice"),
        ([norm("n"), product("v", "n_turned", "y")], "read through a Transpose"),
    ],
)
def test_places_that_cannot_be_folded_are_left(nodes: list[onnx.NodeProto], why: str) -> None:
    weights = with_outliers() | {"rows": random(30, 4), "square": random(C, C), "transposed": random(C, 5)}
    first = [
        helper.make_node("Transpose", ["x"], ["x_turned"], "turn_x", perm=[1, 0]),
        helper.make_node("ReduceMax", ["x", "axis"], ["x_row"], "row", keepdims=0),
    ]
    turned = [helper.make_node("Transpose", ["n"], ["n_turned"], "turn_n", perm=[1, 0])]
    reads_turned = any("n_turned" in node.input for node in nodes)
    order = [*first, nodes[0], *(turned if reads_turned else []), *nodes[1:]]
    model = make_model(order, weights)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([0], np.int64), "axis"))
    run(model, {"x": random(30, C)})  # the graph itself is sound
    assert find_smoothable_tensors(model) == [], why


def test_what_cannot_be_used_is_refused() -> None:
    model = two_readers()
    good = np.ones(C, np.float32)
    with pytest.raises(ConfigError, match=r"alpha is 1\.5; give 0 to 1"):
        smooth_model(model, {"n": good}, 1.5)
    with pytest.raises(ConfigError, match="tensor 'y' is not an output of a LayerNormalization or SiLU"):
        smooth_model(model, {"y": good})
    for bad in (np.ones(3, np.float32), np.full(C, np.nan, np.float32)):
        with pytest.raises(ConfigError, match=r"channel ranges of 'n' .* must be 8 finite numbers"):
            smooth_model(model, {"n": bad})


def test_embedded_model_keeps_its_log_probs(repository: Path, sample_path: Path) -> None:
    """tiny-en: four normalizations and three SiLUs a layer, and the last; within the 1e-4 of a proof."""
    model = load_float32(repository / "edge_asr/models/tiny-en/bundle/model.onnx")
    before = model.SerializeToString(deterministic=True)
    features = FeatureExtractor(FeatureConfig.from_preset("nemo"))(read_audio(sample_path))
    feeds = {
        "audio_signal": np.ascontiguousarray(features.T[None]),
        "length": np.asarray([len(features)], np.int64),
    }
    tensors = find_smoothable_tensors(model)
    assert len(tensors) == 8 * (4 + 3) + 1
    smoothed, sites = smooth_model(model, collect_channel_amax(model, tensors, [feeds]))
    assert [site.tensor for site in sites] == tensors
    assert model.SerializeToString(deterministic=True) == before
    (expected,), (found,) = run(model, feeds), run(smoothed, feeds)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    factors = {name for name in weights_of(smoothed) if name.endswith("_factor")}
    assert len(factors) == 8 * 3
    assert weights_of(smoothed).keys() - factors == weights_of(model).keys()
