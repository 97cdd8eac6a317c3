"""Taking turns: the order, when each stops, what becomes of one that fails, and the garbage collector."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from edge_asr.benchmark.statistics import ratio_by_round, summarize
from edge_asr.benchmark.timing import lap, lap_of_command, rounds, take_turns


def recorder(calls: list[str], name: str, fails_at: int = 0) -> Callable[[], int]:
    """A run that notes its name and gives its number, and raises at `fails_at`."""

    def run() -> int:
        calls.append(name)
        if calls.count(name) == fails_at:
            raise RuntimeError(f"{name} is out of memory")
        return calls.count(name)

    return run


def test_turns_turn_and_warm_up_is_thrown_away() -> None:
    calls: list[str] = []
    samples = take_turns({name: recorder(calls, name) for name in "abc"}, rounds(3), warm_up=1)
    assert "".join(calls) == "abc" + "bca" + "cab" + "abc"
    assert samples == {name: [2, 3, 4] for name in "abc"}


def test_each_stops_by_itself_and_progress_is_told() -> None:
    calls: list[str] = []
    wanted = {"a": 1, "b": 3}
    seen: list[int] = []
    samples = take_turns(
        {name: recorder(calls, name) for name in wanted},
        lambda samples: [name for name, values in samples.items() if len(values) < wanted[name]],
        progress=lambda samples: seen.append(sum(map(len, samples.values()))),
    )
    assert {name: len(values) for name, values in samples.items()} == wanted
    assert seen == [2, 3, 4]


def test_one_that_fails_is_left_out_or_ends_it() -> None:
    errors: list[str] = []
    for fails_at in (1, 2):  # in the warm-up, and after it
        calls: list[str] = []
        runs = {"a": recorder(calls, "a"), "b": recorder(calls, "b", fails_at)}
        samples = take_turns(
            runs, rounds(2), warm_up=1, on_error=lambda name, error: errors.append(f"{name}: {error}")
        )
        assert samples == {"a": [2, 3]}
    assert errors == ["b: b is out of memory"] * 2
    with pytest.raises(RuntimeError, match="out of memory"):
        take_turns({"b": recorder([], "b", 1)}, rounds(1))


def test_the_garbage_collector_waits_and_is_on_again_also_after_an_error() -> None:
    assert take_turns({"a": gc.isenabled}, rounds(2))["a"] == [False, False]
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        take_turns({"a": lambda: 1 / 0}, rounds(1))
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_lap_tells_waiting_from_computing() -> None:
    waited = lap(lambda: time.sleep(0.05))
    assert waited.wall_s >= 0.05
    assert waited.thread_s < 0.02
    assert lap_of_command([sys.executable, "-c", ""]).wall_s > 0
    with pytest.raises(subprocess.CalledProcessError):
        lap_of_command([sys.executable, "-c", "raise SystemExit(1)"])


def test_ratios_are_taken_within_a_round() -> None:
    # The machine is ten times slower in the second round, for both alike.
    assert ratio_by_round([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == (2.0, 2.0, 2.0)


def test_a_summary_as_json_has_four_digits() -> None:
    values = summarize([1.23456, 2.34567]).to_dict()
    assert (values["n"], values["min"], values["p50"]) == (2, 1.235, 1.79)
