"""Every input gets one row, whatever dies and wherever. The pool is a fake; store and ledger are real."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cluster_fakes import EchoWorker, FakePool, read_rows, run_all

from edge_asr.cluster import driver
from edge_asr.cluster.inputs import Input
from edge_asr.cluster.store import Store
from edge_asr.errors import BackendError

INPUTS = [Input(id=f"i{n}", place=f"/{n}", duration_s=float(n % 9)) for n in range(100)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"), "jsonl")
    store.begin({})
    return store


def test_every_input_gets_a_row(store: Store) -> None:
    progress = run_all(FakePool(EchoWorker(store)), store, INPUTS)
    rows = read_rows(store)
    assert sorted(row["id"] for row in rows) == sorted(one.id for one in INPUTS)
    assert all(row["text"] == row["id"][::-1] for row in rows)
    assert (progress.n_inputs, progress.n_done, progress.n_errors) == (100, 100, 0)
    assert progress.share == pytest.approx(1.0)
    assert progress.eta_s == pytest.approx(0.0)
    again = EchoWorker(store)
    progress = run_all(FakePool(again), store, INPUTS)
    assert again.heard == []
    assert (progress.n_before, progress.n_done) == (100, 100)


def test_new_inputs_are_added_to_what_is_there(store: Store) -> None:
    run_all(FakePool(EchoWorker(store)), store, INPUTS[:40])
    store.begin({})
    worker = EchoWorker(store)
    run_all(FakePool(worker), store, INPUTS)
    assert sorted(worker.heard) == sorted(one.id for one in INPUTS[40:])
    assert Counter(row["id"] for row in read_rows(store)) == Counter(one.id for one in INPUTS)


def test_a_worker_that_dies_once_loses_nothing(store: Store) -> None:
    pool = FakePool(EchoWorker(store), dies=lambda shard, n_run: n_run in (1, 3))
    progress = run_all(pool, store, INPUTS)
    assert (progress.n_deaths, progress.n_errors) == (2, 0)
    assert Counter(row["id"] for row in read_rows(store)) == Counter(one.id for one in INPUTS)


def test_inputs_that_kill_are_found_and_the_others_heard(store: Store) -> None:
    kills = {"i17", "i18", "i66"}

    def dies(shard: Any, n_run: int) -> bool:
        return any(one.id in kills and not one.problem for one in shard.inputs)

    progress = run_all(FakePool(EchoWorker(store), dies=dies), store, INPUTS)
    rows = {row["id"]: row for row in read_rows(store)}
    assert len(rows) == progress.n_done == 100
    assert {name for name, row in rows.items() if row["error"]} == kills
    assert rows["i17"]["error"] == "the worker died on it, alone and again: killed"
    assert progress.n_errors == 3


def test_workers_that_never_start_end_the_run(store: Store) -> None:
    with pytest.raises(
        BackendError, match=r"7 workers died before they had done anything \(no memory\); see"
    ):
        run_all(FakePool(EchoWorker(store), n_dead_at_start=7), store, INPUTS)
    progress = run_all(FakePool(EchoWorker(store), n_dead_at_start=6), store, INPUTS)
    assert progress.n_done == 100


class Killed(BaseException):
    """The end of the driver."""


STEPS = ("_put", "write", "take", "note", "name_shard")


def test_a_driver_that_is_killed_anywhere_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed at each of its steps with the results in turn, before the step and after it."""
    monkeypatch.setattr(driver, "INDEX_EVERY", 2)
    inputs = INPUTS[:30]
    for kill_at in itertools.count():
        store = Store(str(tmp_path / str(kill_at)), "jsonl")
        with monkeypatch.context() as patch:
            steps = itertools.count()
            for name in STEPS:
                patch.setattr(Store, name, _dying(getattr(Store, name), steps, kill_at))
            try:
                store.begin({})
                run_all(FakePool(EchoWorker(store)), store, inputs)
            except Killed:
                pass
            else:
                break  # it was never reached
        resumed = Store(store.place, store.shard_format)
        resumed.begin({})
        run_all(FakePool(EchoWorker(resumed)), resumed, inputs)
        assert Counter(row["id"] for row in read_rows(resumed)) == Counter(one.id for one in inputs), kill_at
    assert kill_at > 20


def _dying(step: Any, steps: itertools.count[int], kill_at: int) -> Any:
    """Make of a step of the store one that kills the driver at its turn; from then on nothing happens."""
    function = step

    def call(*arguments: Any) -> Any:
        before = next(steps)
        if before >= kill_at:
            raise Killed
        result = function(*arguments)
        if next(steps) >= kill_at:
            raise Killed
        return result

    return staticmethod(call) if function is Store._put else call
