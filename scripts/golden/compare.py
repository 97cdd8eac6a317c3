"""One fixture through our code: features, the PyTorch model, padded batches, and the exported bundle.

Does: compute, per clip, what golden.npz holds, in the original's order of outputs, and the differences.
Does not: judge (`Bars` says what passes) or print (scripts/check_golden.py).
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.bundle import Bundle
from edge_asr.checkpoints import Checkpoint, load_any
from edge_asr.checkpoints.vocabularies import original_ids, original_order
from edge_asr.export.pipeline import export_bundle
from edge_asr.export.proof_cases import CasePlan
from edge_asr.runtime.backends import OnnxRuntimeBackend
from edge_asr.runtime.ctc import greedy_decode
from edge_asr.runtime.features import FeatureExtractor
from edge_asr.runtime.recognizer import Recognizer
from golden.fixtures import F32Array, Fixture


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """What passes (absolute differences on valid frames; single clips).

    Attributes:
        feature_max, feature_mean: of the front end; the largest is weighted (`float32_weight`).
        torch, runtime: log-probabilities of the PyTorch model on the original's clips, and of the exported
            bundle from the raw waveform.
        batch: a clip in a padded batch against the clip alone, both ours.
        batch_golden: the same against the original's batch, where it is a target.
    """

    feature_max: float = 5e-4
    feature_mean: float = 1e-5
    torch: float = 1e-3
    runtime: float = 2e-3
    batch: float = 1e-4
    batch_golden: float = 1e-3


BARS = Bars()
#: The proof inside the export is thorough elsewhere; here the original is the judge.
QUICK_PLAN = CasePlan(random_lengths=1, max_random_s=8.0, max_batch=2)


@dataclass(slots=True)
class Result:
    """What came of a fixture; None where nothing was compared.

    Attributes:
        error: why it could not be compared at all.
        feature_max, feature_mean, torch, runtime, batch, batch_golden: see `Bars`; the worst clip.
        feature_unweighted: largest error of a feature, whatever its level; not judged.
        tokens_torch, tokens_runtime: greedy tokens identical in every clip.
        dumped: per clip what the runtime computed: feat, logp, ids.
    """

    error: str | None = None
    feature_max: float | None = None
    feature_mean: float | None = None
    feature_unweighted: float | None = None
    torch: float | None = None
    runtime: float | None = None
    batch: float | None = None
    batch_golden: float | None = None
    tokens_torch: bool | None = None
    tokens_runtime: bool | None = None
    dumped: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def failures(self, bars: Bars = BARS) -> list[str]:
        """What missed its bar, in words."""
        if self.error is not None:
            return [self.error]
        failed = []
        for name in ("feature_max", "feature_mean", "torch", "runtime", "batch", "batch_golden"):
            value, bar = getattr(self, name), getattr(bars, name)
            if value is not None and not value <= bar:
                failed.append(f"{name} {value:.1e} is above {bar:.0e}")
        for name in ("tokens_torch", "tokens_runtime"):
            if getattr(self, name) is False:
                failed.append(f"{name.replace('_', ' of ')} differ")
        return failed


def compare_fixture(fixture: Fixture, *, with_runtime: bool = True) -> Result:
    """Run a fixture through our code.

    Args:
        fixture: the fixture.
        with_runtime: also export a bundle and run it.

    Raises:
        EdgeAsrError: the checkpoint, or its export, is refused.
    """
    assert fixture.checkpoint is not None
    checkpoint = load_any(fixture.checkpoint)
    golden = fixture.arrays()
    waveforms = fixture.waveforms()
    result = Result(tokens_torch=True)
    _compare_features(result, checkpoint, golden, waveforms)
    extractor = FeatureExtractor(checkpoint.features)
    clips = [extractor(waveform) for waveform in waveforms]
    model = checkpoint.build_model()
    alone = [_run(model, [clip])[0] for clip in clips]
    for index, log_probs in enumerate(alone):
        error, same = _compare_log_probs(checkpoint, golden, f"clip{index}", log_probs)
        result.torch = max(result.torch or 0.0, error)
        result.tokens_torch = bool(result.tokens_torch and same)
    _compare_batches(result, fixture, checkpoint, golden, clips, alone, model)
    if with_runtime:
        _compare_runtime(result, fixture, checkpoint, golden, waveforms)
    return result


def _compare_features(
    result: Result, checkpoint: Checkpoint, golden: dict[str, Any], waveforms: list[F32Array]
) -> None:
    extractor = FeatureExtractor(checkpoint.features)
    raw_extractor = FeatureExtractor(dataclasses.replace(checkpoint.features, normalize="none"))
    worst, largest, means = 0.0, 0.0, []
    for index, waveform in enumerate(waveforms):
        raw = f"clip{index}_feat_raw" in golden
        expected = golden[f"clip{index}_feat_raw" if raw else f"clip{index}_feat"][0]
        given = raw_extractor(waveform) if raw else as_stored(checkpoint, extractor(waveform))
        expected = expected.reshape(len(expected), -1)
        n_frames = int(golden[f"clip{index}_feat_len"].ravel()[0])
        if given.shape != (n_frames, expected.shape[1]):
            raise ValueError(
                f"clip {index}: features {given.shape}, the original has {n_frames} valid frames"
            )
        errors = np.abs(given - expected[:n_frames])
        weight = float32_weight(raw_extractor(waveform), checkpoint.features.power)
        worst, largest = max(worst, float((errors * weight).max())), max(largest, float(errors.max()))
        means.append(float(errors.mean(dtype=np.float64)))
    result.feature_max, result.feature_mean, result.feature_unweighted = worst, max(means), largest


def float32_weight(log_mel: F32Array, power: float) -> F32Array:
    """How much of an error counts, [T, n_mels]: all, down to float32's epsilon of a frame's loudest band.

    A transform in float32, which is what the originals run, has a rounding noise of one level over all bins
    of a frame. What it makes of a band's logarithm grows as the band's amplitude falls: from a power 2^-23
    below the loudest band on it is above any bar of ours, and it differs from one FFT library to the next.
    There an error counts in proportion to the amplitude.
    """
    amplitude = np.exp((log_mel - log_mel.max(axis=1, keepdims=True)) / power)
    weight: F32Array = np.minimum(1.0, amplitude / np.sqrt(np.float32(2.0**-23)))
    return weight


def as_stored(checkpoint: Checkpoint, features: F32Array) -> F32Array:
    """The runtime's features as golden.npz has them: ESPnet's global_mvn is part of our model, not of its."""
    if checkpoint.provenance.get("normalize") != "global_mvn":
        return features
    mean, istd = (checkpoint.state_dict[f"cmvn.{name}"].numpy() for name in ("mean", "istd"))
    normalized: F32Array = (features - mean) * istd
    return normalized


def _run(model: torch.nn.Module, clips: list[F32Array]) -> list[F32Array]:
    """Valid log-probs of each clip, in one padded batch."""
    lengths = torch.tensor([len(clip) for clip in clips])
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], batch_first=True)
    with torch.inference_mode():
        log_probs, n_valid = model(batch, lengths)
    return [row[:n].numpy() for row, n in zip(log_probs, n_valid.tolist(), strict=True)]


def _compare_log_probs(
    checkpoint: Checkpoint, golden: dict[str, Any], key: str, ours: F32Array, row: int = 0
) -> tuple[float, bool]:
    """Largest difference on valid frames, and whether the greedy tokens are the same."""
    n_valid = int(golden[f"{key}_len"].ravel()[row])
    expected = golden[f"{key}_logp"][row][:n_valid]
    given = original_order(ours, checkpoint.source_blank_id)
    if given.shape != expected.shape:
        raise ValueError(f"{key}: log-probs {given.shape}, the original's {expected.shape}")
    ids = original_ids(
        greedy_decode(ours, checkpoint.vocabulary.blank_id).ids.tolist(), checkpoint.source_blank_id
    )
    stored = golden.get(f"{key}_ids{row}", golden.get(f"{key}_ids0") if row == 0 else None)
    same = stored is None or ids == stored.ravel().tolist()
    return float(np.abs(given - expected).max()), same


def _compare_batches(
    result: Result,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    clips: list[F32Array],
    alone: list[F32Array],
    model: torch.nn.Module,
) -> None:
    order = fixture.info.get("batch_order", list(range(len(clips))))
    rows = _run(model, [clips[index] for index in order])
    result.batch = max(
        float(np.abs(row - alone[index]).max()) for row, index in zip(rows, order, strict=True)
    )
    if fixture.compares_batches and "batch_logp" in golden:
        errors = [_compare_log_probs(checkpoint, golden, "batch", row, i)[0] for i, row in enumerate(rows)]
        result.batch_golden = max(errors)


def _compare_runtime(
    result: Result,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    waveforms: list[F32Array],
) -> None:
    result.tokens_runtime = True
    with tempfile.TemporaryDirectory(prefix="edge-asr-golden-") as folder:
        path = Path(folder) / "bundle"
        export_bundle(checkpoint, path, name=fixture.name, clips=fixture.clip_paths(), plan=QUICK_PLAN)
        bundle = Bundle.load(path)
        extractor = FeatureExtractor(bundle.info.features)
        backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
        with Recognizer.load(path, precision="fp32", backend="cpu", num_threads=1) as recognizer:
            for index, waveform in enumerate(waveforms):
                features = extractor(waveform)
                lengths = np.array([len(features)], np.int64)
                log_probs = backend.log_probs(features[None], lengths)[0]
                log_probs = log_probs[: bundle.info.output_frames.n_valid(len(features))]
                error, same = _compare_log_probs(checkpoint, golden, f"clip{index}", log_probs)
                result.runtime = max(result.runtime or 0.0, error)
                tokens = recognizer.transcribe_file(fixture.clip_paths()[index]).tokens
                ids = original_ids([token.id for token in tokens], checkpoint.source_blank_id)
                same = same and ids == golden[f"clip{index}_ids0"].ravel().tolist()
                result.tokens_runtime = result.tokens_runtime and same
                result.dumped[f"clip{index}_feat"] = as_stored(checkpoint, features)
                result.dumped[f"clip{index}_logp"] = original_order(log_probs, checkpoint.source_blank_id)
                result.dumped[f"clip{index}_ids"] = np.array(ids, np.int64)
        backend.close()
