"""Starts a recording process (capture.py), takes its messages in a thread, and ends it whatever it waits for.

What this file does not do: decide when a device is gone or when to try again (microphone.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Event as Flag
from threading import Thread
from typing import Any, Literal

import numpy as np

from edge_asr.errors import DeviceError
from edge_asr.runtime.live.capture import HEADER
from edge_asr.runtime.live.queue_source import QueueSource

_ANSWERS_S = 10.0
"""How long the sound system may take to list its devices or to open one."""
_ENDS_S = 0.1
"""How long the process may take to end by itself."""


def start_capture(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a process that serves a request.

    Raises:
        DeviceError: no process can be started.
    """
    program = (
        "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
        "from edge_asr.runtime.live import capture; capture.main()"
    )
    try:
        return subprocess.Popen(
            [sys.executable, "-c", program, json.dumps(request), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(
            f"the recording process cannot be started with {sys.executable!r} ({error}); "
            "sys.executable must be a Python"
        ) from error


class RecordingProcess:
    """A recording process, and the queue that its sound waits in.

    Attributes:
        answer: what it said first: its devices, or the device that it has opened.
        queue: where the sound waits; None until a device is open.
        first_s, last_s: monotonic time when the first sample was spoken, and when the last one came.
    """

    def __init__(
        self,
        request: dict[str, Any],
        on_overflow: Callable[[], None] = lambda: None,
        queue_s: float = 1.0,
        mix: Literal["first", "mean"] = "first",
    ) -> None:
        self.answer: dict[str, Any] = {}
        self.queue: QueueSource | None = None
        self.first_s = self.last_s = time.monotonic()
        self._queue_s: float = queue_s
        self._mix: Literal["first", "mean"] = mix
        self._on_overflow = on_overflow
        self._failure: DeviceError | None = None
        self._n_dropped_there = 0
        self._is_ready = Flag()
        self._process = start_capture(request)
        Thread(target=self._listen, name="edge-asr-microphone", daemon=True).start()

    @property
    def n_dropped_frames(self) -> int:
        """Count the frames that the queues on both sides refused."""
        return 0 if self.queue is None else self.queue.n_dropped_samples

    def wait_until_ready(self, is_stopped: Callable[[], bool]) -> None:
        """Wait for the answer, or until `is_stopped`.

        Raises:
            DeviceError: the process failed or did not answer.
        """
        gives_up_at_s = time.monotonic() + _ANSWERS_S
        while not self._is_ready.wait(0.05):
            if is_stopped():
                return
            if time.monotonic() > gives_up_at_s:
                raise DeviceError(
                    f"the sound system has not answered for {_ANSWERS_S:g} s; "
                    "is the sound server frozen? restart it (systemctl --user restart pipewire pulseaudio)"
                )
        if not self.answer:
            raise self._failure or DeviceError("the recording process ended without a word")

    def stop(self) -> None:
        """Ask it to end, after what the driver still holds."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def end(self) -> None:
        """End it now."""
        self._process.kill()
        if self.queue is not None:
            self.queue.end()

    def close(self) -> None:
        """End it, and wait for that."""
        self.stop()
        if self.queue is not None:
            self.queue.end()
        try:
            self._process.wait(timeout=_ENDS_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        """Take the messages of the process, in a thread of its own, until it ends."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            with stdout:
                while len(header := stdout.read(HEADER.size)) == HEADER.size:
                    kind, overflowed, n_bytes, arrival_s, n_dropped = HEADER.unpack(header)
                    data = stdout.read(n_bytes)
                    if len(data) < n_bytes:
                        break
                    if kind == b"A":
                        self._take(data, overflowed, arrival_s, n_dropped)
                    else:
                        self._answer(json.loads(data))
        finally:
            # After a stop the queue has ended already, or this is its end.
            asked = self._process.stdin is None or self._process.stdin.closed
            failure = self._failure or (None if asked else DeviceError("the recording process has ended"))
            self._failure = failure
            if self.queue is not None:
                self.queue.end(failure)
            self._is_ready.set()

    def _answer(self, message: dict[str, Any]) -> None:
        if "error" in message:
            self._failure = DeviceError(message["error"])
            return
        self.answer = message
        if "device" in message:
            self.queue = QueueSource(
                message["sample_rate"], queue_s=self._queue_s, mix=self._mix, is_live=True
            )
            self.last_s = time.monotonic()
            self._is_fresh = True
        self._is_ready.set()

    def _take(self, data: bytes, overflowed: bool, arrival_s: float, n_dropped: int) -> None:
        assert self.queue is not None
        samples = np.frombuffer(data, np.float32).reshape(-1, self.answer["channels"])
        if self._is_fresh:
            self.first_s, self._is_fresh = arrival_s - len(samples) / self.queue.sample_rate, False
        self.last_s = arrival_s
        if overflowed:
            self._on_overflow()
        n_new, self._n_dropped_there = n_dropped - self._n_dropped_there, n_dropped
        self.queue.push(samples, overflowed=overflowed, arrival_s=arrival_s, n_dropped_before=n_new)
