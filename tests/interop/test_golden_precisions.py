"""Every family of checkpoints in every precision: TensorRT-RTX's parser takes it, and INT8 keeps most frames.

The graphs that engines are built from too; these must bear half's rounding. RTX builder on CPU: execution not
tested. The models have random weights and a CTC head that was scaled until its argmax varied, so the frames
that INT8 keeps are fewer than a trained model's (docs/checkpoints.md).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.calibration.int8_groups import GROUPS, group_nodes
from edge_asr.calibration.measure import MeasuredClip, Reference
from edge_asr.calibration.quantizer import activation_tensors, quantize_model
from edge_asr.calibration.ranges import collect_statistics
from edge_asr.export.engine.model import arrange_model, make_engine_model
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.proof import prove_fp16
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import run_cases
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

FAMILIES = (
    "nemo-conformer-char",
    "nemo-fastconformer-local-asym",
    "nemo-fastconformer-streaming",
    "hf-parakeet",
    "hf-wav2vec2conformer-rotary",
    "espnet-conformer-legacy",
    "wenet-u2pp",
    "torchaudio-conformer-norm",
)


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_rtx_builder_on_cpu_execution_not_tested_parses_every_precision(
    golden_bundle: Callable[[str], Path], golden_dir: Path, name: str
) -> None:
    rtx: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX's parser (tensorrt-rtx-cu13)")
    bundle = Bundle.load(golden_bundle(name))
    extractor = FeatureExtractor(bundle.info.features)
    clips = [
        MeasuredClip(name=path.stem, features=extractor(read_audio(path)), text=None)
        for path in sorted(golden_dir.glob("audio_*.flac"))
    ]
    feeds = [
        {"audio_signal": c.features.T[None], "length": np.array([len(c.features)], np.int64)} for c in clips
    ]
    fp32 = onnx.load(bundle.artifact_path("fp32"))
    ranges = collect_statistics(fp32, activation_tensors(fp32, GROUPS), feeds).amax("minmax")
    int8 = quantize_model(fp32, ranges, GROUPS)
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    for precision, model in (("fp32", fp32), ("fp16", convert_to_fp16(fp32)), ("int8", int8)):
        network = rtx.Builder(create_logger(rtx)).create_network(flag)
        parse_network(rtx, network, model.SerializeToString(), f"{name}, {precision}")
        assert [network.get_input(i).name for i in range(network.num_inputs)] == ["audio_signal", "length"]
    n_quantized = sum(node.op_type == "QuantizeLinear" for node in int8.graph.node)
    assert n_quantized >= len(group_nodes(fp32))
    loss = Reference(fp32, clips, bundle.vocabulary, bundle.info.output_frames).measure(int8)
    assert loss.agreement >= 0.6, loss


#: Additions between a product of attention and its softmax: where there are two, an engine's graph has one.
ADDITIONS = {**dict.fromkeys(FAMILIES, 2), "hf-wav2vec2conformer-relative": 2}
ADDITIONS |= {"hf-wav2vec2conformer-rotary": 1, "torchaudio-conformer-norm": 1}


def additions(model: onnx.ModelProto) -> list[int]:
    """Count those between each softmax and the product of queries and keys; a Cast hides the product."""
    writers = {name: node for node in model.graph.node for name in node.output}

    def count(name: str) -> int | None:
        node = writers.get(name)
        if node is None or node.op_type not in ("Add", "MatMul"):
            return None
        below = [found for found in map(count, node.input) if found is not None]
        return 0 if node.op_type == "MatMul" else max(below) + 1 if below else None

    found = [count(node.input[0]) for node in model.graph.node if node.op_type == "Softmax"]
    return [n for n in found if n is not None]


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("name", ADDITIONS)
def test_rtx_builder_on_cpu_execution_not_tested_parses_the_graphs_of_engines(
    golden_bundle: Callable[[str], Path], golden_dir: Path, tmp_path: Path, name: str
) -> None:
    rtx: Any = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX's parser (tensorrt-rtx-cu13)")
    folder = Path(shutil.copytree(golden_bundle(name), tmp_path / "bundle"))
    extractor = FeatureExtractor(Bundle.load(folder).info.features)
    clips = [extractor(read_audio(path)) for path in sorted(golden_dir.glob("audio_*.flac"))]
    fp32 = onnx.load(folder / "model.onnx")
    feeds = [{"audio_signal": c.T[None], "length": np.array([len(c)], np.int64)} for c in clips]
    ranges = collect_statistics(fp32, activation_tensors(fp32, GROUPS), feeds).amax("minmax")
    path = folder / "model.int8.onnx"
    path.write_bytes(quantize_model(fp32, ranges, GROUPS).SerializeToString())
    data = json.loads((folder / "bundle.json").read_text())
    facts = {"file": path.name, "sha256": sha256_of(path), "size_bytes": path.stat().st_size}
    data["artifacts"].append({**data["artifacts"][0], "precision": "int8", **facts})
    (folder / "bundle.json").write_text(json.dumps(data))
    bundle, longest = Bundle.load(folder), max(map(len, clips))

    arranged = arrange_model(bundle, "fp32", max_frames=longest)
    assert (additions(fp32), additions(arranged)) == ([ADDITIONS[name]] * 2, [1, 1])
    if ADDITIONS[name] == 1:
        assert [n.SerializeToString() for n in arranged.graph.node] == [
            n.SerializeToString() for n in fp32.graph.node
        ]
    cases = [ProofCase(family="real", name=str(number), features=(c,)) for number, c in enumerate(clips)]
    cases.append(ProofCase(family="padded", name="together", features=tuple(clips), padding="noise"))
    backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    expected = run_cases(backend, cases, bundle.info.output_frames)
    backend.close()
    two_frames = 2 / sum(len(row) for rows in expected for row in rows)
    kept = []
    for wide_softmax in (False, True):
        half = make_engine_model(bundle, "fp16", max_frames=longest, wide_softmax=wide_softmax)
        proof = prove_fp16(
            arranged, half, cases, expected, bundle.vocabulary, bundle.info.output_frames, min_agreement=0.98
        )
        assert proof.passed, proof.failure_message()
        kept.append(proof.rounded_agreement)
    assert kept[0] >= kept[1] - two_frames
    for precision in ("fp16", "int8"):
        made = make_engine_model(bundle, precision, max_frames=longest)
        assert additions(made) == [1, 1]
        network = rtx.Builder(create_logger(rtx)).create_network(
            1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        parse_network(rtx, network, made.SerializeToString(), f"{name}, {precision}")
        assert [network.get_input(i).name for i in range(network.num_inputs)] == ["audio_signal", "length"]
