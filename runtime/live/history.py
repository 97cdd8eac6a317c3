"""Keeps the recent sound of a live stream by sample number, so that finals and partials read the same.

What this file does not do: read sources, decide what is still needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE


class AudioHistory:
    """The recent end of the stream, addressed by sample number since the stream began."""

    def __init__(self) -> None:
        self._buffer = np.zeros(STREAM_SAMPLE_RATE * 4, np.float32)
        self._n_buffered = 0
        self.start = 0

    @property
    def end(self) -> int:
        """Return one past the newest sample."""
        return self.start + self._n_buffered

    def append(self, samples: npt.NDArray[np.float32]) -> None:
        """Add samples f32 [n] at the end."""
        needed = self._n_buffered + len(samples)
        if needed > len(self._buffer):
            self._buffer = np.concatenate([self._buffer[: self._n_buffered], np.zeros(needed, np.float32)])
        self._buffer[self._n_buffered : needed] = samples
        self._n_buffered = needed

    def read(self, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return a copy of samples [start, end), f32."""
        assert self.start <= start <= end <= self.end, f"[{start}, {end}) of [{self.start}, {self.end})"
        return np.array(self._buffer[start - self.start : end - self.start], dtype=np.float32)

    def discard_before(self, sample: int) -> None:
        """Discard older samples, in steps of a second, so that it costs little."""
        n_old = min(sample, self.end) - self.start
        if n_old < STREAM_SAMPLE_RATE:
            return
        self._n_buffered -= n_old
        self._buffer[: self._n_buffered] = self._buffer[n_old : n_old + self._n_buffered].copy()
        self.start += n_old
