"""Compares outputs and times runners.

Time is from features in host memory to log-probs in host memory, for every runner alike. Runners of one
table take turns (`edge_asr.benchmark.timing`); ratios are taken within a round. What this file does not do:
know what a runner is; it has `log_probs(features, feature_lens)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from acceptance.inputs import read_waveforms
from edge_asr.benchmark.statistics import ratio_by_round, summarize
from edge_asr.benchmark.timing import lap, rounds, take_turns
from edge_asr.bundle.folder import Bundle
from edge_asr.proof.cases import CasePlan, ProofCase, build_cases
from edge_asr.proof.compare import LogProbModel, Outputs, run_cases
from edge_asr.runtime.features.extractor import FeatureExtractor

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


def proof_cases(bundle: Bundle, max_batch: int, clips: Sequence[str] = ()) -> list[ProofCase]:
    """Build the cases of a proof: real speech, lengths around every edge, padding, silence, noise."""
    info = bundle.info
    waveforms = read_waveforms(clips, info.features.sample_rate)
    plan = CasePlan(random_lengths=4, max_batch=max_batch)
    return build_cases(waveforms, info.features, info.output_frames, plan)


def compare(
    reference: Outputs, model: LogProbModel, cases: Sequence[ProofCase], bundle: Bundle
) -> dict[str, Any]:
    """Compare outputs of `model` with `reference`: failures, pooled frame-argmax agreement, largest error.

    Frames are valid output frames of all rows, pooled over all cases but silence and noise ("signal"), in
    which the likeliest token is a matter of rounding.
    """
    outputs = run_cases(model, cases, bundle.info.output_frames)
    same = total = 0
    largest = 0.0
    failures = []
    for case, expected, given in zip(cases, reference, outputs, strict=True):
        if isinstance(expected, str) or isinstance(given, str):
            failures.append(
                f"{case.family} / {case.name}: {expected if isinstance(expected, str) else given}"
            )
            continue
        for wanted, got in zip(expected, given, strict=True):
            if wanted.shape != got.shape or not np.isfinite(got).all():
                failures.append(f"{case.family} / {case.name}: wrong shape, NaN or infinity")
                continue
            if case.family != "signal":
                same += int((wanted.argmax(axis=1) == got.argmax(axis=1)).sum())
                total += len(wanted)
            largest = max(largest, float(np.abs(wanted - got).max()))
    return {
        "n_cases": len(cases),
        "failures": failures,
        "agreement": same / total if total else 0.0,
        "n_frames": total,
        "max_log_prob_error": largest,
    }


def speech_batch(
    bundle: Bundle, seconds: float, n_rows: int, clips: Sequence[str] = ()
) -> tuple[F32Array, I64Array]:
    """Compute features [n_rows, T, F] of the first clip, repeated to `seconds`, and lengths [n_rows]."""
    config = bundle.info.features
    waveform = next(iter(read_waveforms(clips, config.sample_rate).values()))
    n_samples = round(seconds * config.sample_rate)
    features = FeatureExtractor(config)(np.resize(waveform, n_samples))
    return np.repeat(features[None], n_rows, axis=0), np.full(n_rows, len(features), np.int64)


def time_runners(
    runners: Mapping[str, LogProbModel],
    features: F32Array,
    lengths: I64Array,
    *,
    n_rounds: int,
    warm_up: int,
    on_error: Callable[[str, str], None],
) -> dict[str, list[float]]:
    """Time each call by runner, in seconds; one that fails is reported to `on_error` and left out."""
    calls = {
        name: partial(lap, partial(runner.log_probs, features, lengths)) for name, runner in runners.items()
    }
    laps = take_turns(
        calls,
        rounds(n_rounds),
        warm_up=warm_up,
        on_error=lambda name, error: on_error(name, f"{type(error).__name__}: {error}"),
    )
    return {name: [run.wall_s for run in values] for name, values in laps.items()}


def latency_rows(
    times: Mapping[str, Sequence[float]], audio_s: float, baseline: str
) -> list[dict[str, float | str | None]]:
    """Make one row per runner: median, p90 and minimum in ms, RTFx, and the speed over `baseline`."""
    rows: list[dict[str, float | str | None]] = []
    for name, seconds in times.items():
        summary = summarize([1e3 * value for value in seconds])
        paired = baseline in times and len(times[baseline]) == len(seconds)
        rows.append(
            {
                "runner": name,
                "median_ms": round(summary.p50, 4),
                "p90_ms": round(summary.p90, 4),
                "min_ms": round(summary.min, 4),
                "rtfx": round(1e3 * audio_s / summary.p50, 1),
                "times_faster": round(ratio_by_round(times[baseline], seconds)[1], 2) if paired else None,
            }
        )
    return rows
