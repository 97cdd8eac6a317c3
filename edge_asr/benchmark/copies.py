"""Copies between host and device, told apart from the encoder where the backend can tell them.

A TensorRT engine's copies are queued, or recorded, together with its kernels and waited for once, so they
cannot be cut out of a run without changing it. They are timed by themselves instead, right after the runs:
the same buffers, the same bytes, waited for. They remain a part of "encode" and are not to be added to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_asr.benchmark.schema import Times
from edge_asr.runtime.backends import Backend
from edge_asr.runtime.engine.backend import TensorRTBackend

ON_CPU = "onnxruntime on the CPU reads and writes the host's memory: there is no copy"
ON_CUDA = "onnxruntime copies inside its run; both copies are in encode"
UNKNOWN = "this backend does not tell its copies"


def time_copies(backend: Backend, passes: Sequence[tuple[int, int]], n_runs: int) -> tuple[Times, Times]:
    """Times of the copies to the device and back in one run.

    Args:
        backend: that made the passes.
        passes: rows and feature frames of each pass of the model in a run.
        n_runs: how many samples.

    Raises:
        BackendError: CUDA failed.
    """
    if not isinstance(backend, TensorRTBackend):
        reason = {"cpu": ON_CPU, "cuda": ON_CUDA}.get(backend.name, UNKNOWN)
        return Times.missing(reason), Times.missing(reason)
    there: list[float] = []
    back: list[float] = []
    for _ in range(n_runs):
        laps = [backend.time_copies(n_rows, n_frames) for n_rows, n_frames in passes]
        there.append(sum(lap[0] for lap in laps))
        back.append(sum(lap[1] for lap in laps))
    return Times.of(there), Times.of(back)
