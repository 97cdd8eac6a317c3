"""Runs two models on the same inputs and compares their log-probabilities, which is the core of a proof.

Anything with `log_probs(features, feature_lens)` can be a reference or a candidate: the PyTorch
model, an onnxruntime backend, an engine. The reference runs every row alone and unpadded, so that a
candidate that lets padding or a neighbor leak into a row fails even if a batched reference would have the
same fault.

A float32 graph is compared with the PyTorch model in float64 (truth.py). Everything after float32 (FP16,
INT8, engines) is compared with the graph before it, by `compare_outputs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
    import torch

F32Array = npt.NDArray[np.float32]
LogProbs = npt.NDArray[np.floating[Any]]


class LogProbModel(Protocol):
    """A model that a proof can run; `edge_asr.runtime.backends.Backend` is one."""

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> LogProbs:
        """float32 [B, T, F] and int64 [B] -> float32 (float64 for the truth) [B, ceil(T / s), V]."""
        ...


class TorchModel:
    """Runs a PyTorch acoustic model as a `LogProbModel`."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.eval()

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> LogProbs:
        """See `LogProbModel`; the result is float64 if the model is."""
        import torch

        dtype = next(self.model.parameters()).dtype
        with torch.inference_mode():
            outputs = self.model(torch.from_numpy(features).to(dtype), torch.from_numpy(feature_lens))
        log_probs: LogProbs = outputs[0].numpy()
        return log_probs


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """What a comparison of two models must meet.

    Attributes:
        max_error: largest allowed absolute log-prob difference on valid frames; None only reports it.
        text_families: case families whose greedy token sequences must be identical.
        text_margin: but for frames whose most likely token leads by at most this in log-prob.
    """

    max_error: float | None = None
    text_families: tuple[str, ...] = FAMILIES
    text_margin: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundingBar:
    """What a float32 graph's error to the float64 model must meet to count as rounding.

    The factors apply to PyTorch's own error when it runs the same model in float32. Right graphs of 16 models
    of all families have 0.83 to 1.43 times its largest error and 0.92 to 1.24 times its root mean square
    (docs/log.md). The root mean square detects small errors that are everywhere, which the largest cannot.

    Attributes:
        max_factor: for the largest error of a case.
        rms_factor: for the root mean square error of a family of cases.
        floor: errors up to this are rounding, whatever PyTorch's are: 4 units in the last place of a
            log-prob of -16.
        ceiling: absolute limit of every error.
        text_families: case families whose greedy token sequences must be identical, except in frames whose
            two most likely tokens differ by less than the rounding.
    """

    max_factor: float = 4.0
    rms_factor: float = 2.0
    floor: float = 4e-6
    ceiling: float = 1e-3
    text_families: tuple[str, ...] = FAMILIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """The three numbers of a proof against the truth, over all cases.

    Attributes:
        reference_max, reference_rms: PyTorch in float32 against the truth, absolute log-prob error.
        candidate_max, candidate_rms: the graph against the truth.
        difference_max: the graph against PyTorch in float32, where both were run.
    """

    reference_max: float
    reference_rms: float
    candidate_max: float
    candidate_rms: float
    difference_max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """One row of a proof.

    Attributes:
        family, name: those of the case.
        batch, max_frames: its shape, in feature frames.
        max_error, mean_error, rms_error: absolute log-prob difference over valid frames; None if nothing
            could be compared.
        frame_agreement: fraction of valid frames with the same most likely token.
        same_text: whether the greedy token sequence is the same in every row.
        failure: why the case failed, or None.
    """

    family: str
    name: str
    batch: int
    max_frames: int
    max_error: float | None
    mean_error: float | None
    rms_error: float | None
    frame_agreement: float | None
    same_text: bool
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofStep:
    """One comparison over all cases.

    Attributes:
        reference, candidate: what was compared.
        tolerance: what was required.
        results: one row per case.
        rounding: errors to the truth, for a float32 graph.
    """

    reference: str
    candidate: str
    tolerance: Tolerance | RoundingBar
    results: tuple[CaseResult, ...]
    rounding: Rounding | None = None

    @property
    def name(self) -> str:
        """Name both sides, for people."""
        return f"{self.reference} -> {self.candidate}"

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """Return the rows that failed."""
        return tuple(r for r in self.results if r.failure is not None)

    @property
    def passed(self) -> bool:
        """Tell whether no row failed, and there was at least one."""
        return bool(self.results) and not self.failures

    @property
    def worst(self) -> CaseResult:
        """Return the row with the largest error; one that could not be compared is worse than any."""
        return max(self.results, key=lambda r: math.inf if r.max_error is None else r.max_error)

    def failure_message(self) -> str:
        """Describe the first failing case and how many there are, for a step that did not pass."""
        first = self.failures[0]
        return (
            f"{self.name}: {len(self.failures)} of {len(self.results)} cases failed, "
            f"first {first.family} / {first.name}: {first.failure}"
        )


#: Outputs of a model: for each case one [T_i', V] per row (its valid frames), or the text of an error.
Outputs = list[tuple[LogProbs, ...] | str]


def run_cases(
    model: LogProbModel,
    cases: Sequence[ProofCase],
    frames: OutputFrames | int,
    *,
    rows_alone: bool = False,
    progress: Progress | None = None,
) -> Outputs:
    """Compute the valid output frames of every case; an error of the model becomes the outcome of that case.

    Args:
        model: model to run.
        cases: the inputs.
        frames: how many output frames a row has; a number is feature frames per output frame.
        rows_alone: run each row as a batch of one without padding, as a reference does.
        progress: called after each case.
    """
    rule = OutputFrames.of(frames)
    outputs: Outputs = []
    known: dict[
        int, LogProbs
    ] = {}  # by identity of the row, because padded cases come twice, with zeros and with noise
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
) -> tuple[LogProbs, ...]:
    log_probs = model.log_probs(features, lengths)
    expected = (len(lengths), rule.n_graph(features.shape[1]))
    if log_probs.shape[:2] != expected:
        raise ValueError(
            f"output has the shape {log_probs.shape} for features {features.shape}; "
            f"{expected} and the vocabulary belong there"
        )
    return tuple(log_probs[row, : rule.n_valid(int(length))].copy() for row, length in enumerate(lengths))


def compare_outputs(
    reference: Outputs,
    candidate: Outputs,
    cases: Sequence[ProofCase],
    vocabulary: Vocabulary,
    *,
    reference_name: str,
    candidate_name: str,
    tolerance: Tolerance,
) -> ProofStep:
    """Compare the outputs of two models for the same cases.

    Args:
        reference, candidate: from `run_cases`.
        cases: the inputs of both.
        vocabulary: for the greedy text.
        reference_name, candidate_name: for the report.
        tolerance: what is required.

    Raises:
        GateError: the reference itself failed or gave a value that is not finite.
    """
    check_reference(reference, cases, reference_name)
    results = []
    for case, expected, given in zip(cases, reference, candidate, strict=True):
        found = measure_case(case, expected, given, vocabulary, margin=tolerance.text_margin)
        failure = found.result.failure
        worst = found.errors.largest
        if failure is None and tolerance.max_error is not None and worst > tolerance.max_error:
            failure = f"log-prob error {worst:.2e} is above {tolerance.max_error:.1e}"
        if failure is None and found.texts is not None and case.family in tolerance.text_families:
            failure = text_failure(found.texts)
        results.append(replace(found.result, failure=failure))
    return ProofStep(
        reference=reference_name, candidate=candidate_name, tolerance=tolerance, results=tuple(results)
    )


def check_reference(reference: Outputs, cases: Sequence[ProofCase], name: str) -> None:
    """Refuse a reference that failed itself, or gave a value that is not finite.

    Raises:
        GateError: the reference is refused; the message names the case.
    """
    for case, expected in zip(cases, reference, strict=True):
        if isinstance(expected, str):
            raise GateError(f"{name} itself fails on {case.family} / {case.name}: {expected}")
        if not all(np.isfinite(row).all() for row in expected):
            raise GateError(
                f"{name} itself gives NaN or infinity on {case.family} / {case.name}; "
                "the checkpoint is damaged or its training diverged"
            )


@dataclass(frozen=True, slots=True)
class Errors:
    """Absolute log-prob errors of some frames: count, sum, sum of squares, and the largest."""

    n: int = 0
    total: float = 0.0
    squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def between(cls, expected: Sequence[LogProbs], given: Sequence[LogProbs]) -> Errors:
        """Measure errors between rows of equal shapes."""
        return sum((cls._of_row(e, g) for e, g in zip(expected, given, strict=True)), cls())

    @classmethod
    def _of_row(cls, expected: LogProbs, given: LogProbs) -> Errors:
        errors = np.abs(expected.astype(np.float64) - given)
        flat = errors.ravel()
        return cls(errors.size, float(flat.sum()), float(flat @ flat), float(flat.max(initial=0.0)))

    def __add__(self, other: Errors) -> Errors:
        largest = max(self.largest, other.largest)
        return Errors(self.n + other.n, self.total + other.total, self.squares + other.squares, largest)

    @property
    def mean(self) -> float:
        """Return the mean; 0 without values."""
        return self.total / max(self.n, 1)

    @property
    def rms(self) -> float:
        """Return the root mean square; 0 without values."""
        return math.sqrt(self.squares / max(self.n, 1))


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a case, its errors, and its texts (expected, got) if they differ."""

    result: CaseResult
    errors: Errors = Errors()
    texts: tuple[str, str] | None = None


def measure_case(
    case: ProofCase,
    expected: tuple[LogProbs, ...] | str,
    given: tuple[LogProbs, ...] | str,
    vocabulary: Vocabulary,
    *,
    margin: float,
) -> Measured:
    """Compare one case. Frames whose best token leads by at most `margin` do not make texts different."""
    assert not isinstance(expected, str)  # check_reference
    shape: dict[str, Any] = {
        "family": case.family,
        "name": case.name,
        "batch": len(case.features),
        "max_frames": max(case.lengths),
    }
    incomparable: dict[str, Any] = {
        "max_error": None,
        "mean_error": None,
        "rms_error": None,
        "frame_agreement": None,
        "same_text": False,
    }
    if isinstance(given, str):
        return Measured(CaseResult(**shape, **incomparable, failure=given))
    # A stream that is too short for a frame does not know the vocabulary.
    wrong = [
        (e.shape, g.shape)
        for e, g in zip(expected, given, strict=True)
        if e.shape != g.shape and (len(e) or len(g))
    ]
    if wrong:
        failure = f"output is {wrong[0][1]}, expected {wrong[0][0]}"
        return Measured(CaseResult(**shape, **incomparable, failure=failure))
    if not all(np.isfinite(row).all() for row in given):
        failure = "the output holds NaN or infinity"
        return Measured(CaseResult(**shape, **incomparable, failure=failure))
    errors = Errors.between(expected, given)
    agrees = [e.argmax(axis=1) == g.argmax(axis=1) for e, g in zip(expected, given, strict=True)]
    # Rows too short for an output frame cannot differ.
    frames = np.concatenate(agrees)
    texts = [
        tuple(greedy_decode(row.astype(np.float32), vocabulary.blank_id).ids.tolist() for row in rows)
        for rows in zip(expected, given, strict=True)
    ]
    different = [
        (vocabulary.decode(e)[:80], vocabulary.decode(g)[:80])
        for (e, g), row, same in zip(texts, expected, agrees, strict=True)
        if e != g and (_leads(row)[~same] > margin).any()
    ]
    result = CaseResult(
        **shape,
        max_error=errors.largest,
        mean_error=errors.mean,
        rms_error=errors.rms,
        frame_agreement=float(frames.mean()) if frames.size else 1.0,
        same_text=not different,
        failure=None,
    )
    return Measured(result, errors, different[0] if different else None)


def _leads(row: LogProbs) -> npt.NDArray[np.floating[Any]]:
    """Compute by how much the most likely token of each frame leads the next one: [T]."""
    best = np.partition(row, -2, axis=1)[:, -2:]
    lead: npt.NDArray[np.floating[Any]] = best[:, 1] - best[:, 0]
    return lead


def text_failure(texts: tuple[str, str]) -> str:
    """Describe different texts (expected, got)."""
    wanted, got = texts
    return f"greedy text {got!r} differs from the reference's {wanted!r}"


def summarize_step(step: ProofStep) -> dict[str, Any]:
    """Summarize one comparison in a few numbers, for bundle.json and the command line."""
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
        **({} if step.rounding is None else {"rounding": asdict(step.rounding)}),
        "worst_case": f"{step.worst.family} / {step.worst.name}",
    }
