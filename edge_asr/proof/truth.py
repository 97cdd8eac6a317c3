"""The truth about a float32 graph: the PyTorch model in float64, on the same inputs.

A graph passes if rounding explains its error to the truth: the error must be within a small factor of the
error that PyTorch itself makes in float32. A fixed limit cannot distinguish a wrong graph of a shallow model,
whose rounding is 1e-6, from a right graph of a deep model, whose rounding is 1e-4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge_asr.frames import OutputFrames
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import (
    Errors,
    LogProbs,
    Outputs,
    ProofStep,
    Rounding,
    RoundingBar,
    TorchModel,
    check_reference,
    measure_case,
    run_cases,
    text_failure,
)
from edge_asr.proof.stages import Progress
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """The outputs of a PyTorch model for the cases of a proof, each row alone and unpadded.

    Attributes:
        name: that of the model, for the report.
        exact: outputs in float64.
        rounded: outputs in float32, by index of the case, for the cases that set the scale of rounding.
    """

    name: str
    exact: Outputs
    rounded: Mapping[int, tuple[LogProbs, ...]]


def run_truth(
    model: torch.nn.Module,
    cases: Sequence[ProofCase],
    frames: OutputFrames,
    *,
    name: str = "PyTorch",
    progress: Progress | None = None,
) -> Truth:
    """Run a PyTorch model in float32 and then in float64; the model stays float64.

    Args:
        model: an acoustic model in float32, on the CPU.
        cases: the inputs.
        frames: how many output frames a row has.
        name: that of the model, for the report.
        progress: called after each case of either run.

    Raises:
        GateError: the model fails, or gives a value that is not finite.
    """
    scale = [n for n, case in enumerate(cases) if case.family not in _REPEATING]
    n_runs = len(scale) + len(cases)

    def report(before: int) -> Progress | None:
        return None if progress is None else lambda done, total: progress(before + done, n_runs)

    chosen = [cases[n] for n in scale]
    rounded = run_cases(TorchModel(model), chosen, frames, rows_alone=True, progress=report(0))
    check_reference(rounded, chosen, name)
    exact = run_cases(TorchModel(model.double()), cases, frames, rows_alone=True, progress=report(len(scale)))
    check_reference(exact, cases, name)
    known = {n: rows for n, rows in zip(scale, rounded, strict=True) if not isinstance(rows, str)}
    return Truth(name=name, exact=exact, rounded=known)


#: Families whose cases only combine the rows of others, or make them longer.
_REPEATING = ("random_length", "batch", "padded")


def compare_to_truth(
    truth: Truth,
    candidate: Outputs,
    cases: Sequence[ProofCase],
    vocabulary: Vocabulary,
    *,
    name: str,
    bar: RoundingBar | None = None,
) -> ProofStep:
    """Judge a float32 graph; errors that rounding explains pass.

    Args:
        truth: the truth of the model that the graph was made from.
        candidate: outputs of the graph.
        cases: the inputs of both.
        vocabulary: for the greedy text.
        name: that of the graph, for the report.
        bar: what counts as rounding.
    """
    bar = bar or RoundingBar()
    own = {n: Errors.between(_rows(truth.exact[n]), rows) for n, rows in truth.rounded.items()}
    rounding = sum(own.values(), Errors())
    allowed = min(max(bar.max_factor * rounding.largest, bar.floor), bar.ceiling)
    found = [
        # Two rounded values can change order if each is off by the largest error.
        measure_case(case, expected, given, vocabulary, margin=2 * allowed)
        for case, expected, given in zip(cases, truth.exact, candidate, strict=True)
    ]
    results = []
    for case, one in zip(cases, found, strict=True):
        failure = one.result.failure
        if failure is None and one.errors.largest > allowed:
            failure = (
                f"log-prob error {one.errors.largest:.2e} to the float64 model is above {allowed:.1e}: "
                f"{truth.name} in float32 is off by {rounding.largest:.1e}"
            )
        if failure is None and one.texts is not None and case.family in bar.text_families:
            failure = text_failure(one.texts)
        results.append(replace(one.result, failure=failure))
    for family in dict.fromkeys(case.family for case in cases):
        members = [n for n, case in enumerate(cases) if case.family == family]
        if any(results[n].failure is not None for n in members):
            continue
        theirs = max(rounding.rms, sum((own[n] for n in members if n in own), Errors()).rms)
        rms = sum((found[n].errors for n in members), Errors()).rms
        if rms > max(bar.rms_factor * theirs, bar.floor / 4):
            worst = max(members, key=lambda n: found[n].errors.rms)
            failure = (
                f"root mean square error {rms:.2e} of the {family} cases to the float64 model is above "
                f"{bar.rms_factor:g} times that of {truth.name} in float32, {theirs:.1e}"
            )
            results[worst] = replace(results[worst], failure=failure)
    given = sum((one.errors for one in found), Errors())
    both = [(rows, candidate[n]) for n, rows in truth.rounded.items() if found[n].errors.n]
    return ProofStep(
        reference=truth.name,
        candidate=name,
        tolerance=bar,
        results=tuple(results),
        rounding=Rounding(
            reference_max=rounding.largest,
            reference_rms=rounding.rms,
            candidate_max=given.largest,
            candidate_rms=given.rms,
            difference_max=sum((Errors.between(rows, _rows(got)) for rows, got in both), Errors()).largest,
        ),
    )


def _rows(outputs: tuple[LogProbs, ...] | str) -> tuple[LogProbs, ...]:
    assert not isinstance(outputs, str)  # check_reference
    return outputs
