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
    from edge_asr.runtime.features import FeatureConfig, FeatureExtractor, FeatureStream
    from edge_asr.runtime.recognizer import Recognizer
    from edge_asr.runtime.transcript import Segment, Transcript

_HOMES = {
    "Backend": "backends",
    "FeatureConfig": "features",
    "FeatureExtractor": "features",
    "FeatureStream": "features",
    "GreedyDecoder": "ctc",
    "OnnxRuntimeBackend": "backends",
    "Recognizer": "recognizer",
    "Segment": "transcript",
    "Token": "ctc",
    "TokenRuns": "ctc",
    "Transcript": "transcript",
    "Word": "ctc",
    "create_backend": "backends",
    "greedy_decode": "ctc",
}

__all__ = [
    "Backend",
    "FeatureConfig",
    "FeatureExtractor",
    "FeatureStream",
    "GreedyDecoder",
    "OnnxRuntimeBackend",
    "Recognizer",
    "Segment",
    "Token",
    "TokenRuns",
    "Transcript",
    "Word",
    "create_backend",
    "greedy_decode",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
