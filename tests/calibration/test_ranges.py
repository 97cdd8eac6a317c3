"""Activation ranges against onnxruntime's calibrators, numpy, and clips of unequal lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_asr.audio import read_audio
from edge_asr.calibration.ranges import (
    Batch,
    RangeMethod,
    collect_channel_amax,
    collect_statistics,
)
from edge_asr.errors import ConfigError, GateError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]
TENSORS = ["x", "hidden", "active", "y"]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """x [1, T, 6] -> MatMul -> Relu -> MatMul -> y [1, T, 3], with an int64 side branch."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
        for name, shape in (("w1", (6, 8)), ("w2", (8, 3)))
    ]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["hidden"], "first"),
            helper.make_node("Relu", ["hidden"], ["active"], "relu"),
            helper.make_node("MatMul", ["active", "w2"], ["y"], "second"),
            helper.make_node("Shape", ["x"], ["shape"], "shape_of_x"),
        ],
        "two_products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "T", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "T", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_batches(lengths: tuple[int, ...] = (3, 400, 57, 1)) -> list[Batch]:
    generator = np.random.default_rng(1)
    return [{"x": generator.standard_normal((1, n, 6)).astype(np.float32)} for n in lengths]


def activations(model: onnx.ModelProto, batches: list[Batch]) -> dict[str, F32Array]:
    """Every value of TENSORS over all clips, [sum of T, C], from sessions cut at each tensor."""
    found: dict[str, F32Array] = {"x": np.concatenate([b["x"][0] for b in batches])}
    for name in TENSORS[1:]:
        cut = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(["x"], [name])
        session = onnxruntime.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
        found[name] = np.concatenate([session.run([name], dict(b))[0][0] for b in batches])
    return found


def test_minmax_is_the_largest_magnitude_of_all_clips(model: onnx.ModelProto) -> None:
    batches = make_batches()
    ranges = collect_statistics(model, TENSORS, batches).amax("minmax")
    expected = {name: float(np.abs(v).max()) for name, v in activations(model, batches).items()}
    # The same sums in another graph: float32 rounding only.
    assert ranges == pytest.approx(expected, rel=1e-5)
    assert list(ranges) == TENSORS


def test_percentile_is_numpys_to_one_bin(model: onnx.ModelProto) -> None:
    batches = make_batches()
    ranges = collect_statistics(model, TENSORS, batches).amax("percentile", percentile=99.0)
    for name, values in activations(model, batches).items():
        exact = np.percentile(np.abs(values), 99.0, method="inverted_cdf")
        bin_width = 2 * np.abs(values).max() / 4096
        assert exact - 1e-5 <= ranges[name] <= exact + bin_width + 1e-5


@pytest.mark.parametrize(("method", "tolerance"), [("minmax", 1e-5), ("percentile", 0.01)])
def test_ranges_are_near_onnxruntimes(
    model: onnx.ModelProto, method: RangeMethod, tolerance: float, tmp_path: Path
) -> None:
    """Its collect_data gets one clip at a time. Percentile: both have bins of 1/1000 of the range or finer.
    Entropy: test_histogram.py."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    onnx.save(model, tmp_path / "model.onnx")
    options: dict[str, Any] = {"symmetric": True}
    if method == "percentile":
        options |= {"num_bins": 2048, "percentile": 99.0}
    kind = {"minmax": "MinMax", "percentile": "Percentile"}[method]
    calibrator = create_calibrator(
        tmp_path / "model.onnx",
        ["MatMul"],
        str(tmp_path / "augmented.onnx"),
        CalibrationMethod[kind],
        extra_options=options,
    )
    batches = make_batches((1500, 300, 57))
    for batch in batches:
        calibrator.collect_data(_Once(batch))
    theirs = calibrator.compute_data().data
    ours = collect_statistics(model, TENSORS, batches).amax(method, percentile=99.0)
    for name in TENSORS:
        expected = float(np.max(np.abs(theirs[name].range_value)))
        assert ours[name] == pytest.approx(expected, rel=tolerance), name


class _Once:
    """The data reader that onnxruntime's calibrators want, for one clip."""

    def __init__(self, batch: Batch) -> None:
        self._left = [dict(batch)]

    def get_next(self) -> dict[str, Any] | None:
        return self._left.pop() if self._left else None


def test_order_of_the_clips_does_not_matter(model: onnx.ModelProto) -> None:
    """One pass serves every method."""
    batches = make_batches()
    forward, backward = (collect_statistics(model, TENSORS, iter(b)) for b in (batches, batches[::-1]))
    assert forward.n_clips == 4
    for method in get_args(RangeMethod):
        assert forward.amax(method, percentile=95.0) == backward.amax(method, percentile=95.0)
    by_method = [forward.amax(method)["active"] for method in get_args(RangeMethod)]
    assert max(by_method) == forward.amax("minmax")["active"] > min(by_method)


def test_clips_are_read_one_at_a_time(model: onnx.ModelProto) -> None:
    reports: list[tuple[int, int]] = []

    def lazily() -> Iterator[Batch]:
        for index, batch in enumerate(make_batches()):
            assert len(reports) == index  # nothing is read before the clip ahead of it is done
            yield batch

    collect_statistics(model, TENSORS, lazily(), progress=lambda *counts: reports.append(counts))
    assert reports == [(1, 0), (2, 0), (3, 0), (4, 0)]
    reports.clear()
    collect_statistics(model, TENSORS, make_batches(), progress=lambda *counts: reports.append(counts))
    assert reports[-1] == (4, 4)


def test_model_is_left_as_it_was(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    collect_statistics(model, [*TENSORS, "y"], make_batches())
    assert model.SerializeToString(deterministic=True) == before


def test_silence_gets_a_small_positive_range(model: onnx.ModelProto) -> None:
    statistics = collect_statistics(model, TENSORS, [{"x": np.zeros((1, 50, 6), np.float32)}])
    for method in get_args(RangeMethod):
        assert set(statistics.amax(method).values()) == {1e-6}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("collect", [collect_statistics, collect_channel_amax])
def test_not_finite_names_tensor_and_clip(model: onnx.ModelProto, collect: Any, bad: float) -> None:
    batches = make_batches()
    batches[1]["x"][0, 9, 2] = bad
    with pytest.raises(GateError, match=r"tensor 'hidden' is not finite in calibration clip 2 "):
        collect(model, ["hidden", "y"], batches)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (["nowhere"], "tensor 'nowhere' is not in the graph"),
        (["w1"], "tensor 'w1' is a weight"),
        (["shape"], r"tensor 'shape' is tensor\(int64\)"),
    ],
)
def test_what_is_no_activation_is_refused(model: onnx.ModelProto, tensors: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        collect_statistics(model, tensors, make_batches())


def test_no_clip_and_unknown_method_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ConfigError, match="there is no calibration clip"):
        collect_statistics(model, TENSORS, [])
    statistics = collect_statistics(model, TENSORS, make_batches())
    with pytest.raises(ConfigError, match="range method is 'kl'; it must be one of minmax, entropy"):
        statistics.amax("kl")  # type: ignore[arg-type]


def test_channel_amax_is_that_of_every_last_axis(model: onnx.ModelProto) -> None:
    batches = make_batches()
    found = collect_channel_amax(model, TENSORS, batches)
    for name, values in activations(model, batches).items():
        np.testing.assert_allclose(found[name], np.abs(values).max(axis=0), rtol=1e-5)
        assert found[name].dtype == np.float32


def test_embedded_model_over_its_sample(sample_path: Path, repository: Path) -> None:
    """tiny-en as shipped (fp16 weights behind casts): every method is ordered as it must be."""
    tiny = onnx.load(repository / "edge_asr/models/tiny-en/bundle/model.onnx")
    tensors = [
        node.output[0] for node in tiny.graph.node if node.op_type in ("MatMul", "Conv", "LayerNormalization")
    ]
    features = FeatureExtractor(FeatureConfig.from_preset("nemo"))(read_audio(sample_path))
    batches = [
        {
            "audio_signal": np.ascontiguousarray(piece.T[None]),
            "length": np.asarray([len(piece)], np.int64),
        }
        for piece in (features[:101], features[101:])
    ]
    statistics = collect_statistics(tiny, tensors, batches)
    largest, clipped = statistics.amax("minmax"), statistics.amax("percentile")
    for name, entropy in statistics.amax("entropy").items():
        assert 0 < entropy <= largest[name]
        assert 0.2 * largest[name] < clipped[name] <= largest[name]
    assert len(largest) == len(tensors) > 100
