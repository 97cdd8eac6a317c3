"""What tests of the cluster use in the place of Ray: a pool in this process whose workers die
where a test wants."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable

import pyarrow.parquet as parquet

from edge_asr.cluster import driver
from edge_asr.cluster.inputs import Input, file_system
from edge_asr.cluster.ledger import Ledger, Shard
from edge_asr.cluster.store import Row, Store
from edge_asr.cluster.worker import ShardResult


class EchoWorker:
    """Stands in for a worker: the text of an input is its id, backwards. It hears nothing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.heard: list[str] = []

    def run(self, shard: Shard, name: str) -> ShardResult:
        rows: list[Row] = [
            {
                "id": one.id,
                "audio_filepath": one.place,
                "text": None if one.problem else one.id[::-1],
                "words": [],
                "confidence": None,
                "duration": one.duration_s,
                "error": one.problem or None,
            }
            for one in shard.inputs
        ]
        self.heard += [one.id for one in shard.inputs]
        self.store.write(name, rows)
        n_errors = sum(row["error"] is not None for row in rows)
        return ShardResult(name=name, n_rows=len(rows), n_errors=n_errors, audio_s=shard.seconds)


class FakePool:
    """Stands in for Ray: workers in this process, the newest shard first.

    Args:
        worker: runs the shards.
        dies: told a shard and how many have been run before; whether the worker dies on it.
        n_dead_at_start: workers that die before they are ready.
    """

    def __init__(
        self,
        worker: EchoWorker,
        n_workers: int = 2,
        *,
        dies: Callable[[Shard, int], bool] = lambda shard, n_run: False,
        n_dead_at_start: int = 0,
    ) -> None:
        self.n_workers = self.n_free = n_workers
        self._worker, self._dies = worker, dies
        self._given: deque[tuple[Shard, str]] = deque()
        self._n_run = 0
        self._n_dead_at_start = n_dead_at_start
        if n_dead_at_start:
            self.n_free = 0

    def submit(self, shard: Shard, name: str) -> None:
        assert self.n_free > 0
        self.n_free -= 1
        self._given.append((shard, name))

    def wait(self, timeout_s: float) -> list[driver.Outcome]:
        if self._n_dead_at_start:
            self._n_dead_at_start -= 1
            if not self._n_dead_at_start:
                self.n_free = self.n_workers
            return [driver.Outcome(None, reason="no memory")]
        shard, name = self._given.pop()
        self.n_free += 1
        self._n_run += 1
        if self._dies(shard, self._n_run):
            return [driver.Outcome(shard, reason="killed")]
        return [driver.Outcome(shard, result=self._worker.run(shard, name))]


def run_all(pool: FakePool, store: Store, inputs: Iterable[Input], shard_s: float = 60.0) -> driver.Progress:
    """Run inputs as the command does."""
    ledger = Ledger()
    try:
        ledger.add(inputs)
        progress = driver.resume(ledger, store)
        driver.run(pool, ledger, store, progress, shard_s=shard_s)
    finally:
        ledger.close()
    return progress


def read_rows(store: Store) -> list[Row]:
    """Read every row of every shard, as a user would."""
    fs, root = file_system(store.place)
    rows: list[Row] = []
    for path in sorted(fs.ls(f"{root}/shards", detail=False)):
        with fs.open(path, "rb") as file:
            if path.endswith(".parquet"):
                rows += parquet.read_table(file).to_pylist()
            else:
                rows += [json.loads(line) for line in file.read().splitlines()]
    return rows
