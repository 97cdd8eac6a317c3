"""Every family of checkpoints in every precision: TensorRT-RTX's parser takes it, and INT8 keeps most frames.

RTX builder on CPU: execution not tested. The models have random weights and a CTC head that was scaled until
its argmax varied, so the frames that INT8 keeps are fewer than a trained model's (docs/checkpoints.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.calibration.int8_groups import GROUPS, group_nodes
from edge_asr.calibration.measure import MeasuredClip, Reference
from edge_asr.calibration.quantizer import activation_tensors, quantize_model
from edge_asr.calibration.ranges import collect_statistics
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.features.extractor import FeatureExtractor

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
