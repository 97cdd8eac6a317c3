"""The recognizer: sound in, transcript out, in bounded memory, without PyTorch.

    with Recognizer.load("tiny-en") as recognizer:
        print(recognizer.transcribe_file("speech.wav").text)

Whichever way sound becomes log-probs (acoustic_model.py), the same decoder (decoding/) makes them text.
Without sound the transcript is empty.
What this file does not do: microphones (live/).
"""

from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

import numpy.typing as npt

from edge_asr.audio import AudioFile, check_sample_rate, mono_from_waveform, resample
from edge_asr.bundle.confidence import find_table
from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.errors import AudioError, BackendError, BundleError, EdgeAsrError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.acoustic_model import (
    AcousticModel,
    F32Array,
    Progress,
    check_clips,
    fit_windows,
    group_by_length,
    shared_extractor,
    split_blocks,
)
from edge_asr.runtime.backends import Backend, EncodingBackend, choose_backend
from edge_asr.runtime.decoding.decoder import (
    BackendDecoderFactory,
    BundleDecoderFactory,
    Decoder,
    DecoderFactory,
    EncodedDecoder,
    Hypothesis,
    feed,
)
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.stages import Laps, StageObserver
from edge_asr.runtime.transcript import Transcript, transcript_from_hypothesis
from edge_asr.runtime.windows import WindowGeometry
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.runtime.alignment.result import Alignment
    from edge_asr.runtime.streaming_model import StreamingModel

Source = str | Path | BinaryIO | AudioFile
_Recognizer = TypeVar("_Recognizer", bound="Recognizer")

MAX_BATCH_S = 120.0
"""Most padded seconds of audio in one batch, which bounds the memory of `transcribe_batch`."""


class Recognizer(AcousticModel):
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
        BackendError: the decoder needs the frames of the encoder, which the backend does not give.
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
        super().__init__(
            backend,
            features=features,
            vocabulary=vocabulary,
            subsampling_factor=subsampling_factor,
            first_output_frames=first_output_frames,
            windows=windows,
            on_stage=on_stage,
        )
        self.backend_reason = backend_reason
        self.bundle = bundle
        if isinstance(decoder, BackendDecoderFactory):
            decoder = decoder.for_backend(backend.name, backend.precision, backend.num_threads)
        self._decoder = (decoder or GreedyDecoder.for_vocabulary)(vocabulary)
        self._wants_encoded = isinstance(self._decoder, EncodedDecoder)
        if self._wants_encoded and not isinstance(backend, EncodingBackend):
            raise BackendError(
                f"the backend {backend.name} gives no frames of the encoder, which this decoder needs; use "
                "backend='cpu' or 'cuda', or the decoder greedy or beam"
            )
        self.decoder_kind: str | None = getattr(self._decoder, "kind", None)
        self.confidence_table = (
            None if bundle is None else find_table(bundle, backend.precision, self.decoder_kind)
        )
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
                exporter did, offline or with the bundle's streaming graph (`edge_asr.runtime.self_test`,
                which also says how much it deviates).

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
            shared_extractor(features)
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
                    min_frames=2 * fit_windows(features, factor, None).overlap_frames,
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
                from edge_asr.runtime.self_test import find_problem, has_stream_test

                problem = find_problem(recognizer)
                if not problem and has_stream_test(bundle):
                    problem = find_problem(recognizer, stream=True)
                if problem:
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
        return self._transcribe_blocks(split_blocks(samples, rate), rate, lap)

    def transcribe_file(self, source: Source, *, progress: Progress | None = None) -> Transcript:
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
        with nullcontext(source) if isinstance(source, AudioFile) else AudioFile(source) as file:
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
        checked = check_clips(clips)
        durations = [len(samples) / rate for samples, rate in checked]
        results: dict[int, Transcript] = {}
        for group in group_by_length(durations, self.window_s, MAX_BATCH_S):
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
        checked = check_clips(clips)
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
        return self._align_blocks(split_blocks(samples, rate), rate, text)

    def align_file(self, source: Source, text: str, *, progress: Progress | None = None) -> Alignment:
        """Find when each word of a text is said in a sound file of any length, in bounded memory.

        Args:
            source, progress: as `transcribe_file`.
            text: as `align`.

        Raises:
            As `align`.
        """
        with nullcontext(source) if isinstance(source, AudioFile) else AudioFile(source) as file:
            return self._align_blocks(file.blocks(), file.sample_rate, text, progress)

    def new_decoder(self) -> Decoder:
        """Return a fresh decoder, of the kind that the recognizer was made with."""
        return self._decoder.fork()

    def for_partials(self) -> Recognizer:
        """Return what transcribes utterances in progress, by the first pass alone if the decoder has two.

        It shares the model with this recognizer, which closes it.
        """
        if not isinstance(self._decoder, EncodedDecoder):
            return self
        twin = copy.copy(self)
        twin._decoder, twin._wants_encoded = self._decoder.first_pass(), False
        return twin

    def warm_up(self) -> None:
        """Prepare for live use, so that the first words do not wait: an engine records its shapes.

        `LiveRecognizer` calls it. It takes about four runs of every length; other backends do nothing.

        Raises:
            BackendError: a run failed.
        """
        prepare = getattr(self.backend, "warm_up", None)
        if prepare is not None:
            prepare()

    def streaming_model(self, *, num_threads: int | None = None) -> StreamingModel:
        """Return the bundle's streaming graph, for partials, loaded at the first call and closed with this.

        It runs on CUDA if the recognizer does, on the graph's engine if the recognizer runs on one and the
        bundle has it, else on the CPU; in the recognizer's precision if the bundle has a graph in that.

        Args:
            num_threads: threads of the graph on the CPU, for the first call; None takes the recognizer's.

        Raises:
            BundleError: there is no bundle, or it lacks a streaming graph.
            BackendError: the graph cannot be loaded; an EngineError if its engine may not run here.
        """
        from edge_asr.runtime.streaming_model import StreamingModel, choose_stream_device

        if self.bundle is None:
            raise BundleError("a recognizer without a bundle has no streaming model; load one from a bundle")
        with self._lock:
            if self._streaming_model is None:
                self._streaming_model = StreamingModel.load(
                    self.bundle,
                    precision=self.backend.precision,
                    num_threads=num_threads or self.backend.num_threads,
                    device=choose_stream_device(self.bundle, self.backend.name),
                    allow_unverified=getattr(self.backend, "allow_unverified", False),
                )
            return self._streaming_model

    def close(self) -> None:
        """Release the backend and the streaming graph. May be called twice."""
        super().close()
        with self._lock:
            if self._streaming_model is not None:
                self._streaming_model.close()

    def _transcribe_whole(
        self, waveforms: Sequence[F32Array], durations_s: Sequence[float], lap: Laps
    ) -> list[Transcript]:
        """Transcribe waveforms at the model's rate, each at most a window, in one run of the model."""
        transcripts = []
        features = [self._extractor(waveform) for waveform in waveforms]
        for emissions, duration_s in zip(self._encode(features, lap), durations_s, strict=True):
            decoder = self._decoder.fork()
            feed(decoder, emissions)
            transcripts.append(self._transcript(decoder.flush(), duration_s))
        lap("decode")
        return transcripts

    def _transcribe_blocks(
        self, blocks: Iterable[F32Array], sample_rate: int, lap: Laps, progress: Progress | None = None
    ) -> Transcript:
        """Transcribe blocks of any lengths at their own rate, a window at a time."""
        decoder = self._decoder.fork()
        duration_s = self._encode_blocks(blocks, sample_rate, partial(feed, decoder), lap, progress)
        transcript = self._transcript(decoder.flush(), duration_s)
        lap("decode")
        return transcript

    def _align_blocks(
        self, blocks: Iterable[F32Array], sample_rate: int, text: str, progress: Progress | None = None
    ) -> Alignment:
        from edge_asr.runtime.alignment.aligner import Aligner

        with Aligner(text, self.vocabulary) as aligner:
            duration_s = self._encode_blocks(
                blocks, sample_rate, lambda one: aligner.push(one.log_probs), self._start_laps(), progress
            )
            return aligner.finish(self.frame_s, duration_s)

    def _transcript(self, hypothesis: Hypothesis, duration_s: float) -> Transcript:
        return transcript_from_hypothesis(
            hypothesis, self.vocabulary, self.frame_s, duration_s, self.confidence_table
        )
