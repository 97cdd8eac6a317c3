"""Decodes the utterance in progress with a streaming graph, chunk by chunk as they are complete.

A step runs as soon as its window is full, and its log-probs are decoded once; greedy search never takes back
what it found in them. The rest, less than a chunk with its look-ahead, is the tail. It runs on a fork of the
state as if the utterance ended there, and is computed again with the chunk. So it runs only where a chunk is
long (`follow`), or where the newest sound counts (`decode`: except half a window, and up to 0.12 s in a
resampler to 8 kHz), so that endpointing never waits for a chunk.
What this file does not do: run the offline model, which most finals are made with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from edge_asr.audio import STREAM_SAMPLE_RATE, ResampleStream
from edge_asr.errors import ConfigError, EngineError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.decoding.decoder import Decoder, Emissions, EncodedDecoder, Hypothesis, feed
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialHypothesis
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.streaming_model import StreamingModel, choose_stream_device
from edge_asr.runtime.transcript import Transcript, tokens_from_runs, transcript_from_hypothesis
from edge_asr.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

#: How the utterance in progress is followed; see `streaming_decoders` and `LiveRecognizer`.
Partials = Literal["auto", "streaming", "windowed", "off"]


class StreamingDecoder:
    """A `PartialDecoder` that encodes at most the tail twice. It serves one stream, one thread at a time.

    Args:
        model: the bundle's streaming model; many decoders may share it.
        features: the bundle's front end, without normalization over the clip.
        vocabulary: the bundle's vocabulary.
        decoder: a fresh decoder, such as from `Recognizer.new_decoder`; None is greedy search. Of one that
            needs the frames of the encoder, the first pass follows the utterance, and it ends it.

    Attributes:
        ends_utterances: whether `transcript` can be asked for: not if the graph lacks what the decoder needs.

    Raises:
        ConfigError: the features cannot stream.
    """

    def __init__(
        self,
        model: StreamingModel,
        features: FeatureConfig,
        vocabulary: Vocabulary,
        decoder: Decoder | None = None,
    ) -> None:
        self._model = model
        decoder = decoder or GreedyDecoder.for_vocabulary(vocabulary)
        self._last_decoder = self._unused_decoder = decoder
        self.ends_utterances = True
        if isinstance(decoder, EncodedDecoder):
            self._unused_decoder = decoder.first_pass()
            self.ends_utterances = model.gives_encoded
        self._extractor = FeatureExtractor(features)
        self._vocabulary = vocabulary
        self._frame_s = model.geometry.frame_ms / 1e3
        self.begin(0)

    def begin(self, start: int) -> None:
        """Forget the last utterance; the next begins at sample `start`."""
        self._start = self._heard = self._decoded = start
        self._resampler = ResampleStream(STREAM_SAMPLE_RATE, self._extractor.config.sample_rate)
        self._features = self._extractor.stream()
        self._state = self._model.start()
        self._decoder = self._unused_decoder.fork()
        self._emissions: list[Emissions] = []
        self._chunk_end = self._next_chunk_end()

    def follow(self, history: AudioHistory, interval: int) -> PartialHypothesis | None:
        """Decode a chunk when it is complete; the tail an interval later, unless a chunk is near by then."""
        now = history.end
        if now < self._chunk_end:
            is_due = now - self._decoded >= interval and self._chunk_end - now > interval / 2
            return self.decode(history) if is_due else None
        n_before = self._state.step
        self._advance(history)
        if self._state.step == n_before:  # a resampler keeps a little back
            self._chunk_end = now + 1
            return None
        self._decoded = now
        covered = self._start + round(self._state.n_frames * self._frame_s * STREAM_SAMPLE_RATE)
        return self._hypothesis(self._decoder.peek(), min(covered, now))

    def decode(self, history: AudioHistory) -> PartialHypothesis:
        """Decode what came since the last call; the hypothesis reaches the end of `history`.

        Raises:
            BackendError: the run failed.
        """
        self._advance(history)
        self._decoded = history.end
        decoder = self._decoder.fork()
        decoder.push(self._model.flush(self._state.fork()))
        return self._hypothesis(decoder.flush(), self._heard)

    def transcript(self, history: AudioHistory, end: int) -> Transcript:
        """Transcribe the utterance until sample `end`, which is not after `history`, by its chunks.

        Raises:
            BackendError: the run failed.
        """
        self._advance(history)
        duration_s = (end - self._start) / STREAM_SAMPLE_RATE
        n_frames = math.ceil(duration_s / self._frame_s)
        decoder = self._last_decoder.fork()
        n_left = n_frames
        tail = [self._model.finish(self._state.fork())] if n_frames > self._state.n_frames else []
        for emissions in (*self._emissions, *tail):
            feed(decoder, emissions[:n_left])
            n_left -= min(n_left, len(emissions))
        return transcript_from_hypothesis(decoder.flush(), self._vocabulary, self._frame_s, duration_s, None)

    def _advance(self, history: AudioHistory) -> None:
        """Run the chunks that the sound since the last call completes."""
        samples = history.read(self._heard, history.end)
        self._heard = history.end
        features = self._features.push(self._resampler.push(samples))
        emissions = self._model.push_features(self._state, features)
        if len(emissions):
            self._decoder.push(emissions.log_probs)
            is_needed = self._last_decoder is not self._unused_decoder
            self._emissions.append(emissions if is_needed else Emissions(emissions.log_probs))
        self._chunk_end = self._next_chunk_end()

    def _next_chunk_end(self) -> int:
        """Return the stream sample at which the next step can run, but for the delay of the resampler."""
        n_frames = self._model.geometry.window(self._state.step)[1]
        n_samples = self._extractor.n_samples(n_frames) / self._extractor.config.sample_rate
        return self._start + math.ceil(n_samples * STREAM_SAMPLE_RATE)

    def _hypothesis(self, hypothesis: Hypothesis, end: int) -> PartialHypothesis:
        match = hypothesis.match
        tokens = tokens_from_runs(
            # The beginning of a phrase matches none yet, and yet it is speech.
            hypothesis.tokens if match is None or match.matched else match.heard,
            self._vocabulary,
            self._frame_s,
            offset_s=self._start / STREAM_SAMPLE_RATE,
            end_s=self._heard / STREAM_SAMPLE_RATE,
        )
        n_fixed = self._decoder.n_tokens if isinstance(self._decoder, GreedyDecoder) else 0
        return PartialHypothesis(tokens, end, n_fixed)


def streaming_decoders(
    recognizer: Recognizer,
    partials: Literal["auto", "streaming", "windowed"] = "auto",
    *,
    num_threads: int | None = None,
) -> Callable[[], StreamingDecoder] | None:
    """Return a function that makes decoders on a bundle's streaming graph; None if windows are better.

    The graph is loaded once for a recognizer, however often this is called, and closed with it
    (`Recognizer.streaming_model`). `LiveRecognizer(partials=...)` calls this function.

    Args:
        recognizer: a loaded recognizer, whose decoder decodes. The graph runs where the recognizer does, on
            an engine if it has one, else on the CPU.
        partials: "auto" takes the streaming graph if there is one, if it computes no frame twice (a "regular"
            context, which looks ahead from every frame, costs more than windows do), and if it runs where the
            recognizer does: beside an engine, windows cost less than the graph on a CPU.
        num_threads: threads of the graph on the CPU; None takes the recognizer's. A loaded graph keeps its
            own.

    Raises:
        ConfigError: `partials` is unknown.
        BundleError: `partials` is "streaming", but there is no bundle or it lacks a streaming graph.
        BackendError: the graph cannot be loaded.
    """
    bundle, backend = recognizer.bundle, recognizer.backend
    if partials not in ("auto", "streaming", "windowed"):
        raise ConfigError(f"partials is {partials!r}; it must be auto, streaming or windowed")
    if partials == "windowed":
        return None
    if partials == "auto":
        if bundle is None or bundle.info.streaming is None:
            return None
        onnxruntime = isinstance(backend, OnnxRuntimeBackend)
        if not onnxruntime and choose_stream_device(bundle, backend.name) == "cpu":
            return None
        if bundle.info.streaming.geometry.ahead_frames:
            logger.info("partials: windowed, as the streaming graph repeats its look-ahead in every step")
            return None
    try:
        model = recognizer.streaming_model(num_threads=num_threads)
    except EngineError as error:
        if partials != "auto":
            raise
        logger.warning("partials: windowed, as the engine of the streaming graph may not run: %s", error)
        return None
    model.warm_up()
    logger.info("partials: streaming, %s, %s", model.precision, model.geometry.describe())
    return partial(
        StreamingDecoder,
        model,
        recognizer.features,
        recognizer.vocabulary,
        recognizer.new_decoder(),
    )
