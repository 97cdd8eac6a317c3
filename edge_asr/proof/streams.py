"""Runs a streaming graph as a proof runs any model: whole clips in, the log-probs of all their frames out.

`LockstepStreams` takes a batch of clips as streams that begin together, `PushedStream` one clip whose
features come in uneven pieces, as from a microphone.
What this file does not do: make a streaming graph (edge_asr.export.streaming), judge it (compare.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.graph.mapped import MappedGraph
from edge_asr.proof.cases import ProofCase
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]
#: Name in reports of the float32 streaming graph.
STREAMED_NAME = "streaming ONNX"
_MAX_EDGE_FRAMES = 3000
_PIECES = (1, 37, 160, 5, 64)  # feature frames pushed at a time, in turn


class Step(Protocol):
    """A streaming step, in PyTorch or ONNX; see `StreamingModel`."""

    geometry: StreamingGeometry

    def initial_caches(self, batch: int = 1) -> Any:
        """Return the state of new streams."""
        ...

    def run_step(
        self, features: F32Array, feature_lens: I64Array, caches: Any
    ) -> tuple[F32Array, I64Array, Any]:
        """Run a window of each stream: log-probs, the number of valid ones of each row, the next state."""
        ...


class StepRun(NamedTuple):
    """One step of a batch of streams: what it was given, its log-probs, how many of each row are valid."""

    window: F32Array
    lengths: I64Array
    caches: Any
    log_probs: F32Array
    n_valid: I64Array


class LockstepStreams:
    """A step as a `LogProbModel`: the rows of a batch are streams that begin together."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `LogProbModel`."""
        parts: list[list[F32Array]] = [[] for _ in features]
        for run in self.steps(features, feature_lens):
            for row, count in enumerate(run.n_valid):
                parts[row].append(run.log_probs[row, :count])
        return _padded_rows(
            parts, (len(features), self._step.geometry.output_frames.n_graph(features.shape[1]))
        )

    def steps(self, features: F32Array, feature_lens: I64Array) -> Iterator[StepRun]:
        """Run all steps of a padded batch, one after the other."""
        geometry = self._step.geometry
        n_rows, _, n_mels = features.shape
        n_frames = max(geometry.output_frames.n_valid(int(n)) for n in feature_lens)
        caches = self._step.initial_caches(n_rows)
        for number in range(-(-n_frames // geometry.chunk_frames)):
            start, stop = geometry.window(number)
            window = np.zeros((n_rows, stop - start, n_mels), np.float32)
            there = features[:, start:stop]
            window[:, : there.shape[1]] = there
            lengths = np.clip(feature_lens - start, 0, stop - start)
            log_probs, n_valid, following = self._step.run_step(window, lengths, caches)
            yield StepRun(window, lengths, caches, log_probs, n_valid)
            caches = following


class PushedStream:
    """A streaming graph as a `LogProbModel` of one row, whose features come in uneven pieces."""

    def __init__(self, model: StreamingModel) -> None:
        self._model = model

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `LogProbModel`."""
        state = self._model.start()
        (row,), n_features = features, int(feature_lens[0])
        parts: list[F32Array] = []
        done = 0
        while done < n_features:
            size = _PIECES[len(parts) % len(_PIECES)]
            parts.append(self._model.push(state, row[done : min(done + size, n_features)]))
            done += size
        parts.append(self._model.flush(state))
        shape = (1, self._model.geometry.output_frames.n_graph(features.shape[1]))
        return _padded_rows([parts], shape)


def _padded_rows(parts: Sequence[Sequence[F32Array]], shape: tuple[int, int]) -> F32Array:
    """Pad the frames of each row with zeros; a row with too many frames is an error."""
    rows = [np.concatenate(row) if row else np.zeros((0, 1), np.float32) for row in parts]
    padded = np.zeros((*shape, max(row.shape[1] for row in rows)), np.float32)
    for index, row in enumerate(rows):
        if len(row) > shape[1]:
            raise ValueError(f"the stream gave {len(row)} frames instead of {shape[1]}")
        padded[index, : len(row)] = row
    return padded


def stream_cases(cases: Sequence[ProofCase], geometry: StreamingGeometry) -> list[ProofCase]:
    """Build the cases of a stream: real clips, signals, padded batches, lengths around the first windows.

    Args:
        cases: the cases of the offline proof.
        geometry: that of the stream.
    """
    kept = [case for case in cases if case.family in ("real", "signal", "padded")]
    longest = max((row for case in cases for row in case.features), key=len)
    ends = [geometry.window(step)[1] for step in (0, 1, 2)]
    factor = geometry.subsampling_factor
    counts = {
        1,
        factor,
        factor + 1,
        *(end + step for end in ends for step in (-factor, -1, 0, 1, factor - 1)),
    }
    for n_frames in sorted(n for n in counts if 0 < n <= min(len(longest), _MAX_EDGE_FRAMES)):
        name = f"{n_frames} frames"
        kept.append(ProofCase(family="subsampling_edge", name=name, features=(longest[:n_frames],)))
    return kept


@contextlib.contextmanager
def open_stream(
    model: onnx.ModelProto | MappedGraph,
    geometry: StreamingGeometry,
    *,
    n_mels: int,
    vocab_size: int,
    num_threads: int | None = None,
    rewritten: bool = False,
) -> Iterator[StreamingModel]:
    """Open a streaming graph in memory with the runtime's own code; it is closed at the end of the block.

    A graph that is mapped already stays open.

    Raises:
        BackendError: onnxruntime cannot load it.
    """
    with contextlib.nullcontext(model) if isinstance(model, MappedGraph) else MappedGraph(model) as graph:
        backend = OnnxRuntimeBackend(
            graph.path, precision="fp32", num_threads=num_threads, rewritten=rewritten
        )
        streaming = StreamingModel(backend, geometry, n_mels=n_mels, vocab_size=vocab_size)
        try:
            yield streaming
        finally:
            streaming.close()
