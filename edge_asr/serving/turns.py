"""Lets as many runs of the model go on at a time as the device has places, the most urgent first.

Finals go before partials, and both go before recordings. Without this, every session would run the model
whenever it likes: the partials of many sessions take all the time there is, and finals, for which people
wait, come late. A run that has begun is not interrupted.
What this file does not do: steps of streaming graphs, which batch by themselves
(edge_asr.runtime.step_batching).
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError
from edge_asr.runtime.backends import Backend, EncodingBackend

_Output = TypeVar("_Output")
Purpose = Literal["final", "partial", "file"]
PURPOSES: tuple[Purpose, ...] = ("final", "partial", "file")
"""What the model is run for, the most urgent first."""


class Turns:
    """A number of places; who waits for one gets it by urgency, then in the order of coming.

    Args:
        n_places: how many may run at the same time.

    Raises:
        ConfigError: there is no place.
    """

    def __init__(self, n_places: int) -> None:
        if n_places < 1:
            raise ConfigError(f"n_places is {n_places}; give 1 or more")
        self._n_free = n_places
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, int, threading.Event]] = []
        self._numbers = itertools.count()

    @contextmanager
    def take(self, urgency: int) -> Iterator[None]:
        """Wait for a place, and have it inside the block; a lower `urgency` comes first."""
        with self._lock:
            has_place = self._n_free > 0
            if has_place:
                self._n_free -= 1
            else:
                woken = threading.Event()
                heapq.heappush(self._waiting, (urgency, next(self._numbers), woken))
        if not has_place:
            woken.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    heapq.heappop(self._waiting)[2].set()
                else:
                    self._n_free += 1


class SharedBackend:
    """A `Backend` that takes its turn before it runs another one. Closing it leaves that one open.

    Args:
        backend: runs the model.
        turns: of that backend.
        purpose: what it is run for.
        observe: called after each run with the purpose and its seconds, waiting included.
    """

    def __init__(
        self, backend: Backend, turns: Turns, purpose: Purpose, observe: Callable[[Purpose, float], None]
    ) -> None:
        self.name = backend.name
        self.precision = backend.precision
        self.num_threads = backend.num_threads
        self.max_frames = backend.max_frames
        self._backend, self._turns, self._purpose, self._observe = backend, turns, purpose, observe

    def log_probs(
        self, features: npt.NDArray[np.float32], feature_lens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """See `Backend.log_probs`."""
        return self._run(self._backend.log_probs, features, feature_lens)

    def encode(
        self, features: npt.NDArray[np.float32], feature_lens: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `EncodingBackend.encode`; only a decoder for whose sake the model was loaded asks for it."""
        assert isinstance(self._backend, EncodingBackend)
        return self._run(self._backend.encode, features, feature_lens)

    def _run(self, run: Callable[..., _Output], *inputs: npt.NDArray[Any]) -> _Output:
        began = time.monotonic()
        with self._turns.take(PURPOSES.index(self._purpose)):
            output = run(*inputs)
        self._observe(self._purpose, time.monotonic() - began)
        return output

    def close(self) -> None:
        """Do nothing: the recognizer that loaded the backend closes it."""
