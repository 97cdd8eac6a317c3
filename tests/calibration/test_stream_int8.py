"""stream.int8.onnx: calibrated on steps with real caches, written beside stream.onnx, run where INT8 runs."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration.forms import StreamSteps
from edge_asr.calibration.int8_groups import group_nodes
from edge_asr.calibration.products import gemms_to_products
from edge_asr.calibration.sensitivity import count_multiply_adds
from edge_asr.errors import BundleError
from edge_asr.export.optimize import count_operators
from edge_asr.proof.streams import LockstepStreams
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.streaming_model import StreamingModel

pytestmark = pytest.mark.slow  # exports and quantizes


@pytest.fixture(scope="module")
def bundle(streaming_int8_bundle: Path) -> Bundle:
    return Bundle.load(streaming_int8_bundle)


@pytest.fixture(scope="module")
def graph(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path / "stream.onnx")


@pytest.fixture(scope="module")
def form(bundle: Bundle) -> StreamSteps:
    sizes = {"n_mels": bundle.info.features.n_mels, "vocab_size": bundle.info.vocabulary_size}
    return StreamSteps(bundle.streaming.geometry, **sizes)


def clip(n_frames: int = 150) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(-8, 3, (n_frames, 80)).astype(np.float32)


def test_bundle_has_both_files_and_says_what_was_measured(bundle: Bundle) -> None:
    streaming = bundle.streaming
    assert [a.file for a in streaming.artifacts] == ["stream.onnx", "stream.int8.onnx"]
    assert [a.precision for a in streaming.artifacts] == ["fp32", "int8"]
    assert streaming.int8 is not None
    assert streaming.int8.cpu_time_over_fp32 is not None
    step = bundle.info.verification["steps"][-1]
    assert (step["reference"], step["candidate"]) == ("streaming ONNX", "streaming ONNX INT8")
    assert step["passed"]
    report = json.loads((bundle.path / "report.json").read_text())
    assert report["int8_stream"]["int8_groups"]
    assert report["int8_stream"]["calibration"]["sha256"] == report["int8"]["calibration"]["sha256"]
    text = (bundle.path / "report.md").read_text()
    assert text.count("\n# INT8\n") == text.count("\n# INT8, streaming\n") == 1


def test_steps_are_fed_with_the_caches_of_the_steps_before(
    bundle: Bundle, graph: onnx.ModelProto, form: StreamSteps
) -> None:
    feeds = form.feeds(graph, [clip(), clip(40)])
    first, second, *others = list(feeds)
    assert len(others) + 2 == len(feeds) == 5 + 2
    assert not first["cache_last_channel"].any()
    assert second["cache_last_channel"].any()
    assert second["cache_last_time"].any()
    assert [int(feed["cache_last_channel_len"][0]) for feed in (first, second, *others)] == [
        0,
        8,
        16,
        16,
        16,
        0,
        8,
    ]
    model = StreamingModel.load(bundle, num_threads=1)
    window = np.ascontiguousarray(first["audio_signal"].transpose(0, 2, 1))
    _, _, caches = model.run_step(window, first["length"], model.initial_caches())
    np.testing.assert_array_equal(caches[0], second["cache_last_channel"])


def test_products_are_the_same_function_and_belong_to_groups(
    graph: onnx.ModelProto, form: StreamSteps
) -> None:
    """Tolerance 1e-4: two orders of the same sums."""
    assert count_operators(graph)["Gemm"] > 10
    rewritten = gemms_to_products(graph)
    assert "Gemm" not in count_operators(rewritten)
    assert gemms_to_products(rewritten) is rewritten
    groups = group_nodes(rewritten)
    assert {"attention_projections", "attention_products", "attention_positions", "feed_forward"} <= set(
        groups
    ) | {
        "attention_positions"  # constant in a stream
    }
    lengths = np.array([150], np.int64)
    outputs = []
    for model in (graph, rewritten):
        with form.open(model, num_threads=1) as opened:
            outputs.append(opened.log_probs(clip()[None], lengths))
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-4)
    assert count_multiply_adds(graph, clip(), form) == count_multiply_adds(rewritten, clip(), form)


def test_int8_runs_in_integers_and_stays_close(bundle: Bundle) -> None:
    counts = count_operators(onnx.load(bundle.path / "stream.int8.onnx"))
    assert counts["QuantizeLinear"] > 20
    outputs = {}
    for precision in ("fp32", "int8"):
        model = StreamingModel.load(bundle, precision=precision, num_threads=1)
        assert model.precision == precision
        outputs[precision] = LockstepStreams(model).log_probs(clip()[None], np.array([150]))[0]
    difference = np.abs(outputs["int8"] - outputs["fp32"])
    assert 0 < difference.max() < 1.0


def test_copies_for_the_cpu_share_the_weights_of_their_artifacts(bundle: Bundle, tmp_path: Path) -> None:
    for artifact in (bundle.artifact("int8"), bundle.streaming.find("int8")):
        copy = artifact.cpu_graph
        assert copy is not None
        assert (copy.file, copy.weights_file) == (artifact.file.replace(".onnx", ".cpu.onnx"), artifact.file)
        graph = onnx.load(bundle.path / copy.file, load_external_data=False).graph
        shared = [i for i in graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
        assert len(shared) > 4
        counts = Counter(node.op_type for node in graph.node)
        assert counts["MatMulIntegerToFloat"] > 10
        assert "Gemm" not in counts  # which would unpack its INT8 weights in every run
        assert all(i.external_data[0].value == artifact.file for i in shared)
    model = StreamingModel.load(bundle, precision="int8", num_threads=1)
    assert model._steps._backend.path.name == "stream.int8.cpu.onnx"
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    data = json.loads((folder / "bundle.json").read_text())
    data["streaming"]["int8"]["cpu_graph"]["weights_file"] = "other.onnx"
    (folder / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"stream\.int8\.cpu\.onnx keeps weights in another file"):
        Bundle.load(folder)


def test_recognizer_streams_in_its_own_precision(bundle: Bundle) -> None:
    for precision in ("fp32", "int8"):
        with Recognizer.load(bundle.path, precision=precision, backend="cpu") as recognizer:
            assert recognizer.streaming_model(num_threads=1).precision == precision


def test_bundle_of_an_older_version_streams_in_float32_and_says_so(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shutil.copytree(bundle.path, tmp_path / "bundle")
    data = json.loads((folder / "bundle.json").read_text())
    del data["streaming"]["int8"]
    (folder / "bundle.json").write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING), Recognizer.load(folder, precision="int8") as recognizer:
        assert recognizer.streaming_model(num_threads=1).precision == "fp32"
    (line,) = [record.message for record in caplog.records]
    assert line == "the bundle has no streaming graph in int8: partials run in fp32"
