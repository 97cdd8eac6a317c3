"""Times everything in the same way: runs take turns, in rotating order, without garbage collection.

A slow moment of the machine then hits all alike, and ratios taken within a round say more than those of two
medians. A run gives its own sample: seconds, a `Lap`, or a record with proof of the work. What this file does
not do: know what runs, summarize (`statistics.py`).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Sample = TypeVar("Sample")
#: Given the samples so far, the names of those that go on.
Going = Callable[[Mapping[str, list[Sample]]], Collection[str]]

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Lap:
    """One call: wall seconds, and processor seconds of the calling thread."""

    wall_s: float
    thread_s: float


def lap(call: Callable[[], object]) -> Lap:
    """Call once and time it."""
    began, began_busy = time.perf_counter(), time.thread_time()
    call()
    return Lap(wall_s=time.perf_counter() - began, thread_s=time.thread_time() - began_busy)


def lap_of_command(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Lap:
    """Run a program to its end and time it; its output is discarded.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    quiet = subprocess.DEVNULL
    return lap(lambda: subprocess.run(command, check=True, env=environment, stdout=quiet, stderr=quiet))


def rounds(n: int) -> Going[Sample]:
    """Continue until each has `n` samples."""
    return lambda samples: [name for name, values in samples.items() if len(values) < n]


def take_turns(
    runs: Mapping[str, Callable[[], Sample]],
    going: Going[Sample],
    *,
    warm_up: int = 0,
    on_error: Callable[[str, Exception], None] | None = None,
    progress: Callable[[Mapping[str, list[Sample]]], None] | None = None,
) -> dict[str, list[Sample]]:
    """Run each in turn until none continues.

    Args:
        runs: by name; each call gives one sample.
        going: which go on, asked before each round, such as `rounds(20)`.
        warm_up: calls of each before, whose samples are thrown away.
        on_error: takes the error of a run, which then is left out, samples and all; None raises it.
        progress: called after each round.

    Returns:
        Samples by name, in the order in which they were taken.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}

    def run(name: str, *, keep: bool) -> None:
        try:
            sample = runs[name]()
        except Exception as error:
            if on_error is None:
                raise
            del samples[name]
            on_error(name, error)
            return
        if keep:
            samples[name].append(sample)

    for _ in range(warm_up):
        for name in list(samples):
            run(name, keep=False)
    gc.collect()
    gc.freeze()  # what is there now stays, so that collections between rounds are short
    gc.disable()
    try:
        turn = warm_up
        while waiting := list(going(samples)):
            first = turn % len(waiting)
            for name in waiting[first:] + waiting[:first]:
                run(name, keep=True)
            turn += 1
            gc.collect()
            if progress is not None:
                progress(samples)
    finally:
        gc.enable()
        gc.unfreeze()
    return samples


def restart_with_threads(num_threads: int) -> None:
    """Restart this program if the environment allows more threads, which libraries read on loading."""
    wanted = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})
