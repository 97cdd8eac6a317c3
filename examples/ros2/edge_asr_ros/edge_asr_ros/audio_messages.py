"""Sound of `audio_common_msgs` as a source of the recognizer; no ROS here, since messages are only looked at.

Two projects define that package, and differently:
- mgonzs13/audio_common: `AudioStamped` and `Audio` say rate and channels; each kind of sample has its list.
- ros-drivers/audio_common: `AudioData` and `AudioDataStamped` hold bytes alone; parameters say what they are.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.audio import MAX_CHANNELS
from edge_asr.errors import AudioError, EdgeAsrError
from edge_asr.runtime import AudioBlock, QueueSource
from edge_asr_ros.settings import Settings

_BYTES = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
_LISTS = ("float32_data", "int32_data", "int16_data", "int8_data", "uint8_data")


def sound_from_message(message: Any, settings: Settings) -> tuple[npt.NDArray[Any], int]:
    """Return the samples of a message, [n] or [n, channels], and their rate in Hz.

    Raises:
        AudioError: it holds no whole samples, two kinds of them, or channels that cannot be.
    """
    message = getattr(message, "audio", message)  # of a stamped one
    info = getattr(message, "info", None)
    data = getattr(message, "audio_data", message)
    rate, n_channels = (info.rate, info.channels) if info else (settings.sample_rate, settings.channels)
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise AudioError(f"an audio message has {n_channels} channels; 1 to {MAX_CHANNELS} can be heard")
    samples = _from_bytes(data.data, settings) if hasattr(data, "data") else _from_lists(data)
    if len(samples) % n_channels:
        raise AudioError(
            f"an audio message has {len(samples)} samples for {n_channels} channels; check the number of "
            "channels of its publisher, or the parameter channels"
        )
    return (samples if n_channels == 1 else samples.reshape(-1, n_channels)), rate


def _from_bytes(data: Any, settings: Settings) -> npt.NDArray[Any]:
    dtype = np.dtype(_BYTES[settings.sample_format])
    raw = np.asarray(data, np.uint8).tobytes()
    if len(raw) % dtype.itemsize:
        raise AudioError(
            f"an audio message has {len(raw)} bytes, which are no whole samples of {settings.sample_format}; "
            "set sample_format, and let the publisher send raw samples (audio_capture: format:=wave)"
        )
    return np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="), copy=False)


def _from_lists(data: Any) -> npt.NDArray[Any]:
    filled = [name for name in _LISTS if len(getattr(data, name))]
    if len(filled) > 1:
        raise AudioError(f"an audio message has {' and '.join(filled)}; only one of them may be filled")
    if not filled:
        return np.zeros(0, np.float32)
    samples = np.asarray(getattr(data, filled[0]))
    if filled[0] == "int8_data":
        return samples.astype(np.int16) * 256
    if filled[0] == "uint8_data":
        return (samples.astype(np.int16) - 128) * 256
    return samples.astype(filled[0].removesuffix("_data"), copy=False)


class TopicSource:
    """An `AudioSource` of the messages of a topic, whose first message says the rate.

    A message that cannot be heard, or that has another rate than the first one, ends it with an `AudioError`.
    One thread pushes, one reads.

    Attributes:
        last_s: `time.monotonic()` at the last message, or at the opening before the first one.
    """

    def __init__(self, settings: Settings) -> None:
        self.last_s = time.monotonic()
        self._settings = settings
        self._lock = threading.Lock()  # of opening the queue: by the first message or by stop
        self._is_open = threading.Event()
        self._queue: QueueSource | None = None

    def __enter__(self) -> TopicSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def push(self, message: Any) -> None:
        """Take the sound of a message; never waits for the recognizer."""
        self.last_s = time.monotonic()
        try:
            samples, rate = sound_from_message(message, self._settings)
            queue = self._open(rate)
            if rate != queue.sample_rate:
                raise AudioError(
                    f"the sound of the topic changed from {queue.sample_rate} to {rate} Hz; let one "
                    "publisher send at one rate, and activate the node again"
                )
        except EdgeAsrError as error:
            self.stop(error)
        else:
            queue.push(samples)

    def read(self) -> AudioBlock | None:
        """See `AudioSource.read`."""
        self._is_open.wait()
        assert self._queue is not None
        return self._queue.read()

    def stop(self, error: EdgeAsrError | None = None) -> None:
        """See `AudioSource.stop`; what waits is still heard, then `error` is raised."""
        self._open(self._settings.sample_rate).end(error)

    def _open(self, rate: int) -> QueueSource:
        with self._lock:
            if self._queue is None:
                self._queue = QueueSource(rate, is_live=self._settings.detect_loss)
                self._is_open.set()
            return self._queue
