"""Where the time of a recognition goes: stages that an observer is told of.

What this file does not do: collect or print them (benchmark/stages.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

StageName = Literal["features", "encode", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """The time of one completed stage. The stages of a call come one after the other and add up to it.

    Attributes:
        name: "features" (checks, resampling, log-mel, normalization, assembly of the batch), "encode" (the
            backend) or "decode" (tokens, words, segments, and joining windows).
        seconds: how long it took.
        batch: rows and feature frames that the model received, [B, T]; None except for "encode".
    """

    name: StageName
    seconds: float
    batch: tuple[int, int] | None = None


StageObserver = Callable[[StageTime], None]


class Laps:
    """Tells an observer how long each stage took, from the end of the previous one."""

    __slots__ = ("_began", "_on_stage")

    def __init__(self, on_stage: StageObserver | None) -> None:
        self._on_stage = on_stage
        self._began = time.perf_counter()

    def __call__(self, name: StageName, batch: tuple[int, int] | None = None) -> None:
        if self._on_stage is not None:
            seconds = time.perf_counter() - self._began
            self._on_stage(StageTime(name=name, seconds=seconds, batch=batch))
            self._began = time.perf_counter()


NO_LAPS = Laps(None)
