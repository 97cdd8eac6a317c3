"""The proof of an engine, on stand-ins for one: good ones pass, each kind of wrong one is found.

No engine runs here: the stand-ins are the fp32 model on onnxruntime with a fault added to what goes in or
comes out. `tiny-en` and the embedded sample, so that the text is real.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError
from edge_asr.export.engine.cases import build_engine_cases
from edge_asr.export.engine.profiles import build_profiles
from edge_asr.export.engine.proof import BARS, EngineProof, prove_engine
from edge_asr.manifest import Utterance
from edge_asr.proof.cases import CasePlan, ProofCase
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]
Fault = Callable[["StandIn", F32Array, I64Array], F32Array]

EDGES = (0.1, 1.0, 3.0)
BATCH = (1, 2, 3)
PLAN = CasePlan(random_lengths=2, max_random_s=2.0, max_batch=2)


class Remembering:
    """A `Backend` that runs each input once: the proofs here share nearly all of theirs."""

    name = "cpu"
    precision = "fp32"

    def __init__(self, backend: OnnxRuntimeBackend) -> None:
        self.backend = backend
        self.num_threads, self.max_frames = backend.num_threads, backend.max_frames
        self.known: dict[tuple[object, ...], F32Array] = {}

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        key = (features.shape, tuple(feature_lens), hashlib.sha256(features.tobytes()).digest())
        if key not in self.known:
            self.known[key] = self.backend.log_probs(features, feature_lens)
        return self.known[key].copy()

    def close(self) -> None: ...


class StandIn:
    """A `Backend` that runs another and may spoil its results."""

    name = "stand-in"
    precision = "fp32"

    def __init__(self, backend: Remembering, fault: Fault | None = None) -> None:
        self.backend = backend
        self.num_threads, self.max_frames = backend.num_threads, backend.max_frames
        self.fault = fault

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        if self.fault is not None:
            return self.fault(self, features, feature_lens)
        return self.backend.log_probs(features, feature_lens)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("tiny-en")


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Iterator[Remembering]:
    backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    yield Remembering(backend)
    backend.close()


@pytest.fixture(scope="module")
def cases(bundle: Bundle) -> list[ProofCase]:
    profiles = build_profiles(bundle.info.features, EDGES, BATCH)
    return build_engine_cases(load_clips(find_clips(), 16_000), bundle.info, profiles, PLAN)


@pytest.fixture(scope="module")
def prove(bundle: Bundle, backend: Remembering, cases: list[ProofCase]) -> Callable[..., EngineProof]:
    def run(fault: Fault | None = None, precision: str = "fp32", **arguments: object) -> EngineProof:
        return prove_engine(
            StandIn(backend, fault),
            backend,
            cases,
            precision=precision,  # type: ignore[arg-type]
            info=bundle.info,
            vocabulary=bundle.vocabulary,
            **arguments,  # type: ignore[arg-type]
        )

    return run


def spoil_nan(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """NaN at full batch only, as an overflow in one kernel gives."""
    log_probs = engine.backend.log_probs(features, lengths)
    return log_probs * np.float32(np.nan) if len(lengths) == BATCH[2] else log_probs


def spoil_shift(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """Everything one frame late."""
    return np.roll(engine.backend.log_probs(features, lengths), 1, axis=1)


def spoil_padding(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """Attention sees the padding: the lengths are ignored."""
    return engine.backend.log_probs(features, np.full_like(lengths, features.shape[1]))


def spoil_padding_slightly(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """A leak that no text shows: a thousandth of the mean magnitude of all features."""
    return engine.backend.log_probs(features, lengths) + np.float32(0.001 * np.abs(features).mean())


def spoil_one_length(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """Wrong numbers at the largest shape of the first profile only: row 0 sees row 1."""
    log_probs = engine.backend.log_probs(features, lengths)
    return log_probs[::-1] if features.shape[:2] == (BATCH[2], 100) else log_probs


def spoil_error(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """A run that fails above two seconds."""
    if features.shape[1] > 200:
        raise BackendError("out of memory")
    return engine.backend.log_probs(features, lengths)


def spoil_shape(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """One frame too few."""
    return engine.backend.log_probs(features, lengths)[:, :-1]


def spoil_short(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
    """Nonsense below ten output frames."""
    log_probs = engine.backend.log_probs(features, lengths)
    return np.roll(log_probs, 5, axis=2) if log_probs.shape[1] < 10 else log_probs


def test_cases_cover_every_profile(cases: list[ProofCase]) -> None:
    shapes = {(max(case.lengths), len(case.features)) for case in cases}
    for low, best, high in ((10, 31, 100), (100, 173, 300)):
        assert {(n, 2) for n in (low, low + 1, best - 1, best, high - 1, high)} <= shapes
        assert {(n, rows) for n in (low, high) for rows in BATCH} <= shapes
    assert max(n for n, _ in shapes) == 300  # nothing that the engine cannot take
    families = {case.family for case in cases}
    assert {"real", "signal", "padded", "profile", "profile padded", "subsampling_edge"} <= families
    assert any(case.name == "digital silence" for case in cases)
    repeated = [case for case in cases if "batch 2, 173 frames" in case.name]
    assert len(repeated) == 3  # first run, the run that records a CUDA graph, and one that replays it
    assert not np.array_equal(repeated[1].features[0], repeated[2].features[0])


def test_a_good_engine_passes(prove: Callable[..., EngineProof]) -> None:
    proof = prove()
    assert proof.passed, proof.failures
    # The reference runs rows alone: the order of sums differs, nothing else.
    assert proof.frame_agreement == 1.0
    assert proof.max_error <= 1e-3
    assert proof.padding_error is not None
    assert proof.padding_error <= 1e-4
    data = json.loads(json.dumps(proof.to_dict()))
    assert data["passed"] is True
    assert data["engine"] == "fp32 engine on stand-in"
    assert data["wer"] is None


def test_progress_counts_both_models(prove: Callable[..., EngineProof], cases: list[ProofCase]) -> None:
    seen: list[tuple[int, int]] = []
    prove(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 2 * len(cases)) for n in range(1, 2 * len(cases) + 1)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (spoil_nan, "NaN or infinity"),
        (spoil_shift, "of all frames agree"),
        (spoil_padding, "the content of padding changes log-probs"),
        (spoil_padding_slightly, "the content of padding changes log-probs"),
        (spoil_one_length, "batch 3, 100 frames, run 1: only 0."),
        (spoil_error, "out of memory"),
        (spoil_shape, "output has the shape"),
        (spoil_short, "in inputs below 20 output frames"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_wrong_engine_fails_whatever_its_precision(
    fault: Fault, words: str, precision: str, prove: Callable[..., EngineProof]
) -> None:
    proof = prove(fault, precision)
    assert not proof.passed
    assert any(words in failure for failure in proof.failures), proof.failures
    assert proof.to_dict()["passed"] is False


def test_rounding_passes_where_the_precision_allows_it(prove: Callable[..., EngineProof]) -> None:
    def rounding(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
        return np.round(engine.backend.log_probs(features, lengths) * 32) / 32

    proof = prove(rounding, "fp16")
    assert proof.passed, proof.failures
    assert proof.max_error == pytest.approx(1 / 64, rel=0.01)
    failure, *_ = prove(rounding, "fp32").failures
    assert failure.startswith("log-probs differ by 1.56e-02, more than 0.01, at ")


def test_word_errors_are_counted_against_the_reference(
    prove: Callable[..., EngineProof], sample_path: Path
) -> None:
    text = sample_path.with_suffix(".txt").read_text(encoding="utf-8").strip().lower()
    utterance = Utterance(id="sample", audio_path=sample_path, text=text)

    def deaf(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
        """Right in all cases of the proof, wrong on the recording, which is longer."""
        log_probs = engine.backend.log_probs(features, lengths)
        return np.zeros_like(log_probs) if features.shape[1] > 300 else log_probs

    good = prove(utterances=[utterance])
    assert good.passed
    assert good.words is not None
    assert good.words.n_words == len(text.split())
    assert good.words.engine_errors == good.words.reference_errors
    bad = prove(deaf, utterances=[utterance])
    assert bad.words is not None
    assert bad.words.reference_errors == good.words.reference_errors
    assert len(bad.failures) == 1
    assert "word errors in" in bad.failures[0]


def test_recordings_are_cut_to_what_the_engine_takes(
    prove: Callable[..., EngineProof], sample_path: Path
) -> None:
    longest = 0

    def measure(engine: StandIn, features: F32Array, lengths: I64Array) -> F32Array:
        nonlocal longest
        longest = max(longest, features.shape[1])
        return engine.backend.log_probs(features, lengths)

    utterance = Utterance(id="sample", audio_path=sample_path, text="hello")
    proof = prove(measure, utterances=[utterance], longest_frames=302)
    assert proof.words is not None
    assert longest == 300  # the multiple of the subsampling factor below


def test_bars_are_no_looser_than_those_of_the_onnx_files() -> None:
    assert BARS["fp16"].min_agreement >= 0.995
    assert BARS["int8"].min_agreement >= 0.985
    assert BARS["fp32"].min_agreement >= BARS["fp16"].min_agreement
