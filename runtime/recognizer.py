"""The recogniser: sound in, transcript out, in bounded memory, without PyTorch.

    with Recognizer.load("tiny-en") as recognizer:
        print(recognizer.transcribe_file("speech.wav").text)

A recording runs through resampler, features, windows (`windows.py`) and decoder piece by piece, so
its length does not matter and neither does how it was cut up: a waveform and a file with the same
samples give the same transcript. Up to one window (24 s) it is one pass of the model.

Models trained with per-feature normalisation are normalised over each window, for the whole
recording is never in memory at once. Silence, an empty waveform and one too short for a single
frame give an empty transcript. What this file does not do: microphones (`live.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from edge_asr.audio import BLOCK_S, AudioFile, ResampleStream, check_sample_rate, mono_from_waveform, resample
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.errors import AudioError, ConfigError, EdgeAsrError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.backends import Backend, choose_backend
from edge_asr.runtime.decoding.greedy import (
    GreedyDecoder,
    TokenRuns,
    greedy_decode,
    tokens_from_runs,
    words_from_tokens,
)
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.features.normalization import normalize_features
from edge_asr.runtime.transcript import Transcript, split_segments
from edge_asr.runtime.windows import WindowGeometry, stitch_log_probs
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]

MAX_BATCH_S = 120.0
"""Padded seconds of audio in one batch; it bounds the memory of `transcribe_batch`."""


class Recognizer:
    """Transcribes recordings with one model. Thread-safe when its backend is.

    Most callers want `Recognizer.load`. The constructor takes the parts, for other backends.

    Args:
        backend: runs the model; closed with the recogniser.
        features: the model's front end.
        vocabulary: of the model.
        subsampling_factor: feature frames per output frame.
        first_output_frames: feature frames that the first output frame asks for (`edge_asr.frames`).
        windows: how long recordings are cut; None means 24 s with 4 s of overlap.
        bundle: where the model came from, if from a bundle.
        backend_reason: how the backend was chosen, for people.

    Attributes:
        window_s: seconds of sound up to which a recording is one run of the model.

    Raises:
        ConfigError: windows for another subsampling factor.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        features: FeatureConfig,
        vocabulary: Vocabulary,
        subsampling_factor: int,
        first_output_frames: int = 1,
        windows: WindowGeometry | None = None,
        bundle: Bundle | None = None,
        backend_reason: str = "given by the caller",
    ) -> None:
        self.backend = backend
        self.backend_reason = backend_reason
        self.features = features
        self.vocabulary = vocabulary
        self.subsampling_factor = subsampling_factor
        self.output_frames = OutputFrames(factor=subsampling_factor, first=first_output_frames)
        self.bundle = bundle
        feature_frame_s = features.hop_length / features.sample_rate
        self.windows = windows or WindowGeometry.from_seconds(
            feature_frame_s=feature_frame_s, subsampling_factor=subsampling_factor
        )
        if self.windows.subsampling_factor != subsampling_factor:
            raise ConfigError(
                f"windows are for subsampling factor {self.windows.subsampling_factor}, the model has "
                f"{subsampling_factor}"
            )
        self.frame_s = feature_frame_s * subsampling_factor
        # Two frames less: front ends differ by that much in what a clip gives.
        self.window_s = (self.windows.window_frames - 2) * feature_frame_s
        # Normalisation is applied to windows, after streaming.
        self._extractor = _extractor(features)

    @classmethod
    def load(
        cls,
        path_or_name: str | Path = DEFAULT_MODEL,
        *,
        precision: str = "auto",
        backend: str = "auto",
        num_threads: int | None = None,
        allow_unverified: bool = False,
    ) -> Recognizer:
        """A recogniser from a bundle folder or the name of an embedded model.

        Args:
            path_or_name: folder written by `edge-asr export`, or "tiny-en".
            precision: "auto", "fp32", "fp16" or "int8".
            backend: "auto", "tensorrt", "tensorrt-rtx", "cuda" or "cpu". "auto" takes a TensorRT engine of
                the bundle that fits this device, else CUDA, else the CPU; `backend_reason` says why. A
                backend asked for by name is never replaced by another.
            num_threads: threads of the backend; None lets it choose.
            allow_unverified: accept a bundle or an engine whose proof failed, or an engine without one.

        Raises:
            BundleError: no such bundle, or a damaged or unverified one.
            BackendError: the backend cannot be had here; an EngineError if for its engine.
            MissingDependencyError: the backend's library is not installed.
        """
        bundle = Bundle.load(path_or_name, allow_unverified=allow_unverified, check_hashes=False)
        features, factor = bundle.info.features, bundle.info.subsampling_factor
        windows = WindowGeometry.from_seconds(
            feature_frame_s=features.hop_length / features.sample_rate, subsampling_factor=factor
        )

        def prepare() -> None:
            bundle.check_hashes()
            _extractor(features)
            importlib.import_module("soundfile")  # what the first file would wait for

        # The backend's library takes most of the time, and leaves the interpreter free meanwhile.
        with ThreadPoolExecutor(1) as beside:
            prepared = beside.submit(prepare)
            try:
                choice = choose_backend(
                    bundle,
                    precision=precision,
                    backend=backend,
                    num_threads=num_threads,
                    allow_unverified=allow_unverified,
                    min_frames=2 * windows.overlap_frames,
                )
            except EdgeAsrError:
                prepared.result()  # an altered file is the better reason
                raise
        if choice.max_frames is not None and choice.max_frames < windows.window_frames:
            windows = dataclasses.replace(windows, window_frames=choice.max_frames // factor * factor)
        try:
            prepared.result()
            return cls(
                choice.backend,
                features=features,
                vocabulary=bundle.vocabulary,
                subsampling_factor=factor,
                first_output_frames=bundle.info.first_output_frames,
                windows=windows,
                bundle=bundle,
                backend_reason=choice.reason,
            )
        except BaseException:
            choice.backend.close()
            raise

    def transcribe(self, waveform: npt.ArrayLike, sample_rate: int) -> Transcript:
        """Transcribe a waveform of any length.

        Args:
            waveform: [S] or [S, channels]; float with full scale 1.0, int16 or int32.
            sample_rate: Hz, any from 1 kHz to 768 kHz.

        Raises:
            AudioError: NaN, infinity, another rank or dtype, or an impossible sample rate.
            BackendError: the model failed.
        """
        samples = mono_from_waveform(waveform)
        rate = check_sample_rate(sample_rate)
        if len(samples) <= 2 * self.window_s * rate:
            resampled = resample(samples, rate, self.features.sample_rate)
            if self._extractor.n_frames(len(resampled)) <= self.windows.window_frames:
                # One pass; the same bits as the road through blocks, without its copies.
                (log_probs,) = self._encode([self._extractor(resampled)])
                runs = greedy_decode(log_probs, self.vocabulary.blank_id)
                return self._transcript(runs, len(samples) / rate)
        return self._transcribe_blocks(_split_blocks(samples, rate), rate)

    def transcribe_file(
        self, source: str | Path | BinaryIO, *, progress: Callable[[float], None] | None = None
    ) -> Transcript:
        """Transcribe a sound file of any length, reading it in blocks.

        Args:
            source: a path, or a binary file object such as `sys.stdin.buffer`.
            progress: called with the seconds of sound taken in so far.

        Raises:
            AudioError: not a file, not sound, or damaged.
            BackendError: the model failed.
        """
        with AudioFile(source) as file:
            return self._transcribe_blocks(file.blocks(), file.sample_rate, progress)

    def transcribe_batch(self, clips: Sequence[tuple[npt.ArrayLike, int]]) -> list[Transcript]:
        """Transcribe many waveforms; short ones share runs of the model.

        Clips are sorted by length and padded to batches of at most `MAX_BATCH_S` seconds; longer
        ones than a window run by themselves. Log-probs can differ from `transcribe` by rounding.

        Args:
            clips: (waveform, sample_rate) pairs as `transcribe` takes them.

        Returns:
            Transcripts in the order of `clips`.

        Raises:
            AudioError: as `transcribe`; the message names the clip.
            BackendError: the model failed.
        """
        checked: list[tuple[F32Array, int]] = []
        for index, (waveform, sample_rate) in enumerate(clips):
            try:
                checked.append((mono_from_waveform(waveform), check_sample_rate(sample_rate)))
            except AudioError as error:
                raise AudioError(f"clip {index}: {error}") from error
        durations = [len(samples) / rate for samples, rate in checked]
        results: dict[int, Transcript] = {}
        for group in _group_by_length(durations, self.window_s):
            if durations[group[-1]] > self.window_s:
                for index in group:
                    results[index] = self.transcribe(*checked[index])
                continue
            features = [
                self._extractor(resample(*checked[index], self.features.sample_rate)) for index in group
            ]
            for index, log_probs in zip(group, self._encode(features), strict=True):
                runs = greedy_decode(log_probs, self.vocabulary.blank_id)
                results[index] = self._transcript(runs, durations[index])
        return [results[index] for index in range(len(checked))]

    def close(self) -> None:
        """Release the backend. May be called twice."""
        self.backend.close()

    def __enter__(self) -> Recognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _transcribe_blocks(
        self, blocks: Iterable[F32Array], sample_rate: int, progress: Callable[[float], None] | None = None
    ) -> Transcript:
        n_samples = 0

        def count(blocks: Iterable[F32Array]) -> Iterator[F32Array]:
            nonlocal n_samples
            for block in blocks:
                n_samples += len(block)
                yield block
                if progress is not None:
                    progress(n_samples / sample_rate)

        decoder = GreedyDecoder(self.vocabulary.blank_id)
        pieces = self._feature_pieces(count(blocks), sample_rate)
        runs = [
            decoder.push(log_probs)
            for log_probs in stitch_log_probs(
                pieces, lambda window: self._encode([window])[0], self.windows, self.vocabulary.blank_id
            )
        ]
        return self._transcript(TokenRuns.concatenate([*runs, decoder.flush()]), n_samples / sample_rate)

    def _feature_pieces(self, blocks: Iterable[F32Array], sample_rate: int) -> Iterator[F32Array]:
        """Features [t, n_mels] of native-rate blocks, not normalised."""
        resampler = ResampleStream(sample_rate, self.features.sample_rate)
        stream = self._extractor.stream()
        for block in blocks:
            yield stream.push(resampler.push(block))
        yield stream.push(resampler.flush())
        yield stream.flush()

    def _encode(self, clips: list[F32Array]) -> list[F32Array]:
        """Valid log-probs [T', V] of each clip's features [T, n_mels]; one batch."""
        lens = np.array([len(clip) for clip in clips], np.int64)
        n_classes = len(self.vocabulary)
        if self.output_frames.n_valid(int(lens.max())) == 0:
            return [np.zeros((0, n_classes), np.float32) for _ in clips]
        if len(clips) == 1 and self.features.normalize == "none":
            batch = clips[0][None]
        else:
            batch = np.zeros((len(clips), int(lens.max()), self.features.n_mels), np.float32)
            for row, clip in zip(batch, clips, strict=True):
                row[: len(clip)] = clip
                normalize_features(row[: len(clip)], self.features.normalize)
        # A row without frames would be all padding; the model sees one frame, the result is dropped.
        log_probs = self.backend.log_probs(batch, np.maximum(lens, 1))
        return [row[: self.output_frames.n_valid(n)] for row, n in zip(log_probs, lens.tolist(), strict=True)]

    def _transcript(self, runs: TokenRuns, duration_s: float) -> Transcript:
        tokens = tokens_from_runs(runs, self.vocabulary, self.frame_s, end_s=duration_s)
        words = words_from_tokens(tokens, self.vocabulary)
        return Transcript(
            text=" ".join(word.text for word in words),
            tokens=tokens,
            words=words,
            segments=split_segments(words),
            duration_s=duration_s,
        )


@functools.lru_cache(maxsize=4)
def _extractor(features: FeatureConfig) -> FeatureExtractor:
    """Of a front end, without its normalisation; shared, as it does not change."""
    return FeatureExtractor(dataclasses.replace(features, normalize="none"))


def _split_blocks(samples: F32Array, sample_rate: int) -> Iterator[F32Array]:
    n_block = max(int(BLOCK_S * sample_rate), 1)
    for begin in range(0, len(samples), n_block):
        yield samples[begin : begin + n_block]


def _group_by_length(durations: Sequence[float], window_s: float) -> list[list[int]]:
    """Indexes in groups of similar length; a group padded to its longest has <= MAX_BATCH_S."""
    groups: list[list[int]] = []
    for index in sorted(range(len(durations)), key=lambda i: durations[i]):
        longest = durations[index]
        fits = groups and (len(groups[-1]) + 1) * longest <= MAX_BATCH_S
        # Long clips run alone, so they never share a group with short ones.
        same_kind = groups and (durations[groups[-1][-1]] > window_s) == (longest > window_s)
        if fits and same_kind:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
