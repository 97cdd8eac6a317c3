"""Steps of many streams: each gets its own rows, nobody waits for a free place, errors stay apart."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError, ConfigError
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.step_batching import Arrays, StepBatcher
from edge_asr.runtime.streaming_model import StreamingModel


class Machine:
    """Doubles its rows, and waits in each run until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.may_go_on = threading.Semaphore(0)
        self.is_running = threading.Semaphore(0)

    def __call__(self, inputs: Arrays) -> Arrays:
        self.batches.append(inputs[0][:, 0].tolist())
        self.is_running.release()
        assert self.may_go_on.acquire(timeout=20)
        if (inputs[0] < 0).any():
            raise BackendError("a row below zero")
        return tuple(2 * array for array in inputs)


def ask(batcher: StepBatcher, value: float, width: int = 3) -> float:
    row = np.full((1, width), value)
    (doubled,) = batcher((row,))
    assert doubled.shape == (1, width)
    return float(doubled[0, 0])


def wait_until_queued(batcher: StepBatcher, n: int) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if len(batcher._waiting) == n:
            return
        pause.wait(0.01)
    raise AssertionError(f"{len(batcher._waiting)} requests wait, not {n}")


def test_what_comes_while_the_place_is_taken_runs_together() -> None:
    machine = Machine()
    batcher = StepBatcher(machine, n_places=1, max_rows=3)
    seen: list[tuple[float, int]] = []
    batcher.observe = lambda seconds, rows: seen.append((seconds, rows))
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(ask, batcher, 1)
        machine.is_running.acquire()
        others = []
        for number, (value, width) in enumerate([(2, 3), (3, 5), (4, 3), (5, 3), (6, 5)], start=1):
            others.append(threads.submit(ask, batcher, value, width))
            wait_until_queued(batcher, number)
        for _ in range(6):
            machine.may_go_on.release()
        assert first.result(20) == 2
        assert [other.result(20) for other in others] == [4, 6, 8, 10, 12]
    # by shape, in the order of asking; nobody joins a batch that has begun
    assert machine.batches == [[1], [2, 4, 5], [3, 6]]
    assert sorted(rows for _, rows in seen) == [1, 2, 2, 3, 3, 3]
    assert all(seconds > 0 for seconds, _ in seen)


def test_a_batch_takes_no_more_than_it_holds_and_none_starves() -> None:
    machine = Machine()
    batcher = StepBatcher(machine, n_places=1, max_rows=2)
    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(ask, batcher, 1)]
        machine.is_running.acquire()
        for value in range(2, 7):
            futures.append(threads.submit(ask, batcher, value))
            wait_until_queued(batcher, value - 1)
        for _ in range(6):
            machine.may_go_on.release()
        assert [future.result(20) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert machine.batches == [[1], [2, 3], [4, 5], [6]]


def test_as_many_run_at_a_time_as_there_are_places() -> None:
    machine = Machine()
    batcher = StepBatcher(machine, n_places=2, max_rows=8)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask, batcher, value) for value in (1, 2)]
        assert machine.is_running.acquire(timeout=20)
        assert machine.is_running.acquire(timeout=20)  # both run before either may go on
        futures.append(threads.submit(ask, batcher, 3))
        wait_until_queued(batcher, 1)
        for _ in range(3):
            machine.may_go_on.release()
        assert [future.result(20) for future in futures] == [2, 4, 6]


def test_a_failure_is_only_his_who_caused_it() -> None:
    machine = Machine()
    batcher = StepBatcher(machine, n_places=1, max_rows=8)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask, batcher, 1)]
        machine.is_running.acquire()
        for number, value in enumerate((2, -3, 4), start=1):
            futures.append(threads.submit(ask, batcher, value))
            wait_until_queued(batcher, number)
        for _ in range(5):
            machine.may_go_on.release()
        assert [futures[i].result(20) for i in (0, 1, 3)] == [2, 4, 8]
        with pytest.raises(BackendError, match="below zero"):
            futures[2].result(20)
        machine.may_go_on.release()
        assert ask(batcher, 7) == 14  # the place was given back


def test_many_threads_lose_nothing() -> None:
    batcher = StepBatcher(lambda inputs: (inputs[0] + 1,), n_places=2, max_rows=4)

    def count(start: int) -> int:
        row = np.full((1, 1 + start % 2), start)
        for _ in range(200):
            (row,) = batcher((row,))
        return int(row[0, 0])

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(count, range(12))) == [n + 200 for n in range(12)]


@pytest.mark.parametrize(("n_places", "max_rows"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(n_places: int, max_rows: int) -> None:
    with pytest.raises(ConfigError, match=r"n_places is .* and max_rows .*; give 1 or more"):
        StepBatcher(lambda inputs: inputs, n_places=n_places, max_rows=max_rows)


def test_streams_that_run_together_hear_what_each_would_hear_alone(
    streaming_bundle: Path, sample_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FeatureExtractor(Bundle.load(streaming_bundle).info.features)(read_audio(sample_path))
    clips = [features[begin : begin + 400] for begin in range(0, 320, 40)]

    def run(model: StreamingModel, clip: np.ndarray) -> np.ndarray:
        state = model.start()
        parts = [model.push(state, piece) for piece in np.array_split(clip, 10)]
        return np.concatenate([*parts, model.flush(state)])

    monkeypatch.setattr("edge_asr.runtime.stream_steps.count_usable_cores", lambda: 1)
    model = StreamingModel.load(streaming_bundle, num_threads=1)
    alone = [run(model, clip) for clip in clips]
    sizes: list[int] = []
    backend_run = model._steps._backend.run

    def counting_run(names, inputs):  # type: ignore[no-untyped-def]
        sizes.append(len(next(iter(inputs.values()))))
        return backend_run(names, inputs)

    model._steps._backend.run = counting_run  # type: ignore[attr-defined]
    with ThreadPoolExecutor(len(clips)) as threads:
        together = list(threads.map(lambda clip: run(model, clip), clips))
    assert max(sizes) > 1, "nothing ran together, so nothing was shown"
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(other.argmax(axis=1), one.argmax(axis=1))
