"""The name of every file of a bundle and of every tensor of its graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
