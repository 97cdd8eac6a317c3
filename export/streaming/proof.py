"""Proves a streaming graph: chunk by chunk, against the offline model of the same context.

The offline model sees whole clips and its own padding, and every one of its frames is compared, so the stream
loses none. The stream gets the features of a clip in uneven pieces (StreamingModel), and also in padded
batches whose rows end at different steps. Lengths lie around every edge of the first windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.writer import onnx_metadata
from edge_asr.export.optimize import set_metadata
from edge_asr.export.streaming.graph import make_stream_graph, stream_metadata
from edge_asr.graph.mapped import MappedGraph
from edge_asr.model.streamable import geometry_from_config
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import ProofStep, run_cases
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Progress, Stages
from edge_asr.proof.truth import compare_to_truth, run_truth
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.stream_geometry import StreamingGeometry
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

    from edge_asr.checkpoints import Checkpoint
    from edge_asr.model import ConformerConfig, ConformerCTC
    from edge_asr.model.streaming import StreamingStep

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]
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


class TorchStep:
    """Runs the step in PyTorch as a `Step`."""

    def __init__(self, step: StreamingStep) -> None:
        self.geometry = step.geometry
        self._step = step.eval()

    def initial_caches(self, batch: int = 1) -> Any:
        """See `Step`."""
        return self._step.initial_state(batch)

    def run_step(
        self, features: F32Array, feature_lens: I64Array, caches: Any
    ) -> tuple[F32Array, I64Array, Any]:
        """See `Step`."""
        import torch

        with torch.inference_mode():
            log_probs, n_valid, following = self._step(
                torch.from_numpy(features), torch.from_numpy(feature_lens), caches
            )
        return log_probs.numpy(), n_valid.numpy(), following


class LockstepStreams:
    """A step as a `LogProbModel`: the rows of a batch are streams that begin together."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        """See `LogProbModel`."""
        geometry = self._step.geometry
        n_rows, n_features, n_mels = features.shape
        n_frames = [geometry.output_frames.n_valid(int(n)) for n in feature_lens]
        caches = self._step.initial_caches(n_rows)
        parts: list[list[F32Array]] = [[] for _ in range(n_rows)]
        for number in range(-(-max(n_frames) // geometry.chunk_frames)):
            start, stop = geometry.window(number)
            window = np.zeros((n_rows, stop - start, n_mels), np.float32)
            there = features[:, start:stop]
            window[:, : there.shape[1]] = there
            lengths = np.clip(feature_lens - start, 0, stop - start)
            log_probs, n_valid, caches = self._step.run_step(window, lengths, caches)
            for row, count in enumerate(n_valid):
                parts[row].append(log_probs[row, :count])
        shape = (n_rows, geometry.output_frames.n_graph(n_features))
        return _padded_rows(parts, shape)


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
    model: onnx.ModelProto,
    geometry: StreamingGeometry,
    *,
    n_mels: int,
    vocab_size: int,
    num_threads: int | None = None,
) -> Iterator[StreamingModel]:
    """Open a streaming graph in memory with the runtime's own code; it is closed at the end of the block.

    Raises:
        BackendError: onnxruntime cannot load it.
    """
    with MappedGraph(model) as graph:
        streaming = StreamingModel(
            graph.path, geometry, n_mels=n_mels, vocab_size=vocab_size, num_threads=num_threads
        )
        try:
            yield streaming
        finally:
            streaming.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamGraph:
    """A streaming graph, its geometry and its proof.

    Attributes:
        model: the graph, with its metadata.
        geometry: that of the stream.
        steps: the comparisons, in order.
    """

    model: onnx.ModelProto
    geometry: StreamingGeometry
    steps: tuple[ProofStep, ...]


def make_stream(
    checkpoint: Checkpoint,
    config: ConformerConfig,
    inputs: ProofInputs,
    stages: Stages,
    *,
    name: str,
    opset: int,
) -> StreamGraph:
    """Export the streaming graph of a checkpoint and prove it; check the `steps` of the result.

    Args:
        checkpoint: what to export.
        config: that of the same model, with the context of the stream.
        inputs: those of the offline proof.
        stages: those of the export.
        name: that of the model, for the metadata of the graph.
        opset: ONNX opset, 18 to 22.

    Raises:
        GateError: the graph fails its checks, or a reference itself failed.
    """
    geometry = geometry_from_config(config, inputs.features)
    model = dataclasses.replace(checkpoint, model_config=config).build_model()
    with stages.stage("export: streaming"):
        graph = make_stream_graph(model, geometry, opset=opset)
        metadata = onnx_metadata(name, inputs.features, inputs.vocabulary, config.subsampling_factor)
        set_metadata(graph, {**metadata, **stream_metadata(geometry)})
    with stages.stage("prove: streaming") as progress:
        chosen = stream_cases(inputs.cases, geometry)
        steps = prove_stream(model, graph, geometry, chosen, inputs.vocabulary, progress)
    return StreamGraph(model=graph, geometry=geometry, steps=tuple(steps))


def prove_stream(
    model: ConformerCTC,
    graph: onnx.ModelProto,
    geometry: StreamingGeometry,
    cases: Sequence[ProofCase],
    vocabulary: Vocabulary,
    progress: Progress | None = None,
) -> list[ProofStep]:
    """Compare a streaming graph with the offline model of the same context, which sees each clip whole.

    Args:
        model: the model in PyTorch with the stream's context; it stays float64.
        graph: the streaming graph, run in padded batches and, clip by clip, on features in uneven pieces.
        geometry: that of the stream.
        cases: from `stream_cases`.
        vocabulary: for the greedy text.
        progress: called after each case of each run.

    Raises:
        GateError: the model itself failed.
    """
    rule = geometry.output_frames
    n_cases, n_runs = len(cases), 3

    def report(run: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(run * n_cases + done * n_cases // total, n_runs * n_cases)

    truth = run_truth(model, cases, rule, name="PyTorch with the stream's context", progress=report(0))
    n_mels = model.config.n_mels
    with open_stream(graph, geometry, n_mels=n_mels, vocab_size=len(vocabulary)) as stream:
        batched = run_cases(LockstepStreams(stream), cases, rule, progress=report(1))
        pushed = run_cases(PushedStream(stream), cases, rule, rows_alone=True, progress=report(2))
    return [
        compare_to_truth(truth, outputs, cases, vocabulary, name=name)
        for outputs, name in ((batched, "streaming ONNX"), (pushed, "streaming ONNX in pieces"))
    ]
