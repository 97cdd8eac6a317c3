"""A source that an application fills: its callback pushes sound, recognition takes it from a bounded queue.

    source = QueueSource(sample_rate=48_000)
    robot.on_audio(source.push)              # float32 or int16, one or more channels, blocks of any length
    with LiveRecognizer(recognizer, source) as live: ...

`push` copies and enqueues and never waits, so it may be called from a driver's thread. Samples that do not
fit are dropped and reported as lost before the next block; nothing is smeared across the gap. The reading
thread mixes and resamples. `MicrophoneSource` is such a source with a device in front of it.
What this file does not do: open devices, recognize.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import STREAM_SAMPLE_RATE, ResampleStream, check_sample_rate, mono_from_waveform
from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.runtime.live.loss_clock import LossClock
from edge_asr.runtime.live.sources import AudioBlock, Loss


@dataclass(frozen=True, slots=True)
class _Pushed:
    samples: npt.NDArray[Any]
    arrival_s: float
    overflowed: bool
    dropped_before: int


@dataclass(frozen=True, slots=True)
class _End:
    error: EdgeAsrError | None


class QueueSource:
    """An `AudioSource` of what is pushed into it. One thread pushes, one reads.

    Args:
        sample_rate: Hz of what is pushed.
        queue_s: the most sound that waits for a busy recognizer; more is dropped and reported.
        mix: how several channels become one: the "mean", or the "first".
        is_live: whether sound is pushed at the pace of a clock, as from a sound card. Then missing sound is
            detected by the time that passed, and reported.

    Attributes:
        n_dropped_samples: samples that the full queue has refused so far.

    Raises:
        AudioError: the rate is impossible.
        ConfigError: the queue has no room, or the mix is unknown.
    """

    def __init__(
        self,
        sample_rate: int = STREAM_SAMPLE_RATE,
        *,
        queue_s: float = 30.0,
        mix: Literal["mean", "first"] = "mean",
        is_live: bool = False,
    ) -> None:
        self.sample_rate = check_sample_rate(sample_rate)
        if not 0 < queue_s < float("inf"):
            raise ConfigError(f"queue_s is {queue_s}; it must be a positive number of seconds")
        if mix not in ("mean", "first"):
            raise ConfigError(f"mix is {mix!r}; it must be 'mean' or 'first'")
        self.n_dropped_samples = 0
        self._limit = round(queue_s * self.sample_rate)
        self._mix = mix
        self._queue: SimpleQueue[_Pushed | _End] = SimpleQueue()
        # Each counter has one writer, the pusher and the reader; their difference is what waits in the queue.
        self._n_enqueued = 0
        self._n_taken = 0
        self._n_dropped_reported = 0
        self._clock = LossClock() if is_live else None
        self._resampler = ResampleStream(self.sample_rate, STREAM_SAMPLE_RATE)
        self._ready: deque[AudioBlock] = deque()
        self._is_ended = False
        self._end: _End | None = None

    def __enter__(self) -> QueueSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def queued_s(self) -> float:
        """Return the seconds of sound that wait for the reader."""
        return (self._n_enqueued - self._n_taken) / self.sample_rate

    def push(
        self,
        samples: npt.NDArray[Any],
        *,
        overflowed: bool = False,
        arrival_s: float | None = None,
        n_dropped_before: int = 0,
    ) -> bool:
        """Copy and enqueue a block; never waits, and takes no lock that the reader holds for long.

        Args:
            samples: [n] or [n, channels], float with full scale 1.0, int16 or int32. They are checked when
                they are read; if they are not sound, the stream ends with an `AudioError`.
            overflowed: whether the caller knows that something before this block was lost.
            arrival_s: `time.monotonic()` at which its last sample came; None is now.
            n_dropped_before: samples that the caller itself had to drop before this block.

        Returns:
            Whether the block was taken; it is refused if the queue is full, or after the end.
        """
        if self._is_ended:
            return False
        n_samples = len(samples)
        self.n_dropped_samples += n_dropped_before
        if self._n_enqueued - self._n_taken + n_samples > self._limit:
            self.n_dropped_samples += n_samples
            return False
        arrival_s = time.monotonic() if arrival_s is None else arrival_s
        pushed = _Pushed(np.array(samples), arrival_s, overflowed, self.n_dropped_samples)
        self._queue.put(pushed)
        self._n_enqueued += n_samples
        return True

    def end(self, error: EdgeAsrError | None = None) -> None:
        """End the source from any thread; `read` returns what waits, then None, or raises `error`."""
        self._is_ended = True
        self._queue.put(_End(error))

    def stop(self) -> None:
        """See `AudioSource.stop`."""
        self.end()

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None at the end.

        Raises:
            AudioError: a pushed block is not sound.
            EdgeAsrError: the error that `end` was given.
        """
        return self._read(None)

    def read_within(self, timeout_s: float) -> AudioBlock | None:
        """Read, but wait at most `timeout_s` seconds.

        Raises:
            queue.Empty: nothing came.
        """
        return self._read(timeout_s)

    def _read(self, timeout_s: float | None) -> AudioBlock | None:
        while not self._ready:
            if self._end is not None:
                if self._end.error is not None:
                    raise self._end.error
                return None
            item = self._queue.get(timeout=timeout_s)
            if isinstance(item, _End):
                self._end = item
                self._finish()
            else:
                self._take(item)
        return self._ready.popleft()

    def _take(self, pushed: _Pushed) -> None:
        """Turn a pushed block into blocks of the 16 kHz stream, reporting losses before what follows them."""
        n_samples = len(pushed.samples)
        self._n_taken += n_samples
        losses = self._dropped(pushed.dropped_before)
        if self._clock is not None:
            losses += self._missing(self._clock, pushed, n_samples / self.sample_rate)
        elif pushed.overflowed:
            losses.append(Loss(lost_s=0.0, reason="device_overflow", estimated=True))
        if losses:
            # The sound before the loss ends here.
            self._give(self._resampler.flush())
            self._resampler = ResampleStream(self.sample_rate, STREAM_SAMPLE_RATE)
        samples = pushed.samples
        if self._mix == "first" and samples.ndim == 2:
            samples = samples[:, 0]
        self._give(self._resampler.push(mono_from_waveform(samples)), tuple(losses))

    def _missing(self, clock: LossClock, pushed: _Pushed, duration_s: float) -> list[Loss]:
        missing_s = clock.observe(pushed.arrival_s, duration_s)
        if pushed.overflowed:
            lost_s = missing_s or clock.lateness_now()
            if not missing_s:
                clock.account(lost_s)
            return [Loss(lost_s=lost_s, reason="device_overflow", estimated=True)]
        return [Loss(lost_s=missing_s, reason="missing", estimated=True)] if missing_s else []

    def _dropped(self, n_dropped: int) -> list[Loss]:
        n_new = n_dropped - self._n_dropped_reported
        if n_new == 0:
            return []
        self._n_dropped_reported = n_dropped
        lost_s = n_new / self.sample_rate
        if self._clock is not None:
            self._clock.account(lost_s)
        return [Loss(lost_s=lost_s, reason="queue_overflow", estimated=False)]

    def _finish(self) -> None:
        """Give what the resampler holds, and the last loss, at the end."""
        losses = tuple(self._dropped(self.n_dropped_samples))
        self._give(self._resampler.flush())
        self._give(np.zeros(0, np.float32), losses)

    def _give(self, samples: npt.NDArray[np.float32], losses: tuple[Loss, ...] = ()) -> None:
        if len(samples) or losses:
            self._ready.append(AudioBlock(samples, losses))
