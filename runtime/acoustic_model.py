"""Sound in, log-probs out: the front end, the backend and the windows of a model.

There are two ways from a waveform to log-probs. Clips of at most one window (24 s) are encoded whole, one or
several in a run of the model. Everything longer, and every file, goes through resampler, features and windows
(windows.py) piece by piece, so neither its length nor how it was cut matters: a waveform and a file with the
same samples give the same log-probs.

Features of models trained with per-feature normalization are normalized over each window, because the whole
recording is never in memory at once.
What this file does not do: decode (recognizer.py), choose the backend (backends.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edge_asr.audio import BLOCK_S, ResampleStream, check_sample_rate, mono_from_waveform, resample
from edge_asr.errors import AudioError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.backends import Backend, EncodingBackend, check_encoded, check_log_probs
from edge_asr.runtime.decoding.decoder import Emissions
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.features.normalization import normalize_features
from edge_asr.runtime.stages import NO_LAPS, Laps, StageObserver
from edge_asr.runtime.windows import WindowGeometry, stitch_windows
from edge_asr.vocabulary import Vocabulary

F32Array = npt.NDArray[np.float32]
Progress = Callable[[float], None]
"""Called with the seconds of sound read so far."""
_Self = TypeVar("_Self", bound="AcousticModel")


class AcousticModel:
    """Turns waveforms into CTC log-probs; its arguments and attributes are those of `Recognizer`."""

    def __init__(
        self,
        backend: Backend,
        *,
        features: FeatureConfig,
        vocabulary: Vocabulary,
        subsampling_factor: int,
        first_output_frames: int,
        windows: WindowGeometry | None,
        on_stage: StageObserver | None,
    ) -> None:
        self.backend = backend
        self.features = features
        self.vocabulary = vocabulary
        self.subsampling_factor = subsampling_factor
        self.output_frames = OutputFrames(factor=subsampling_factor, first=first_output_frames)
        feature_frame_s = features.hop_length / features.sample_rate
        self.windows = windows or fit_windows(features, subsampling_factor, backend.max_frames)
        if self.windows.subsampling_factor != subsampling_factor:
            raise ConfigError(
                f"windows are for subsampling factor {self.windows.subsampling_factor}, the model has "
                f"{subsampling_factor}"
            )
        self.frame_s = feature_frame_s * subsampling_factor
        # Front ends differ by up to two frames in what a clip gives.
        self.window_s = (self.windows.window_frames - 2) * feature_frame_s
        # Windows are normalized after streaming.
        self._extractor = shared_extractor(features)
        self._on_stage = on_stage
        self._wants_encoded = False

    @property
    def execution(self) -> str:
        """Describe what runs the model: precision, backend, and its runtime if the backend says."""
        runtime = getattr(self.backend, "runtime", self.backend.name)
        return f"{self.backend.precision} on {self.backend.name} ({runtime})"

    def log_probs(self, waveform: npt.ArrayLike, sample_rate: int) -> F32Array:
        """Compute the log-probs [T', V] of a waveform of at most `window_s`, in one run of the model.

        Raises:
            AudioError: as `transcribe`, or the waveform is longer.
            BackendError: as `transcribe`.
        """
        ((samples, rate),) = check_clips([(waveform, sample_rate)])
        if len(samples) > self.window_s * rate:
            raise AudioError(
                f"the waveform is {len(samples) / rate:.2f} s long and one run of the model takes at most "
                f"{self.window_s:.2f} s; transcribe cuts longer ones"
            )
        features = self._extractor(resample(samples, rate, self.features.sample_rate))
        return self._encode([features], NO_LAPS)[0].log_probs

    def close(self) -> None:
        """Release the backend. May be called twice."""
        self.backend.close()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_laps(self) -> Laps:
        return NO_LAPS if self._on_stage is None else Laps(self._on_stage)

    def _encode_blocks(
        self,
        blocks: Iterable[F32Array],
        sample_rate: int,
        take: Callable[[Emissions], None],
        lap: Laps,
        progress: Progress | None,
    ) -> float:
        """Give what the model gives for blocks to `take`, a window at a time; return the seconds of sound."""
        n_samples = 0

        def count(blocks: Iterable[F32Array]) -> Iterator[F32Array]:
            nonlocal n_samples
            for block in blocks:
                n_samples += len(block)
                yield block
                if progress is not None:
                    progress(n_samples / sample_rate)

        def encode(window: F32Array) -> Emissions:
            lap("decode")
            return self._encode([window], lap)[0]

        pieces = self._feature_pieces(count(blocks), sample_rate, lap)
        for emissions in stitch_windows(pieces, encode, self.windows, self.vocabulary.blank_id):
            take(emissions)
        return n_samples / sample_rate

    def _feature_pieces(self, blocks: Iterable[F32Array], sample_rate: int, lap: Laps) -> Iterator[F32Array]:
        """Yield features [t, n_mels] of native-rate blocks, not normalized."""
        resampler = ResampleStream(sample_rate, self.features.sample_rate)
        stream = self._extractor.stream()
        for block in blocks:
            piece = stream.push(resampler.push(block))
            lap("features")
            yield piece
            lap("decode")
        last = [stream.push(resampler.flush()), stream.flush()]
        lap("features")
        yield from last

    def _encode(self, clips: list[F32Array], lap: Laps) -> list[Emissions]:
        """Compute the valid frames of each clip's features [T, n_mels], in one run of the model."""
        lens = np.array([len(clip) for clip in clips], np.int64)
        n_frames, n_classes = int(lens.max()), len(self.vocabulary)
        if self.output_frames.n_valid(n_frames) == 0:
            lap("features")
            nothing = np.zeros((0, n_classes), np.float32)
            return [Emissions(nothing, nothing if self._wants_encoded else None) for _ in clips]
        if len(clips) == 1 and self.features.normalize == "none":
            batch = clips[0][None]
        else:
            batch = np.zeros((len(clips), n_frames, self.features.n_mels), np.float32)
            for row, clip in zip(batch, clips, strict=True):
                row[: len(clip)] = clip
                normalize_features(row[: len(clip)], self.features.normalize)
        lap("features")
        # A row without frames would be all padding, so the model sees one frame and the result is dropped.
        lens, encoded = np.maximum(lens, 1), None
        n_valid = [self.output_frames.n_valid(len(clip)) for clip in clips]
        expected = (len(clips), self.output_frames.n_graph(n_frames), n_classes)
        if self._wants_encoded and isinstance(self.backend, EncodingBackend):
            log_probs, encoded = self.backend.encode(batch, lens)
            check_encoded(encoded, expected[:2], n_valid)
        else:
            log_probs = self.backend.log_probs(batch, lens)
        check_log_probs(log_probs, expected, n_valid)
        lap("encode", (len(clips), n_frames))
        return [
            Emissions(log_probs[row, :n], None if encoded is None else encoded[row, :n])
            for row, n in enumerate(n_valid)
        ]


def fit_windows(features: FeatureConfig, subsampling_factor: int, max_frames: int | None) -> WindowGeometry:
    """Return the default windows, no longer than the backend accepts."""
    windows = WindowGeometry.from_seconds(
        feature_frame_s=features.hop_length / features.sample_rate, subsampling_factor=subsampling_factor
    )
    if max_frames is None or max_frames >= windows.window_frames:
        return windows
    fitting = max_frames // subsampling_factor * subsampling_factor
    return dataclasses.replace(windows, window_frames=fitting)


def check_clips(clips: Sequence[tuple[npt.ArrayLike, int]]) -> list[tuple[F32Array, int]]:
    checked: list[tuple[F32Array, int]] = []
    for index, (waveform, sample_rate) in enumerate(clips):
        try:
            checked.append((mono_from_waveform(waveform), check_sample_rate(sample_rate)))
        except AudioError as error:
            raise AudioError(f"clip {index}: {error}") from error
    return checked


@functools.lru_cache(maxsize=4)
def shared_extractor(features: FeatureConfig) -> FeatureExtractor:
    """Return the extractor of a front end without its normalization; it is shared, as it never changes."""
    return FeatureExtractor(dataclasses.replace(features, normalize="none"))


def split_blocks(samples: F32Array, sample_rate: int) -> Iterator[F32Array]:
    n_block = max(int(BLOCK_S * sample_rate), 1)
    for begin in range(0, len(samples), n_block):
        yield samples[begin : begin + n_block]


def group_by_length(lengths_s: Sequence[float], window_s: float, batch_s: float) -> list[list[int]]:
    """Group indexes of clips that share a run of the model, the longest first.

    Padded to its longest, a group has at most `batch_s`. Clips longer than a window run alone.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths_s)), key=lambda i: -lengths_s[i]):
        longest_s = lengths_s[groups[-1][0]] if groups else float("inf")
        if longest_s <= window_s and (len(groups[-1]) + 1) * longest_s <= batch_s:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
