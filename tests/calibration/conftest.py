"""What the INT8 tests share: the embedded model's float32 graph, and a hand-made one with names of groups."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper, numpy_helper

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration.angles import shift_to_angles
from edge_asr.calibration.int8_groups import GROUPS
from edge_asr.calibration.quantizer import activation_tensors
from edge_asr.calibration.ranges import collect_statistics
from edge_asr.graph.weights import load_float32
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
Feeds = dict[str, npt.NDArray[np.generic]]

LAYER = "encoder.layers.0"
N_MELS, N_TOKENS = 8, 5


def make_hand_made() -> onnx.ModelProto:
    """A graph [B, 8, T] -> [B, T, 5] of five groups.

    Two feed-forward products, a pointwise one, a depthwise convolution with a bias, two batched products that
    share their left input, and a head.
    """
    generator = np.random.default_rng(0)
    weights = {
        "expand": (N_MELS, 16),
        "expand_bias": (16,),
        "project": (16, N_MELS),
        "pointwise": (N_MELS, N_MELS),
        "depthwise": (N_MELS, 1, 3),
        "depthwise_bias": (N_MELS,),
        "by_sine": (2, N_MELS, N_MELS),
        "by_cosine": (2, N_MELS, N_MELS),
        "projection": (N_MELS, N_TOKENS),
    }
    initializers = [
        # So that the scores are some units apart.
        numpy_helper.from_array(
            (generator.standard_normal(shape) * (0.5 if "bias" in name else 0.4)).astype(np.float32),
            name,
        )
        for name, shape in weights.items()
    ]
    initializers += [numpy_helper.from_array(np.asarray([1], np.int64), "axis")]

    def node(op: str, inputs: list[str], output: str, name: str = "", **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name or f"plain/{output}", **attributes)

    nodes = [
        node("Transpose", ["audio_signal"], "x", perm=[0, 2, 1]),
        node("MatMul", ["x", "expand"], "e", f"{LAYER}.feed_forward_in.expand/MatMul"),
        node("Add", ["e", "expand_bias"], "e_biased"),
        node("Relu", ["e_biased"], "e_active"),
        node("MatMul", ["e_active", "project"], "p", f"{LAYER}.feed_forward_in.project/MatMul"),
        node("MatMul", ["p", "pointwise"], "w", f"{LAYER}.convolution.pointwise_in/MatMul"),
        node("Transpose", ["w"], "w_turned", perm=[0, 2, 1]),
        node(
            "Conv",
            ["w_turned", "depthwise", "depthwise_bias"],
            "d",
            f"{LAYER}.convolution.depthwise/Conv",
            group=N_MELS,
            pads=[1, 1],
        ),
        node("Transpose", ["d"], "d_turned", perm=[0, 2, 1]),
        node("Unsqueeze", ["d_turned", "axis"], "heads"),
        node("MatMul", ["heads", "by_sine"], "sine", f"{LAYER}.attention.by_distance/MatMul"),
        node("MatMul", ["heads", "by_cosine"], "cosine", f"{LAYER}.attention.by_distance/MatMul_1"),
        node("Add", ["sine", "cosine"], "both"),
        node("ReduceMean", ["both", "axis"], "mean", keepdims=0),
        node("MatMul", ["mean", "projection"], "scores", "head.projection/MatMul"),
        node("LogSoftmax", ["scores"], "logprobs", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "hand-made",
        [
            helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["B", N_MELS, "T"]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["B"]),
        ],
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["B", "T", N_TOKENS])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def hand_made() -> onnx.ModelProto:
    """`make_hand_made`, to be changed at will."""
    return make_hand_made()


@pytest.fixture(scope="session")
def hand_made_vocabulary() -> Vocabulary:
    """a, b, c, the word boundary, and the blank."""
    return Vocabulary.from_characters("abc ")


@pytest.fixture(scope="session")
def tiny_en_bundle() -> Bundle:
    """The embedded model."""
    return Bundle.load("tiny-en")


@pytest.fixture(scope="session")
def tiny_en(tiny_en_bundle: Bundle) -> onnx.ModelProto:
    """Its float32 graph as the quantizer gets it, eight layers; do not change it."""
    return shift_to_angles(load_float32(tiny_en_bundle.artifact_path("fp32")))


@pytest.fixture(scope="session")
def sample_feeds(tiny_en_bundle: Bundle) -> Feeds:
    """Eight seconds of the embedded samples, as tiny-en's inputs."""
    features = tiny_en_bundle.info.features
    speech = np.concatenate(list(load_clips(find_clips(), features.sample_rate).values()))
    frames = FeatureExtractor(features)(speech[: 8 * features.sample_rate])
    return {
        "audio_signal": np.ascontiguousarray(frames.T[None]),
        "length": np.asarray([len(frames)], np.int64),
    }


@pytest.fixture(scope="session")
def tiny_en_amax(
    tiny_en: onnx.ModelProto, sample_feeds: Feeds, made_once: Callable[[str, Callable[[Path], object]], Path]
) -> dict[str, float]:
    """Largest magnitudes of its activations on `sample_feeds`."""

    def make(path: Path) -> None:
        statistics = collect_statistics(tiny_en, activation_tensors(tiny_en, GROUPS), [sample_feeds])
        path.write_text(
            json.dumps({k: float(v) for k, v in statistics.amax("minmax").items()})
        )  # JSON keeps every bit of a float

    amax: dict[str, float] = json.loads(made_once("tiny-en-amax.json", make).read_text())
    return amax


@pytest.fixture(scope="session")
def calibration_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen sounds of 2 to 5.5 s, a minute together: gliding harmonics in syllables, texts of two words."""
    folder = tmp_path_factory.mktemp("calibration")
    rows = []
    for number in range(16):
        name = f"{number}.wav"
        soundfile.write(folder / name, make_syllables(2.0 + 0.25 * (number % 15), number), 16_000)
        rows.append(json.dumps({"audio_filepath": name, "text": f"word {'abcdefghijklmnop'[number]}"}))
    path = folder / "train.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def evaluation_manifest(calibration_manifest: Path) -> Path:
    """The first four sounds again, for the gate: a test's loss means nothing."""
    path = calibration_manifest.with_name("dev.jsonl")
    path.write_text("".join(calibration_manifest.read_text().splitlines(keepends=True)[:4]))
    return path


def make_syllables(duration_s: float, seed: int) -> F32Array:
    """[S] float32 at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(duration_s * 16_000)) / 16_000
    syllable = (time / 0.2).astype(int)
    pitch = generator.uniform(90, 220, syllable[-1] + 1)[syllable]
    tilt = generator.uniform(0.3, 2.0, syllable[-1] + 1)[syllable]
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voiced = sum(np.sin(k * phase) / k**tilt for k in range(1, 16))
    noise = 0.003 * generator.standard_normal(len(time))
    waveform: F32Array = (0.1 * voiced * np.abs(np.sin(np.pi * time / 0.2)) + noise).astype(np.float32)
    return waveform


@pytest.fixture(scope="session")
def syllables() -> Callable[[float, int], F32Array]:
    """`make_syllables`."""
    return make_syllables
