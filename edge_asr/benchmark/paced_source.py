"""Plays speech at real-time pace, like a sound card: blocks come when they are complete, whether read or not.

`FileSource` waits for a slow reader, so nothing is ever lost with it and a recognizer that cannot keep up is
only late. Here a thread of its own fills a `QueueSource`, and what does not fit is lost and reported, as with
a microphone. The time at which each sample was "spoken" is known, so latencies can be measured against it.
What this file does not do: recognize.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.runtime.live.queue_source import QueueSource
from edge_asr.runtime.live.sources import AudioBlock

Waveform = npt.NDArray[np.float32]

BLOCK_S = 0.02
QUEUE_S = 30.0
"""The most audio that waits for a busy recognizer, as in `MicrophoneConfig`."""


class PacedSource:
    """An `AudioSource` that speaks a waveform from now on.

    Args:
        waveform: f32 [S] at 16 kHz.
        delay_s: silence of the source itself before it begins, so that several do not beat in step.
        queue_s: what waits for the reader at most; the rest is lost, and reported.

    Attributes:
        late_s: for each block, how long after its time this source delivered it.
    """

    def __init__(self, waveform: Waveform, *, delay_s: float = 0.0, queue_s: float = QUEUE_S) -> None:
        self.late_s: list[float] = []
        self._waveform = waveform
        self._delay_s = delay_s
        self._queue = QueueSource(queue_s=queue_s)
        self._stopping = threading.Event()
        self._began = 0.0
        self._thread = threading.Thread(target=self._speak, name="edge-asr-paced", daemon=True)

    def spoken_at(self, sample: int) -> float:
        """Return the monotonic time at which a sample of the waveform was complete."""
        return self._began + sample / STREAM_SAMPLE_RATE

    def __enter__(self) -> PacedSource:
        self._began = time.monotonic() + self._delay_s
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None at the end."""
        return self._queue.read()

    def stop(self) -> None:
        """End after the current block."""
        self._stopping.set()

    def _speak(self) -> None:
        step = round(BLOCK_S * STREAM_SAMPLE_RATE)
        for begin in range(0, len(self._waveform), step):
            samples = self._waveform[begin : begin + step]
            due = self.spoken_at(begin + len(samples))
            if self._stopping.wait(max(0.0, due - time.monotonic())):
                break
            self.late_s.append(time.monotonic() - due)
            self._queue.push(samples)
        self._queue.end()
