"""Measures error rates of the benchmarked recognizer, so that they stand beside its speed.

As `edge-asr evaluate`: each utterance by `transcribe_file`, rates by `edge_asr.metrics`. Unlike there, an
utterance that cannot be used is an error: a rate over fewer utterances must not pass for that of the set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge_asr.benchmark.schema import Accuracy
from edge_asr.bundle.folder import sha256_of
from edge_asr.errors import ManifestError
from edge_asr.manifest import Manifest, read_manifest
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.recognizer import Recognizer


def read_whole_manifest(path: Path) -> Manifest:
    """Read a manifest, and refuse it unless every row is usable and its sound file exists.

    Raises:
        ManifestError: a row that cannot; the message names the first.
    """
    manifest = read_manifest(path)
    if manifest.bad_rows:
        row = manifest.bad_rows[0]
        raise ManifestError(
            f"{path} has {len(manifest.bad_rows)} unusable rows, the first is row {row.row} "
            f"({row.reason}: {row.detail}); fix the manifest, so that the rate is one of the whole set"
        )
    for utterance in manifest.utterances:
        if not utterance.audio_path.is_file():
            raise ManifestError(
                f"{path}, row {utterance.row}: no sound file at {utterance.audio_path}; fix the manifest, "
                "so that the rate is one of the whole set"
            )
    return manifest


def measure_accuracy(
    recognizer: Recognizer,
    manifest: Manifest,
    path: Path,
    normalization: str,
    progress: Callable[[float], None] | None = None,
) -> Accuracy:
    """Transcribe a manifest and compare with its texts.

    Raises:
        AudioError, BackendError: an utterance cannot be transcribed.
    """
    hypotheses, audio_s, compute_s = [], 0.0, 0.0
    for index, utterance in enumerate(manifest.utterances):
        began = time.perf_counter()
        transcript = recognizer.transcribe_file(utterance.audio_path)
        compute_s += time.perf_counter() - began
        audio_s += transcript.duration_s
        hypotheses.append(transcript.text)
        if progress is not None:
            progress((index + 1) / len(manifest.utterances))
    rates = compute_error_rates(
        [u.text for u in manifest.utterances], hypotheses, normalization=normalization
    )
    return Accuracy(
        manifest=manifest.name,
        manifest_sha256=sha256_of(path) if path.is_file() else "a folder",
        normalization=normalization,
        n_utterances=len(manifest.utterances),
        n_words=rates.n_words,
        audio_s=round(audio_s, 3),
        wer=rates.wer,
        cer=rates.cer,
        rtfx=audio_s / compute_s,
    )
