"""Makes all graphs of one export in order; after one fails its proof, no other is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge_asr.bundle.manifest import Precision
from edge_asr.calibration.decoders import make_int8_decoder
from edge_asr.calibration.int8 import Int8Options, choose_calibration_set
from edge_asr.calibration.proof import Int8Graph, make_int8
from edge_asr.export.decoders.make import DecoderGraph, make_decoder
from edge_asr.export.float32 import Float32Graph, StoredGraph, make_float32, make_stored
from edge_asr.export.fp16.proof import Fp16Graph, make_fp16
from edge_asr.export.streaming.plan import StreamingPlan
from edge_asr.export.streaming.proof import StreamGraph, make_stored_stream, make_stream
from edge_asr.proof.compare import ProofStep
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Stages

if TYPE_CHECKING:
    import onnx

    from edge_asr.checkpoints import Checkpoint

Weights = Literal["fp32", "fp16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to make; `export_bundle` explains each."""

    name: str
    precisions: tuple[Precision, ...]
    weights: Weights
    opset: int
    int8: Int8Options


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraphs:
    """The graphs, each with its proof; None if it was not requested, or an earlier one failed.

    Attributes:
        float32: the graph from which all others but the stream are made.
        stream: the streaming graph.
        decoder: the attention decoder.
        stored: the float32 graph with its weights stored as float16.
        fp16, int8: the graphs of these precisions.
        stream_stored, stream_int8: the streaming graph, likewise.
    """

    float32: Float32Graph
    stream: StreamGraph | None = None
    decoder: DecoderGraph | None = None
    stored: StoredGraph | None = None
    fp16: Fp16Graph | None = None
    int8: Int8Graph | None = None
    stream_stored: StoredGraph | None = None
    stream_int8: Int8Graph | None = None

    @property
    def shipped(self) -> onnx.ModelProto:
        """Return the graph that becomes model.onnx."""
        return self.float32.model if self.stored is None else self.stored.model

    @property
    def weights(self) -> Weights:
        """Say how model.onnx stores its weights."""
        return "fp32" if self.stored is None else "fp16"

    @property
    def steps(self) -> tuple[ProofStep, ...]:
        """Return the comparisons, in the order of the chain."""
        return (
            self.float32.step,
            *(() if self.stream is None else self.stream.steps),
            *(() if self.decoder is None else self.decoder.steps),
            *(graph.step for graph in (self.stored, self.stream_stored, *self._int8) if graph is not None),
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """Say in sentences what failed, in the order of the chain."""
        int8_steps = [id(graph.step) for graph in self._int8]
        failures = [s.failure_message() for s in self.steps if not s.passed and id(s) not in int8_steps]
        if self.fp16 is not None and not self.fp16.proof.passed:
            failures.append(self.fp16.proof.failure_message())
        return (*failures, *(graph.failure for graph in self._int8 if graph.failure is not None))

    @property
    def _int8(self) -> tuple[Int8Graph, ...]:
        return tuple(graph for graph in (self.int8, self.stream_int8) if graph is not None)


def make_graphs_of_torch(
    checkpoint: Checkpoint,
    plan: StreamingPlan,
    inputs: ProofInputs,
    options: ExportOptions,
    stages: Stages,
) -> ExportedGraphs:
    """Make the graphs that come from PyTorch: float32 and, where there are any, the stream and the decoder.

    Raises:
        ConfigError, GateError: see `make_float32`, `make_stream` and `make_decoder`.
    """
    named: dict[str, Any] = {"name": options.name, "opset": options.opset}
    graphs = ExportedGraphs(float32=make_float32(checkpoint, inputs, stages, **named))
    if plan.stream is not None and not graphs.failures:
        stream = make_stream(checkpoint, plan.stream, inputs, stages, layout=plan.layout, **named)
        graphs = dataclasses.replace(graphs, stream=stream)
    if checkpoint.model_config.decoder is not None and not graphs.failures:
        decoder = make_decoder(checkpoint, graphs.float32.model, inputs, stages, **named)
        graphs = dataclasses.replace(graphs, decoder=decoder)
    return graphs


def make_graphs_of_float32(
    graphs: ExportedGraphs, inputs: ProofInputs, options: ExportOptions, stages: Stages
) -> ExportedGraphs:
    """Add the graphs that come from the float32 one: with weights stored as float16, FP16, INT8.

    Raises:
        GateError: a graph cannot be converted.
        ManifestError, AudioError, ConfigError: calibration speech cannot be used.
    """
    float32, stream = graphs.float32, graphs.stream
    if options.weights == "fp16" and not graphs.failures:
        graphs = dataclasses.replace(graphs, stored=make_stored(float32, inputs, stages))
        if stream is not None and not graphs.failures:
            graphs = dataclasses.replace(graphs, stream_stored=make_stored_stream(stream, inputs, stages))
    if graphs.failures or not {"fp16", "int8"}.intersection(options.precisions):
        return graphs
    with stages.stage("choose calibration speech"):
        speech = choose_calibration_set(options.int8, inputs.features.sample_rate)
    if "fp16" in options.precisions:
        fp16 = make_fp16(float32.model, float32.outputs, inputs, stages, calibration=speech)
        graphs = dataclasses.replace(graphs, fp16=fp16)
    if "int8" in options.precisions and not graphs.failures:
        int8 = make_int8(
            float32.model, options.int8, inputs, stages, reference=float32.outputs, calibration=speech
        )
        graphs = dataclasses.replace(graphs, int8=int8)
    if "int8" in options.precisions and graphs.decoder is not None and not graphs.failures:
        decoder = graphs.decoder
        made = make_int8_decoder(
            decoder.directions, float32.model, decoder.weights, options.int8, speech, inputs, stages
        )
        graphs = dataclasses.replace(graphs, decoder=dataclasses.replace(decoder, int8=made))
    if "int8" in options.precisions and stream is not None and not graphs.failures:
        stream_int8 = make_int8(
            stream.model,
            options.int8,
            inputs,
            stages,
            reference=stream.outputs,
            calibration=speech,
            stream=stream.geometry,
        )
        graphs = dataclasses.replace(graphs, stream_int8=stream_int8)
    return graphs
