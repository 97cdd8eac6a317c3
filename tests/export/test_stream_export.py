"""The streaming graph and its proof: what is written, what is refused, what other programs find in it.

That its numbers are right is the proof's own affair, and the golden files'
(tests/checkpoints/test_streaming_golden.py); here the proof is shown graphs that are wrong.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from click.testing import CliRunner

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.cli.main import cli
from edge_asr.errors import BundleError, GateError
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.streaming import proof as stream_proof
from edge_asr.export.streaming.graph import check_stream, make_stream_graph
from edge_asr.export.streaming.proof import prove_stream
from edge_asr.feature_config import FeatureConfig
from edge_asr.model import ConformerCTC
from edge_asr.model.streamable import geometry_from_config
from edge_asr.proof.cases import CasePlan, build_cases
from edge_asr.proof.streams import stream_cases
from edge_asr.runtime.engine.api import create_logger
from edge_asr.vocabulary import Vocabulary

pytestmark = pytest.mark.slow  # exports or trains

F32Array = npt.NDArray[np.float32]
FEATURES = FeatureConfig.from_preset("nemo")


@pytest.fixture(scope="module")
def causal(build_model: Callable[..., ConformerCTC]) -> ConformerCTC:
    """NeMo's structure of no look-ahead: the first windows have 1, 9, then 17 feature frames."""
    return build_model(
        attention_context=(6, 0), attention_context_style="chunked_limited", subsampling_causal=True,
        conv_norm="layer_norm", cmvn=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def graph(causal: ConformerCTC) -> onnx.ModelProto:
    """Its streaming graph."""
    return make_stream_graph(causal, geometry_from_config(causal.config, FEATURES))


@pytest.fixture
def prove(
    causal: ConformerCTC, graph: onnx.ModelProto, speechlike: Callable[..., F32Array], vocabulary: Vocabulary
) -> Callable[..., list[Any]]:
    """The proof of `graph` against a model, of `causal`'s configuration unless told otherwise."""
    geometry = geometry_from_config(causal.config, FEATURES)
    plan = CasePlan(random_lengths=1, max_random_s=1.0, max_batch=3)
    cases = build_cases({"speechlike": speechlike(2.0)}, FEATURES, causal.config.output_frames, plan)

    def run(model: ConformerCTC = causal, proto: onnx.ModelProto = graph) -> list[Any]:
        chosen = stream_cases(cases, geometry)
        return list(prove_stream(copy.deepcopy(model), proto, geometry, chosen, vocabulary)[0])

    return run


def test_graph_has_nemos_tensors(graph: onnx.ModelProto) -> None:
    def shapes(values: Any) -> dict[str, list[Any]]:
        return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}

    inputs, outputs = shapes(graph.graph.input), shapes(graph.graph.output)
    assert (tuple(inputs), tuple(outputs)) == (STREAM_INPUTS, STREAM_OUTPUTS)
    assert inputs["audio_signal"] == ["batch", 80, "time"]
    assert inputs["cache_last_channel"] == outputs["cache_last_channel_next"] == ["batch", 2, 6, 32]
    assert inputs["cache_last_time"] == outputs["cache_last_time_next"] == ["batch", 2, 32, 8]
    assert inputs["length"] == inputs["cache_last_channel_len"] == outputs["encoded_lengths"] == ["batch"]
    assert outputs["logprobs"] == ["batch", 1, 28]
    assert graph.ir_version <= 10
    assert [entry.version for entry in graph.opset_import if entry.domain == ""] == [18]


def test_proof_passes_on_the_right_graph(prove: Callable[..., list[Any]]) -> None:
    chunks, whole = prove()
    assert chunks.passed
    assert whole.passed
    assert max(result.max_error for result in whole.results) < 5e-5
    names = {result.name for result in whole.results}
    assert {"1 frames", "9 frames", "17 frames", "speechlike", "digital silence"} <= names


def test_proof_finds_a_wrong_weight(causal: ConformerCTC, prove: Callable[..., list[Any]]) -> None:
    other = ConformerCTC(causal.config).eval()
    other.load_state_dict(causal.state_dict())
    with torch.no_grad():
        other.encoder.layers[1].attention.pos_bias_u.add_(0.05)
    assert [step.passed for step in prove(other)] == [False, False]


def test_proof_finds_a_memory_that_is_too_short(
    causal: ConformerCTC, prove: Callable[..., list[Any]]
) -> None:
    """The offline model sees further back than the stream's memory reaches."""
    config = dataclasses.replace(causal.config, attention_context=(7, 0))
    further = ConformerCTC(config).eval()
    further.load_state_dict(causal.state_dict())
    assert [step.passed for step in prove(further)] == [False, False]


def test_proof_finds_a_state_that_is_not_passed_on(
    graph: onnx.ModelProto, prove: Callable[..., list[Any]]
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    for node in broken.graph.node:
        for index, name in enumerate(node.output):
            if name == "cache_last_time_next":
                node.output[index] = "lost"
    same = onnx.helper.make_node("Identity", ["cache_last_time"], ["cache_last_time_next"], name="stuck")
    broken.graph.node.append(same)
    assert [step.passed for step in prove(proto=broken)] == [False, False]


def test_check_refuses_another_order(causal: ConformerCTC, graph: onnx.ModelProto) -> None:
    swapped = onnx.ModelProto()
    swapped.CopyFrom(graph)
    inputs = list(swapped.graph.input)
    del swapped.graph.input[:]
    swapped.graph.input.extend([inputs[1], inputs[0], *inputs[2:]])
    with pytest.raises(GateError, match="NeMo's order"):
        check_stream(swapped, geometry_from_config(causal.config, FEATURES))


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_parses_streams(
    rtx: ModuleType, graph: onnx.ModelProto, streaming_bundle: Path
) -> None:
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    for content in (graph.SerializeToString(), (streaming_bundle / "stream.onnx").read_bytes()):
        network = rtx.Builder(create_logger(rtx)).create_network(flag)
        parse_network(rtx, network, content, "stream.onnx")
        assert [network.get_input(i).name for i in range(network.num_inputs)] == list(STREAM_INPUTS)
        assert [network.get_output(i).name for i in range(network.num_outputs)] == list(STREAM_OUTPUTS)


def test_bundle_records_and_reports_the_stream(streaming_bundle: Path) -> None:
    bundle = Bundle.load(streaming_bundle)
    geometry = bundle.streaming.geometry
    assert (geometry.chunk_frames, geometry.left_frames, geometry.lookahead_ms) == (8, 16, 280.0)
    assert bundle.streaming.artifact.file == "stream.onnx"
    assert [artifact.file for artifact in bundle.info.artifacts] == ["model.onnx"]
    steps = bundle.info.verification["steps"]
    assert [step["candidate"] for step in steps[-2:]] == ["streaming ONNX", "streaming ONNX in pieces"]
    assert all(step["passed"] and step["max_log_prob_error"] <= 1e-4 for step in steps)
    report = json.loads((streaming_bundle / "report.json").read_text())
    assert report["streaming"]["window_frames"] == 36
    assert (
        "chunks of 320 ms, look-ahead 280 ms, left context 640 ms"
        in (streaming_bundle / "report.md").read_text()
    )
    metadata = {p.key: p.value for p in onnx.load(streaming_bundle / "stream.onnx").metadata_props}
    wanted = {"window_size": "36", "chunk_shift": "32", "subsampling_factor": "4", "vocab_size": "28"}
    wanted |= {  # a row for each head's keys, and for its values
        "cache_last_channel_dim1": "16",
        "cache_last_channel_dim2": "16",
        "cache_last_channel_dim3": "8",
    }
    wanted |= {"cache_last_time_dim1": "2", "cache_last_time_dim2": "14", "cache_last_time_dim3": "32"}
    assert {key: metadata[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("geometry", "chunk_frames"), 9, "window_frames is 36"),
        (("geometry", "frame_ms"), 80.0, "lookahead_ms"),
        (("artifact", "file"), "../stream.onnx", "plain name"),
        (("artifact", "sha256"), "0" * 64, "is not the file that bundle.json"),
        (("geometry",), None, "streaming lacks 'geometry'"),
    ],
)
def test_altered_streams_are_refused(
    streaming_bundle: Path, tmp_path: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    folder = shutil.copytree(streaming_bundle, tmp_path / "bundle")
    data = json.loads((folder / "bundle.json").read_text())
    owner = data["streaming"]
    for key in path[:-1]:
        owner = owner[key]
    if value is None:
        del owner[path[-1]]
    else:
        owner[path[-1]] = value
    (folder / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_missing_stream_is_refused(streaming_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(streaming_bundle, tmp_path / "bundle")
    (folder / "stream.onnx").unlink()
    with pytest.raises(BundleError, match=r"stream\.onnx is missing"):
        Bundle.load(folder)


def test_failed_stream_proof_is_exit_3(
    quick_export: None,
    graph: onnx.ModelProto,
    checkpoint_path: Path,
    clip_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The graph of another model in the place of the right one: nothing is written."""
    monkeypatch.setattr(stream_proof, "make_stream_graph", lambda *args, **kwargs: graph)
    arguments = ["export", str(checkpoint_path), "-o", str(tmp_path / "b"), "--clips", str(clip_path)]
    result = CliRunner().invoke(cli, [*arguments, "--chunk-ms", "80", "--left-context-ms", "480"])
    assert result.exit_code == 3
    assert "streaming ONNX" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()


def test_options_that_contradict_the_checkpoint_are_exit_1(checkpoint_path: Path, tmp_path: Path) -> None:
    arguments = ["export", str(checkpoint_path), "-o", str(tmp_path / "b"), "--lookahead-ms", "480"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "lookahead_ms is 480" in result.stderr.splitlines()[-1]
