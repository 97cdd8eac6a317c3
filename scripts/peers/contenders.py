"""edge-asr and its peers behind one call: a waveform in, text out, in this process.

sherpa-onnx and onnx-asr do all of it themselves, from waveform to text. onnxruntime, PyTorch and OpenVINO
have no features and no decoding: they get ours, and only the time of the network counts for them, so against
them our total also pays for what they leave out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.manifest import Precision
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.recognizer import Recognizer
from peers.files import ModelFiles

F32Array = npt.NDArray[np.float32]
SAMPLE_RATE = 16_000


class Contender(Protocol):
    """Something that transcribes."""

    def run(self, waveform: F32Array) -> tuple[str, float]:
        """Text of [S] float32 at 16 kHz, and the seconds that count."""
        ...


class Ours:
    """`Recognizer.transcribe`, whole."""

    def __init__(self, files: ModelFiles, precision: Precision, num_threads: int) -> None:
        self.recognizer = Recognizer.load(
            files.bundle.path, precision=precision, backend="cpu", num_threads=num_threads
        )

    def run(self, waveform: F32Array) -> tuple[str, float]:
        started = time.perf_counter()
        text = self.recognizer.transcribe(waveform, SAMPLE_RATE).text
        return text, time.perf_counter() - started


class SherpaOnnx:
    """sherpa-onnx on one ONNX file."""

    def __init__(self, model: Path, tokens: Path, num_threads: int) -> None:
        import sherpa_onnx

        self.recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(
            model=str(model), tokens=str(tokens), num_threads=num_threads
        )

    def run(self, waveform: F32Array) -> tuple[str, float]:
        started = time.perf_counter()
        stream = self.recognizer.create_stream()
        stream.accept_waveform(SAMPLE_RATE, waveform)
        self.recognizer.decode_stream(stream)
        text = str(stream.result.text)
        return text, time.perf_counter() - started


class OnnxAsr:
    """onnx-asr on a folder."""

    def __init__(self, folder: Path, quantization: str | None, num_threads: int) -> None:
        import onnx_asr

        self.model = onnx_asr.load_model(
            "nemo-conformer-ctc",
            str(folder),
            quantization=quantization,
            sess_options=_session_options(num_threads),
            providers=["CPUExecutionProvider"],
        )

    def run(self, waveform: F32Array) -> tuple[str, float]:
        started = time.perf_counter()
        text = self.model.recognize(waveform, sample_rate=16_000)
        return text, time.perf_counter() - started


class Network:
    """A network alone, on our features: `forward` takes [1, T, n_mels] and gives log-probs [1, T', V]."""

    def __init__(self, files: ModelFiles, forward: Callable[[F32Array], F32Array]) -> None:
        info = files.bundle.info
        self.extractor = FeatureExtractor(info.features)
        self.vocabulary, self.forward = files.bundle.vocabulary, forward

    def run(self, waveform: F32Array) -> tuple[str, float]:
        features = self.extractor(waveform)
        started = time.perf_counter()
        log_probs = self.forward(features[None])
        seconds = time.perf_counter() - started
        ids = greedy_decode(log_probs[0], self.vocabulary.blank_id).ids.tolist()
        return self.vocabulary.decode(ids), seconds


def make_contenders(files: ModelFiles, num_threads: int, names: list[str]) -> dict[str, Contender]:
    """Contenders by "<name> <file>", of the peers in `names`; edge-asr always.

    A peer that can run several files has one entry for each.
    """
    made: dict[str, Contender] = {
        "edge-asr fp32": Ours(files, "fp32", num_threads),
        "edge-asr int8": Ours(files, "int8", num_threads),
    }
    plain, dynamic = files.plain / "model.onnx", files.plain / "model.int8.onnx"
    tokens = files.plain / "tokens.txt"
    if "sherpa-onnx" in names:
        made["sherpa-onnx fp32"] = SherpaOnnx(plain, tokens, num_threads)
        made["sherpa-onnx dynamic int8"] = SherpaOnnx(dynamic, tokens, num_threads)
        made["sherpa-onnx our fp32"] = SherpaOnnx(files.bundle.artifact_path("fp32"), tokens, num_threads)
    if "onnx-asr" in names and files.per_feature:
        made["onnx-asr fp32"] = OnnxAsr(files.plain, None, num_threads)
        made["onnx-asr dynamic int8"] = OnnxAsr(files.plain, "int8", num_threads)
    if "onnxruntime" in names:
        made["onnxruntime fp32"] = Network(files, _onnxruntime(plain, num_threads))
    if "torch" in names:
        made["torch fp32"] = Network(files, _torch(files, num_threads))
    if "torch.compile" in names:
        made["torch.compile fp32"] = Network(files, _torch(files, num_threads, compiled=True))
    if "openvino" in names:
        made["openvino fp32"] = Network(files, _openvino(plain, num_threads))
    return made


def _session_options(num_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    return options


def _onnxruntime(path: Path, num_threads: int) -> Callable[[F32Array], F32Array]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), _session_options(num_threads), providers=["CPUExecutionProvider"]
    )

    def forward(features: F32Array) -> F32Array:
        feeds = {
            "audio_signal": np.ascontiguousarray(features.transpose(0, 2, 1)),
            "length": np.array([features.shape[1]], np.int64),
        }
        log_probs: F32Array = session.run(None, feeds)[0]
        return log_probs

    return forward


def _torch(files: ModelFiles, num_threads: int, *, compiled: bool = False) -> Callable[[F32Array], F32Array]:
    import torch

    torch.set_num_threads(num_threads)
    model: Any = torch.compile(files.torch_model, dynamic=False) if compiled else files.torch_model

    def forward(features: F32Array) -> F32Array:
        with torch.inference_mode():
            log_probs = model(torch.from_numpy(features), torch.tensor([features.shape[1]]))[0]
        array: F32Array = log_probs.numpy()
        return array

    return forward


def _openvino(path: Path, num_threads: int) -> Callable[[F32Array], F32Array]:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": num_threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(str(path), "CPU", settings).create_infer_request()

    def forward(features: F32Array) -> F32Array:
        feeds = {
            "audio_signal": np.ascontiguousarray(features.transpose(0, 2, 1)),
            "length": np.array([features.shape[1]], np.int64),
        }
        log_probs: F32Array = request.infer(feeds)[0]
        return log_probs

    return forward
