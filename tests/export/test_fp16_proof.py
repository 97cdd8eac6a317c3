"""The FP16 proof passes for a sound graph and names what is wrong with another."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edge_asr.export.fp16.proof as fp16_proof
from edge_asr.bundle.folder import Bundle
from edge_asr.errors import GateError
from edge_asr.export import CasePlan
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.export.fp16.proof import MIN_AGREEMENT, PEAK_LIMIT, Fp16Proof, prove_fp16
from edge_asr.export.fp16.rounding import unoptimized_session
from edge_asr.feature_config import FeatureConfig
from edge_asr.graph.weights import load_float32
from edge_asr.proof.cases import ProofCase, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.compare import Outputs, run_cases
from edge_asr.proof.report import render_report
from edge_asr.vocabulary import Vocabulary

PLAN = CasePlan(random_lengths=1, max_random_s=4.0, max_batch=3)


class AsWritten:
    """A float32 graph as a `LogProbModel`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._session = unoptimized_session(model)

    def log_probs(self, features: Any, feature_lens: Any) -> Any:
        """See `LogProbModel`."""
        feed = {"audio_signal": np.ascontiguousarray(features.transpose(0, 2, 1)), "length": feature_lens}
        return self._session.run(None, feed)[0]


@pytest.fixture(scope="module")
def cases(speechlike: Callable[..., Any]) -> list[ProofCase]:
    clips = {"one": speechlike(2.5, seed=1), "two": speechlike(3.0, seed=2)}
    chosen = build_cases(clips, FeatureConfig.from_preset("nemo"), 8, PLAN)
    return [c for c in chosen if c.family in ("real", "signal", "padded", "random_length")]


@pytest.fixture(scope="module")
def reference(simplified: onnx.ModelProto, cases: list[ProofCase]) -> Outputs:
    return run_cases(AsWritten(simplified), cases, 8)


@pytest.fixture(scope="module")
def fp16(simplified: onnx.ModelProto) -> onnx.ModelProto:
    return convert_to_fp16(simplified)


def with_weight(model: onnx.ModelProto, suffix: str, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """A copy with one initializer changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (weight,) = (i for i in copy.graph.initializer if i.name.endswith(suffix))
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), weight.name))
    return copy


@pytest.fixture(scope="module")
def proof(
    simplified: onnx.ModelProto,
    fp16: onnx.ModelProto,
    cases: list[ProofCase],
    reference: Outputs,
    vocabulary: Vocabulary,
) -> Fp16Proof:
    # Of random weights: half of the frames decide by less than 0.1, where half's rounding is 0.03.
    return prove_fp16(simplified, fp16, cases, reference, vocabulary, 8, min_agreement=0.9)


def test_sound_graph_is_proven(proof: Fp16Proof, cases: list[ProofCase]) -> None:
    assert proof.passed
    assert proof.failure_message() == ""
    assert 0.9 < proof.rounded_agreement <= 1.0
    assert 0.9 < proof.shipped_agreement <= 1.0
    assert len(proof.rounded.results) == len(proof.shipped.results) == len(cases)
    # Half has 11 bits: its error is there, unlike in a run that computes in float32 throughout.
    assert all(r.max_error is not None and r.max_error > 1e-3 for r in proof.rounded.results)
    peaks = list(proof.peaks.values())
    assert peaks == sorted(peaks, reverse=True)
    assert 9_990 < peaks[0] < PEAK_LIMIT  # scores behind the mask of -1e4, seen because padding is tried


def test_report_says_which_run_it_was_and_lists_the_peaks(proof: Fp16Proof) -> None:
    data = json.loads(json.dumps(proof.to_dict(), allow_nan=False))
    assert data["passed"] is True
    assert data["run"] == "FP16 rounded after every node"
    assert len(data["peaks"]) == len(proof.peaks) > 100
    assert data["rounded"]["pooled_agreement"] == proof.rounded_agreement
    text = render_report({"name": "x", "verified": True, "fp16": data})
    assert "\n## FP16: passed\n" in text
    assert "Made without a GPU" in text
    assert f"| `{next(iter(proof.peaks))}` |" in text
    assert "Failed" not in text


def test_embedded_model_is_proven_at_the_bar() -> None:
    bundle = Bundle.load("tiny-en")
    float32 = load_float32(bundle.artifact_path("fp32"))
    clips = load_clips(find_clips(), bundle.info.features.sample_rate)
    plan = CasePlan(random_lengths=2, max_random_s=12.0, max_batch=3)
    factor = bundle.info.subsampling_factor
    cases = build_cases(clips, bundle.info.features, factor, plan)
    reference = run_cases(AsWritten(float32), cases, factor)
    found = prove_fp16(float32, convert_to_fp16(float32), cases, reference, bundle.vocabulary, factor)
    assert found.passed, found.failure_message()
    assert found.min_agreement == MIN_AGREEMENT == 0.995
    assert all(r.same_text for r in found.rounded.results if r.family == "real")


def test_value_near_the_end_of_half_range_fails(
    simplified: onnx.ModelProto, cases: list[ProofCase], vocabulary: Vocabulary
) -> None:
    # Features of up to 16, times 3000: within half's range, beyond a quarter of it.
    loud = with_weight(simplified, "cmvn.istd", lambda v: v * 3000.0)
    few = [c for c in cases if c.family in ("real", "signal")]
    reference = run_cases(AsWritten(loud), few, 8)
    proof = prove_fp16(loud, convert_to_fp16(loud), few, reference, vocabulary, 8)
    assert not proof.passed
    assert "the limit is 16376, a quarter of half's range" in proof.failure_message()
    data = json.loads(json.dumps(proof.to_dict(), allow_nan=False))
    text = render_report({"name": "x", "verified": False, "fp16": data})
    assert "\n## FP16: FAILED\n" in text
    assert "\nFailed: FP16 value " in text


def test_calibration_speech_counts_for_the_peaks(
    simplified: onnx.ModelProto,
    fp16: onnx.ModelProto,
    cases: list[ProofCase],
    vocabulary: Vocabulary,
    proof: Fp16Proof,
) -> None:
    real = [c for c in cases if c.family == "real"]
    reference = run_cases(AsWritten(simplified), real, 8)
    loud = np.full((50, 80), 1e5, np.float32)
    found = prove_fp16(simplified, fp16, real, reference, vocabulary, 8, calibration=[loud])
    assert found.n_clips == len(real) + 1
    assert not found.passed
    assert next(iter(found.peaks.values())) > PEAK_LIMIT > next(iter(proof.peaks.values()))


def test_wrong_fp16_graph_fails_on_agreement_in_both_runs(
    simplified: onnx.ModelProto,
    fp16: onnx.ModelProto,
    cases: list[ProofCase],
    reference: Outputs,
    vocabulary: Vocabulary,
) -> None:
    wrong = with_weight(fp16, "projection.bias", lambda v: np.roll(v, 1))
    proof = prove_fp16(simplified, wrong, cases, reference, vocabulary, 8)
    assert not proof.passed
    assert proof.failure_message().count("of the frames agree, 99.5% are needed") == 2


def test_infinite_output_fails_by_case(
    simplified: onnx.ModelProto,
    fp16: onnx.ModelProto,
    cases: list[ProofCase],
    reference: Outputs,
    vocabulary: Vocabulary,
) -> None:
    broken = with_weight(fp16, "projection.bias", lambda v: np.full_like(v, np.nan))
    proof = prove_fp16(simplified, broken, cases, reference, vocabulary, 8)
    assert not proof.passed
    assert "NaN or infinity" in proof.failure_message()


def test_progress_covers_both_runs(
    simplified: onnx.ModelProto, fp16: onnx.ModelProto, cases: list[ProofCase], vocabulary: Vocabulary
) -> None:
    real = [c for c in cases if c.family == "real"]
    seen: list[tuple[int, int]] = []
    prove_fp16(
        simplified,
        fp16,
        real,
        run_cases(AsWritten(simplified), real, 8),
        vocabulary,
        8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 2 * len(real)) for n in range(1, 2 * len(real) + 1)]


def test_rounding_that_does_not_happen_is_an_error_and_not_a_pass(
    simplified: onnx.ModelProto,
    fp16: onnx.ModelProto,
    cases: list[ProofCase],
    reference: Outputs,
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NeverRounds:
        def __init__(self, _: onnx.ModelProto) -> None:
            pass

        def log_probs(self, features: Any, feature_lens: Any) -> Any:
            raise GateError("onnxruntime removed the rounding")

    monkeypatch.setattr(fp16_proof, "RoundedModel", NeverRounds)
    proof = prove_fp16(simplified, fp16, cases, reference, vocabulary, 8)
    assert not proof.passed
    assert "onnxruntime removed the rounding" in proof.failure_message()
