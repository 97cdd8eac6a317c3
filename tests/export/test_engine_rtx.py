"""TensorRT-RTX builds plans of tiny-en and of a random `small`, in every precision, without a GPU.

RTX builder on CPU: execution not tested. The INT8 graphs have every group in INT8, more than a budget would
let through. The files around a plan, and other TensorRTs, are in test_engine_builder.py.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import Precision
from edge_asr.calibration.int8_groups import GROUPS
from edge_asr.calibration.quantizer import activation_tensors, quantize_model
from edge_asr.calibration.ranges import collect_statistics
from edge_asr.cli.main import cli
from edge_asr.export import pipeline
from edge_asr.export.engine.builder import build_engine
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.engine.plan import make_plan
from edge_asr.export.engine.profiles import build_profiles
from edge_asr.export.engine.put import NOT_RUN
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.inference_form import to_inference_form
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import simplify_graph
from edge_asr.feature_config import FeatureConfig
from edge_asr.graph.weights import load_float32
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.lookup import artifact_of, build_command
from edge_asr.runtime.engine.shapes import grid_frames
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.features.extractor import FeatureExtractor

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
HIDE_AND_RUN = """
import sys
sys.modules["tensorrt"] = sys.modules["tensorrt_rtx"] = None
from edge_asr.cli.main import main
main()
"""


def in_all_precisions(fp32: onnx.ModelProto, features: FeatureConfig) -> dict[Precision, onnx.ModelProto]:
    """The graph, in FP16, and with every group in INT8, ranges from the embedded sample."""
    extractor = FeatureExtractor(features)
    clips = [extractor(w) for w in load_clips(find_clips(), features.sample_rate).values()]
    feeds = [{"audio_signal": c.T[None], "length": np.array([len(c)], np.int64)} for c in clips]
    ranges = collect_statistics(fp32, activation_tensors(fp32, GROUPS), feeds).amax("minmax")
    return {"fp32": fp32, "fp16": convert_to_fp16(fp32), "int8": quantize_model(fp32, ranges, GROUPS)}


@pytest.fixture(scope="session")
def tiny_en(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a bundle with all three precisions, unproven; fp32 is the file that ships."""
    embedded = Bundle.load("tiny-en")
    models = in_all_precisions(load_float32(embedded.artifact_path("fp32")), embedded.info.features)
    folder = tmp_path_factory.mktemp("rtx") / "tiny-en"
    shutil.copytree(embedded.path, folder, ignore=shutil.ignore_patterns("engines", "model.*.onnx"))
    fp32 = embedded.artifact("fp32")
    artifacts = [fp32]
    for precision in PRECISIONS[1:]:
        path = folder / f"model.{precision}.onnx"
        path.write_bytes(models[precision].SerializeToString())
        changes = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
        artifacts.append(dataclasses.replace(fp32, file=path.name, precision=precision, **changes))
    info = dataclasses.replace(embedded.info, artifacts=tuple(artifacts))
    (folder / "bundle.json").write_text(json.dumps(info.to_dict()))
    return folder


@pytest.fixture(scope="session")
def small_models() -> dict[Precision, onnx.ModelProto]:
    """The `small` preset (13 M parameters) with random weights."""
    torch.manual_seed(0)
    model = ConformerCTC(ConformerConfig.from_preset("small", vocab_size=129)).eval()
    fp32 = simplify_graph(export_onnx(to_inference_form(model), 80), 80)
    return in_all_precisions(fp32, FeatureConfig.from_preset("nemo"))


def quantized_share(model: onnx.ModelProto, op_type: str) -> float:
    """Of the nodes of a type, how many read a DequantizeLinear in the place of the left input."""
    producers = {output: node.op_type for node in model.graph.node for output in node.output}
    nodes = [node for node in model.graph.node if node.op_type == op_type]
    return sum(producers.get(node.input[0]) == "DequantizeLinear" for node in nodes) / len(nodes)


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rtx_builder_on_cpu_execution_not_tested_tiny_en(
    precision: Precision, rtx: ModuleType, tiny_en: Path, tmp_path: Path
) -> None:
    bundle = Bundle.load(shutil.copytree(tiny_en, tmp_path / "bundle"))
    if precision == "int8":  # the fixture is what it says
        assert quantized_share(onnx.load(bundle.artifact_path("int8")), "MatMul") > 0.9
    report = build_engine(bundle, precision, flavor="tensorrt-rtx", profile_seconds=(0.1, 8))
    assert NOT_RUN + build_command(bundle, precision, "tensorrt-rtx") in report.notes
    ((least, most, batch),) = [(p.min_frames, p.max_frames, p.max_batch) for p in report.sidecar.profiles]
    assert (least, most, batch) == (16 * bundle.info.subsampling_factor, 1024, 8)
    assert report.sidecar.plan_size_bytes > bundle.artifact(precision).size_bytes
    assert report.sidecar.onnx_sha256 == artifact_of(bundle, precision).sha256


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_parses_every_embedded_file(rtx: ModuleType) -> None:
    embedded = Bundle.load("tiny-en")
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    for artifact in embedded.info.artifacts:
        network = rtx.Builder(create_logger(rtx)).create_network(flag)
        parse_network(rtx, network, (embedded.path / artifact.file).read_bytes(), artifact.file)
        assert [network.get_input(i).name for i in range(network.num_inputs)] == ["audio_signal", "length"]


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rtx_builder_on_cpu_execution_not_tested_random_small_with_dynamic_batch_and_time(
    precision: Precision, rtx: ModuleType, small_models: dict[Precision, onnx.ModelProto]
) -> None:
    plan = make_plan(
        rtx,
        create_logger(rtx),
        small_models[precision].SerializeToString(),
        "small.onnx",
        precision=precision,
        profiles=build_profiles(FeatureConfig.from_preset("nemo"), (0.1, 8), (1, 2, 8)),
        n_mels=80,
    )
    # The weights are in it, in the size of their precision at least: 13 million of 4, 2 and 1 byte.
    assert len(plan.data) > {"fp32": 50e6, "fp16": 25e6, "int8": 12e6}[precision]
    assert {tensor.name: tensor.shape for tensor in plan.tensors} == {
        "audio_signal": (-1, 80, -1),
        "length": (-1,),
        "logprobs": (-1, -1, 129),
    }


@pytest.mark.tensorrt
@pytest.mark.slow
def test_rtx_builder_on_cpu_execution_not_tested_export_engine_of_tiny_en(
    rtx: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole command, but for a shorter proof of the export."""
    shorten_proof(monkeypatch)
    arguments = ["export", "tiny-en", "-o", str(tmp_path / "b"), "--engine", "--flavor", "tensorrt-rtx"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert f"edge-asr: {NOT_RUN}edge-asr build {tmp_path / 'b'} --precision fp32" in result.stderr
    (folder,) = (tmp_path / "b" / "engines").iterdir()
    assert folder.name == f"tensorrt-rtx-{rtx.__version__}-no-gpu-linux-x86_64"
    assert sorted(path.name for path in folder.iterdir()) == ["model.fp32.json", "model.fp32.plan"]
    sidecar = EngineSidecar.read(folder / "model.fp32.json")
    assert sidecar.plan_sha256 == sha256_of(folder / "model.fp32.plan")
    bundle = Bundle.load(tmp_path / "b")
    assert sidecar.onnx_sha256 == bundle.artifact("fp32").sha256
    defaults = [grid_frames(frames, bundle.info.output_frames) for frames in (200, 800, 3000)]
    assert [p.max_frames for p in sidecar.profiles] == defaults


def shorten_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pipeline.CasePlan(random_lengths=1, max_random_s=1.0, max_batch=2)
    build_cases = pipeline.build_cases
    monkeypatch.setattr(pipeline, "build_cases", lambda *arguments: build_cases(*arguments[:3], plan))


@pytest.mark.slow
def test_export_engine_without_tensorrt_writes_the_bundle_and_says_what_is_missing(
    checkpoint_path: Path, clip_path: Path, tmp_path: Path
) -> None:
    arguments = ["export", str(checkpoint_path), "-o", str(tmp_path / "b"), "--clips", str(clip_path)]
    arguments += ["--engine", "--flavor", "tensorrt-rtx"]
    done = subprocess.run([sys.executable, "-c", HIDE_AND_RUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert said.startswith("edge-asr: tensorrt_rtx is needed here and is not installed; ")
    assert "details in report.md" in done.stdout
    assert Bundle.load(tmp_path / "b").artifact("fp32")
    assert not (tmp_path / "b" / "engines").exists()
