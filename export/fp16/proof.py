"""Proves a typed FP16 graph, as far as a machine without a GPU can.

The proof has three parts: no float16 value comes near half's end of range (measured on the float32 graph,
over speech, full-scale noise and silence); the graph agrees with float32 when every value is rounded to half
where it is computed (rounding.py); the file loads on onnxruntime's CPU provider, which computes it in
float32, and agrees there. What a GPU's own kernels do is proven with the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.export.fp16.attention import join_biases, widen_softmax
from edge_asr.export.fp16.convert import FLOAT16_MAX, convert_to_fp16
from edge_asr.export.fp16.rounding import F32Array, RoundedModel, measure_peaks
from edge_asr.frames import OutputFrames
from edge_asr.graph.check import check_graph
from edge_asr.graph.session import open_graph
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import (
    Outputs,
    ProofStep,
    Tolerance,
    compare_outputs,
    run_cases,
    summarize_step,
)
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Progress, Stages
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import onnx

    from edge_asr.calibration.calibration_set import CalibrationSet

PEAK_LIMIT = FLOAT16_MAX / 4
MIN_AGREEMENT = 0.995
ROUNDED = "FP16 rounded after every node"
SHIPPED = "FP16 file on onnxruntime's CPU provider"
# Half's rounding changes the third decimal, so a case fails only on an error, NaN or a wrong shape.
_TOLERANCE = Tolerance(max_error=None, text_families=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16Proof:
    """The result of the proof.

    Attributes:
        peaks: largest magnitude by float16 value, weights included, the largest first.
        peak_limit: what they must stay below.
        rounded, shipped: the two runs against float32, case by case.
        rounded_agreement, shipped_agreement: fraction of the valid frames of all cases with the same most
            likely token; 0.0 if a case could not be compared.
        min_agreement: agreement that these must reach.
        n_clips: clips and batches that the peaks were measured on.
        n_calibration_clips: how many of these are clips of the calibration set.
        duration_s: duration of all three parts.
    """

    peaks: Mapping[str, float]
    peak_limit: float
    rounded: ProofStep
    rounded_agreement: float
    shipped: ProofStep
    shipped_agreement: float
    min_agreement: float
    n_clips: int
    n_calibration_clips: int
    duration_s: float

    @property
    def passed(self) -> bool:
        """Tell whether all three parts hold."""
        return not self._failures()

    def failure_message(self) -> str:
        """Describe every part that failed, in one line, for a proof that did not pass."""
        return "; ".join(self._failures())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: all peaks with four digits, both runs in a few numbers."""
        return {
            "passed": self.passed,
            "failure": None if self.passed else self.failure_message(),
            "run": ROUNDED,
            "peak_limit": self.peak_limit,
            "peaks": {n: float(f"{p:.4g}") if np.isfinite(p) else None for n, p in self.peaks.items()},
            "min_agreement": self.min_agreement,
            "rounded": {**summarize_step(self.rounded), "pooled_agreement": self.rounded_agreement},
            "shipped": {**summarize_step(self.shipped), "pooled_agreement": self.shipped_agreement},
            "n_clips": self.n_clips,
            "n_calibration_clips": self.n_calibration_clips,
            "duration_s": round(self.duration_s, 3),
        }

    def _failures(self) -> list[str]:
        failures = []
        name, peak = next(iter(self.peaks.items()))
        if not peak < self.peak_limit:
            failures.append(
                f"FP16 value {name} reaches {peak:.4g}; the limit is {self.peak_limit:g}, a quarter of "
                "half's range: ship fp32 or int8, or scale that layer's weights"
            )
        runs = ((self.rounded, self.rounded_agreement), (self.shipped, self.shipped_agreement))
        for step, agreement in runs:
            if not step.passed:
                failures.append(step.failure_message())
            elif not agreement >= self.min_agreement:
                failures.append(
                    f"{step.name}: {agreement:.3%} of the frames agree, "
                    f"{self.min_agreement:.1%} are needed: ship fp32 or int8"
                )
        return failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16Graph:
    """A typed FP16 graph and its proof, which may have failed."""

    model: onnx.ModelProto
    proof: Fp16Proof


def make_fp16(
    float32_model: onnx.ModelProto,
    reference: Outputs,
    inputs: ProofInputs,
    stages: Stages,
    *,
    calibration: CalibrationSet,
) -> Fp16Graph:
    """Convert a float32 graph and prove the result; check the `proof` of the result.

    If the graph fails with half softmax, it is tried once more with float32 softmax.

    Args:
        float32_model: graph to convert.
        reference: its outputs for the cases.
        inputs: those of the proof.
        stages: those of the export.
        calibration: more speech to measure magnitudes on.

    Raises:
        GateError: the graph holds something that cannot be converted.
    """
    joined = join_biases(float32_model)
    for wide_softmax in (False, True):
        with stages.stage("convert to fp16"):
            model = convert_to_fp16(joined)
            if wide_softmax:
                model = widen_softmax(model)
            check_graph(model)
        with stages.stage("prove: fp16") as progress:
            proof = prove_fp16(
                joined,
                model,
                inputs.cases,
                reference,
                inputs.vocabulary,
                inputs.output_frames,
                calibration=calibration.features(inputs.features),
                progress=progress,
            )
        if proof.passed:
            break
    return Fp16Graph(model=model, proof=proof)


def prove_fp16(
    float32_model: onnx.ModelProto,
    fp16_model: onnx.ModelProto,
    cases: Sequence[ProofCase],
    reference: Outputs,
    vocabulary: Vocabulary,
    output_frames: OutputFrames | int,
    *,
    calibration: Iterable[F32Array] = (),
    min_agreement: float = MIN_AGREEMENT,
    progress: Progress | None = None,
) -> Fp16Proof:
    """Prove the FP16 graph of a float32 graph.

    Args:
        float32_model: the graph that was converted.
        fp16_model: from `fp16.convert_to_fp16`.
        cases: from `build_cases`; their speech, signals and padded batches give the peaks too.
        reference: outputs of the float32 graph for `cases` (`compare.run_cases`).
        vocabulary: that of the model.
        output_frames: how many output frames a clip gives.
        calibration: features of more speech for the peaks, each [T, F] float32.
        min_agreement: fraction of all valid frames that must keep their most likely token.
        progress: called after each case of both runs.

    Raises:
        GateError: the reference itself failed, or onnxruntime removed the rounding.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    started = time.perf_counter()
    batches = [case.batch() for case in cases if case.family in ("real", "signal", "padded")]
    n_proof_batches = len(batches)
    batches += [(clip[None], np.asarray([len(clip)], np.int64)) for clip in calibration]
    peaks = measure_peaks(float32_model, fp16_model, batches)

    def report(offset: int) -> Progress | None:
        return progress and (lambda done, total: progress(offset + done, 2 * total))

    rounded = run_cases(RoundedModel(fp16_model), cases, output_frames, progress=report(0))
    with open_graph(fp16_model, precision="fp16") as backend:
        shipped = run_cases(backend, cases, output_frames, progress=report(len(cases)))

    def compare(outputs: Outputs, name: str) -> ProofStep:
        return compare_outputs(
            reference,
            outputs,
            cases,
            vocabulary,
            reference_name="ONNX fp32",
            candidate_name=name,
            tolerance=_TOLERANCE,
        )

    return Fp16Proof(
        peaks=peaks,
        peak_limit=PEAK_LIMIT,
        rounded=compare(rounded, ROUNDED),
        rounded_agreement=pooled_agreement(reference, rounded),
        shipped=compare(shipped, SHIPPED),
        shipped_agreement=pooled_agreement(reference, shipped),
        min_agreement=min_agreement,
        n_clips=len(batches),
        n_calibration_clips=len(batches) - n_proof_batches,
        duration_s=time.perf_counter() - started,
    )


def pooled_agreement(reference: Outputs, candidate: Outputs) -> float:
    """Compute the share of frames of all cases with the same most likely token; 0.0 if a case failed."""
    equal = []
    for expected, given in zip(reference, candidate, strict=True):
        if isinstance(expected, str) or isinstance(given, str):
            return 0.0
        equal += [e.argmax(axis=1) == g.argmax(axis=1) for e, g in zip(expected, given, strict=True)]
    return float(np.mean(np.concatenate(equal)))
