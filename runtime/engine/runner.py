"""Runs the plan of an offline graph at given shapes: stages a batch, runs it, gives its log-probs.

The caller (backend.py) chooses profile and shape of a request and holds the lock; contexts, memory and
recordings are in loaded.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import ENCODED_NAME
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.loaded import Lane, LoadedPlan
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.engine.tensors import FEATURES, RunShape, TensorSpec

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]

LENGTHS, LOG_PROBS = "length", "logprobs"
MAX_CUDA_GRAPHS = 16
"""Recorded shapes: a row of every length on the grid up to 82 s (x4), and a few batches."""
FLOAT = {"FLOAT": np.float32}
COUNT = {"INT64": np.int64, "INT32": np.int32}


class EngineRunner:
    """A loaded plan of an offline graph. Not thread-safe: one call at a time.

    Args:
        plan: content of the plan file, checked by the caller.
        sidecar: the sidecar of the plan; its profiles must be those of the plan.
        trt: the module of the sidecar's flavor.
        cuda: the device to run on.
        shares_memory: whether that device's memory is the host's.
        n_mels: feature channels.
        encoded: whether the graph also gives what an attention decoder attends to.
        use_cuda_graphs: whether `warm_up` records.
        waits_asleep, kernel_cache: see `LoadedPlan`.

    Raises:
        EngineError: TensorRT refuses the plan, or the plan differs from the sidecar.
        DeviceError: CUDA failed, most likely because memory ran out.
    """

    def __init__(
        self,
        plan: bytes,
        sidecar: EngineSidecar,
        *,
        trt: ModuleType,
        cuda: Cuda,
        shares_memory: bool = False,
        n_mels: int,
        encoded: bool = False,
        use_cuda_graphs: bool,
        waits_asleep: bool | None = None,
        kernel_cache: Path | None = None,
    ) -> None:
        self._n_mels = n_mels
        self._outputs = (LOG_PROBS, ENCODED_NAME) if encoded else (LOG_PROBS,)
        tensors = {
            FEATURES: TensorSpec(dtypes=FLOAT, dims=lambda shape: (shape.n_batch, n_mels, shape.n_frames)),
            LENGTHS: TensorSpec(dtypes=COUNT, dims=lambda shape: (shape.n_batch,)),
            **{name: TensorSpec(dtypes=FLOAT, dims=None) for name in self._outputs},
        }
        self._plan = LoadedPlan(
            plan,
            sidecar.profiles,
            tensors,
            trt=trt,
            cuda=cuda,
            shares_memory=shares_memory,
            use_cuda_graphs=use_cuda_graphs,
            waits_asleep=waits_asleep,
            max_graphs=MAX_CUDA_GRAPHS,
            kernel_cache=kernel_cache,
        )

    def run(self, shape: RunShape, features: F32Array, feature_lens: I64Array) -> tuple[F32Array, ...]:
        """Run a batch, padded to `shape` with zero frames, and with rows of one frame.

        Args:
            shape: within its profile, and not smaller than the batch.
            features: [B, T, n_mels].
            feature_lens: [B], valid frames of each row.

        Returns:
            Log-probs [B, T', V] and, of a graph that gives them, frames of the encoder [B, T', D], copies;
            T' belongs to the frames of `shape`.

        Raises:
            EngineError: TensorRT refused the shape or the run.
            DeviceError: CUDA failed.
        """
        lane = self._stage(shape, features, feature_lens)
        try:
            dims = self._plan.queue(shape)
            self._plan.wait()
        except BaseException:
            self._plan.discard()
            raise
        return tuple(
            lane.buffers[name].view(dims[name], np.float32)[: len(features)].copy() for name in self._outputs
        )

    def warm_up(self, shape: RunShape) -> None:
        """Record a shape, or let TensorRT-RTX compile it, on silence.

        Raises:
            EngineError: TensorRT refused the shape or the run.
            DeviceError: CUDA failed.
        """
        if self._plan.has_recorded(shape):
            return
        silence = np.zeros((shape.n_batch, shape.n_frames, self._n_mels), np.float32)
        self._stage(shape, silence, np.full(shape.n_batch, shape.n_frames, np.int64))
        try:
            self._plan.record(shape)
        except BaseException:
            self._plan.discard()
            raise

    def time_copies(self, shape: RunShape) -> tuple[float, float]:
        """Time the copies of a run alone, in seconds, to the device and back, whatever the buffers hold.

        Raises:
            EngineError: TensorRT refused the shape.
            DeviceError: CUDA failed.
        """
        lane = self._plan.lane(shape.profile)
        outputs = self._plan.output_dims(shape)
        began = time.perf_counter()
        self._plan.queue_inputs(lane, shape)
        self._plan.wait()
        arrived = time.perf_counter()
        self._plan.queue_outputs(lane, outputs)
        self._plan.wait()
        return arrived - began, time.perf_counter() - arrived

    def describe_runs(self) -> str:
        """Say how many runs were replayed, for logs."""
        return self._plan.describe_runs()

    def close(self) -> None:
        """Release everything. May be called twice."""
        self._plan.close()

    def _stage(self, shape: RunShape, features: F32Array, feature_lens: I64Array) -> Lane:
        lane = self._plan.lane(shape.profile)
        n_rows, n_frames, _ = features.shape
        staged = lane.buffers[FEATURES].view((shape.n_batch, self._n_mels, shape.n_frames), np.float32)
        staged[:n_rows, :, :n_frames] = features.transpose(0, 2, 1)
        staged[:n_rows, :, n_frames:] = 0.0
        staged[n_rows:] = 0.0
        lens = lane.buffers[LENGTHS].view((shape.n_batch,), self._plan.dtypes[LENGTHS])
        lens[:n_rows] = feature_lens
        lens[n_rows:] = 1
        return lane
