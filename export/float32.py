"""The float32 graph of a checkpoint: exported, simplified, checked, and proven against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.bundle.writer import onnx_metadata
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import count_operators, set_metadata, simplify_graph
from edge_asr.graph.check import check_graph
from edge_asr.graph.weights import store_weights_as_float16
from edge_asr.proof.compare import Outputs, ProofStep, Tolerance
from edge_asr.proof.inputs import FLOAT32_NAME, ProofInputs
from edge_asr.proof.stages import Stages
from edge_asr.proof.truth import compare_to_truth, run_truth

if TYPE_CHECKING:
    import onnx

    from edge_asr.checkpoints import Checkpoint

#: fp16 weights change the third decimal: the text on real speech must hold, but for a token that leads by
#: less than 51 to 49 percent, and the error is reported.
FP16_WEIGHTS_TOLERANCE = Tolerance(max_error=None, text_families=("real",), text_margin=0.04)


@dataclass(frozen=True, slots=True, kw_only=True)
class Float32Graph:
    """The float32 graph and its proof.

    Attributes:
        model: the simplified graph.
        outputs: its outputs for the cases, the reference of the other precisions.
        step: the comparison with PyTorch.
        n_parameters: trained parameters of the PyTorch model.
        exported_operators: node counts before the simplification.
    """

    model: onnx.ModelProto
    outputs: Outputs
    step: ProofStep
    n_parameters: int
    exported_operators: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGraph:
    """The float32 graph with its weights stored as float16, and the comparison with the original."""

    model: onnx.ModelProto
    step: ProofStep


def make_float32(
    checkpoint: Checkpoint, inputs: ProofInputs, stages: Stages, *, name: str, opset: int
) -> Float32Graph:
    """Export a checkpoint, simplify the graph and prove it; check the `step` of the result.

    Args:
        checkpoint: what to export.
        inputs: those of the proof.
        stages: those of the export.
        name: that of the model, for the metadata of the graph.
        opset: ONNX opset, 18 to 22.

    Raises:
        ConfigError: the opset is outside 18 to 22.
        GateError: the simplified graph is not valid, or PyTorch itself fails.
    """
    from edge_asr.export.inference_form import to_inference_form  # imports torch

    with stages.stage("rewrite"):
        model = checkpoint.build_model()
        n_parameters = sum(p.numel() for p in model.parameters())
        rewritten = to_inference_form(model)
    with stages.stage("export"):
        encoded = checkpoint.model_config.decoder is not None
        exported = export_onnx(rewritten, inputs.features.n_mels, opset=opset, encoded=encoded)
        exported_operators = count_operators(exported)
    # A copy of a large model takes half a gigabyte, so unneeded ones are dropped.
    del rewritten
    with stages.stage("prove: PyTorch") as progress:
        truth = run_truth(model, inputs.cases, inputs.output_frames, progress=progress)
    del model
    with stages.stage("simplify"):
        simplified = simplify_graph(exported, inputs.features.n_mels)
        factor = checkpoint.model_config.subsampling_factor
        set_metadata(simplified, onnx_metadata(name, inputs.features, inputs.vocabulary, factor))
        del exported
    with stages.stage("check"):
        check_graph(simplified)
    outputs = inputs.run_graph(simplified, stages, "prove: ONNX simplified")
    step = compare_to_truth(truth, outputs, inputs.cases, inputs.vocabulary, name=FLOAT32_NAME)
    return Float32Graph(
        model=simplified,
        outputs=outputs,
        step=step,
        n_parameters=n_parameters,
        exported_operators=exported_operators,
    )


def make_stored(float32: Float32Graph, inputs: ProofInputs, stages: Stages) -> StoredGraph:
    """Store the weights as float16 and compare with the float32 graph; check the `step` of the result.

    Raises:
        GateError: a weight exceeds the range of float16.
    """
    with stages.stage("store weights as fp16"):
        model = store_weights_as_float16(float32.model)
        check_graph(model)
    outputs = inputs.run_graph(model, stages, "prove: fp16 weights")
    step = inputs.compare(
        float32.outputs, outputs, FLOAT32_NAME, "ONNX with fp16 weights", FP16_WEIGHTS_TOLERANCE
    )
    return StoredGraph(model=model, step=step)
