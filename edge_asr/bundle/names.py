"""The name of every file of a bundle and of every tensor of its graphs."""

from __future__ import annotations

from collections.abc import Mapping

MANIFEST_NAME = "bundle.json"
TOKENS_NAME = "tokens.txt"
REPORT_JSON = "report.json"
REPORT_MARKDOWN = "report.md"
PLOT_NAME = "int8.png"
SELF_TEST_CLIP = "self_test.flac"
CONFIDENCE_NAME = "confidence.json"
ENGINES_FOLDER = "engines"

#: By precision; onnx-asr and sherpa-onnx look for these names.
MODEL_FILES: Mapping[str, str] = {
    "fp32": "model.onnx",
    "fp16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
}
CPU_GRAPH_NAME = "model.int8.cpu.onnx"
STREAM_NAME = "stream.onnx"
STREAM_INT8_NAME = "stream.int8.onnx"
STREAM_CPU_GRAPH_NAME = "stream.int8.cpu.onnx"
LANGUAGE_MODEL_NAME = "lm.bin"
DECODER_NAME = "decoder.onnx"
DECODER_INT8_NAME = "decoder.int8.onnx"
DECODER_CROSS_NAME = "decoder_cross.onnx"
RIGHT_DECODER_NAME = "right_decoder.onnx"
RIGHT_DECODER_INT8_NAME = "right_decoder.int8.onnx"
RIGHT_DECODER_CROSS_NAME = "right_decoder_cross.onnx"
#: The same lines as tokens.txt, and the model's type: what onnx-asr reads.
VOCAB_NAME = "vocab.txt"
ONNX_ASR_CONFIG_NAME = "config.json"

#: Inputs and output of an offline graph.
INPUT_NAMES = ("audio_signal", "length")
OUTPUT_NAME = "logprobs"
#: One more output, last, of the graphs of a model with an attention decoder: what that attends to.
ENCODED_NAME = "encoded"
#: Tensors of an attention decoder; its state and its cross-attention tensors are numbered behind these.
DECODER_TOKENS, DECODER_LENGTHS = "tokens", "memory_lengths"
DECODER_STATE, DECODER_NEXT, DECODER_CROSS = "state_", "next_", "cross_"

#: Inputs and outputs of a streaming graph, in the order that NeMo exports and sherpa-onnx feeds.
STREAM_INPUTS = ("audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len")
STREAM_OUTPUTS = (
    "logprobs",
    "encoded_lengths",
    "cache_last_channel_next",
    "cache_last_time_next",
    "cache_last_channel_next_len",
)
