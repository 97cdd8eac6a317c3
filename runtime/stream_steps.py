"""Runs steps of streams with onnxruntime; where the caches live between two steps is decided here.

The caches of a step are arrays with a row for each stream, so that steps of several streams can be joined and
cut (step_batching.py): numbers on the CPU, on a GPU references to what lies there.
What this file does not do: windows and states of streams (streaming_model.py), TensorRT
(engine/stream_runner.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import ENCODED_NAME, STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, count_usable_cores
from edge_asr.runtime.step_batching import Arrays
from edge_asr.stream_geometry import StreamingGeometry

_ON_DEVICE = {name: name.startswith("cache_") for name in STREAM_OUTPUTS}


class StreamSteps(Protocol):
    """Runs the streaming graph, one step of a batch of streams at a time, from several threads.

    Attributes:
        precision: that of the graph.
        runtime: what runs it, for people.
        n_places: runs that may go on at the same time.
        max_rows: streams that a run takes at most.
        gives_encoded: whether a run also gives frames of the encoder, behind the caches.
    """

    precision: str
    runtime: str
    n_places: int
    max_rows: int
    gives_encoded: bool

    def initial_caches(self, batch: int) -> Arrays:
        """Return the caches of new streams."""
        ...

    def run(self, inputs: Arrays) -> Arrays:
        """Run a step.

        Args:
            inputs: windows [B, n_mels, T], their valid frames [B], and the caches.

        Returns:
            Log-probs [B, chunk, V], how many are valid [B], the next caches and, if it gives them, frames of
            the encoder [B, chunk, D]; the arrays given are unchanged.

        Raises:
            BackendError: the run failed.
        """
        ...

    def warm_up(self, n_streams: int) -> None:
        """Prepare for steps of up to so many streams at once."""
        ...

    def close(self) -> None:
        """Release memory and devices. May be called twice."""
        ...


class HostSteps:
    """Steps on the CPU, or with caches on the host; see `StreamSteps`."""

    max_rows = 8
    """On a core, more than 4 gain nothing."""

    def __init__(self, backend: OnnxRuntimeBackend, geometry: StreamingGeometry) -> None:
        self._backend = backend
        self._geometry = geometry
        self.precision = backend.precision
        self.runtime = f"{backend.name} ({getattr(backend, 'runtime', 'onnxruntime')})"
        self.n_places = max(1, count_usable_cores() // (backend.num_threads or 1))
        self.gives_encoded = ENCODED_NAME in backend.output_names
        self._outputs = (*STREAM_OUTPUTS, ENCODED_NAME) if self.gives_encoded else STREAM_OUTPUTS

    def initial_caches(self, batch: int) -> Arrays:
        """See `StreamSteps`."""
        return zero_caches(self._geometry, batch)

    def run(self, inputs: Arrays) -> Arrays:
        """See `StreamSteps`."""
        return tuple(self._backend.run(self._outputs, dict(zip(STREAM_INPUTS, inputs, strict=True))))

    def warm_up(self, n_streams: int) -> None:
        """See `StreamSteps`."""

    def close(self) -> None:
        """See `StreamSteps`."""
        self._backend.close()


class BoundSteps(HostSteps):
    """Steps whose caches stay on the device of the backend (IO binding); see `StreamSteps`.

    A batch of the streams of the last one, in their order, costs no copy; another batch is gathered on the
    host.
    """

    max_rows = 32

    def __init__(self, backend: OnnxRuntimeBackend, geometry: StreamingGeometry) -> None:
        super().__init__(backend, geometry)
        self.n_places = 1
        self.gives_encoded = False

    def initial_caches(self, batch: int) -> Arrays:
        """See `StreamSteps`."""
        return (np.full(batch, None, object),)

    def run(self, inputs: Arrays) -> Arrays:
        """See `StreamSteps`."""
        *windows, rows = inputs
        feeds = dict(zip(STREAM_INPUTS, (*windows, *self._caches(rows)), strict=True))
        log_probs, n_valid, *caches = self._backend.run_on_device(_ON_DEVICE, feeds)
        following = np.empty(len(rows), object)
        following[:] = [_Row(caches, index) for index in range(len(rows))]
        return log_probs.numpy(), n_valid.numpy(), following

    def _caches(self, rows: npt.NDArray[Any]) -> list[Any]:
        first = rows[0]
        same = first is not None and first.batch[0].shape()[0] == len(rows)
        if same and all(
            r is not None and r.batch is first.batch and r.index == i for i, r in enumerate(rows)
        ):
            caches: list[Any] = first.batch
            return caches
        zeros = zero_caches(self._geometry, 1)
        on_host = {id(row.batch): [value.numpy() for value in row.batch] for row in rows if row is not None}
        parts = [
            zeros if row is None else [a[row.index : row.index + 1] for a in on_host[id(row.batch)]]
            for row in rows
        ]
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


@dataclass(frozen=True, slots=True)
class _Row:
    """The caches of one stream: a row of what a run left on the device."""

    batch: list[Any]
    index: int


def zero_caches(geometry: StreamingGeometry, batch: int) -> Arrays:
    """Return the graph's state for new streams, as arrays."""
    return (
        np.zeros((batch, *geometry.cache_last_channel), np.float32),
        np.zeros((batch, *geometry.cache_last_time), np.float32),
        np.zeros(batch, np.int64),
    )
