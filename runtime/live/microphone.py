"""A microphone through PortAudio: its callback fills a `QueueSource`.

The device is opened at its own rate (many refuse 16 kHz or resample badly), and soxr resamples to 16 kHz in
the reading thread. Lost audio is detected in three ways: the bounded queue counts what it refused, PortAudio
flags what the driver dropped, and a clock detects what vanished without a flag (a sound server that drops its
oldest data says nothing). sounddevice, and with it PortAudio, is imported on use.
What this file does not do: recognize, decide what to do about a loss.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import time
from dataclasses import dataclass
from queue import Empty
from threading import Event as Flag
from threading import Thread
from types import ModuleType, TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError, DeviceError
from edge_asr.runtime.live.queue_source import QueueSource
from edge_asr.runtime.live.sources import AudioBlock

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_DRIVER_ANSWERS_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InputDevice:
    """A device that can record, as PortAudio describes it."""

    index: int
    name: str
    host_api: str
    max_channels: int
    sample_rate: int
    is_default: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "index": self.index,
            "name": self.name,
            "host_api": self.host_api,
            "max_channels": self.max_channels,
            "sample_rate": self.sample_rate,
            "is_default": self.is_default,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MicrophoneConfig:
    """How to open a microphone.

    Attributes:
        device: index, or part of a name; None is the system's default input.
        sample_rate: rate to open the device at, in Hz; None is the device's own. Set it if the device is a
            sound server that reports an arbitrary rate (ALSA's `pulse` always says 44100).
        mix: what to do with a device that cannot open a single channel: its "first", or the "mean".
        block_s: length of a callback's block.
        latency_s: how much the driver buffers, which is how late a callback may be before audio is lost.
        queue_s: the most audio that waits for a busy recognizer; more is dropped and reported.
        stall_timeout_s: how long without audio becomes a DeviceError.
    """

    device: int | str | None = None
    sample_rate: int | None = None
    mix: Literal["first", "mean"] = "first"
    block_s: float = 0.02
    latency_s: float = 0.2
    queue_s: float = 30.0
    stall_timeout_s: float = 8.0

    def __post_init__(self) -> None:
        for name in ("block_s", "latency_s", "queue_s", "stall_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive number of seconds")
        if self.mix not in ("first", "mean"):
            raise ConfigError(f"mix is {self.mix!r}; it must be 'first' or 'mean'")
        if self.sample_rate is not None and not 8_000 <= self.sample_rate <= 768_000:
            raise ConfigError(f"sample_rate is {self.sample_rate} Hz; it must be 8000 to 768000")


def import_sounddevice() -> ModuleType:
    """Import the sounddevice module.

    Raises:
        DeviceError: sounddevice or the PortAudio library is missing.
    """
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise DeviceError(
            f"no microphone without the sounddevice package ({error}); "
            "install it with: pip install sounddevice"
        ) from error
    except OSError as error:
        raise DeviceError(
            f"no microphone without the PortAudio library ({error}); "
            "install it, on Debian and Ubuntu with: apt install libportaudio2"
        ) from error


def list_devices() -> list[InputDevice]:
    """List all devices that can record, in PortAudio's order.

    Raises:
        DeviceError: PortAudio is missing or fails.
    """
    sd = import_sounddevice()
    try:
        devices, apis = sd.query_devices(), sd.query_hostapis()
        default = sd.default.device[0]
    except sd.PortAudioError as error:
        raise DeviceError(
            f"PortAudio cannot list the devices ({error}); is the sound system running?"
        ) from error
    return [
        InputDevice(
            index=index,
            name=device["name"],
            host_api=apis[device["hostapi"]]["name"],
            max_channels=device["max_input_channels"],
            sample_rate=round(device["default_samplerate"]),
            is_default=index == default,
        )
        for index, device in enumerate(devices)
        if device["max_input_channels"] > 0
    ]


def find_device(wanted: int | str | None) -> InputDevice:
    """Find a device by index or name; a whole name wins over a part of one, and case does not matter.

    Raises:
        DeviceError: none fits, or several do; the message lists the devices.
    """
    devices = list_devices()
    if not devices:
        raise DeviceError(
            "no microphone found; plug one in, and see whether the system lists it "
            "(arecord -l, pactl list sources)"
        )
    if wanted is None:
        fits = [d for d in devices if d.is_default] or devices[:1]
    elif isinstance(wanted, int):
        fits = [d for d in devices if d.index == wanted]
    else:
        name = wanted.lower()
        fits = [d for d in devices if d.name.lower() == name]
        fits = fits or [d for d in devices if name in d.name.lower()]
    if len(fits) == 1:
        return fits[0]
    listing = "; ".join(f"{d.index}: {d.name}" for d in (fits or devices))
    if not fits:
        raise DeviceError(f"no input device fits {wanted!r}; there are {listing}")
    raise DeviceError(f"{len(fits)} input devices fit {wanted!r}; give the index of one of {listing}")


class MicrophoneSource:
    """An `AudioSource` that hears through PortAudio. Use it as a context manager, once.

    Attributes after opening: `device` (InputDevice) and `sample_rate` (Hz, as opened). Counters, any
    time: `n_overflows` (flags of the driver), `n_dropped_frames` (refused by the full queue).
    """

    def __init__(self, config: MicrophoneConfig | None = None) -> None:
        self.config = config or MicrophoneConfig()
        self.device: InputDevice | None = None
        self.sample_rate = 0
        self.n_overflows = 0
        self._queue: QueueSource | None = None
        self._stopping = Flag()
        self._stop_at: float | None = None
        self._last_arrival_s = 0.0
        self._stream_ended = False
        self._is_left_behind = False

    def __enter__(self) -> MicrophoneSource:
        sd = import_sounddevice()
        self.device = find_device(self.config.device)
        self.sample_rate = self.config.sample_rate or self.device.sample_rate
        self._queue = QueueSource(
            self.sample_rate, queue_s=self.config.queue_s, mix=self.config.mix, is_live=True
        )
        self._stream = self._open(sd)
        self._last_arrival_s = time.monotonic()
        try:
            self._stream.start()
        except sd.PortAudioError as error:
            self._end_stream("close")
            raise DeviceError(self._refusal(str(error))) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_stream("close")

    @property
    def n_dropped_frames(self) -> int:
        """Count the frames that the full queue refused."""
        return 0 if self._queue is None else self._queue.n_dropped_samples

    @property
    def queued_s(self) -> float:
        """Return the seconds of audio that wait for the reader."""
        return 0.0 if self._queue is None else self._queue.queued_s

    def stop(self) -> None:
        """End soon, after what the driver still holds has been heard."""
        self._stopping.set()

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None after `stop`, once all that was heard has been returned.

        Raises:
            DeviceError: the device went away, or no audio came for `stall_timeout_s`.
        """
        assert self._queue is not None
        while True:
            self._end_stream_when_asked()
            try:
                return self._queue.read_within(_POLL_S)
            except Empty:
                if not self._stream_ended and (failure := self._find_failure()) is not None:
                    self._stream_ended = True
                    self._queue.end(failure)

    def _open(self, sd: ModuleType) -> Any:
        assert self.device is not None
        problem = ""
        for channels in dict.fromkeys((1, min(2, self.device.max_channels), self.device.max_channels)):
            try:
                return sd.InputStream(
                    device=self.device.index,
                    samplerate=self.sample_rate,
                    channels=channels,
                    dtype="float32",
                    blocksize=max(1, round(self.config.block_s * self.sample_rate)),
                    latency=self.config.latency_s,
                    callback=self._callback,
                )
            except sd.PortAudioError as error:
                _log.debug("%s with %d channels: %s", self.device.name, channels, error)
                problem = problem or str(error)
        raise DeviceError(self._refusal(problem))

    def _refusal(self, problem: str) -> str:
        assert self.device is not None
        return (
            f"input device {self.device.index} ({self.device.name}) cannot be opened "
            f"at {self.sample_rate} Hz: {problem}; is it in use? --list-devices shows the others"
        )

    def _callback(self, data: npt.NDArray[np.float32], n_frames: int, when: Any, status: Any) -> None:
        """Copy, enqueue and return, in PortAudio's thread: no locks, no arithmetic, no waiting."""
        assert self._queue is not None
        self._last_arrival_s = time.monotonic()
        self.n_overflows += bool(status.input_overflow)
        self._queue.push(data, overflowed=bool(status.input_overflow))

    def _end_stream_when_asked(self) -> None:
        if not self._stopping.is_set() or self._stream_ended:
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now + self.config.latency_s
        if now >= self._stop_at:
            self._end_stream("stop")
            self._stream_ended = True
            assert self._queue is not None
            self._queue.end()

    def _end_stream(self, how: Literal["stop", "close"]) -> None:
        """Stop or close the stream; if it does not answer, leave it open with a warning.

        PortAudio waits forever for a sound server that hangs, and for libpulse (16.1), two threads of which
        can wait for each other when the server dies.
        """
        assert self.device is not None
        if self._is_left_behind:
            return

        def call() -> None:
            getattr(self._stream, how)()
            if how == "stop" and self._is_left_behind:
                self._stream.close()  # slow but not dead: it ended after the timeout

        calling = Thread(target=call, name="edge-asr-microphone", daemon=True)
        calling.start()
        calling.join(_DRIVER_ANSWERS_S)
        if calling.is_alive():
            self._is_left_behind = True
            # At exit sounddevice (0.5.6) would close all streams of the process, and wait too.
            if (at_exit := getattr(import_sounddevice(), "_exit_handler", None)) is not None:
                atexit.unregister(at_exit)
            _log.warning(
                "the sound system did not %s input device %d (%s) within %g s; it is left open",
                how,
                self.device.index,
                self.device.name,
                _DRIVER_ANSWERS_S,
            )

    def _find_failure(self) -> DeviceError | None:
        assert self.device is not None
        name = f"input device {self.device.index} ({self.device.name})"
        if not self._stream.active:
            return DeviceError(f"{name} stopped by itself; was it unplugged? plug it in and start again")
        silent_s = time.monotonic() - self._last_arrival_s
        if silent_s > self.config.stall_timeout_s:
            return DeviceError(
                f"{name} has given no audio for {silent_s:.1f} s; "
                "is it unplugged, suspended or used by another program?"
            )
        return None
