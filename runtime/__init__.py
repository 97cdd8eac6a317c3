"""What runs on the device: features, backends, CTC, recogniser, streaming, microphone.

Names are imported when first used, so that `import edge_asr.runtime` costs nothing and works
without onnxruntime and without PortAudio. Nothing here imports PyTorch or onnx.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_asr.runtime.backends import Backend, OnnxRuntimeBackend, create_backend
    from edge_asr.runtime.ctc import GreedyDecoder, Token, TokenRuns, Word, greedy_decode
    from edge_asr.runtime.endpointing import EndpointConfig
    from edge_asr.runtime.events import Error, Final, Gap, Partial
    from edge_asr.runtime.features import FeatureConfig, FeatureExtractor, FeatureStream
    from edge_asr.runtime.live import LiveConfig, LiveRecognizer, LiveStats
    from edge_asr.runtime.microphone import MicrophoneConfig, MicrophoneSource, list_devices
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.sources import AudioBlock, AudioSource, FileSource, Loss, Recorder
    from edge_asr.runtime.streaming_decoder import StreamingDecoder, streaming_decoders
    from edge_asr.runtime.streaming_model import StreamingModel
    from edge_asr.runtime.tensorrt_backend import TensorRTBackend
    from edge_asr.runtime.transcript import Segment, Transcript

_HOMES = {
    "AudioBlock": "sources",
    "AudioSource": "sources",
    "Backend": "backends",
    "EndpointConfig": "endpointing",
    "Error": "events",
    "FeatureConfig": "features",
    "FeatureExtractor": "features",
    "FeatureStream": "features",
    "FileSource": "sources",
    "Final": "events",
    "Gap": "events",
    "GreedyDecoder": "ctc",
    "LiveConfig": "live",
    "LiveRecognizer": "live",
    "LiveStats": "live",
    "Loss": "sources",
    "MicrophoneConfig": "microphone",
    "MicrophoneSource": "microphone",
    "OnnxRuntimeBackend": "backends",
    "Partial": "events",
    "Recognizer": "recognizer",
    "Recorder": "sources",
    "Segment": "transcript",
    "StreamingDecoder": "streaming_decoder",
    "StreamingModel": "streaming_model",
    "TensorRTBackend": "tensorrt_backend",
    "Token": "ctc",
    "TokenRuns": "ctc",
    "Transcript": "transcript",
    "Word": "ctc",
    "create_backend": "backends",
    "greedy_decode": "ctc",
    "list_devices": "microphone",
    "streaming_decoders": "streaming_decoder",
}

__all__ = [
    "AudioBlock",
    "AudioSource",
    "Backend",
    "EndpointConfig",
    "Error",
    "FeatureConfig",
    "FeatureExtractor",
    "FeatureStream",
    "FileSource",
    "Final",
    "Gap",
    "GreedyDecoder",
    "LiveConfig",
    "LiveRecognizer",
    "LiveStats",
    "Loss",
    "MicrophoneConfig",
    "MicrophoneSource",
    "OnnxRuntimeBackend",
    "Partial",
    "Recognizer",
    "Recorder",
    "Segment",
    "StreamingDecoder",
    "StreamingModel",
    "TensorRTBackend",
    "Token",
    "TokenRuns",
    "Transcript",
    "Word",
    "create_backend",
    "greedy_decode",
    "list_devices",
    "streaming_decoders",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
