"""A microphone that comes back: a process of its own records, and is started again if it fails.

The device is opened at its own rate (many refuse 16 kHz or resample badly), and soxr resamples to 16 kHz in
the reading thread. Lost audio is detected in four ways: bounded queues count what they refused, PortAudio
flags what the driver dropped, a clock detects what vanished without a flag (a sound server that drops its
oldest data says nothing), and the time without a device is measured from the last sample to the next.
What this file does not do: talk to PortAudio, recognize.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from queue import Empty
from threading import Event as Flag
from types import TracebackType
from typing import Literal

import numpy as np

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.errors import ConfigError, DeviceError
from edge_asr.runtime.live.capture import InputDevice, choose_device
from edge_asr.runtime.live.recording_process import RecordingProcess
from edge_asr.runtime.live.sources import AudioBlock, Loss, SourceChange

_POLL_S = 0.1
_STOPS_S = 1.0
"""How long the sound system may take to stop a device."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 5.0
_SILENT_S = 5.0
"""How long a microphone may give nothing but zeros before that is said."""


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
        stall_timeout_s: how long without audio means that the device is gone.
        reconnect_s: how long to try to open a device again that is gone; 0 makes it an error at once, None
            never gives up.
        wait: whether to wait, also at the beginning, for a device that is not there.
    """

    device: int | str | None = None
    sample_rate: int | None = None
    mix: Literal["first", "mean"] = "first"
    block_s: float = 0.02
    latency_s: float = 0.2
    queue_s: float = 30.0
    stall_timeout_s: float = 3.0
    reconnect_s: float | None = None
    wait: bool = False

    def __post_init__(self) -> None:
        for name in ("block_s", "latency_s", "queue_s", "stall_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive number of seconds")
        if self.reconnect_s is not None and not 0 <= self.reconnect_s < float("inf"):
            raise ConfigError(
                f"reconnect_s is {self.reconnect_s}; give seconds, 0 for an error at once, or None for no end"
            )
        if self.mix not in ("first", "mean"):
            raise ConfigError(f"mix is {self.mix!r}; it must be 'first' or 'mean'")
        if self.sample_rate is not None and not 8_000 <= self.sample_rate <= 768_000:
            raise ConfigError(f"sample_rate is {self.sample_rate} Hz; it must be 8000 to 768000")


def list_devices() -> list[InputDevice]:
    """List all devices that can record, in PortAudio's order.

    Raises:
        DeviceError: PortAudio is missing or fails, or the sound system does not answer.
    """
    capture = RecordingProcess({"do": "list"})
    try:
        capture.wait_until_ready(lambda: False)
    finally:
        capture.close()
    return [InputDevice(**device) for device in capture.answer["devices"]]


def find_device(wanted: int | str | None) -> InputDevice:
    """Find a device by index or name; a whole name wins over a part of one, and case does not matter.

    Raises:
        DeviceError: none fits, or several do; the message lists the devices.
    """
    return choose_device(list_devices(), wanted)


class MicrophoneSource:
    """An `AudioSource` that hears through PortAudio. Use it as a context manager, once.

    A device that goes away is opened again as soon as it is back, by its name. What was heard before is
    recognized at once; how long it was away is reported as a `Loss`.

    Attributes after opening: `device` (InputDevice) and `sample_rate` (Hz, as opened). Counters, any
    time: `n_overflows` (flags of the driver), `n_dropped_frames` (refused by full queues).
    """

    def __init__(self, config: MicrophoneConfig | None = None) -> None:
        self.config = config or MicrophoneConfig()
        self.device: InputDevice | None = None
        self.sample_rate = 0
        self.n_overflows = 0
        self._others: list[str] = []
        self._n_dropped_before = 0
        self._capture: RecordingProcess | None = None
        self._stopping = Flag()
        self._stop_at: float | None = None
        self._waited_s = 0.0
        self._absence: _Absence | None = None
        self._n_zeros = 0
        self._failure: DeviceError | None = None

    def __enter__(self) -> MicrophoneSource:
        try:
            self._open()
        except DeviceError as error:
            if not self.config.wait:
                raise
            self._absence = _Absence(problem=str(error), lost_at_s=None, gives_up_at_s=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def n_dropped_frames(self) -> int:
        """Count the frames that full queues refused."""
        capture = self._capture
        return self._n_dropped_before + (0 if capture is None else capture.n_dropped_frames)

    @property
    def queued_s(self) -> float:
        """Return the seconds of audio that wait for the reader."""
        queue = self._capture and self._capture.queue
        return queue.queued_s if queue else 0.0

    def stop(self) -> None:
        """End soon, after what the driver still holds has been heard."""
        self._stopping.set()

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None after `stop`, once all that was heard has been returned.

        Raises:
            DeviceError: the device is gone, and did not come back within `reconnect_s`.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            absence = self._absence
            if absence is not None and not absence.is_told:
                absence.is_told = True
                return AudioBlock(_NOTHING, (), (absence.beginning(self._name),))
            if self._capture is None:
                if self._stopping.is_set():
                    return self._last_gap()
                assert absence is not None
                if not self._come_back(absence):
                    return self._last_gap()
                continue
            if (block := self._hear(self._capture)) is not None:
                return block
            self._close()  # it was stopped, or is gone

    def _hear(self, capture: RecordingProcess) -> AudioBlock | None:
        """Return the next block of the open device; None if it has ended or is gone."""
        queue = capture.queue
        assert queue is not None
        while True:
            self._stop_when_asked(capture)
            began = time.monotonic()
            try:
                block = queue.read_within(_POLL_S)
            except DeviceError as error:
                if self._stop_at is None:
                    self._lose(capture, str(error))
                return None
            except Empty:
                # Counted in short pieces, because this process may have been the one that stood still.
                self._waited_s += min(time.monotonic() - began, 2 * _POLL_S)
                if self._stop_at is None and self._waited_s > self.config.stall_timeout_s:
                    silence = DeviceError(
                        f"{self._name} has given no audio for {self._waited_s:.1f} s; "
                        "is it unplugged, suspended or used by another program?"
                    )
                    queue.end(silence)
                continue
            self._waited_s = 0.0
            return None if block is None else self._note(block, capture)

    def _note(self, block: AudioBlock, capture: RecordingProcess) -> AudioBlock:
        """Add to a block what has changed: the device is back, or has begun or ceased to give zeros."""
        changes = list(block.changes)
        losses = block.losses
        if self._absence is not None:
            absence, self._absence = self._absence, None
            if absence.lost_at_s is not None:
                lost_s = max(0.0, capture.first_s - absence.lost_at_s)
                losses = (Loss(lost_s=lost_s, reason="device_lost", estimated=True), *losses)
                changes.append(_change("back", self._name, f"is back, at {self.sample_rate} Hz"))
        was_silent = self._n_zeros >= _SILENT_S * STREAM_SAMPLE_RATE
        self._n_zeros = 0 if block.samples.any() else self._n_zeros + len(block.samples)
        is_silent = self._n_zeros >= _SILENT_S * STREAM_SAMPLE_RATE
        if is_silent and not was_silent:
            problem = f"has given nothing but zeros for {_SILENT_S:g} s; is it muted?"
            changes.append(_change("silent", self._name, problem))
        elif was_silent and not is_silent:
            changes.append(_change("audible", self._name, "can be heard again"))
        if not changes and losses is block.losses:
            return block
        return replace(block, losses=losses, changes=tuple(changes))

    def _lose(self, capture: RecordingProcess, problem: str) -> None:
        """Note that the device is gone; the next `read` says so, and tries to open it again."""
        if self.config.reconnect_s == 0:
            self._failure = DeviceError(f"{problem} plug it in and start again")
        elif self._absence is None:
            patience_s = self.config.reconnect_s
            gives_up_at_s = None if patience_s is None else time.monotonic() + patience_s
            self._absence = _Absence(problem=problem, lost_at_s=capture.last_s, gives_up_at_s=gives_up_at_s)
        else:
            self._absence.problem = problem  # it was opened, but nothing was heard

    def _come_back(self, absence: _Absence) -> bool:
        """Try to open the device, after a while; return whether it is worth going on."""
        self._stopping.wait(absence.retry_in_s)
        if self._stopping.is_set():
            return True
        absence.retry_in_s = min(2 * absence.retry_in_s, _LAST_RETRY_S)
        try:
            self._open()
        except DeviceError as error:
            absence.problem = str(error)
            if absence.gives_up_at_s is not None and time.monotonic() >= absence.gives_up_at_s:
                self._failure = DeviceError(
                    f"{self._name} did not come back within {self.config.reconnect_s:g} s: {error}"
                )
                return False
        return True

    def _last_gap(self) -> AudioBlock | None:
        """Return how long the device has been away, once, at the end."""
        absence, self._absence = self._absence, None
        if absence is None or absence.lost_at_s is None:
            return None
        lost_s = time.monotonic() - absence.lost_at_s
        return AudioBlock(_NOTHING, (Loss(lost_s=lost_s, reason="device_lost", estimated=True),))

    def _open(self) -> None:
        """Open the device, the same as before if there was one; `stop` ends the attempt.

        Raises:
            DeviceError: it is not there, is in use, or the sound system does not answer.
        """
        by_name = self.device is not None and self.config.device is not None
        again = {"name": self._device_name, "others": self._others} if by_name else None
        capture = RecordingProcess(
            {**asdict(self.config), "do": "record", "again": again},
            self._count_overflow,
            self.config.queue_s,
            self.config.mix,
        )
        try:
            capture.wait_until_ready(self._stopping.is_set)
        except BaseException:
            capture.close()
            raise
        if capture.queue is None:  # stopped meanwhile
            capture.close()
            return
        self._capture = capture
        self.device = InputDevice(**capture.answer["device"])
        self._others = capture.answer["others"]
        self.sample_rate = capture.answer["sample_rate"]
        self._waited_s = 0.0

    def _count_overflow(self) -> None:
        self.n_overflows += 1

    def _close(self) -> None:
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.close()
            self._n_dropped_before += capture.n_dropped_frames

    @property
    def _device_name(self) -> str:
        return "" if self.device is None else self.device.name

    @property
    def _name(self) -> str:
        if self.device is not None:
            return f"input device {self.device.index} ({self.device.name})"
        return "the default input" if self.config.device is None else f"input device {self.config.device!r}"

    def _stop_when_asked(self, capture: RecordingProcess) -> None:
        if not self._stopping.is_set():
            return
        now = time.monotonic()
        if self._stop_at is None:
            self._stop_at = now + self.config.latency_s
        if now >= self._stop_at + _STOPS_S:
            capture.end()
        elif now >= self._stop_at:
            capture.stop()


_NOTHING = np.zeros(0, np.float32)


@dataclass(slots=True)
class _Absence:
    """A device that is not there: why, since when (monotonic; None if it never was), until when to try."""

    problem: str
    lost_at_s: float | None
    gives_up_at_s: float | None
    retry_in_s: float = _FIRST_RETRY_S
    is_told: bool = False

    def beginning(self, name: str) -> SourceChange:
        if self.lost_at_s is None:
            return SourceChange("waiting", name, f"waiting for {name}: {self.problem}")
        return SourceChange("lost", name, f"{self.problem} it is opened again as soon as that is possible")


def _change(state: Literal["back", "silent", "audible"], name: str, what: str) -> SourceChange:
    return SourceChange(state, name, f"{name} {what}")
