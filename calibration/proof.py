"""Makes an INT8 graph that may ship: quantize, check, run on every case, keep a copy for the CPU.

`edge-asr export` and `edge-asr quantize` both use this file, for the offline graph and for the stream. The
budget bounds the loss on speech (int8.py);
a case fails only on an error, NaN or a wrong shape. Only a graph that passed both gets a copy for the CPU,
because no other is ever run from a bundle.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.bundle.manifest import Artifact
from edge_asr.bundle.names import CPU_GRAPH_NAME, PLOT_NAME, STREAM_CPU_GRAPH_NAME, STREAM_INT8_NAME
from edge_asr.bundle.writer import write_cpu_graph, write_model
from edge_asr.calibration.cpu_graph import make_cpu_graph
from edge_asr.calibration.forms import WHOLE_CLIPS, GraphForm, StreamSteps
from edge_asr.calibration.int8 import Int8Options, Int8Result, quantize_to_int8
from edge_asr.calibration.plot import write_plot
from edge_asr.graph.check import check_graph, check_model
from edge_asr.proof.compare import Outputs, ProofStep, Tolerance
from edge_asr.proof.inputs import FLOAT32_NAME, ProofInputs
from edge_asr.proof.stages import Stages
from edge_asr.proof.streams import STREAMED_NAME, stream_cases
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    import onnx

    from edge_asr.calibration.calibration_set import CalibrationSet

#: The budget bounds what INT8 may lose; a case fails only on an error, NaN or a wrong shape.
INT8_TOLERANCE = Tolerance(max_error=None, text_families=())
INT8_NAME = "ONNX INT8"
STREAMED_INT8_NAME = "streaming ONNX INT8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Graph:
    """An INT8 graph and its proof.

    Attributes:
        result: the graph, how it was made, and what it loses.
        step: its run on every case, against float32.
        cpu_graph: the graph for onnxruntime's CPU provider (cpu_graph.py); None if the proof failed, or
            onnxruntime makes no graph with the same outputs.
    """

    result: Int8Result
    step: ProofStep
    cpu_graph: onnx.ModelProto | None

    @property
    def failure(self) -> str | None:
        """Say in a sentence why it may not ship; None if it passed."""
        return find_failure(self.result, self.step)

    @property
    def is_stream(self) -> bool:
        """Tell whether it is the INT8 form of stream.onnx."""
        return self.step.candidate == STREAMED_INT8_NAME

    def write(self, folder: Path) -> Artifact:
        """Write it and its copy for the CPU into a bundle, and describe it; the offline one with the plot."""
        result = self.result
        file, copy = None, CPU_GRAPH_NAME
        if self.is_stream:
            file, copy = STREAM_INT8_NAME, STREAM_CPU_GRAPH_NAME
        else:
            write_plot(result.sensitivity, result.float32_bytes, folder / PLOT_NAME)
        ratio = result.time_ratio
        artifact = write_model(folder, result.model, "int8", "int8", file=file, cpu_time_over_fp32=ratio)
        if self.cpu_graph is None:
            return artifact
        cpu_graph = write_cpu_graph(folder, self.cpu_graph, artifact, file=copy)
        return dataclasses.replace(artifact, cpu_graph=cpu_graph)


def make_int8(
    model: onnx.ModelProto,
    options: Int8Options,
    inputs: ProofInputs,
    stages: Stages,
    *,
    reference: Outputs | None = None,
    calibration: CalibrationSet | None = None,
    stream: StreamingGeometry | None = None,
) -> Int8Graph:
    """Quantize a float32 graph and prove the result; check `failure` of the result.

    Args:
        model: the float32 graph, its nodes named by edge-asr's exporter.
        options: how to quantize.
        inputs: inputs that the INT8 graph is run on.
        stages: the stages of the export or the quantization.
        reference: outputs of `model` for the cases; None runs it.
        calibration: the speech of `options`, if it was already chosen.
        stream: the geometry of a streaming graph, which is calibrated and measured step by step.

    Raises:
        GateError: the quantized graph is not valid, or the float32 one itself fails.
        ManifestError, AudioError, ConfigError: speech or options cannot be used.
        BundleError: the nodes of the graph have no names to choose by.
    """
    form: GraphForm = WHOLE_CLIPS
    names = FLOAT32_NAME, INT8_NAME
    if stream is not None:
        form = StreamSteps(stream, n_mels=inputs.features.n_mels, vocab_size=len(inputs.vocabulary))
        names = STREAMED_NAME, STREAMED_INT8_NAME
        inputs = dataclasses.replace(inputs, cases=stream_cases(inputs.cases, stream))
    with stages.stage(form.label):
        result = quantize_to_int8(
            model,
            inputs.features,
            inputs.vocabulary,
            options,
            stages.progress,
            output_frames=inputs.output_frames,
            chosen=calibration,
            form=form,
        )
        check = check_graph if stream is None else check_model
        check(result.model)
    if reference is None:
        with form.open(model) as float32:
            reference = inputs.run(float32, stages, f"prove: {form.label.replace('int8', 'float32')}")
    with form.open(result.model) as int8:
        outputs = inputs.run(int8, stages, f"prove: {form.label}")
    step = inputs.compare(reference, outputs, *names, INT8_TOLERANCE)
    cpu_graph = None
    if find_failure(result, step) is None:
        with stages.stage(f"{form.label} for the CPU") as progress:
            cpu_graph = make_cpu_graph(
                result.model, inputs.cases, outputs, inputs.output_frames, progress, form=form
            )
    return Int8Graph(result=result, step=step, cpu_graph=cpu_graph)


def find_failure(result: Int8Result, step: ProofStep) -> str | None:
    """Say in a sentence why an INT8 graph may not ship; None if it passed."""
    return result.failure if step.passed else step.failure_message()
