"""Leads a run: shares the inputs out, takes finished shards, and sees to it that each input gets its row.

A worker that dies loses its shard, which another one gets. If that one dies too, parts of the shard are
tried alone, and so on, until the input that kills is found; its row says so. The driver holds the shards that
are under way and nothing else, so its memory does not depend on the number of inputs.
What this file does not do: start workers (ray_pool.py), show progress (edge_asr.cli).
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Protocol

from edge_asr.cluster.ledger import Ledger, Shard
from edge_asr.cluster.store import INDEX_EVERY, Store
from edge_asr.cluster.worker import ShardResult
from edge_asr.errors import BackendError

_log = logging.getLogger(__name__)

SHARD_S = 1800.0
"""Seconds of sound in a shard: what a killed worker loses, and what a file holds."""
LEAST_SHARD_S = 60.0
SHARDS_PER_WORKER = 4
"""Where there is little to do, shards are smaller, so that each worker gets several."""
PARTS = 8
"""Parts of a shard on which workers die: with four more deaths, one input of four thousand is found."""
MAX_DEATHS_AT_START = 3
"""Workers, for each that is wanted, that may die in a row before they have done anything."""
TAKES = 16
"""Shards that are moved to their place at the same time: an object store copies them, which takes a while."""
_WAIT_S = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a shard: a result, or why the worker died; without a shard it died at its start."""

    shard: Shard | None
    result: ShardResult | None = None
    reason: str = ""


class Pool(Protocol):
    """Workers, each of which transcribes one shard at a time and is replaced when it dies."""

    n_workers: int

    @property
    def n_free(self) -> int:
        """Workers that are ready and have nothing to do."""
        ...

    def submit(self, shard: Shard, name: str) -> None:
        """Give a shard to a free worker; its rows become the file `name`."""
        ...

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return what has happened, at the latest after so many seconds.

        Raises:
            EdgeAsrError, OSError: what no other worker would do better.
        """
        ...


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        n_inputs, n_done, n_errors: inputs in all, those with a row, and those whose row has an error.
        n_before: inputs that an earlier run had finished; their errors are not counted.
        n_shards: files of results that this run has added.
        audio_s: seconds of sound transcribed by this run.
        processor_s: processor time of the workers for it.
        seconds: since it began.
        share: of the work of this run that is done, 0 to 1, by the lengths that are known or guessed.
        n_workers: workers that are busy.
        n_deaths: workers that have died.
    """

    n_inputs: int = 0
    n_done: int = 0
    n_errors: int = 0
    n_before: int = 0
    n_shards: int = 0
    audio_s: float = 0.0
    processor_s: float = 0.0
    seconds: float = 0.0
    share: float = 0.0
    n_workers: int = 0
    n_deaths: int = 0

    @property
    def rtfx(self) -> float:
        """Return seconds of sound for each second."""
        return self.audio_s / self.seconds if self.seconds else 0.0

    @property
    def eta_s(self) -> float | None:
        """Return the seconds that are left, at the pace so far; None before the first shard."""
        return self.seconds * (1 - self.share) / self.share if self.share else None


def resume(ledger: Ledger, store: Store) -> Progress:
    """Mark in a ledger what the store has already, and return how far the run is."""
    for _, ids in store.finished():
        ledger.finish(ids)
    n_before, _ = ledger.count(done=True)
    n_left, _ = ledger.count(done=False)
    return Progress(n_inputs=n_before + n_left, n_done=n_before, n_before=n_before)


def run(
    pool: Pool,
    ledger: Ledger,
    store: Store,
    progress: Progress,
    *,
    shard_s: float = SHARD_S,
    show: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Transcribe what a ledger holds and is not finished.

    Args:
        pool: the workers.
        ledger, store, progress: the inputs, the results, and what `resume` returned for them; it is updated.
        shard_s: most seconds of sound in a shard.
        show: called about twice a second.

    Raises:
        BackendError: workers die before they have done anything.
        EdgeAsrError, OSError: from the pool and the store. What is finished stays; the next run continues.
    """
    _, total_s = ledger.count(done=False)
    shard_s = min(shard_s, max(total_s / (SHARDS_PER_WORKER * pool.n_workers), LEAST_SHARD_S))
    _Driver(pool, store, ledger.plan(shard_s), progress, total_s, show).run()


class _Driver:
    """One run."""

    def __init__(
        self,
        pool: Pool,
        store: Store,
        plan: Iterator[Shard],
        progress: Progress,
        total_s: float,
        show: Callable[[Progress], None],
    ) -> None:
        self._pool, self._store, self._plan = pool, store, plan
        self._progress, self._total_s, self._show = progress, total_s, show
        self._again: deque[Shard] = deque()
        self._numbers = itertools.count()
        self._n_in_pool = 0
        self._threads = ThreadPoolExecutor(TAKES, thread_name_prefix="edge-asr-take")
        self._takes: dict[Future[None], tuple[Shard, ShardResult]] = {}
        self._done_s = 0.0
        self._unnoted: list[tuple[str, list[str]]] = []
        self._n_deaths_at_start = 0
        self._started = time.monotonic()

    def run(self) -> None:
        """Work until every input has its row."""
        try:
            following = self._next()
            while following is not None or self._n_in_pool or self._takes:
                while following is not None and self._pool.n_free:
                    self._pool.submit(following, self._store.name_shard(next(self._numbers)))
                    self._n_in_pool += 1
                    following = self._next()
                if following is not None or self._n_in_pool:
                    for outcome in self._pool.wait(_WAIT_S):
                        self._note(outcome)
                else:
                    wait(self._takes, _WAIT_S)
                for future in [future for future in self._takes if future.done()]:
                    future.result()
                    self._finish(*self._takes.pop(future))
                if following is None:
                    following = self._next()
                self._progress.seconds = time.monotonic() - self._started
                self._progress.n_workers = self._n_in_pool
                self._show(self._progress)
        finally:
            self._threads.shutdown(cancel_futures=True)
            if self._unnoted:
                self._store.note(self._unnoted)

    def _next(self) -> Shard | None:
        return self._again.popleft() if self._again else next(self._plan, None)

    def _note(self, outcome: Outcome) -> None:
        progress, shard, result = self._progress, outcome.shard, outcome.result
        if shard is None:
            progress.n_deaths += 1
            self._n_deaths_at_start += 1
            if self._n_deaths_at_start > MAX_DEATHS_AT_START * self._pool.n_workers:
                raise BackendError(
                    f"{self._n_deaths_at_start} workers died before they had done anything ({outcome.reason})"
                    "; see that every machine has this edge-asr, the bundle and enough memory"
                )
            return
        self._n_in_pool -= 1
        self._n_deaths_at_start = 0
        if result is None:
            progress.n_deaths += 1
            self._again.extend(_after_death(shard, outcome.reason))
            return
        assert result.n_rows == len(shard.inputs), (result, len(shard.inputs))
        self._takes[self._threads.submit(self._store.take, result.name)] = (shard, result)

    def _finish(self, shard: Shard, result: ShardResult) -> None:
        """Count a shard that is in its place."""
        progress = self._progress
        self._unnoted.append((result.name, [one.id for one in shard.inputs]))
        if len(self._unnoted) >= INDEX_EVERY:
            self._store.note(self._unnoted)
            self._unnoted = []
        progress.n_done += result.n_rows
        progress.n_errors += result.n_errors
        progress.n_shards += 1
        progress.audio_s += result.audio_s
        progress.processor_s += result.processor_s
        self._done_s += shard.seconds
        progress.share = min(self._done_s / self._total_s, 1.0)


def _after_death(shard: Shard, reason: str) -> list[Shard]:
    """Return what to try next with the inputs of a shard on which a worker died."""
    _log.info("a worker died on %d inputs, %s: %s", len(shard.inputs), shard.inputs[0].id, reason)
    if not shard.n_deaths:  # its machine may have gone, or another process taken the memory
        return [replace(shard, n_deaths=1)]
    if len(shard.inputs) > 1:
        step = -(-len(shard.inputs) // PARTS)
        starts = range(0, len(shard.inputs), step)
        return [Shard(shard.inputs[start : start + step], 1) for start in starts]
    problem = f"the worker died on it, alone and again: {reason}"
    return [Shard((replace(shard.inputs[0], problem=problem),))]
