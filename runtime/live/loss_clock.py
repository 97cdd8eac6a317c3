"""Detects audio that vanished without a flag, by comparing what arrived with the time that passed.

A sound server whose client did not read in time drops its oldest data and says nothing: pulseaudio 16 behind
ALSA loses 15 s of a 40 s standstill. A loss is noticed about a second later.
What this file does not do: say where in the stream the audio is missing.
"""

from __future__ import annotations

from collections import deque


class LossClock:
    """Detects audio that vanished without a flag.

    The lateness of a block is its arrival time minus the length of all audio before its end. It jitters
    upward (blocks come in bursts, a busy machine delays them), but its minimum over a second is steady to
    milliseconds, whatever the buffers, because the blocks after a late one catch up. If the minimum stays
    high, audio is missing. The reference may rise by `drift` to follow the crystal of the sound card: far
    more than any crystal drifts, and far less than a loss.

    Args:
        threshold_s: smallest loss that is reported.
        window_s: how long lateness must persist.
        drift: seconds per second that the reference may rise.
    """

    def __init__(self, threshold_s: float = 0.25, window_s: float = 1.0, drift: float = 1e-3) -> None:
        self._threshold_s = threshold_s
        self._window_s = window_s
        self._drift = drift
        self._heard_s = 0.0
        self._recent: deque[tuple[float, float]] = deque()
        self._reference: tuple[float, float] | None = None

    def observe(self, arrival_s: float, duration_s: float) -> float:
        """Note a block of `duration_s` that arrived at monotonic `arrival_s`; return seconds lost, or 0."""
        self._heard_s += duration_s
        self._recent.append((arrival_s, arrival_s - self._heard_s))
        while self._recent[0][0] < arrival_s - self._window_s:
            self._recent.popleft()
        if arrival_s - self._recent[0][0] < 0.8 * self._window_s:
            return 0.0
        lateness = min(late for _, late in self._recent)
        if self._reference is None:
            self._reference = (arrival_s, lateness)
        at_s, level = self._reference
        expected = level + self._drift * (arrival_s - at_s)
        if lateness <= expected:
            self._reference = (arrival_s, lateness)
        elif lateness - expected > self._threshold_s:
            self.account(lateness - level)
            return lateness - level
        return 0.0

    def account(self, lost_s: float) -> None:
        """Count `lost_s` as heard, because its loss is already known."""
        self._heard_s += lost_s
        self._recent = deque((at, late - lost_s) for at, late in self._recent)

    def lateness_now(self) -> float:
        """Return how much later than usual the newest block came, which is the most an overflow has cost."""
        if self._reference is None or not self._recent:
            return 0.0
        return max(0.0, self._recent[-1][1] - self._reference[1])
