"""The process that talks to PortAudio: it lists the input devices, or records one into a pipe.

PortAudio sees new devices only after it has been ended and begun again, which closes the streams of everybody
in its process; it waits forever for a sound server that hangs; and libpulse (16.1) can lock up when its
server dies. A process of its own can be ended at any time, sees the devices of its day, disturbs no other
user of PortAudio in the application, and its callback never waits for the recognizer's interpreter lock.

It gets one request (JSON, `main`) and writes messages: a header, and JSON or samples. When its standard input
ends, it stops. It imports neither numpy nor the recognizer.
What this file does not do: start such a process, decide when to try again (microphone.py).
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread
from types import ModuleType
from typing import Any

from edge_asr.errors import DeviceError

HEADER = struct.Struct("<c?IdQ")
"""Kind (b"J" JSON, b"A" float32 samples), whether the driver overflowed, bytes that follow, monotonic time of
arrival, frames that this process has dropped so far because nobody took them."""

_POLL_S = 0.1


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
        return asdict(self)


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


def query_devices(sd: ModuleType) -> list[InputDevice]:
    """List all devices that can record, in PortAudio's order.

    Raises:
        DeviceError: PortAudio fails.
    """
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


def choose_device(devices: Sequence[InputDevice], wanted: int | str | None) -> InputDevice:
    """Choose by index or name; a whole name wins over a part of one, and case does not matter.

    Raises:
        DeviceError: none fits, or several do; the message lists the devices.
    """
    if not devices:
        raise DeviceError(
            "no microphone found; plug one in, and see whether the system lists it "
            "(arecord -l, pactl list sources)"
        )
    if wanted is None:
        fits = [d for d in devices if d.is_default] or list(devices[:1])
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


def choose_again(devices: Sequence[InputDevice], name: str, others: Sequence[str]) -> InputDevice:
    """Choose the device that went away, whatever index it has now.

    Its name counts; ALSA's ends in the number of the card, `(hw:1,0)`, which may change. Then the rest of the
    name has to be that of one device, which was not there before under another number.

    Args:
        devices: those of today.
        name: the whole name that it had.
        others: the names of the devices that were there beside it.

    Raises:
        DeviceError: it is not there.
    """
    fits = [d for d in devices if d.name == name]
    stem = name.rsplit(" (hw:", 1)[0]
    fits = fits or [d for d in devices if d.name not in others and d.name.rsplit(" (hw:", 1)[0] == stem]
    if len(fits) == 1:
        return fits[0]
    listing = "; ".join(f"{d.index}: {d.name}" for d in devices) or "none"
    raise DeviceError(f"input device {name} is not there; there are {listing}")


def main() -> None:
    """Do what `sys.argv[1]` requests, and end this process without the exit handlers of libraries."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that reads
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no message
    serve(json.loads(sys.argv[1]), 0, output)
    os._exit(0)


def serve(request: dict[str, Any], input_fd: int, output_fd: int) -> None:
    """Answer a request until it is done, or until `input_fd` ends.

    Args:
        request: `do` is "list" or "record"; "record" has the fields of `MicrophoneConfig`, and `again` (the
            arguments `name` and `others` of `choose_again`) or null.
        input_fd: ends when the recording shall end.
        output_fd: where the messages go; it is closed.
    """
    stopping = Flag()

    def wait_for_the_end() -> None:
        while os.read(input_fd, 1):
            pass
        stopping.set()

    Thread(target=wait_for_the_end, name="edge-asr-capture-end", daemon=True).start()
    with os.fdopen(output_fd, "wb", buffering=0) as output:

        def send(document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            output.write(HEADER.pack(b"J", False, len(data), time.monotonic(), 0) + data)

        try:
            sd = import_sounddevice()
            if request["do"] == "list":
                send({"devices": [device.to_dict() for device in query_devices(sd)]})
            else:
                _Recording(sd, request).run(send, output, stopping)
        except BrokenPipeError:
            pass  # nobody reads any more
        except DeviceError as error:
            send({"error": str(error)})
        except Exception as error:  # noqa: BLE001 - it cannot be raised in the process that reads
            send({"error": f"the recording process failed with {type(error).__name__}: {error}"})


class _Recording:
    """One stream of PortAudio. Its callback fills a queue, `run` writes what waits there."""

    def __init__(self, sd: ModuleType, request: dict[str, Any]) -> None:
        self._sd = sd
        self._request = request
        devices = query_devices(sd)
        again = request["again"]
        if again is None:
            self.device = choose_device(devices, request["device"])
        else:
            self.device = choose_again(devices, again["name"], again["others"])
        self._others = [device.name for device in devices if device is not self.device]
        self.sample_rate = request["sample_rate"] or self.device.sample_rate
        self._limit = round(request["queue_s"] * self.sample_rate)
        self._queue: SimpleQueue[tuple[float, bool, int, int, bytes]] = SimpleQueue()
        # Each counter has one writer: the callback, or `run`.
        self._n_enqueued = self._n_taken = self._n_dropped = 0

    def run(self, send: Any, output: Any, stopping: Flag) -> None:
        """Record until `stopping` is set; then send what the driver still holds.

        Raises:
            DeviceError: the device cannot be opened, or ended by itself.
        """
        stream = self._open()
        try:
            try:
                stream.start()
            except self._sd.PortAudioError as error:
                raise DeviceError(self._refusal(str(error))) from error
            send(
                {
                    "device": self.device.to_dict(),
                    "others": self._others,
                    "sample_rate": self.sample_rate,
                    "channels": self._channels,
                }
            )
            while not stopping.is_set():
                is_active = stream.active
                self._write_what_waits(output)
                if not is_active:
                    raise DeviceError(
                        f"input device {self.device.index} ({self.device.name}) stopped by itself; "
                        "was it unplugged?"
                    )
            stream.stop()
            self._write_what_waits(output, wait_s=0.0)
        finally:
            stream.close()

    def _write_what_waits(self, output: Any, wait_s: float = _POLL_S) -> None:
        try:
            while True:
                arrival_s, overflowed, n_dropped, n_frames, data = self._queue.get(timeout=wait_s)
                output.write(HEADER.pack(b"A", overflowed, len(data), arrival_s, n_dropped) + data)
                self._n_taken += n_frames
                wait_s = 0.0
        except Empty:
            pass

    def _open(self) -> Any:
        problem = ""
        for channels in dict.fromkeys((1, min(2, self.device.max_channels), self.device.max_channels)):
            try:
                stream = self._sd.RawInputStream(
                    device=self.device.index,
                    samplerate=self.sample_rate,
                    channels=channels,
                    dtype="float32",
                    blocksize=max(1, round(self._request["block_s"] * self.sample_rate)),
                    latency=self._request["latency_s"],
                    callback=self._callback,
                )
            except self._sd.PortAudioError as error:
                problem = problem or str(error)
            else:
                self._channels = channels
                return stream
        raise DeviceError(self._refusal(problem))

    def _refusal(self, problem: str) -> str:
        return (
            f"input device {self.device.index} ({self.device.name}) cannot be opened "
            f"at {self.sample_rate} Hz: {problem}; is it in use? --list-devices shows the others"
        )

    def _callback(self, data: Any, n_frames: int, when: Any, status: Any) -> None:
        """Copy, enqueue and return, in PortAudio's thread: no locks, no arithmetic, no waiting."""
        if self._n_enqueued - self._n_taken + n_frames > self._limit:
            self._n_dropped += n_frames
            return
        self._n_enqueued += n_frames
        overflowed = bool(status.input_overflow)
        self._queue.put((time.monotonic(), overflowed, self._n_dropped, n_frames, bytes(data)))
