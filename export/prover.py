"""The proof of an export: each model of the chain runs once over the cases, and neighbours are compared."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from edge_asr.calibration.cpu_graph import make_cpu_graph
from edge_asr.calibration.proof import INT8_TOLERANCE
from edge_asr.graph.check import check_graph
from edge_asr.graph.session import open_graph
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import (
    LogProbModel,
    Outputs,
    ProofStep,
    Tolerance,
    TorchModel,
    compare_outputs,
    run_cases,
)
from edge_asr.proof.stages import StageProgress, Stages

if TYPE_CHECKING:
    import onnx

    from edge_asr.calibration.calibration_set import CalibrationSet
    from edge_asr.calibration.int8 import Int8Options, Int8Result
    from edge_asr.export.fp16.proof import Fp16Proof
    from edge_asr.feature_config import FeatureConfig
    from edge_asr.frames import OutputFrames
    from edge_asr.vocabulary import Vocabulary


#: fp16 weights change numbers in the third decimal: the text on real speech must hold, the error is reported.
FP16_WEIGHTS_TOLERANCE = Tolerance(max_error=None, text_families=("real",))


class ExportRun(Stages):
    """The stages of one export, and what has been proven so far."""

    def __init__(self, progress: StageProgress | None) -> None:
        super().__init__(progress)
        self.steps: list[ProofStep] = []


class Prover:
    """Remembers what the models gave that are still to be compared with; steps go to the run."""

    def __init__(
        self,
        run: ExportRun,
        cases: list[ProofCase],
        features: FeatureConfig,
        vocabulary: Vocabulary,
        output_frames: OutputFrames,
        int8: Int8Options | None,
    ) -> None:
        self._run = run
        self._cases = cases
        self._features = features
        self._vocabulary = vocabulary
        self._output_frames = output_frames
        self._int8 = int8
        self._calibration: CalibrationSet | None = None
        self._reference: Outputs = []
        self._exported: Outputs = []
        self._float32: Outputs = []

    def run_reference(self, model: Any) -> None:
        """PyTorch, each row alone."""
        self._reference = self._outputs("prove: PyTorch", TorchModel(model), rows_alone=True)

    def prove_export(self, exported: onnx.ModelProto) -> None:
        """PyTorch against the graph as the exporter wrote it."""
        self._exported = self._onnx_outputs("prove: ONNX as exported", exported)
        self._compare(self._reference, self._exported, "PyTorch", "ONNX as exported")

    def prove_simplified(self, simplified: onnx.ModelProto) -> None:
        """PyTorch, and the graph as exported, against the simplified one."""
        self._float32 = self._onnx_outputs("prove: ONNX simplified", simplified)
        if self._run.steps[-1].passed:  # a graph that failed is no reference
            self._compare(self._exported, self._float32, "ONNX as exported", "ONNX simplified")
        self._compare(self._reference, self._float32, "PyTorch", "ONNX simplified")
        self._reference, self._exported = [], []  # of a large vocabulary they are hundreds of megabytes

    def prove_weights(self, shipped: onnx.ModelProto) -> None:
        """The float32 graph against the one with float16 weights."""
        outputs = self._onnx_outputs("prove: fp16 weights", shipped)
        self._compare(
            self._float32, outputs, "ONNX simplified", "ONNX with fp16 weights", FP16_WEIGHTS_TOLERANCE
        )

    def prove_half(self, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Fp16Proof]:
        """The typed FP16 graph and its proof, which may have failed."""
        from edge_asr.export.fp16.convert import convert_to_fp16
        from edge_asr.export.fp16.proof import prove_fp16

        with self._run.stage("convert to fp16"):
            half = convert_to_fp16(model)
            check_graph(half)
        calibration = self._choose_calibration()
        with self._run.stage("prove: fp16") as progress:
            return half, prove_fp16(
                model,
                half,
                self._cases,
                self._float32,
                self._vocabulary,
                self._output_frames,
                calibration=calibration.features(self._features),
                progress=progress,
            )

    def prove_int8(self, model: onnx.ModelProto) -> Int8Result:
        """The INT8 graph, which may be over its budget; it is also run on every case."""
        from edge_asr.calibration.int8 import Int8Options, quantize_to_int8

        calibration = self._choose_calibration()
        with self._run.stage("int8"):
            result = quantize_to_int8(
                model,
                self._features,
                self._vocabulary,
                self._int8 or Int8Options(),
                self._run.progress,
                output_frames=self._output_frames,
                chosen=calibration,
            )
            check_graph(result.model)
        outputs = self._onnx_outputs("prove: int8", result.model)
        self._compare(self._float32, outputs, "ONNX simplified", "ONNX INT8", INT8_TOLERANCE)
        with self._run.stage("int8 for the CPU") as progress:
            cpu_graph = make_cpu_graph(result.model, self._cases, outputs, self._output_frames, progress)
        return dataclasses.replace(result, cpu_graph=cpu_graph)

    def _choose_calibration(self) -> CalibrationSet:
        """Speech for FP16's magnitudes and INT8's ranges, chosen once."""
        from edge_asr.calibration.int8 import Int8Options, choose_calibration_set

        if self._calibration is None:
            with self._run.stage("choose calibration speech"):
                self._calibration = choose_calibration_set(
                    self._int8 or Int8Options(), self._features.sample_rate
                )
        return self._calibration

    def _onnx_outputs(self, stage: str, model: onnx.ModelProto) -> Outputs:
        with open_graph(model) as backend:
            return self._outputs(stage, backend)

    def _outputs(self, stage: str, model: LogProbModel, *, rows_alone: bool = False) -> Outputs:
        with self._run.stage(stage) as progress:
            return run_cases(
                model, self._cases, self._output_frames, rows_alone=rows_alone, progress=progress
            )

    def _compare(
        self,
        reference: Outputs,
        candidate: Outputs,
        reference_name: str,
        candidate_name: str,
        tolerance: Tolerance | None = None,
    ) -> None:
        step = compare_outputs(
            reference,
            candidate,
            self._cases,
            self._vocabulary,
            reference_name=reference_name,
            candidate_name=candidate_name,
            tolerance=tolerance,
        )
        self._run.steps.append(step)
