"""The recognizer: sound in, transcript out, in bounded memory, without PyTorch.

    with Recognizer.load("tiny-en") as recognizer:
        print(recognizer.transcribe_file("speech.wav").text)

There are two ways from a waveform to log-probs. Clips of at most one window (24 s) are encoded whole, one or
several in a run of the model. Everything longer, and every file, goes through resampler, features, windows
(windows.py) and decoder piece by piece, so neither its length nor how it was cut matters: a waveform and a
file with the same samples give the same transcript. Both ways end in the same decoder (decoding/). They stand
side by side here, which is why this file is long.

Features of models trained with per-feature normalization are normalized over each window, because the whole
recording is never in memory at once. Silence, an empty waveform and one too short for a single frame give an
empty transcript.
What this file does not do: microphones (live/).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from edge_asr.audio import BLOCK_S, AudioFile, ResampleStream, check_sample_rate, mono_from_waveform, resample
from edge_asr.bundle.confidence import find_table
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.errors import AudioError, BackendError, BundleError, ConfigError, EdgeAsrError
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.runtime.backends import Backend, check_log_probs, choose_backend
from edge_asr.runtime.decoding.decoder import (
    BundleDecoderFactory,
    Decoder,
    DecoderFactory,
    Hypothesis,
)
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.features.normalization import normalize_features
from edge_asr.runtime.transcript import (
    Transcript,
    calibrate_words,
    grammar_result,
    split_segments,
    tokens_from_runs,
    words_from_tokens,
)
from edge_asr.runtime.windows import WindowGeometry, stitch_log_probs
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.runtime.alignment.result import Alignment
    from edge_asr.runtime.streaming_model import StreamingModel

F32Array = npt.NDArray[np.float32]
_Recognizer = TypeVar("_Recognizer", bound="Recognizer")

MAX_BATCH_S = 120.0
"""Most padded seconds of audio in one batch, which bounds the memory of `transcribe_batch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """The time of one completed stage. The stages of a call come one after the other and add up to it.

    Attributes:
        name: "features" (checks, resampling, log-mel, normalization, assembly of the batch), "encode" (the
            backend) or "decode" (tokens, words, segments, and joining windows).
        seconds: how long it took.
        batch: rows and feature frames that the model received, [B, T]; None except for "encode".
    """

    name: Literal["features", "encode", "decode"]
    seconds: float
    batch: tuple[int, int] | None = None


StageObserver = Callable[[StageTime], None]


class Recognizer:
    """Transcribes recordings with one model. It is thread-safe if its backend is.

    Most callers need `Recognizer.load`. The constructor takes the parts, for other backends.

    Args:
        backend: runs the model; closed with the recognizer.
        features: the model's front end.
        vocabulary: the model's vocabulary.
        subsampling_factor: feature frames per output frame.
        first_output_frames: feature frames that the first output frame needs (`edge_asr.frames`).
        windows: how to cut long recordings; None means 24 s with 4 s of overlap, or what the backend accepts.
        bundle: where the model came from, if from a bundle.
        backend_reason: how the backend was chosen, for people.
        decoder: makes a decoder for the vocabulary; None is greedy search.
        on_stage: called after each stage of each recognition, in the thread that recognizes.

    Attributes:
        window_s: the longest recording, in seconds, that takes one run of the model.
        decoder_kind: "greedy" or "beam"; None for other decoders.
        confidence_table: what calibrates the confidence of words; None if the bundle has none for this
            precision and decoder.

    Raises:
        ConfigError: the windows are for another subsampling factor.
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
        decoder: DecoderFactory | None = None,
        on_stage: StageObserver | None = None,
    ) -> None:
        self.backend = backend
        self.backend_reason = backend_reason
        self.features = features
        self.vocabulary = vocabulary
        self.subsampling_factor = subsampling_factor
        self.output_frames = OutputFrames(factor=subsampling_factor, first=first_output_frames)
        self.bundle = bundle
        feature_frame_s = features.hop_length / features.sample_rate
        self.windows = windows or _fit_windows(features, subsampling_factor, backend.max_frames)
        if self.windows.subsampling_factor != subsampling_factor:
            raise ConfigError(
                f"windows are for subsampling factor {self.windows.subsampling_factor}, the model has "
                f"{subsampling_factor}"
            )
        self.frame_s = feature_frame_s * subsampling_factor
        # Front ends differ by up to two frames in what a clip gives.
        self.window_s = (self.windows.window_frames - 2) * feature_frame_s
        # Windows are normalized after streaming.
        self._extractor = _extractor(features)
        self._decoder = (decoder or GreedyDecoder.for_vocabulary)(vocabulary)
        self.decoder_kind: str | None = getattr(self._decoder, "kind", None)
        self.confidence_table = (
            None if bundle is None else find_table(bundle, backend.precision, self.decoder_kind)
        )
        self._on_stage = on_stage
        self._lock = threading.Lock()
        self._streaming_model: StreamingModel | None = None

    @classmethod
    def load(
        cls: type[_Recognizer],
        path_or_name: str | Path = DEFAULT_MODEL,
        *,
        precision: str = "auto",
        backend: str = "auto",
        num_threads: int | None = None,
        allow_unverified: bool = False,
        decoder: DecoderFactory | None = None,
        on_stage: StageObserver | None = None,
        self_test: bool = False,
    ) -> _Recognizer:
        """Load a recognizer from a bundle folder or by the name of an embedded model.

        Args:
            path_or_name: folder written by `edge-asr export`, or "tiny-en".
            precision: "auto", "fp32", "fp16" or "int8".
            backend: "auto", "tensorrt", "tensorrt-rtx", "cuda" or "cpu". "auto" takes a TensorRT engine of
                the bundle that fits this device, else CUDA, else the CPU; `backend_reason` says why. A
                named backend is never replaced by another.
            num_threads: threads of the backend; None lets it choose.
            allow_unverified: accept a bundle or an engine whose proof failed, or an engine without one.
            decoder: makes a decoder for the bundle's vocabulary; None is greedy search. It decodes everything
                that the recognizer gives, live partials included.
            on_stage: see the class.
            self_test: run the bundle's own clip, and refuse an execution that hears other words than the
                exporter did (`edge_asr.runtime.self_test`, which also says how much it deviates).

        Raises:
            BundleError: the bundle does not exist, or is damaged or unverified, or carries no self-test.
            BackendError: the backend is not available here, or failed the self-test; an EngineError if its
                engine is the cause.
            MissingDependencyError: the backend's library is not installed.
            LanguageModelError: the language model of the decoder cannot be read.
        """
        bundle = Bundle.load(path_or_name, allow_unverified=allow_unverified, check_hashes=False)
        if isinstance(decoder, BundleDecoderFactory):
            decoder = decoder.for_bundle(bundle)
        features, factor = bundle.info.features, bundle.info.subsampling_factor

        def prepare() -> None:
            bundle.check_hashes()
            _extractor(features)
            importlib.import_module("soundfile")  # the first file would wait for it

        # Loading the backend's library takes most of the time, and leaves the interpreter free meanwhile.
        with ThreadPoolExecutor(1) as beside:
            prepared = beside.submit(prepare)
            try:
                choice = choose_backend(
                    bundle,
                    precision=precision,
                    backend=backend,
                    num_threads=num_threads,
                    allow_unverified=allow_unverified,
                    min_frames=2 * _fit_windows(features, factor, None).overlap_frames,
                )
            except EdgeAsrError:
                prepared.result()  # an altered file is the better explanation
                raise
        try:
            prepared.result()
            recognizer = cls(
                choice.backend,
                features=features,
                vocabulary=bundle.vocabulary,
                subsampling_factor=factor,
                first_output_frames=bundle.info.first_output_frames,
                bundle=bundle,
                backend_reason=choice.reason,
                decoder=decoder,
                on_stage=on_stage,
            )
            if self_test:
                from edge_asr.runtime.self_test import find_problem

                if problem := find_problem(recognizer):
                    raise BackendError(f"{problem}; run `edge-asr doctor -m {bundle.path}`")
            return recognizer
        except BaseException:
            choice.backend.close()
            raise

    def transcribe(self, waveform: npt.ArrayLike, sample_rate: int) -> Transcript:
        """Transcribe a waveform of any length.

        Args:
            waveform: [S] or [S, channels]; float with full scale 1.0, int16 or int32.
            sample_rate: Hz, any from 1 kHz to 768 kHz.

        Raises:
            AudioError: the waveform holds NaN or infinity, has another rank or dtype, or the sample rate is
                impossible.
            BackendError: the model failed, or its output differs from what its bundle describes.
        """
        lap = self._start_laps()
        samples = mono_from_waveform(waveform)
        rate = check_sample_rate(sample_rate)
        if len(samples) <= 2 * self.window_s * rate:
            resampled = resample(samples, rate, self.features.sample_rate)
            if self._extractor.n_frames(len(resampled)) <= self.windows.window_frames:
                return self._transcribe_whole([resampled], [len(samples) / rate], lap)[0]
        return self._transcribe_blocks(_split_blocks(samples, rate), rate, lap)

    def transcribe_file(
        self, source: str | Path | BinaryIO | AudioFile, *, progress: Callable[[float], None] | None = None
    ) -> Transcript:
        """Transcribe a sound file of any length, reading it in blocks.

        Args:
            source: a path, a binary file object such as `sys.stdin.buffer`, or an open `AudioFile`, which
                stays open.
            progress: called with the seconds of sound read so far.

        Raises:
            AudioError: the source is not a file, not sound, or damaged.
            BackendError: as `transcribe`.
        """
        lap = self._start_laps()
        if isinstance(source, AudioFile):
            return self._transcribe_blocks(source.blocks(), source.sample_rate, lap, progress)
        with AudioFile(source) as file:
            return self._transcribe_blocks(file.blocks(), file.sample_rate, lap, progress)

    def transcribe_batch(self, clips: Sequence[tuple[npt.ArrayLike, int]]) -> list[Transcript]:
        """Transcribe many waveforms; short ones share runs of the model.

        Clips are sorted by length and padded to batches of at most `MAX_BATCH_S` seconds; longer
        ones than a window run alone. Log-probs can differ from `transcribe` by rounding.

        Args:
            clips: (waveform, sample_rate) pairs as `transcribe` takes them.

        Returns:
            Transcripts in the order of `clips`.

        Raises:
            AudioError: as `transcribe`; the message names the clip.
            BackendError: as `transcribe`.
        """
        checked = _check_clips(clips)
        durations = [len(samples) / rate for samples, rate in checked]
        results: dict[int, Transcript] = {}
        for group in _group_by_length(durations, self.window_s):
            if durations[group[-1]] > self.window_s:
                results |= {index: self.transcribe(*checked[index]) for index in group}
            else:
                results |= zip(group, self.transcribe_together([checked[i] for i in group]), strict=True)
        return [results[index] for index in range(len(checked))]

    def transcribe_together(self, clips: Sequence[tuple[npt.ArrayLike, int]]) -> list[Transcript]:
        """Transcribe waveforms of at most `window_s` in one run of the model, padded to the longest.

        For callers that group clips themselves; `transcribe_batch` groups them.

        Args:
            clips: (waveform, sample_rate) pairs as `transcribe` takes them.

        Raises:
            AudioError: as `transcribe_batch`, or a clip longer than `window_s`.
            BackendError: as `transcribe`.
        """
        if not clips:
            return []
        lap = self._start_laps()
        checked = _check_clips(clips)
        durations = [len(samples) / rate for samples, rate in checked]
        for index, duration_s in enumerate(durations):
            if duration_s > self.window_s:
                raise AudioError(
                    f"clip {index} is {duration_s:.2f} s long and one run of the model takes at most "
                    f"{self.window_s:.2f} s; use transcribe for it"
                )
        rate = self.features.sample_rate
        return self._transcribe_whole([resample(*clip, rate) for clip in checked], durations, lap)

    def align(self, waveform: npt.ArrayLike, sample_rate: int, text: str) -> Alignment:
        """Find when each word of a text is said in a waveform of any length (forced alignment).

        Args:
            waveform, sample_rate: as `transcribe`.
            text: what is said, in ordinary spelling. Sound that it lacks and words that the sound lacks are
                allowed.

        Raises:
            ConfigError: the text has nothing to align.
            VocabularyError: the model cannot spell a word; the message names it.
            AudioError: as `transcribe`, or the sound is too short for the text.
            BackendError: as `transcribe`.
        """
        samples = mono_from_waveform(waveform)
        rate = check_sample_rate(sample_rate)
        return self._align_blocks(_split_blocks(samples, rate), rate, text)

    def align_file(
        self,
        source: str | Path | BinaryIO | AudioFile,
        text: str,
        *,
        progress: Callable[[float], None] | None = None,
    ) -> Alignment:
        """Find when each word of a text is said in a sound file of any length, in bounded memory.

        Args:
            source, progress: as `transcribe_file`.
            text: as `align`.

        Raises:
            As `align`.
        """
        if isinstance(source, AudioFile):
            return self._align_blocks(source.blocks(), source.sample_rate, text, progress)
        with AudioFile(source) as file:
            return self._align_blocks(file.blocks(), file.sample_rate, text, progress)

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
        ((samples, rate),) = _check_clips([(waveform, sample_rate)])
        if len(samples) > self.window_s * rate:
            raise AudioError(
                f"the waveform is {len(samples) / rate:.2f} s long and one run of the model takes at most "
                f"{self.window_s:.2f} s; transcribe cuts longer ones"
            )
        return self._encode([self._extractor(resample(samples, rate, self.features.sample_rate))], _NO_LAPS)[
            0
        ]

    def new_decoder(self) -> Decoder:
        """Return a fresh decoder, of the kind that the recognizer was made with."""
        return self._decoder.fork()

    def streaming_model(self, *, num_threads: int | None = None) -> StreamingModel:
        """Return the bundle's streaming graph, for partials, loaded at the first call and closed with this.

        It runs on CUDA if the recognizer does, else on the CPU, in the recognizer's precision if the bundle
        has a graph in that.

        Args:
            num_threads: threads of the graph on the CPU, for the first call; None takes the recognizer's.

        Raises:
            BundleError: there is no bundle, or it lacks a streaming graph.
            BackendError: the graph cannot be loaded.
        """
        from edge_asr.runtime.streaming_model import StreamingModel

        if self.bundle is None:
            raise BundleError("a recognizer without a bundle has no streaming model; load one from a bundle")
        with self._lock:
            if self._streaming_model is None:
                self._streaming_model = StreamingModel.load(
                    self.bundle,
                    precision=self.backend.precision,
                    num_threads=num_threads or self.backend.num_threads,
                    device="cuda" if self.backend.name == "cuda" else "cpu",
                )
            return self._streaming_model

    def close(self) -> None:
        """Release the backend and the streaming graph. May be called twice."""
        self.backend.close()
        with self._lock:
            if self._streaming_model is not None:
                self._streaming_model.close()

    def __enter__(self: _Recognizer) -> _Recognizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_laps(self) -> _Laps:
        return _NO_LAPS if self._on_stage is None else _Laps(self._on_stage)

    def _transcribe_whole(
        self, waveforms: Sequence[F32Array], durations_s: Sequence[float], lap: _Laps
    ) -> list[Transcript]:
        """Transcribe waveforms at the model's rate, each at most a window, in one run of the model."""
        transcripts = []
        features = [self._extractor(waveform) for waveform in waveforms]
        for log_probs, duration_s in zip(self._encode(features, lap), durations_s, strict=True):
            decoder = self._decoder.fork()
            decoder.push(log_probs)
            transcripts.append(self._transcript(decoder.flush(), duration_s))
        lap("decode")
        return transcripts

    def _transcribe_blocks(
        self,
        blocks: Iterable[F32Array],
        sample_rate: int,
        lap: _Laps,
        progress: Callable[[float], None] | None = None,
    ) -> Transcript:
        """Transcribe blocks of any lengths at their own rate, a window at a time."""
        decoder = self._decoder.fork()
        duration_s = self._encode_blocks(blocks, sample_rate, decoder.push, lap, progress)
        transcript = self._transcript(decoder.flush(), duration_s)
        lap("decode")
        return transcript

    def _align_blocks(
        self,
        blocks: Iterable[F32Array],
        sample_rate: int,
        text: str,
        progress: Callable[[float], None] | None = None,
    ) -> Alignment:
        from edge_asr.runtime.alignment.aligner import Aligner

        with Aligner(text, self.vocabulary) as aligner:
            duration_s = self._encode_blocks(blocks, sample_rate, aligner.push, self._start_laps(), progress)
            return aligner.finish(self.frame_s, duration_s)

    def _encode_blocks(
        self,
        blocks: Iterable[F32Array],
        sample_rate: int,
        take: Callable[[F32Array], None],
        lap: _Laps,
        progress: Callable[[float], None] | None,
    ) -> float:
        """Give the log-probs of blocks to `take`, a window at a time; return the seconds of sound."""
        n_samples = 0

        def count(blocks: Iterable[F32Array]) -> Iterator[F32Array]:
            nonlocal n_samples
            for block in blocks:
                n_samples += len(block)
                yield block
                if progress is not None:
                    progress(n_samples / sample_rate)

        def encode(window: F32Array) -> F32Array:
            lap("decode")
            return self._encode([window], lap)[0]

        pieces = self._feature_pieces(count(blocks), sample_rate, lap)
        for log_probs in stitch_log_probs(pieces, encode, self.windows, self.vocabulary.blank_id):
            take(log_probs)
        return n_samples / sample_rate

    def _feature_pieces(self, blocks: Iterable[F32Array], sample_rate: int, lap: _Laps) -> Iterator[F32Array]:
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

    def _encode(self, clips: list[F32Array], lap: _Laps) -> list[F32Array]:
        """Compute valid log-probs [T', V] of each clip's features [T, n_mels], in one run of the model."""
        lens = np.array([len(clip) for clip in clips], np.int64)
        n_frames, n_classes = int(lens.max()), len(self.vocabulary)
        if self.output_frames.n_valid(n_frames) == 0:
            lap("features")
            return [np.zeros((0, n_classes), np.float32) for _ in clips]
        if len(clips) == 1 and self.features.normalize == "none":
            batch = clips[0][None]
        else:
            batch = np.zeros((len(clips), n_frames, self.features.n_mels), np.float32)
            for row, clip in zip(batch, clips, strict=True):
                row[: len(clip)] = clip
                normalize_features(row[: len(clip)], self.features.normalize)
        lap("features")
        # A row without frames would be all padding, so the model sees one frame and the result is dropped.
        log_probs = self.backend.log_probs(batch, np.maximum(lens, 1))
        n_valid = [self.output_frames.n_valid(n) for n in lens.tolist()]
        expected = (len(clips), self.output_frames.n_graph(n_frames), n_classes)
        check_log_probs(log_probs, expected, n_valid)
        lap("encode", (len(clips), n_frames))
        return [row[:n] for row, n in zip(log_probs, n_valid, strict=True)]

    def _transcript(self, hypothesis: Hypothesis, duration_s: float) -> Transcript:
        tokens = tokens_from_runs(hypothesis.tokens, self.vocabulary, self.frame_s, end_s=duration_s)
        words = words_from_tokens(tokens, self.vocabulary)
        if self.confidence_table is not None:
            words = calibrate_words(words, self.confidence_table.raw, self.confidence_table.calibrated)
        return Transcript(
            text=" ".join(word.text for word in words),
            tokens=tokens,
            words=words,
            segments=split_segments(words),
            duration_s=duration_s,
            grammar=grammar_result(hypothesis, words, self.vocabulary, self.frame_s, end_s=duration_s),
        )


class _Laps:
    """Tells an observer how long each stage took, from the end of the previous one."""

    __slots__ = ("_began", "_on_stage")

    def __init__(self, on_stage: StageObserver | None) -> None:
        self._on_stage = on_stage
        self._began = time.perf_counter()

    def __call__(
        self, name: Literal["features", "encode", "decode"], batch: tuple[int, int] | None = None
    ) -> None:
        if self._on_stage is not None:
            seconds = time.perf_counter() - self._began
            self._on_stage(StageTime(name=name, seconds=seconds, batch=batch))
            self._began = time.perf_counter()


_NO_LAPS = _Laps(None)


def _fit_windows(features: FeatureConfig, subsampling_factor: int, max_frames: int | None) -> WindowGeometry:
    """Return the default windows, no longer than the backend accepts."""
    windows = WindowGeometry.from_seconds(
        feature_frame_s=features.hop_length / features.sample_rate, subsampling_factor=subsampling_factor
    )
    if max_frames is None or max_frames >= windows.window_frames:
        return windows
    fitting = max_frames // subsampling_factor * subsampling_factor
    return dataclasses.replace(windows, window_frames=fitting)


def _check_clips(clips: Sequence[tuple[npt.ArrayLike, int]]) -> list[tuple[F32Array, int]]:
    checked: list[tuple[F32Array, int]] = []
    for index, (waveform, sample_rate) in enumerate(clips):
        try:
            checked.append((mono_from_waveform(waveform), check_sample_rate(sample_rate)))
        except AudioError as error:
            raise AudioError(f"clip {index}: {error}") from error
    return checked


@functools.lru_cache(maxsize=4)
def _extractor(features: FeatureConfig) -> FeatureExtractor:
    """Return the extractor of a front end without its normalization; it is shared, as it never changes."""
    return FeatureExtractor(dataclasses.replace(features, normalize="none"))


def _split_blocks(samples: F32Array, sample_rate: int) -> Iterator[F32Array]:
    n_block = max(int(BLOCK_S * sample_rate), 1)
    for begin in range(0, len(samples), n_block):
        yield samples[begin : begin + n_block]


def _group_by_length(durations: Sequence[float], window_s: float) -> list[list[int]]:
    """Group indexes by similar length; a group padded to its longest has at most MAX_BATCH_S."""
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
