"""The stages of a long job: what runs, its progress, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with (done, total) while a stage runs.
Progress = Callable[[int, int], None]

#: Called with (stage, 0, 0) as a stage begins, and with (stage, done, total) while it runs.
StageProgress = Callable[[str, int, int], None]


class Stages:
    """Announces stages and adds up their times.

    Attributes:
        timings_s: seconds by stage, in the order they began; a stage that runs twice is summed.
    """

    def __init__(self, progress: StageProgress | None) -> None:
        self.progress = progress
        self.timings_s: dict[str, float] = {}
        self._started = time.perf_counter()

    def elapsed_s(self) -> float:
        """Return the seconds since the job began."""
        return time.perf_counter() - self._started

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Time a stage and announce it; yields a callback for progress inside it."""
        started = time.perf_counter()

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, done, total)

        report(0, 0)
        yield report
        self.timings_s[name] = self.timings_s.get(name, 0.0) + time.perf_counter() - started
