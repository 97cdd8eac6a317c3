"""Raw samples from a pipe as a source: `arecord -t raw ... | edge-asr listen -`.

A thread reads the pipe a little ahead. A slow recognizer delays the writer; nothing is dropped here.
What this file does not do: decode a file format, detect the rate.
"""

from __future__ import annotations

from queue import Empty, Queue
from threading import Event as Flag
from threading import Thread
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE, ResampleStream, check_sample_rate, mono_from_waveform
from edge_asr.errors import AudioError, ConfigError
from edge_asr.runtime.live.sources import AudioBlock

PcmFormat = Literal["s16le", "s32le", "f32le"]

_DTYPES: dict[PcmFormat, str] = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
#: How files of sound begin.
CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"FORM", b"caff", b".snd")
_BLOCK_S = 0.02
_AHEAD = 100
_POLL_S = 0.1


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class PcmSource:
    """An `AudioSource` of raw interleaved samples.

    Args:
        stream: where they come from, such as `process.stdout`; it is not closed here.
        sample_rate: in Hz.
        channels: how many are interleaved; their mean is heard.
        format: "s16le", "s32le" or "f32le" (full scale 1.0), as ffmpeg calls them.

    Raises:
        AudioError: the rate is impossible.
        ConfigError: the format is unknown or there is no channel.
    """

    def __init__(
        self,
        stream: _Stream,
        *,
        sample_rate: int = STREAM_SAMPLE_RATE,
        channels: int = 1,
        format: PcmFormat = "s16le",
    ) -> None:
        if format not in _DTYPES:
            raise ConfigError(f"format is {format!r}; it must be one of {', '.join(_DTYPES)}")
        if channels < 1:
            raise ConfigError(f"channels is {channels}; it must be at least 1")
        self.sample_rate = check_sample_rate(sample_rate)
        self._stream = stream
        self._channels = channels
        self._dtype = np.dtype(_DTYPES[format])
        self._resampler = ResampleStream(self.sample_rate, STREAM_SAMPLE_RATE)
        self._queue: Queue[bytes | Exception] = Queue(maxsize=_AHEAD)
        self._stopping = Flag()
        self._is_ended = False

    def __enter__(self) -> PcmSource:
        Thread(target=self._read_ahead, name="edge-asr-pcm", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()

    def stop(self) -> None:
        """End after what has been read already."""
        self._stopping.set()

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None at the end of the stream, or after `stop`.

        Raises:
            AudioError: the stream holds a file, or something that is no sound, or cannot be read.
        """
        while not self._is_ended:
            try:
                data = self._queue.get(timeout=0.0 if self._stopping.is_set() else _POLL_S)
            except Empty:
                if not self._stopping.is_set():
                    continue
                data = b""
            if isinstance(data, Exception):
                raise AudioError(f"the raw samples cannot be read: {data}")
            if data:
                samples = np.frombuffer(data, self._dtype).reshape(-1, self._channels)
                return AudioBlock(self._resampler.push(mono_from_waveform(self._native(samples))))
            self._is_ended = True
            return AudioBlock(self._resampler.flush())
        return None

    def _native(self, samples: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return samples.astype(samples.dtype.newbyteorder("="), copy=False)

    def _read_ahead(self) -> None:
        frame = self._dtype.itemsize * self._channels
        size = max(1, round(_BLOCK_S * self.sample_rate)) * frame
        try:
            rest, is_first = b"", True
            while not self._stopping.is_set() and (data := self._stream.read(size)):
                data = rest + data
                if is_first and data.startswith(CONTAINERS):
                    raise AudioError(
                        f"they begin like a file ({data[:4].decode('ascii')}); write raw ones "
                        "(arecord -t raw, ffmpeg -f s16le), or transcribe the file"
                    )
                is_first = False
                n_bytes = len(data) // frame * frame
                rest = data[n_bytes:]
                if n_bytes:
                    self._queue.put(data[:n_bytes])
            self._queue.put(b"")
        except (OSError, ValueError) as error:  # ValueError: the stream has been closed
            self._queue.put(error)
