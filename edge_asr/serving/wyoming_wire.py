"""Reads Wyoming events within limits, and the samples of their chunks.

The library's own reader takes whatever length an event claims, and does not tell garbage from the end.
What this file does not do: know what an event means (wyoming_face.py), write events (the library does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from wyoming.event import Event

from edge_asr.errors import AudioError, ConfigError, RefusedError
from edge_asr.records import decode_json
from edge_asr.serving.uploads import check_size

MAX_HEADER_BYTES = 64 << 10
MAX_DATA_BYTES = 256 << 10
MAX_PAYLOAD_BYTES = 1 << 20


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """Return the next event; None at the end, or where the client has left within an event.

    Args:
        reader: with the limit `MAX_HEADER_BYTES`.

    Raises:
        RefusedError: "too_large".
        ConfigError: it is none.
    """
    try:
        header = _object(await reader.readuntil(b"\n"), "the header of an event")
        if not isinstance(header.get("type"), str):
            raise ConfigError('the header of an event is a JSON object with a "type"')
        data = _object(header.get("data") or {}, "the data of an event")
        if n_bytes := _length(header, "data_length", MAX_DATA_BYTES):
            data = {**data, **_object(await reader.readexactly(n_bytes), "the data of an event")}
        n_bytes = _length(header, "payload_length", MAX_PAYLOAD_BYTES)
        return Event(header["type"], data, await reader.readexactly(n_bytes) if n_bytes else None)
    except asyncio.LimitOverrunError:
        raise RefusedError(
            "too_large", f"the header of an event has more than {MAX_HEADER_BYTES} bytes"
        ) from None
    except asyncio.IncompleteReadError:
        return None


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """Of a chunk: Hz, bytes of a sample, interleaved channels."""

    rate: int
    width: int
    channels: int

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> AudioFormat:
        """Read rate, width and channels.

        Raises:
            ConfigError, RefusedError: one is missing or out of range.
        """
        rate, width, channels = (_number(data, name) for name in ("rate", "width", "channels"))
        if width not in (1, 2, 3, 4):
            raise ConfigError(f"the width of the samples is {width}; give 1, 2, 3 or 4 bytes")
        check_size("the sound", channels, rate)
        return cls(rate, width, channels)

    def samples(self, data: bytes) -> npt.NDArray[Any]:
        """Return the samples of a chunk, int16 or int32, [n] or [n, channels].

        Raises:
            AudioError: the chunk ends within a sample.
        """
        frame = self.width * self.channels
        if len(data) % frame:
            raise AudioError(
                f"a chunk has {len(data)} bytes; send whole samples, a multiple of {frame} bytes "
                f"({self.channels} x {self.width})"
            )
        samples: npt.NDArray[Any]
        if self.width == 1:  # unsigned, as in WAV
            samples = (np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8
        elif self.width == 3:
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            samples = wide.reshape(-1).view("<i4").astype(np.int32)
        else:
            samples = np.frombuffer(data, f"<i{self.width}").astype(f"i{self.width}", copy=False)
        return samples if self.channels == 1 else samples.reshape(-1, self.channels)


def _number(data: Mapping[str, Any], name: str) -> int:
    value = data.get(name)
    if type(value) is not int or value < 1:
        raise ConfigError(f"the {name} of the sound is {str(value)[:40]!r}; give a whole number above 0")
    return value


def _object(content: Any, what: str) -> dict[str, Any]:
    """Return a JSON object, decoded if it is text."""
    value = decode_json(content, what) if isinstance(content, bytes) else content
    if not isinstance(value, dict):
        raise ConfigError(f"{what} is no JSON object")
    return value


def _length(header: Mapping[str, Any], name: str, most: int) -> int:
    n_bytes = header.get(name)
    if n_bytes is None:
        return 0
    if type(n_bytes) is not int or n_bytes < 0:
        raise ConfigError(f"{name} is {str(n_bytes)[:40]!r}; give a whole number of bytes")
    if n_bytes > most:
        raise RefusedError("too_large", f"{name} is {n_bytes}; at most {most} bytes are taken")
    return n_bytes
