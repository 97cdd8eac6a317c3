"""Runs a fixture through our code: features, the PyTorch model, padded batches, and the exported bundle.

It computes for each clip what golden.npz holds, in the original's order of outputs, and the differences.
What this file does not do: judge (`Bars` says what passes), print (scripts/check_golden.py).
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_asr.bundle.folder import Bundle
from edge_asr.checkpoints import Checkpoint, load_any
from edge_asr.checkpoints.vocabularies import original_ids, original_order
from edge_asr.export.pipeline import export_bundle
from edge_asr.export.streaming.plan import StreamingOptions
from edge_asr.proof.cases import CasePlan
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from golden.decoders import Networks, bundle_networks, compare_decoders, has_decoder, torch_networks
from golden.fixtures import F32Array, Fixture
from golden.streaming import compare_streams, has_streams


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Limits that pass (absolute differences on valid frames; single clips).

    Attributes:
        feature_max, feature_mean: those of the front end; the largest is weighted (`float32_weight`).
        torch, runtime: log-probabilities of the PyTorch model on the original's clips, and of the exported
            bundle from the raw waveform.
        batch: a clip in a padded batch against the clip alone, both ours.
        batch_golden: the same against the original's batch, where it is a target.
        stream_torch, stream_cache, stream_runtime, stream_whole: see `golden.streaming.StreamResult`.
        decoder_torch, decoder_runtime: log-probabilities of an attention decoder over the original's encoder
            output; decoder_scores: of whole texts, sums of up to 70 of them, through either.
    """

    feature_max: float = 5e-4
    feature_mean: float = 1e-5
    torch: float = 1e-3
    runtime: float = 2e-3
    batch: float = 1e-4
    batch_golden: float = 1e-3
    stream_torch: float = 1e-3
    stream_cache: float = 1e-3
    stream_runtime: float = 2e-3
    stream_whole: float = 2e-3
    decoder_torch: float = 1e-3
    decoder_runtime: float = 1e-3
    decoder_scores: float = 1e-3


BARS = Bars()
#: The proof inside the export is thorough elsewhere; here the original is the judge.
QUICK_PLAN = CasePlan(random_lengths=1, max_random_s=4.0, max_batch=2)


@dataclass(slots=True)
class Result:
    """The result of a fixture; None where nothing was compared.

    Attributes:
        error: why it could not be compared at all.
        feature_max, feature_mean, torch, runtime, batch, batch_golden: see `Bars`; the worst clip.
        feature_unweighted: largest error of a feature, whatever its level; not judged.
        stream_torch, stream_cache, stream_runtime, stream_whole: see `Bars`; the worst stream.
        decoder_torch, decoder_runtime, decoder_scores: see `Bars`; the worst clip.
        tokens_torch, tokens_runtime, tokens_stream: greedy tokens identical in every clip or stream.
        tokens_decoder: rescoring and searches choose identical texts.
        dumped: per clip what the runtime computed: feat, logp, ids; and its streams under golden.npz's keys.
    """

    error: str | None = None
    feature_max: float | None = None
    feature_mean: float | None = None
    feature_unweighted: float | None = None
    torch: float | None = None
    runtime: float | None = None
    batch: float | None = None
    batch_golden: float | None = None
    stream_torch: float | None = None
    stream_cache: float | None = None
    stream_runtime: float | None = None
    stream_whole: float | None = None
    decoder_torch: float | None = None
    decoder_runtime: float | None = None
    decoder_scores: float | None = None
    tokens_torch: bool | None = None
    tokens_runtime: bool | None = None
    tokens_stream: bool | None = None
    tokens_decoder: bool | None = None
    dumped: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def failures(self, bars: Bars = BARS) -> list[str]:
        """Describe what missed its limit."""
        if self.error is not None:
            return [self.error]
        failed = []
        for name in (entry.name for entry in dataclasses.fields(bars)):
            value, bar = getattr(self, name), getattr(bars, name)
            if value is not None and not value <= bar:
                failed.append(f"{name} {value:.1e} is above {bar:.0e}")
        for name in ("tokens_torch", "tokens_runtime", "tokens_stream", "tokens_decoder"):
            if getattr(self, name) is False:
                failed.append(f"{name.replace('_', ' of ')} differ")
        return failed


def worst_of(*errors: float | None) -> float:
    """The largest of differences, None left out; NaN is the worst (`max` loses it)."""
    return float(np.max([error for error in errors if error is not None], initial=0.0))


def compare_fixture(
    fixture: Fixture, *, with_runtime: bool = True, with_streams: bool = True, bundle: Path | None = None
) -> Result:
    """Run a fixture through our code.

    Args:
        fixture: the fixture.
        with_runtime: also export a bundle and run it.
        with_streams: also run its streams, if it has any.
        bundle: the fixture's bundle, where it was exported before.

    Raises:
        EdgeAsrError: the checkpoint, or its export, is refused.
    """
    assert fixture.checkpoint is not None
    checkpoint = load_any(fixture.checkpoint)
    golden = fixture.arrays()
    waveforms = fixture.waveforms()
    n_golden = sum(re.fullmatch(r"clip\d+_logp", key) is not None for key in golden)
    if len(waveforms) != n_golden:
        raise ValueError(f"there are {len(waveforms)} sound files and outputs of {n_golden} clips")
    result = Result(tokens_torch=True)
    try:
        _compare_features(result, checkpoint, golden, waveforms)
        _compare_model(result, fixture, checkpoint, golden, waveforms)
    except ValueError as error:
        result.error = str(error)  # other shapes; what the runtime computes is dumped all the same
    if has_decoder(fixture):
        result.decoder_torch = _compare_decoders(result, fixture, checkpoint, torch_networks(checkpoint))
    if with_runtime:
        with tempfile.TemporaryDirectory(prefix="edge-asr-golden-") as folder:
            path = bundle or _export(fixture, checkpoint, Path(folder) / "bundle")
            _compare_runtime(result, fixture, checkpoint, golden, waveforms, path)
    if with_streams and has_streams(fixture):
        streams = compare_streams(fixture, checkpoint, with_runtime=with_runtime)
        for name in ("torch", "cache", "runtime", "whole"):
            setattr(result, f"stream_{name}", getattr(streams, name))
        result.tokens_stream = streams.tokens
        result.dumped.update(streams.dumped)
    return result


def _compare_decoders(result: Result, fixture: Fixture, checkpoint: Checkpoint, networks: Networks) -> float:
    found = compare_decoders(fixture, checkpoint.source_blank_id, networks)
    result.decoder_scores = worst_of(result.decoder_scores, found.scores)
    result.tokens_decoder = found.texts and result.tokens_decoder is not False
    return found.log_probs


def _compare_model(
    result: Result,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    waveforms: list[F32Array],
) -> None:
    extractor = FeatureExtractor(checkpoint.features)
    clips = [extractor(waveform) for waveform in waveforms]
    model = checkpoint.build_model()
    alone = [_run(model, [clip])[0] for clip in clips]
    for index, log_probs in enumerate(alone):
        error, same = _compare_log_probs(checkpoint, golden, f"clip{index}", log_probs)
        result.torch = worst_of(result.torch, error)
        result.tokens_torch = bool(result.tokens_torch and same)
    _compare_batches(result, fixture, checkpoint, golden, clips, alone, model)


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
        n_frames = _length(golden, f"clip{index}_feat_len", len(expected))
        if given.shape != (n_frames, expected.shape[1]):
            raise ValueError(
                f"clip {index}: features {given.shape}, the original has {n_frames} valid frames"
            )
        errors = np.abs(given - expected[:n_frames])
        weight = float32_weight(raw_extractor(waveform), checkpoint.features.power)
        worst = worst_of(worst, float((errors * weight).max(initial=0.0)))
        largest = worst_of(largest, float(errors.max(initial=0.0)))
        means.append(float(errors.mean(dtype=np.float64)))
    result.feature_max, result.feature_mean, result.feature_unweighted = worst, worst_of(*means), largest


def _length(golden: dict[str, Any], key: str, default: int, row: int = 0) -> int:
    return int(golden[key].ravel()[row]) if key in golden else default


def float32_weight(log_mel: F32Array, power: float) -> F32Array:
    """Compute how much of an error counts, [T, n_mels]: all, down to float32's epsilon of the loudest band.

    A transform in float32, which is what the originals run, has a rounding noise of one level over all bins
    of a frame. What it makes of a band's logarithm grows as the band's amplitude falls: from a power 2^-23
    below the loudest band on it is above any bar of ours, and it differs from one FFT library to the next.
    There an error counts in proportion to the amplitude.
    """
    amplitude = np.exp((log_mel - log_mel.max(axis=1, keepdims=True)) / power)
    weight: F32Array = np.minimum(1.0, amplitude / np.sqrt(np.float32(2.0**-23)))
    return weight


def as_stored(checkpoint: Checkpoint, features: F32Array) -> F32Array:
    """The runtime's features as golden.npz has them.

    ESPnet's global_mvn and NeMo's fixed normalization are part of our model, not of theirs.
    """
    if checkpoint.provenance.get("normalize") not in ("global_mvn", "fixed"):
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
    expected = golden[f"{key}_logp"][row]
    expected = expected[: _length(golden, f"{key}_len", len(expected), row)]
    given = original_order(ours, checkpoint.source_blank_id)
    if given.shape != expected.shape:
        raise ValueError(f"{key}: log-probs {given.shape}, the original's {expected.shape}")
    ids = original_ids(
        greedy_decode(ours, checkpoint.vocabulary.blank_id).ids.tolist(), checkpoint.source_blank_id
    )
    same = ids == _golden_ids(checkpoint, golden, key, expected, row)
    return float(np.abs(given - expected).max(initial=0.0)), same


def _golden_ids(
    checkpoint: Checkpoint, golden: dict[str, Any], key: str, log_probs: F32Array, row: int = 0
) -> list[int]:
    """The original's greedy tokens: as stored, or collapsed from its log-probs [T', V]."""
    stored = golden.get(f"{key}_ids{row}")
    if stored is not None:
        ids: list[int] = stored.ravel().tolist()
        return ids
    best = log_probs.argmax(axis=-1)
    kept = best[np.diff(best, prepend=-1) != 0]
    return [int(token) for token in kept if token != checkpoint.source_blank_id]


def _compare_batches(
    result: Result,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    clips: list[F32Array],
    alone: list[F32Array],
    model: torch.nn.Module,
) -> None:
    order = fixture.info.get("batch_order") or list(range(len(clips)))
    rows = _run(model, [clips[index] for index in order])
    result.batch = worst_of(
        *(float(np.abs(row - alone[index]).max(initial=0.0)) for row, index in zip(rows, order, strict=True))
    )
    if "batch_logp" in golden and _batch_is_a_target(golden, order):
        errors = [_compare_log_probs(checkpoint, golden, "batch", row, i)[0] for i, row in enumerate(rows)]
        result.batch_golden = worst_of(*errors)


def _batch_is_a_target(golden: dict[str, Any], order: list[int]) -> bool:
    """Compare the original's padded batch with its clips alone; in some, padding leaks."""
    batch = golden["batch_logp"]
    if len(batch) != len(order):
        return False
    for row, index in enumerate(order):
        alone = golden[f"clip{index}_logp"][0]
        n_alone = _length(golden, f"clip{index}_len", len(alone))
        if n_alone != _length(golden, "batch_len", n_alone, row):
            return False
        difference = np.abs(batch[row][:n_alone] - alone[:n_alone])
        if not float(difference.max(initial=0.0)) <= BARS.batch_golden:
            return False
    return True


def _export(fixture: Fixture, checkpoint: Checkpoint, path: Path) -> Path:
    offline = StreamingOptions(enabled=False)  # streams have comparisons of their own
    clips = fixture.clip_paths()
    export_bundle(
        checkpoint,
        path,
        name=fixture.name,
        streaming=offline,
        decoder=has_decoder(fixture),
        clips=clips,
        plan=QUICK_PLAN,
    )
    return path


def _compare_runtime(
    result: Result,
    fixture: Fixture,
    checkpoint: Checkpoint,
    golden: dict[str, Any],
    waveforms: list[F32Array],
    path: Path,
) -> None:
    result.tokens_runtime = True
    bundle = Bundle.load(path)
    extractor = FeatureExtractor(bundle.info.features)
    backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    with Recognizer.load(path, precision="fp32", backend="cpu", num_threads=1) as recognizer:
        for index, waveform in enumerate(waveforms):
            features = extractor(waveform)
            lengths = np.array([len(features)], np.int64)
            log_probs = backend.log_probs(features[None], lengths)[0]
            log_probs = log_probs[: bundle.info.output_frames.n_valid(len(features))]
            tokens = recognizer.transcribe_file(fixture.clip_paths()[index]).tokens
            ids = original_ids([token.id for token in tokens], checkpoint.source_blank_id)
            stored = as_stored(checkpoint, features)
            # A waveform is [S], not one feature a frame.
            stored = stored[:, 0] if checkpoint.features.kind == "waveform" else stored
            result.dumped[f"clip{index}_feat"] = stored
            result.dumped[f"clip{index}_logp"] = original_order(log_probs, checkpoint.source_blank_id)
            result.dumped[f"clip{index}_ids"] = np.array(ids, np.int64)
            if result.error is not None:
                continue
            error, same = _compare_log_probs(checkpoint, golden, f"clip{index}", log_probs)
            result.runtime = worst_of(result.runtime, error)
            expected = golden[f"clip{index}_logp"][0]
            expected = expected[: _length(golden, f"clip{index}_len", len(expected))]
            same = same and ids == _golden_ids(checkpoint, golden, f"clip{index}", expected)
            result.tokens_runtime = result.tokens_runtime and same
    backend.close()
    if has_decoder(fixture):
        result.decoder_runtime = _compare_decoders(result, fixture, checkpoint, bundle_networks(bundle))
