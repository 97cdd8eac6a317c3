"""The name of every file of a bundle and of every tensor of its graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_asr.bundle.manifest import Precision
from edge_asr.bundle.names import MANIFEST_NAME, TOKENS_NAME

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

MANIFEST_NAME = "bundle.json"
TOKENS_NAME = "tokens.txt"
ENGINES_FOLDER = "engines"

#: Inputs and outputs of a streaming graph, in the order that NeMo exports and sherpa-onnx feeds.
STREAM_INPUTS = ("audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
STREAM_OUTPUTS = (
    "logprobs",
    "encoded_lengths",
    "cache_last_channel_next",
    "cache_last_time_next",
    "cache_last_channel_next_len",
)

#: The names that onnx-asr and sherpa-onnx look for.
MODEL_FILES: dict[Precision, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
CPU_GRAPH_NAME = "model.int8.cpu.onnx"
STREAM_NAME = "stream.onnx"
VOCAB_NAME = "vocab.txt"
ONNX_ASR_CONFIG_NAME = "config.json"

INPUT_NAMES = ("audio_signal", "length")
OUTPUT_NAME = "logprobs"

REPORT_JSON = "report.json"
REPORT_MARKDOWN = "report.md"

PLOT_NAME = "int8.png"
