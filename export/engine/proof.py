"""The proof of an engine: on its own device, against the fp32 ONNX on onnxruntime's CPU.

Miscompiled engines exist that give wrong numbers or NaN without an error (TensorRT issue 4822, NeMo issue
14531), but only at some lengths or batch sizes. So every profile is tried at its edges, in batches, padded
with zeros and with noise, on speech, silence and noise. An engine passes if
- no input gives NaN, infinity or a failed run;
- on speech, the most likely token agrees with the reference in nearly all frames, both of all cases together
  and of each case alone (cases below `_MIN_CASE_FRAMES` output frames count together), because a fault at one
  shape must not drown in the rest;
- the content of padding changes nothing;
- with a manifest: it makes hardly more word errors than the reference.
It needs only a `Backend`, so the tests use stand-ins. The inputs come from cases.py.
What this file does not do: build or run engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.manifest import BundleInfo, Precision
from edge_asr.export.engine.reference import recall_outputs
from edge_asr.frames import OutputFrames
from edge_asr.manifest import Utterance
from edge_asr.metrics import compute_error_rates
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs, ProofStep, Tolerance, compare_outputs, run_cases
from edge_asr.proof.stages import Progress
from edge_asr.runtime.backends import Backend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.windows import OVERLAP_S, WINDOW_S, WindowGeometry
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]

_MIN_CASE_FRAMES = 20  # below it, one different frame exceeds any useful limit
_NOT_SPEECH = "signal"  # the family of cases whose text means nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBar:
    """What an engine must reach to pass, as fractions.

    Attributes:
        min_agreement: share of agreeing frames in all speech cases together.
        min_case_agreement: the same in each case alone.
        max_error: largest log-prob difference on speech; None if it is not judged.
        max_padding_error: largest log-prob difference between padding with zeros and with noise.
        max_wer_loss: how much the word error rate may exceed the reference's; one more word is always
            allowed.
    """

    min_agreement: float
    min_case_agreement: float = 0.9
    max_error: float | None = None
    max_padding_error: float = 1e-3
    max_wer_loss: float = 0.003


#: fp32 differs only by the order of sums. fp16 and int8 have the limits of their ONNX files.
BARS: dict[Precision, EngineBar] = {
    "fp32": EngineBar(min_agreement=0.999, max_error=1e-2),
    "fp16": EngineBar(min_agreement=0.995),
    "int8": EngineBar(min_agreement=0.985, max_wer_loss=0.006),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WordErrors:
    """Word errors of reference and engine on one manifest; rates are fractions."""

    n_utterances: int
    n_words: int
    reference_errors: int
    engine_errors: int

    @property
    def loss(self) -> float:
        """Return how much the word error rate of the engine exceeds the reference's."""
        return (self.engine_errors - self.reference_errors) / max(self.n_words, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProof:
    """Result of a proof.

    Attributes:
        step: every case, compared.
        bar: what was required.
        frame_agreement: share of agreeing frames in all speech cases that could be compared.
        max_error: largest log-prob difference on speech.
        padding_error: largest difference caused by the content of padding; None if no batch is padded.
        words: word errors on the manifest, or None.
        failures: sentences; empty when the engine passed.
    """

    step: ProofStep
    bar: EngineBar
    frame_agreement: float
    max_error: float
    padding_error: float | None
    words: WordErrors | None
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Tell whether nothing failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, for the sidecar and the report."""
        words = self.words
        return {
            "passed": self.passed,
            "reference": self.step.reference,
            "engine": self.step.candidate,
            "n_cases": len(self.step.results),
            "frame_agreement": round(self.frame_agreement, 6),
            "min_agreement": self.bar.min_agreement,
            "max_log_prob_error": float(f"{self.max_error:.4g}"),
            "padding_error": None if self.padding_error is None else float(f"{self.padding_error:.4g}"),
            "wer": None
            if words is None
            else {
                "n_utterances": words.n_utterances,
                "n_words": words.n_words,
                "reference": round(words.reference_errors / max(words.n_words, 1), 6),
                "engine": round(words.engine_errors / max(words.n_words, 1), 6),
            },
            "failures": list(self.failures),
        }


def prove_engine(
    engine: Backend,
    reference: Backend,
    cases: Sequence[ProofCase],
    *,
    precision: Precision,
    info: BundleInfo,
    vocabulary: Vocabulary,
    utterances: Sequence[Utterance] = (),
    longest_frames: int | None = None,
    bar: EngineBar | None = None,
    reference_key: str | None = None,
    progress: Progress | None = None,
) -> EngineProof:
    """Compare an engine with the fp32 ONNX.

    Args:
        engine, reference: what to compare; neither is closed.
        cases: from `cases.build_engine_cases`.
        precision: that of the engine.
        info, vocabulary: those of the bundle.
        utterances: speech with its text, for word errors.
        longest_frames: feature frames that the engine accepts at once; recordings are cut to it.
        bar: what to require; by default the bar of the precision.
        reference_key: names what the reference is; its outputs are kept under it (reference.py). None runs
            it in any case.
        progress: called after each case of either backend and after each utterance.

    Returns:
        The result; check `passed`.

    Raises:
        GateError: the reference itself failed.
        AudioError: an utterance cannot be read.
        MissingDependencyError: utterances are given and jiwer is not installed.
    """
    bar = bar or BARS[precision]
    total = 2 * (len(cases) + len(utterances))
    done = 0

    def advance(*_: int) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    factor = info.output_frames

    def compute() -> Outputs:
        return run_cases(reference, cases, factor, rows_alone=True, progress=advance)

    expected = compute() if reference_key is None else recall_outputs(reference_key, cases, compute)
    done = len(cases)  # also where nothing was run
    given = run_cases(engine, cases, factor, progress=advance)
    step = compare_outputs(
        expected,
        given,
        cases,
        vocabulary,
        reference_name="fp32 ONNX on onnxruntime",
        candidate_name=f"{precision} engine on {engine.name}",
        tolerance=Tolerance(max_error=None, text_families=()),
    )
    agreement, failures = _judge_agreement(step, cases, factor, bar)
    errors = {
        r.name: r.max_error for r in step.results if r.family != _NOT_SPEECH and r.max_error is not None
    }
    worst = max(errors, key=errors.__getitem__, default="none")
    max_error = errors.get(worst, 0.0)
    if bar.max_error is not None and max_error > bar.max_error:
        failures.append(f"log-probs differ by {max_error:.2e}, more than {bar.max_error:g}, at {worst}")
    padding_error = _padding_error(cases, given)
    if padding_error is not None and not padding_error <= bar.max_padding_error:
        failures.append(f"the content of padding changes log-probs by {padding_error:.2e}")
    words = None
    if utterances:
        words = _count_word_errors(engine, reference, utterances, info, vocabulary, longest_frames, advance)
        if words.engine_errors > words.reference_errors + max(1.0, bar.max_wer_loss * words.n_words):
            failures.append(
                f"{words.engine_errors} word errors in {words.n_words} words, the reference makes "
                f"{words.reference_errors} (loss {words.loss:.4f}, allowed {bar.max_wer_loss:g})"
            )
    return EngineProof(
        step=step,
        bar=bar,
        frame_agreement=agreement,
        max_error=max_error,
        padding_error=padding_error,
        words=words,
        failures=tuple(failures),
    )


def _judge_agreement(
    step: ProofStep, cases: Sequence[ProofCase], factor: OutputFrames, bar: EngineBar
) -> tuple[float, list[str]]:
    """Compute the agreement over all speech, and list what failed: runs, NaN, one case, or all together."""
    failures = [f"{r.family} / {r.name}: {r.failure}" for r in step.failures]
    agreeing = frames = short_agreeing = short_frames = 0.0
    for case, result in zip(cases, step.results, strict=True):
        if result.frame_agreement is None or case.family == _NOT_SPEECH:
            continue
        n_frames = sum(factor.n_valid(length) for length in case.lengths)
        agreeing += result.frame_agreement * n_frames
        frames += n_frames
        if n_frames < _MIN_CASE_FRAMES:
            short_agreeing += result.frame_agreement * n_frames
            short_frames += n_frames
        elif result.frame_agreement < bar.min_case_agreement:
            failures.append(
                f"{case.family} / {case.name}: only {result.frame_agreement:.3f} of the frames agree with "
                f"the reference, at least {bar.min_case_agreement:g} must"
            )
    if short_frames and short_agreeing / short_frames < bar.min_case_agreement:
        failures.append(
            f"in inputs below {_MIN_CASE_FRAMES} output frames only {short_agreeing / short_frames:.3f} of "
            f"the frames agree with the reference, at least {bar.min_case_agreement:g} must"
        )
    pooled = agreeing / frames if frames else 0.0
    if pooled < bar.min_agreement:
        failures.append(
            f"{pooled:.4f} of all frames agree with the reference, at least {bar.min_agreement:g} must"
        )
    return pooled, failures


def _padding_error(cases: Sequence[ProofCase], given: Outputs) -> float | None:
    """Compute the largest difference between outputs of cases that differ only in their padding."""
    zeros: dict[tuple[int, ...], tuple[F32Array, ...]] = {}
    worst: float | None = None
    for case, output in zip(cases, given, strict=True):
        if isinstance(output, str) or len(case.features) < 2:
            continue
        key = tuple(id(row) for row in case.features)
        if case.padding == "zeros":
            zeros[key] = output
        elif key in zeros:
            differences = [
                float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(zeros[key], output, strict=True)
            ]
            # NaN counts as the largest; max() must not lose it.
            worst = float(np.max([worst or 0.0, *differences]))
    return worst


def _count_word_errors(
    engine: Backend,
    reference: Backend,
    utterances: Sequence[Utterance],
    info: BundleInfo,
    vocabulary: Vocabulary,
    longest_frames: int | None,
    advance: Progress,
) -> WordErrors:
    texts = [utterance.text for utterance in utterances]
    counts = []
    for backend in (reference, engine):
        recognizer = Recognizer(
            backend,
            features=info.features,
            vocabulary=vocabulary,
            subsampling_factor=info.subsampling_factor,
            first_output_frames=info.first_output_frames,
            windows=_windows(info, longest_frames),
        )
        hypotheses = []
        for utterance in utterances:
            hypotheses.append(recognizer.transcribe_file(utterance.audio_path).text)
            advance(0, 0)
        rates = compute_error_rates(texts, hypotheses, normalization="none")
        counts.append((rates.substitutions + rates.deletions + rates.insertions, rates.n_words))
    (reference_errors, n_words), (engine_errors, _) = counts
    return WordErrors(
        n_utterances=len(texts),
        n_words=n_words,
        reference_errors=reference_errors,
        engine_errors=engine_errors,
    )


def _windows(info: BundleInfo, longest_frames: int | None) -> WindowGeometry | None:
    """Return windows that the engine accepts: those of `Recognizer.load`, or shorter ones."""
    frame_s = info.features.hop_length / info.features.sample_rate
    if longest_frames is None or longest_frames * frame_s >= WINDOW_S:
        return None
    window_s = longest_frames // info.subsampling_factor * info.subsampling_factor * frame_s
    overlap_s = min(OVERLAP_S, window_s / 4)
    return WindowGeometry.from_seconds(
        feature_frame_s=frame_s,
        subsampling_factor=info.subsampling_factor,
        window_s=window_s,
        overlap_s=overlap_s,
        margin_s=overlap_s / 4,
    )
