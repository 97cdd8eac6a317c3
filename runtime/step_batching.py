"""Runs steps of many streams together: whoever asks while all places are taken is served in one batch.

Nobody waits for a batch to fill. A thread that finds a free place runs at once, alone. When it is done, the
steps of one shape that came meanwhile are the next batch. So a single stream pays nothing, and the more there
is to do, the larger the batches and the cheaper each step. The threads that ask do all the work.
What this file does not do: know what a step is (streaming_model.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError

Arrays = tuple[npt.NDArray[Any], ...]


class StepBatcher:
    """Calls `run` for one or several requests at a time; any number of threads may call.

    Args:
        run: takes arrays with rows along their first axis, and returns arrays with as many rows.
        n_places: calls of `run` that may go on at the same time.
        max_rows: rows that a batch holds at most; a request with more runs alone.

    Attributes:
        observe: None, or called by each thread that asked, once it has its rows, with its seconds, waiting
            included, and the rows that were computed together.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(self, run: Callable[[Arrays], Arrays], *, n_places: int, max_rows: int) -> None:
        if n_places < 1 or max_rows < 1:
            raise ConfigError(f"n_places is {n_places} and max_rows {max_rows}; give 1 or more")
        self.observe: Callable[[float, int], None] | None = None
        self._run = run
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._n_free = n_places
        self._waiting: deque[_Request] = deque()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Return what `run` returns for these inputs, computed alone or as rows of a batch.

        Raises:
            Whatever `run` raises. A batch that fails is run again one by one, for one may be the cause.
        """
        began, request = time.monotonic(), _Request(inputs)
        with self._lock:
            has_place = self._n_free > 0
            if has_place:
                self._n_free -= 1
            else:
                self._waiting.append(request)
        if not has_place:
            request.woken.wait()
        if not request.is_done:  # a thread that is woken undone has been given a place
            with self._lock:
                batch = self._gather(request)
            try:
                self._serve(batch)
            finally:
                for other in batch[1:]:
                    other.woken.set()
                self._hand_on()
        if request.error is not None:
            raise request.error
        if self.observe is not None:
            self.observe(time.monotonic() - began, request.n_together)
        return request.outputs

    def _gather(self, first: _Request) -> list[_Request]:
        """Take what can run with `first` off the queue, those that have waited longest."""
        batch, n_rows, left = [first], first.n_rows, deque[_Request]()
        for request in self._waiting:
            if request.shape == first.shape and n_rows + request.n_rows <= self._max_rows:
                batch.append(request)
                n_rows += request.n_rows
            else:
                left.append(request)
        self._waiting = left
        return batch

    def _serve(self, batch: Sequence[_Request]) -> None:
        try:
            if len(batch) == 1:
                batch[0].outputs = self._run(batch[0].inputs)
            else:
                together = self._run(
                    tuple(np.concatenate(arrays) for arrays in zip(*(r.inputs for r in batch), strict=True))
                )
                begin = 0
                for request in batch:
                    end = begin + request.n_rows
                    request.n_together = len(together[0])
                    # Copies: a stream that falls silent must not keep the arrays of all others.
                    request.outputs = tuple(array[begin:end].copy() for array in together)
                    begin = end
        except Exception as error:  # noqa: BLE001 - raised in the thread that asked
            if len(batch) > 1:
                for request in batch:
                    self._serve([request])
            else:
                batch[0].error = error
        except BaseException as error:
            for request in batch:
                request.error = error
            raise
        finally:
            for request in batch:
                request.is_done = True

    def _hand_on(self) -> None:
        """Give the place to the thread that has waited longest, if one waits."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().woken.set()
            else:
                self._n_free += 1


class _Request:
    """The inputs of a step, and what came of it."""

    def __init__(self, inputs: Arrays) -> None:
        self.inputs = inputs
        self.n_rows = self.n_together = len(inputs[0])
        self.shape = tuple(array.shape[1:] for array in inputs)
        self.outputs: Arrays = ()
        self.error: BaseException | None = None
        self.is_done = False
        self.woken = threading.Event()
