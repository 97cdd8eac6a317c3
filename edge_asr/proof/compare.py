"""The proof: two models, the same inputs, and how far their log-probabilities are apart.

Anything with `log_probs(features, feature_lens)` can be a reference or a candidate: the PyTorch
model, an onnxruntime backend, later an engine. Each artefact is compared with the one before it.
The reference runs every row alone and unpadded, so that a candidate which lets padding or a
neighbour leak into a row fails, not only one that differs from a reference with the same fault.
Which inputs: proof_cases.py. What is written about it: report.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.errors import EdgeAsrError, GateError
from edge_asr.frames import OutputFrames
from edge_asr.proof.cases import FAMILIES, ProofCase
from edge_asr.proof.stages import Progress
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    import torch

F32Array = npt.NDArray[np.float32]
MAX_LOG_PROB_ERROR = 1e-4
# Sums that end in a log-prob of -40, a token that nothing chooses, round in steps of 4e-6: there the order of
# the sums alone moves deep models by 1e-4.
MAX_RELATIVE_ERROR = 1e-5


class LogProbModel(Protocol):
    """What a proof can run; `edge_asr.runtime.backends.Backend` is one."""

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        """float32 [B, T, F] and int64 [B] -> float32 [B, ceil(T / s), V]."""
        ...


class TorchModel:
    """A PyTorch acoustic model as a `LogProbModel`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        """See `LogProbModel`."""
        import torch

        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(features), torch.from_numpy(feature_lens))
        log_probs: F32Array = outputs[0].numpy()
        return log_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """When a comparison passes.

    Attributes:
        max_error: largest allowed absolute log-prob difference on valid frames; None reports it only.
        max_relative_error: allowed in its place where it is more: below a log-prob of -10, with the defaults.
        text_families: case families whose greedy token sequences must be identical.
    """

    max_error: float | None = MAX_LOG_PROB_ERROR
    max_relative_error: float = MAX_RELATIVE_ERROR
    text_families: tuple[str, ...] = FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One row of a proof.

    Attributes:
        family, name: of the case.
        batch, max_frames: its shape, in feature frames.
        max_error, mean_error: absolute log-prob difference over valid frames; None when nothing could
            be compared.
        frame_agreement: fraction of valid frames with the same most likely token.
        same_text: the greedy token sequence is the same in every row.
        failure: why the case failed, or None.
    """

    family: str
    name: str
    batch: int
    max_frames: int
    max_error: float | None
    mean_error: float | None
    frame_agreement: float | None
    same_text: bool
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofStep:
    """One comparison over all cases.

    Attributes:
        reference, candidate: what was compared.
        tolerance: the bar.
        results: one row a case.
    """

    reference: str
    candidate: str
    tolerance: Tolerance
    results: tuple[CaseResult, ...]

    @property
    def name(self) -> str:
        """Both sides, for people."""
        return f"{self.reference} -> {self.candidate}"

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """Rows that failed."""
        return tuple(r for r in self.results if r.failure is not None)

    @property
    def passed(self) -> bool:
        """No row failed, and there was one at least."""
        return bool(self.results) and not self.failures

    @property
    def worst(self) -> CaseResult:
        """The row with the largest error; one that could not be compared is worse than any."""
        return max(self.results, key=lambda r: math.inf if r.max_error is None else r.max_error)

    def failure_message(self) -> str:
        """The first failing case and how many there are; for a step that did not pass."""
        first = self.failures[0]
        return (
            f"{self.name}: {len(self.failures)} of {len(self.results)} cases failed, "
            f"first {first.family} / {first.name}: {first.failure}"
        )


#: Outputs of a model: for each case one [T_i', V] a row (its valid frames), or the text of an error.
Outputs = list[tuple[F32Array, ...] | str]


def run_cases(
    model: LogProbModel,
    cases: Sequence[ProofCase],
    frames: OutputFrames | int,
    *,
    rows_alone: bool = False,
    progress: Progress | None = None,
) -> Outputs:
    """Valid output frames of every case; an error of the model becomes that case's outcome.

    Args:
        model: what to run.
        cases: the inputs.
        frames: how many output frames a row has; a number is feature frames per output frame.
        rows_alone: run each row as a batch of one without padding, as a reference does.
        progress: called after each case.
    """
    rule = OutputFrames.of(frames)
    outputs: Outputs = []
    known: dict[int, F32Array] = {}  # by identity of the row: padded cases come twice, as zeros and as noise
    for done, case in enumerate(cases, start=1):
        try:
            if not rows_alone:
                outputs.append(_run_batch(model, *case.batch(), rule))
                continue
            for row in case.features:
                if id(row) not in known:
                    lengths = np.asarray([len(row)], np.int64)
                    (known[id(row)],) = _run_batch(model, row[None], lengths, rule)
            outputs.append(tuple(known[id(row)] for row in case.features))
        except (EdgeAsrError, RuntimeError, ValueError) as error:
            message = str(error).strip() or "no message"
            outputs.append(f"{type(error).__name__}: {message.splitlines()[0]}")
        finally:
            if progress is not None:
                progress(done, len(cases))
    return outputs


def _run_batch(
    model: LogProbModel, features: F32Array, lengths: npt.NDArray[np.int64], rule: OutputFrames
) -> tuple[F32Array, ...]:
    log_probs = model.log_probs(features, lengths)
    expected = (len(lengths), rule.n_graph(features.shape[1]))
    if log_probs.shape[:2] != expected:
        raise ValueError(
            f"output has the shape {log_probs.shape} for features {features.shape}; "
            f"{expected} and the vocabulary belong there"
        )
    return tuple(
        log_probs[row, : rule.n_valid(int(length))].astype(np.float32, copy=True)
        for row, length in enumerate(lengths)
    )


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    cases: Sequence[ProofCase],
    vocabulary: Vocabulary,
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: Tolerance | None = None,
) -> ProofStep:
    """Compare what two models gave for the same cases.

    Args:
        reference, candidate: from `run_cases`.
        cases: what they were run on.
        vocabulary: for the greedy text.
        reference_name, candidate_name: for the report.
        tolerance: the bar; the default is that of a float32 export.

    Raises:
        GateError: the reference itself failed or gave a value that is not finite.
    """
    tolerance = tolerance or Tolerance()
    results = []
    for case, expected, given in zip(cases, reference, candidate, strict=True):
        if isinstance(expected, str):
            raise GateError(f"{reference_name} itself fails on {case.family} / {case.name}: {expected}")
        if not all(np.isfinite(row).all() for row in expected):
            raise GateError(
                f"{reference_name} itself gives NaN or infinity on {case.family} / {case.name}; "
                "the checkpoint is damaged or its training diverged"
            )
        results.append(_compare_case(case, expected, given, vocabulary, tolerance))
    return ProofStep(
        reference=reference_name, candidate=candidate_name, tolerance=tolerance, results=tuple(results)
    )


def _compare_case(
    case: ProofCase,
    expected: tuple[F32Array, ...],
    given: tuple[F32Array, ...] | str,
    vocabulary: Vocabulary,
    tolerance: Tolerance,
) -> CaseResult:
    shape: dict[str, Any] = {
        "family": case.family,
        "name": case.name,
        "batch": len(case.features),
        "max_frames": max(case.lengths),
    }
    incomparable: dict[str, Any] = {
        "max_error": None,
        "mean_error": None,
        "frame_agreement": None,
        "same_text": False,
    }
    if isinstance(given, str):
        return CaseResult(**shape, **incomparable, failure=given)
    wrong = [(e.shape, g.shape) for e, g in zip(expected, given, strict=True) if e.shape != g.shape]
    if wrong:
        return CaseResult(**shape, **incomparable, failure=f"output is {wrong[0][1]}, expected {wrong[0][0]}")
    if not all(np.isfinite(row).all() for row in given):
        return CaseResult(**shape, **incomparable, failure="the output holds NaN or infinity")
    errors = np.concatenate([np.abs(e - g).ravel() for e, g in zip(expected, given, strict=True)])
    pairs = [(e.argmax(axis=1), g.argmax(axis=1)) for e, g in zip(expected, given, strict=True)]
    agrees = np.concatenate([e == g for e, g in pairs])
    # Rows too short for an output frame have nothing to differ in.
    agreement = float(agrees.mean()) if agrees.size else 1.0
    texts = [
        tuple(greedy_decode(row, vocabulary.blank_id).ids.tolist() for row in rows)
        for rows in zip(expected, given, strict=True)
    ]
    different = [(vocabulary.decode(e), vocabulary.decode(g)) for e, g in texts if e != g]
    max_error = float(errors.max(initial=0.0))
    failure = None
    if tolerance.max_error is not None:
        magnitudes = np.concatenate([np.abs(e).ravel() for e in expected])
        allowed = np.maximum(tolerance.max_error, tolerance.max_relative_error * magnitudes)
        if (over := ~(errors <= allowed)).any():
            worst = float(errors[over].max())
            failure = f"log-prob error {worst:.2e} is above {float(allowed[errors == worst][0]):.1e}"
    if failure is None and different and case.family in tolerance.text_families:
        wanted, got = (text[:80] for text in different[0])
        failure = f"greedy text {got!r} differs from the reference's {wanted!r}"
    return CaseResult(
        **shape,
        max_error=max_error,
        mean_error=float(errors.mean(dtype=np.float64)) if errors.size else 0.0,
        frame_agreement=agreement,
        same_text=not different,
        failure=failure,
    )


def summarize_step(step: ProofStep) -> dict[str, Any]:
    """One comparison in a few numbers, for bundle.json and the command line."""
    errors = [r.max_error for r in step.results if r.max_error is not None]
    means = [r.mean_error for r in step.results if r.mean_error is not None]
    agreements = [r.frame_agreement for r in step.results if r.frame_agreement is not None]
    return {
        "reference": step.reference,
        "candidate": step.candidate,
        "passed": step.passed,
        "n_cases": len(step.results),
        "n_failed": len(step.failures),
        "max_log_prob_error": max(errors, default=None),
        "mean_log_prob_error": sum(means) / len(means) if means else None,
        "frame_agreement": min(agreements, default=None),
        "same_text": all(r.same_text for r in step.results),
        "worst_case": f"{step.worst.family} / {step.worst.name}",
    }
