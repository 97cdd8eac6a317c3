"""The proof finds each kind of fault, and names it; candidates here are fakes with one fault each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.errors import BackendError, GateError
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Tolerance, compare_outputs, run_cases
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
Fault = Callable[[F32Array, F32Array, npt.NDArray[np.int64]], F32Array]
FACTOR = 2
VOCABULARY = Vocabulary(kind="char", tokens=("a", "b", "<blk>"), blank_id=2)


STRICT = Tolerance(max_error=1e-4)


class Fake:
    """Log-probs that depend on each pair of frames alone; `fault` may spoil them."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        batch, n_frames, n_mels = features.shape
        valid = np.arange(n_frames)[None, :, None] < feature_lens[:, None, None]
        padded = np.zeros((batch, -(-n_frames // FACTOR) * FACTOR, n_mels), np.float32)
        padded[:, :n_frames] = np.where(valid, features, 0.0)
        logits = padded.reshape(batch, -1, FACTOR, n_mels).mean(axis=2)
        log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        return log_probs if self.fault is None else self.fault(log_probs, features, feature_lens)


def make_case(family: str, name: str, *lengths: int) -> ProofCase:
    generator = np.random.default_rng(sum(lengths))
    rows = tuple(generator.normal(0, 3, (n, 3)).astype(np.float32) for n in lengths)
    return ProofCase(family=family, name=name, features=rows, padding="noise")


CASES = [
    make_case("real", "clip", 41),
    make_case("batch", "batch 2", 8, 8),
    make_case("padded", "two", 3, 20),
]


def prove(fault: Fault | None = None, tolerance: Tolerance = STRICT):  # type: ignore[no-untyped-def]
    reference = run_cases(Fake(), CASES, FACTOR, rows_alone=True)
    candidate = run_cases(Fake(fault), CASES, FACTOR)
    return compare_outputs(
        reference,
        candidate,
        CASES,
        VOCABULARY,
        reference_name="PyTorch",
        candidate_name="fake",
        tolerance=tolerance,
    )


def log_probs_of(case: ProofCase) -> list[F32Array]:
    lengths = [np.array([len(row)]) for row in case.features]
    return [Fake().log_probs(row[None], n)[0] for row, n in zip(case.features, lengths, strict=True)]


def failed_families(step) -> set[str]:  # type: ignore[no-untyped-def]
    return {row.family for row in step.failures}


def test_equal_models_pass_with_one_row_a_case() -> None:
    step = prove()
    assert step.passed
    assert [(r.family, r.name, r.batch, r.max_frames) for r in step.results] == [
        ("real", "clip", 1, 41),
        ("batch", "batch 2", 2, 8),
        ("padded", "two", 2, 20),
    ]
    assert step.worst.max_error < 1e-6
    assert all(r.same_text and r.frame_agreement == 1.0 for r in step.results)


def test_error_above_the_bar_fails_and_below_passes() -> None:
    too_much = prove(lambda y, x, n: y + np.float32(2e-4))
    assert failed_families(too_much) == {"real", "batch", "padded"}
    assert "log-prob error 2.00e-04 is above 1.0e-04" in too_much.failures[0].failure
    assert prove(lambda y, x, n: y + np.float32(5e-5)).passed


def test_error_in_a_single_frame_of_a_single_row_is_found_and_named() -> None:
    def fault(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        spoiled = log_probs.copy()
        if len(lengths) == 2 and lengths[0] == 8:
            spoiled[1, 3, 0] += 0.01
        return spoiled

    step = prove(fault)
    assert failed_families(step) == {"batch"}
    assert (step.worst.family, step.worst.name) == ("batch", "batch 2")
    assert "1 of 3 cases failed, first batch / batch 2" in step.failure_message()


def test_padding_that_leaks_into_a_row_is_found() -> None:
    def leak(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        return log_probs + 1e-3 * np.abs(features).max(axis=(1, 2), keepdims=True) * (
            lengths[:, None, None] == 3
        )

    assert failed_families(prove(leak)) == {"padded"}


def test_frames_beyond_a_row_do_not_count() -> None:
    def garbage(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        spoiled = log_probs.copy()
        for row, length in enumerate(lengths):
            spoiled[row, -(-int(length) // FACTOR) :] = np.nan
        return spoiled

    assert prove(garbage).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail(value: float) -> None:
    def fault(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        spoiled = log_probs.copy()
        spoiled[0, 0, 0] = value
        return spoiled

    step = prove(fault, Tolerance(max_error=None, text_families=()))
    assert len(step.failures) == 3
    assert step.failures[0].failure == "the output holds NaN or infinity"
    assert step.failures[0].max_error is None


def test_a_frame_too_few_fails() -> None:
    step = prove(lambda y, x, n: y[:, :-1])
    assert len(step.failures) == 3
    assert "output has the shape (1, 20, 3) for features (1, 41, 3)" in step.failures[0].failure


def test_model_that_raises_fails_its_case_and_the_others_go_on() -> None:
    def fault(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        if len(lengths) == 1:
            raise BackendError("no memory\nfor this")
        return log_probs

    step = prove(fault)
    assert [r.failure for r in step.results] == ["BackendError: no memory", None, None]


def test_other_text_fails_even_when_the_error_is_not_judged() -> None:
    def swap(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        return log_probs[..., [1, 0, 2]]

    step = prove(swap, Tolerance(max_error=None))
    assert "real" in failed_families(step)
    assert "differs from the reference's" in step.failures[0].failure
    real_only = prove(swap, Tolerance(max_error=None, text_families=("real",)))
    assert failed_families(real_only) == {"real"}
    assert not all(r.same_text for r in real_only.results if r.family != "real")


def test_texts_may_differ_where_two_tokens_are_as_likely() -> None:
    def tie(log_probs: F32Array, features: F32Array, lengths: npt.NDArray[np.int64]) -> F32Array:
        best = log_probs.argmax(axis=-1, keepdims=True)
        return np.where(np.arange(3) == best, log_probs.min() - 1, log_probs)

    lead = max(
        float(np.ptp(np.sort(row)[:, -2:], axis=1).max()) for case in CASES for row in log_probs_of(case)
    )
    assert prove(tie, Tolerance(text_margin=1.01 * lead)).passed
    assert not prove(tie, Tolerance(text_margin=0.99 * lead)).passed


def test_reference_that_is_not_finite_is_an_error_of_its_own() -> None:
    spoiled = Fake(lambda y, x, n: y * np.float32(np.nan))
    with pytest.raises(GateError, match="PyTorch itself gives NaN or infinity on real / clip"):
        compare_outputs(
            run_cases(spoiled, CASES, FACTOR),
            run_cases(Fake(), CASES, FACTOR),
            CASES,
            VOCABULARY,
            reference_name="PyTorch",
            candidate_name="fake",
            tolerance=Tolerance(),
        )


def test_progress_is_told_after_each_case() -> None:
    seen: list[tuple[int, int]] = []
    run_cases(Fake(), CASES, FACTOR, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_no_cases_prove_nothing() -> None:
    step = compare_outputs(
        [], [], [], VOCABULARY, reference_name="a", candidate_name="b", tolerance=Tolerance()
    )
    assert not step.passed
