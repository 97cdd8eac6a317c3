"""The utterance in progress through a streaming graph: each partial costs what is new, and a step more.

Windows of the graph are run as they fill, and their log-probs decoded for good. What does not fill one yet,
less than a chunk with its look-ahead, is run on a copy of the state as if the utterance ended there: the
hypothesis reaches to the newest sound (but for half a window, and what a resampler to 8 kHz holds, up to
0.12 s), so endpointing never waits for a chunk, and short words are not missed. That tail is computed again
at the next call. What this file does not do: finals; they are transcribed whole (`live`).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from edge_asr.audio import ResampleStream
from edge_asr.errors import BundleError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.decoding.greedy import GreedyDecoder, Token, TokenRuns, tokens_from_runs
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.events import STREAM_SAMPLE_RATE
from edge_asr.runtime.live.partials import AudioHistory, Hypothesis
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.vocabulary import Vocabulary

if TYPE_CHECKING:
    from edge_asr.runtime.recognizer import Recognizer

logger = logging.getLogger(__name__)


class StreamingDecoder:
    """A `PartialDecoder` that encodes no sound twice but the tail. One stream, one thread at a time.

    Args:
        model: of the bundle; many decoders may share it.
        features: the bundle's, without normalization over the clip.
        vocabulary: the bundle's.

    Raises:
        ConfigError: features that cannot stream.
    """

    def __init__(self, model: StreamingModel, features: FeatureConfig, vocabulary: Vocabulary) -> None:
        self._model = model
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
        self._decoder = GreedyDecoder(self._vocabulary.blank_id)
        self._tokens: tuple[Token, ...] = ()

    def decode(self, history: AudioHistory) -> Hypothesis:
        """Take what came since the last call; the hypothesis reaches to the end of `history`.

        Raises:
            BackendError: the run failed.
        """
        samples = history.read(self._heard, history.end)
        self._heard = history.end
        features = self._features.push(self._resampler.push(samples))
        self._tokens += self._place(self._decoder.push(self._model.push(self._state, features)))
        state, decoder = copy.copy(self._state), copy.copy(self._decoder)
        tail = decoder.push(self._model.flush(state))
        return Hypothesis(
            self._tokens + self._place(TokenRuns.concatenate([tail, decoder.flush()])), self._heard
        )

    def _place(self, runs: TokenRuns) -> tuple[Token, ...]:
        """Runs as tokens with the times of the stream."""
        return tokens_from_runs(
            runs,
            self._vocabulary,
            self._frame_s,
            offset_s=self._start / STREAM_SAMPLE_RATE,
            end_s=self._heard / STREAM_SAMPLE_RATE,
        )


def streaming_decoders(
    recognizer: Recognizer,
    partials: Literal["auto", "streaming", "windowed"] = "auto",
    *,
    num_threads: int | None = None,
) -> Callable[[], StreamingDecoder] | None:
    """What makes decoders on the streaming graph of a bundle, which is loaded here, once; None for windows.

    The graph is float32 whatever the recognizer runs. It stays loaded as long as what is returned, or one of
    the decoders.

    Args:
        recognizer: a loaded one. Where it runs on CUDA the graph does, else on the CPU.
        partials: "auto" takes the streaming graph where there is one that computes no frame twice (a context
            that reaches to the right of every frame, "regular", costs more than windows do) and onnxruntime
            runs the recognizer: there are no TensorRT engines of it, and windows run on the recognizer's.
        num_threads: of a graph on the CPU; None takes the recognizer's.

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
        if bundle is None or bundle.info.streaming is None or backend.name not in ("cpu", "cuda"):
            return None
        if bundle.info.streaming.geometry.ahead_frames:
            logger.info("partials: windowed, for the streaming graph computes what lies ahead each time")
            return None
    if bundle is None:
        raise BundleError("a recognizer without a bundle has no streaming model; load one from a bundle")
    model = StreamingModel.load(
        bundle,
        num_threads=num_threads or getattr(backend, "num_threads", None),
        device="cuda" if backend.name == "cuda" else "cpu",
    )
    logger.info("partials: streaming, %s", model.geometry.describe())
    return partial(StreamingDecoder, model, recognizer.features, recognizer.vocabulary)
