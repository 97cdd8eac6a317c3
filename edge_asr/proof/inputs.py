"""The inputs that all proofs of a model share, and running and comparing graphs on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.graph.session import open_graph
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import (
    LogProbModel,
    Outputs,
    ProofStep,
    Tolerance,
    compare_outputs,
    run_cases,
)
from edge_asr.proof.stages import Stages
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

#: Name in reports of the float32 graph that the other precisions are compared with.
FLOAT32_NAME = "ONNX simplified"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofInputs:
    """The inputs of all proofs of one model.

    Attributes:
        cases: the cases that each model is run on.
        features: front end of the model.
        vocabulary: that of the model, for the greedy text.
        output_frames: how many output frames a clip gives.
    """

    cases: Sequence[ProofCase]
    features: FeatureConfig
    vocabulary: Vocabulary
    output_frames: OutputFrames

    def run(self, model: LogProbModel, stages: Stages, stage: str, *, rows_alone: bool = False) -> Outputs:
        """Run a model on every case, as a stage of that name; see `run_cases`."""
        with stages.stage(stage) as progress:
            return run_cases(model, self.cases, self.output_frames, rows_alone=rows_alone, progress=progress)

    def run_graph(self, graph: onnx.ModelProto, stages: Stages, stage: str) -> Outputs:
        """Run an ONNX graph on every case with onnxruntime, as a stage of that name."""
        with open_graph(graph) as backend:
            return self.run(backend, stages, stage)

    def compare(
        self,
        reference: Outputs,
        candidate: Outputs,
        reference_name: str,
        candidate_name: str,
        tolerance: Tolerance,
    ) -> ProofStep:
        """Make one step of the proof from the outputs of two models; see `compare_outputs`."""
        return compare_outputs(
            reference,
            candidate,
            self.cases,
            self.vocabulary,
            reference_name=reference_name,
            candidate_name=candidate_name,
            tolerance=tolerance,
        )
