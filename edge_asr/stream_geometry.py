"""The geometry of a streaming graph: which feature frames a step takes, and what it keeps for the next.

Step k gives encoder frames k * chunk ... (k + 1) * chunk - 1. It reads a window of feature frames that begins
early enough for the subsampling to be right from its first kept frame (the frames before the chunk are NeMo's
pre-encode cache), and ends with the last frame that its last encoder frame reads. All this follows from a few
numbers, which bundle.json records with the results of the arithmetic, so that other runtimes need not repeat
it. This file holds only numbers; edge_asr.model.streamable derives them from a network's configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edge_asr.errors import ConfigError
from edge_asr.frames import OutputFrames
from edge_asr.records import check_fields, json_from_record, record_from_json

StreamLayout = Literal["nemo", "kv"]
#: Smallest value of each field; 1 for fields that are not named.
_LEAST = {
    "frame_ms": None,
    "first_output_frames": None,
    "ahead_frames": 0,
    "dropped_frames": 0,
    "reach_frames": 0,
    "layout": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamingGeometry:
    """The frames and caches of a streaming step; "frames" are encoder frames unless stated otherwise.

    Attributes:
        subsampling_factor, first_output_frames: see `edge_asr.frames.OutputFrames`.
        frame_ms: length of an encoder frame.
        chunk_frames: new frames per step.
        ahead_frames: later frames that a step computes too, because the chunk depends on them, and that the
            next step computes again; 0 except for contexts that look ahead from every frame ("regular").
        left_frames: most frames before the chunk that attention sees, which are those of the cache.
        dropped_frames: first outputs of the subsampling that are discarded, because the window has cut off
            what they read. The first step has nothing to drop.
        reach_frames: feature frames after its own (index * factor) that an encoder frame reads.
        n_layers: layers of the encoder.
        channel_width, time_width, time_frames: shapes of the caches: channels kept for a frame of attention,
            channels of the convolution, frames it keeps.
        layout: of the caches: "nemo", or "kv", where every head of a layer has rows for its keys, then every
            head for its values, and where the frames of the convolution come before its channels.
        n_heads: heads of attention.

    Raises:
        ConfigError: a number is out of range; the message names the field.
    """

    subsampling_factor: int
    first_output_frames: int
    frame_ms: float
    chunk_frames: int
    ahead_frames: int
    left_frames: int
    dropped_frames: int
    reach_frames: int
    n_layers: int
    channel_width: int
    time_width: int
    time_frames: int
    layout: StreamLayout = "nemo"
    n_heads: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "streaming")
        if self.frame_ms <= 0:
            raise ConfigError(f"streaming frame_ms is {self.frame_ms!r}; it must be above 0")
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
            if least is not None and value < least:
                raise ConfigError(f"streaming {field.name} is {value!r}; it must be at least {least}")
        if self.layout == "kv" and self.channel_width % (2 * self.n_heads):
            raise ConfigError(
                f"streaming channel_width is {self.channel_width}; it must be a multiple of twice the "
                f"{self.n_heads} heads, for keys and values"
            )

    @property
    def output_frames(self) -> OutputFrames:
        """Return the rule for how many encoder frames a clip has."""
        return OutputFrames(factor=self.subsampling_factor, first=self.first_output_frames)

    @property
    def shift_frames(self) -> int:
        """Feature frames from one step's window to the next one's."""
        return self.subsampling_factor * self.chunk_frames

    @property
    def window_frames(self) -> int:
        """Feature frames of a step's window, once the clip is long enough; sherpa-onnx's `window_size`."""
        return self.window(self.dropped_frames)[1] - self.window(self.dropped_frames)[0]

    @property
    def first_window_frames(self) -> int:
        """Feature frames of the first window, the shortest."""
        return self.window(0)[1]

    @property
    def lookahead_ms(self) -> float:
        """Count how many frames ahead a frame may depend on at most, as NeMo does."""
        return (self.chunk_frames - 1 + self.ahead_frames) * self.frame_ms

    @property
    def cache_last_channel(self) -> tuple[int, int, int]:
        """Shape of the attention cache of one stream."""
        if self.layout == "kv":
            n_rows = 2 * self.n_heads
            return (self.n_layers * n_rows, self.left_frames, self.channel_width // n_rows)
        return (self.n_layers, self.left_frames, self.channel_width)

    @property
    def cache_last_time(self) -> tuple[int, int, int]:
        """Shape of the convolution cache of one stream."""
        if self.layout == "kv":
            return (self.n_layers, self.time_frames, self.time_width)
        return (self.n_layers, self.time_width, self.time_frames)

    def window(self, step: int) -> tuple[int, int]:
        """Return the first feature frame of a step's window, and one past its last."""
        first = step * self.chunk_frames
        last = first + self.chunk_frames + self.ahead_frames - 1
        start = max(first - self.dropped_frames, 0) * self.subsampling_factor
        return start, last * self.subsampling_factor + self.reach_frames + 1

    def describe(self) -> str:
        """Describe the geometry in a few words, for people."""
        return (
            f"chunks of {self.chunk_frames * self.frame_ms:g} ms, look-ahead {self.lookahead_ms:g} ms, "
            f"left context {self.left_frames * self.frame_ms:g} ms"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: the fields, and `derived_values`."""
        data: dict[str, Any] = json_from_record(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StreamingGeometry:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: a missing or unknown key, a value out of range, or numbers that contradict each
            other.
        """
        return record_from_json(cls, data, "the streaming geometry", remedy="export the model again")

    def derived_values(self) -> dict[str, Any]:
        """Compute what follows from the fields, so that other runtimes need not repeat the arithmetic."""
        return {
            "window_frames": self.window_frames,
            "first_window_frames": self.first_window_frames,
            "shift_frames": self.shift_frames,
            "pre_encode_cache_frames": self.window_frames - self.shift_frames,
            "lookahead_ms": self.lookahead_ms,
            "cache_last_channel": list(self.cache_last_channel),
            "cache_last_time": list(self.cache_last_time),
        }
