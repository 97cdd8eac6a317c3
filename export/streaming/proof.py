"""Proves a streaming graph: chunk by chunk, against the offline model of the same context.

The offline model sees whole clips and its own padding, and every one of its frames is compared, so the stream
loses none. The stream gets the features of a clip in uneven pieces (StreamingModel), and also in padded
batches whose rows end at different steps. Lengths lie around every edge of the first windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.writer import onnx_metadata
from edge_asr.export.decoders.proof import prove_streamed_encoder
from edge_asr.export.float32 import FP16_WEIGHTS_TOLERANCE, StoredGraph
from edge_asr.export.optimize import set_metadata
from edge_asr.export.streaming.graph import check_stream, make_stream_graph, stream_metadata
from edge_asr.graph.weights import store_weights_as_float16
from edge_asr.model.streamable import geometry_from_config
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs, ProofStep, run_cases
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Progress, Stages
from edge_asr.proof.streams import STREAMED_NAME, LockstepStreams, PushedStream, open_stream, stream_cases
from edge_asr.proof.truth import compare_to_truth, run_truth
from edge_asr.stream_geometry import StreamingGeometry, StreamLayout
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

    from edge_asr.checkpoints import Checkpoint
    from edge_asr.model import ConformerConfig, ConformerCTC
    from edge_asr.model.streaming import StreamingStep

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamGraph:
    """A streaming graph, its geometry and its proof.

    Attributes:
        model: the graph, with its metadata.
        geometry: that of the stream.
        steps: the comparisons, in order.
        outputs: its outputs for the cases of a stream, each row alone; the reference of other precisions.
    """

    model: onnx.ModelProto
    geometry: StreamingGeometry
    steps: tuple[ProofStep, ...]
    outputs: Outputs


def make_stream(
    checkpoint: Checkpoint,
    config: ConformerConfig,
    inputs: ProofInputs,
    stages: Stages,
    *,
    layout: StreamLayout,
    name: str,
    opset: int,
) -> StreamGraph:
    """Export the streaming graph of a checkpoint and prove it; check the `steps` of the result.

    Args:
        checkpoint: what to export.
        config: that of the same model, with the context of the stream.
        inputs: those of the offline proof.
        stages: those of the export.
        layout: of the caches.
        name: that of the model, for the metadata of the graph.
        opset: ONNX opset, 18 to 22.

    Raises:
        GateError: the graph fails its checks, or a reference itself failed.
    """
    geometry = geometry_from_config(config, inputs.features, layout)
    model = dataclasses.replace(checkpoint, model_config=config).build_model()
    with stages.stage("export: streaming"):
        graph = make_stream_graph(model, geometry, opset=opset)
        metadata = onnx_metadata(name, inputs.features, inputs.vocabulary, config.subsampling_factor)
        set_metadata(graph, {**metadata, **stream_metadata(geometry)})
    with stages.stage("prove: streaming") as progress:
        chosen = stream_cases(inputs.cases, geometry)
        steps, outputs = prove_stream(model, graph, geometry, chosen, inputs.vocabulary, progress)
    return StreamGraph(model=graph, geometry=geometry, steps=steps, outputs=outputs)


def make_stored_stream(stream: StreamGraph, inputs: ProofInputs, stages: Stages) -> StoredGraph:
    """Do for the stream what `make_stored` does for the float32 graph.

    Raises:
        GateError: a weight exceeds the range of float16.
    """
    cases = stream_cases(inputs.cases, stream.geometry)
    inputs = dataclasses.replace(inputs, cases=cases)
    sizes: dict[str, Any] = {"n_mels": inputs.features.n_mels, "vocab_size": len(inputs.vocabulary)}
    with stages.stage("store weights as fp16"):
        model = store_weights_as_float16(stream.model)
        check_stream(model, stream.geometry)
    with open_stream(model, stream.geometry, **sizes) as opened:
        outputs = inputs.run(LockstepStreams(opened), stages, "prove: fp16 weights")
    name = f"{STREAMED_NAME} with fp16 weights"
    step = inputs.compare(stream.outputs, outputs, STREAMED_NAME, name, FP16_WEIGHTS_TOLERANCE)
    return StoredGraph(model=model, step=step)


def prove_stream(
    model: ConformerCTC,
    graph: onnx.ModelProto,
    geometry: StreamingGeometry,
    cases: Sequence[ProofCase],
    vocabulary: Vocabulary,
    progress: Progress | None = None,
) -> tuple[tuple[ProofStep, ...], Outputs]:
    """Compare a streaming graph with the offline model of the same context, which sees each clip whole.

    Args:
        model: the model in PyTorch with the stream's context; it stays float64.
        graph: the streaming graph, run in padded batches and, clip by clip, on features in uneven pieces.
        geometry: that of the stream.
        cases: from `stream_cases`.
        vocabulary: for the greedy text.
        progress: called after each case of each run.

    Returns:
        The comparisons, and the outputs of the graph with each row alone.

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
        encoder = () if model.decoder is None else (prove_streamed_encoder(model, stream, cases),)
    steps = (
        compare_to_truth(truth, outputs, cases, vocabulary, name=name)
        for outputs, name in ((batched, STREAMED_NAME), (pushed, f"{STREAMED_NAME} in pieces"))
    )
    return (*steps, *encoder), pushed
