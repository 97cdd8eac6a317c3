"""The utterance in progress through a streaming graph: each partial costs what is new, and a step more.

The graph's steps are run as their windows fill, and their log-probs decoded for good. What does not fill one
yet, less than a chunk with its look-ahead, is run on a fork of the state as if the utterance ended there: so
the hypothesis reaches to the newest sound (but for half a window, and what a resampler to 8 kHz holds, up to
0.12 s), endpointing never waits for a chunk, and short words are not missed. That tail is computed again
at the next call. What this file does not do: finals; they are transcribed whole (`live`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

from edge_asr.audio import STREAM_SAMPLE_RATE, ResampleStream
from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.backends import OnnxRuntimeBackend
from edge_asr.runtime.decoding.decoder import Decoder
from edge_asr.runtime.decoding.greedy import GreedyDecoder
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.history import AudioHistory
from edge_asr.runtime.live.partials import PartialHypothesis
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.runtime.transcript import tokens_from_runs
from edge_asr.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

#: How the utterance in progress is followed; see `streaming_decoders` and `LiveRecognizer`.
Partials = Literal["auto", "streaming", "windowed", "off"]


class StreamingDecoder:
    """A `PartialDecoder` that encodes no sound twice but the tail. One stream, one thread at a time.

    Args:
        model: of the bundle; many decoders may share it.
        features: the bundle's, without normalization over the clip.
        vocabulary: the bundle's.
        decoder: one that has heard nothing, such as `Recognizer.new_decoder` gives; None is greedy search.

    Raises:
        ConfigError: features that cannot stream.
    """

    def __init__(
        self,
        model: StreamingModel,
        features: FeatureConfig,
        vocabulary: Vocabulary,
        decoder: Decoder | None = None,
    ) -> None:
        self._model = model
        self._unused_decoder = decoder or GreedyDecoder.for_vocabulary(vocabulary)
        self._extractor = FeatureExtractor(features)
        self._vocabulary = vocabulary
        self._frame_s = model.geometry.frame_ms / 1e3
        self.begin(0)

    def begin(self, start: int) -> None:
        """Forget the last utterance; the next begins at sample `start`."""
        self._start = self._heard = start
        self._resampler = ResampleStream(STREAM_SAMPLE_RATE, self._extractor.config.sample_rate)
        self._features = self._extractor.stream()
        self._state = self._model.start()
        self._decoder = self._unused_decoder.fork()

    def decode(self, history: AudioHistory) -> PartialHypothesis:
        """Take what came since the last call; the hypothesis reaches to the end of `history`.

        Raises:
            BackendError: the run failed.
        """
        samples = history.read(self._heard, history.end)
        self._heard = history.end
        features = self._features.push(self._resampler.push(samples))
        self._decoder.push(self._model.push(self._state, features))
        state, decoder = self._state.fork(), self._decoder.fork()
        decoder.push(self._model.flush(state))
        tokens = tokens_from_runs(
            decoder.flush().tokens,
            self._vocabulary,
            self._frame_s,
            offset_s=self._start / STREAM_SAMPLE_RATE,
            end_s=self._heard / STREAM_SAMPLE_RATE,
        )
        return PartialHypothesis(tokens, self._heard)


def streaming_decoders(
    recognizer: Recognizer,
    partials: Literal["auto", "streaming", "windowed"] = "auto",
    *,
    num_threads: int | None = None,
) -> Callable[[], StreamingDecoder] | None:
    """A function that makes partial decoders on a bundle's streaming graph; None where windows are better.

    The graph is loaded once for a recognizer, however often this is called, and closed with it; it is float32
    whatever the recognizer runs. `LiveRecognizer(partials=...)` calls this by itself.

    Args:
        recognizer: a loaded one. Where it runs on CUDA the graph does, else on the CPU; its decoder decodes.
        partials: "auto" takes the streaming graph where there is one that computes no frame twice (a context
            that reaches to the right of every frame, "regular", costs more than windows do) and onnxruntime
            runs the recognizer: there are no TensorRT engines of it, and windows run on the recognizer's.
        num_threads: of a graph on the CPU; None takes the recognizer's. A graph that is loaded keeps its own.

    Raises:
        ConfigError: no such way.
        BundleError: "streaming", and there is no bundle or it has no streaming graph.
        BackendError: the graph cannot be loaded.
    """
    bundle, backend = recognizer.bundle, recognizer.backend
    if partials not in ("auto", "streaming", "windowed"):
        raise ConfigError(f"partials is {partials!r}; it must be auto, streaming or windowed")
    if partials == "windowed":
        return None
    if partials == "auto":
        if bundle is None or bundle.info.streaming is None or not isinstance(backend, OnnxRuntimeBackend):
            return None
        if bundle.info.streaming.geometry.ahead_frames:
            logger.info("partials: windowed, for the streaming graph computes what lies ahead each time")
            return None
    model = recognizer.streaming_model(num_threads=num_threads)
    logger.info("partials: streaming, %s", model.geometry.describe())
    return partial(
        StreamingDecoder, model, recognizer.features, recognizer.vocabulary, recognizer.new_decoder()
    )
