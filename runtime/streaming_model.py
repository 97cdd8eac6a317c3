"""Runs a streaming graph chunk by chunk: features in pieces of any size, log-probs out, state in one object.

The geometry decides the windows (edge_asr.stream_geometry). So however the features are cut, the same windows
are run and the log-probs are the same bits. `flush` gives what is left, with the end padded as in the offline
graph, so every frame of the offline graph comes out. (NeMo's own buffer drops a remainder that is shorter
than one encoder frame, and with it up to one output.) It imports neither PyTorch nor onnx.

What this file does not do: features, decoding, microphones.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import AudioError, BackendError
from edge_asr.runtime.backends import check_log_probs
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, count_usable_cores, open_artifact
from edge_asr.runtime.step_batching import Arrays, StepBatcher
from edge_asr.stream_geometry import StreamingGeometry

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]
logger = logging.getLogger(__name__)

MAX_BATCH = {"cpu": 8, "cuda": 32}
"""Steps of different streams that are computed together at most. On a core, more than 4 gain nothing."""


@dataclass(slots=True, kw_only=True)
class StreamState:
    """The state of one stream between two pushes, from `StreamingModel.start`; `push` and `flush` change it.

    Attributes:
        caches: the graph's own state: [1, L, left, width] and [1, L, D, k - 1] float32, [1] int64.
        features: [t, n_mels] float32, feature frames that a later window still reads.
        first_feature: number of the first of them in the stream.
        n_features: feature frames pushed so far.
        step: number of the next step.
        n_frames: log-prob frames given so far.
        flushed: whether nothing more can be pushed.
    """

    caches: tuple[F32Array, F32Array, I64Array]
    features: F32Array
    first_feature: int = 0
    n_features: int = 0
    step: int = 0
    n_frames: int = 0
    flushed: bool = False

    def fork(self) -> StreamState:
        """Return a copy that has heard the same; what one hears later, the other does not.

        The arrays are shared, because `push` and `flush` replace them and never write into them.
        """
        return dataclasses.replace(self)


class StreamingModel:
    """A loaded streaming graph. It holds no state of a stream, so it may serve many, from several threads.

    Steps that are due while the device is busy are computed together, as rows of one batch (`StepBatcher`).
    A step that is computed alone gives the same bits however the stream is cut; rows of a batch may differ
    in the last bits.

    Args:
        backend: runs the graph; closed with this.
        geometry: the geometry that it was exported with.
        n_mels, vocab_size: bands of the features, and outputs, the blank included.
    """

    def __init__(
        self,
        backend: OnnxRuntimeBackend,
        geometry: StreamingGeometry,
        *,
        n_mels: int,
        vocab_size: int,
    ) -> None:
        self.geometry = geometry
        self.precision = backend.precision
        self.n_mels, self.vocab_size = n_mels, vocab_size
        self._backend = backend
        n_places = 1 if backend.name == "cuda" else count_usable_cores() // (backend.num_threads or 1)
        self._run = StepBatcher(self._run_graph, n_places=max(1, n_places), max_rows=MAX_BATCH[backend.name])

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path = DEFAULT_MODEL,
        *,
        precision: str = "fp32",
        num_threads: int | None = None,
        device: str = "cpu",
    ) -> StreamingModel:
        """Load the streaming graph of a bundle, in the precision asked for if the bundle has it.

        Raises:
            BundleError: there is no bundle, or it lacks a streaming graph.
            MissingDependencyError, BackendError: see `OnnxRuntimeBackend`.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle)
        streaming = bundle.streaming
        artifact = streaming.find(precision)
        if artifact.precision != precision and "int8" in (artifact.precision, precision):
            logger.warning(
                "the bundle has no streaming graph in %s: partials run in %s", precision, artifact.precision
            )
        return cls(
            open_artifact(bundle, artifact, device=device, num_threads=num_threads),
            streaming.geometry,
            n_mels=bundle.info.features.n_mels,
            vocab_size=bundle.info.vocabulary_size,
        )

    def start(self) -> StreamState:
        """Return the state of a new stream."""
        return StreamState(caches=self.initial_caches(), features=np.zeros((0, self.n_mels), np.float32))

    def push(self, state: StreamState, features: F32Array) -> F32Array:
        """Take [t, n_mels] more feature frames; return the log-probs that they complete.

        Args:
            state: state of the stream, which is updated.
            features: float32, t >= 0.

        Returns:
            [n, V] float32, natural log: a whole number of chunks.

        Raises:
            AudioError: the shape is not [t, n_mels], or the stream was flushed.
            BackendError: the run failed.
        """
        self._check_open(state)
        if features.ndim != 2 or features.shape[1] != self.n_mels:
            raise AudioError(f"features have the shape {list(features.shape)}; give [frames, {self.n_mels}]")
        state.features = np.concatenate([state.features, features.astype(np.float32, copy=False)])
        state.n_features += len(features)
        outputs = []
        while self.geometry.window(state.step)[1] <= state.n_features:
            outputs.append(self._advance(state))
        return self._join(outputs)

    def flush(self, state: StreamState) -> F32Array:
        """End the stream; return the remaining log-probs, [n, V], n >= 0.

        With them the stream has given as many frames as the offline graph gives for all its features.

        Raises:
            AudioError: the stream was flushed before.
            BackendError: the run failed.
        """
        self._check_open(state)
        state.flushed = True
        outputs = []
        while state.n_frames < self.geometry.output_frames.n_valid(state.n_features):
            outputs.append(self._advance(state))
        return self._join(outputs)

    def initial_caches(self, batch: int = 1) -> tuple[F32Array, F32Array, I64Array]:
        """Return the graph's state for new streams."""
        return (
            np.zeros((batch, *self.geometry.cache_last_channel), np.float32),
            np.zeros((batch, *self.geometry.cache_last_time), np.float32),
            np.zeros(batch, np.int64),
        )

    def run_step(
        self, features: F32Array, feature_lens: I64Array, caches: tuple[F32Array, F32Array, I64Array]
    ) -> tuple[F32Array, I64Array, tuple[F32Array, F32Array, I64Array]]:
        """Run the graph once, for a batch of streams at the same step or, after the first steps, at any.

        Args:
            features: [B, T, n_mels] float32, a window each, padded at its end.
            feature_lens: [B] int64, valid frames of each window; a row of 0 keeps its state.
            caches: those of the step before.

        Returns:
            log-probs [B, chunk, V], how many of each row are valid [B], the next caches.

        Raises:
            BackendError: the run failed.
        """
        inputs = (np.ascontiguousarray(features.transpose(0, 2, 1)), feature_lens, *caches)
        log_probs, n_valid, channel, time, channel_len = self._run(inputs)
        shape = (len(features), self.geometry.chunk_frames, self.vocab_size)
        check_log_probs(log_probs, shape, n_valid.tolist())
        return log_probs, n_valid, (channel, time, channel_len)

    def _run_graph(self, inputs: Arrays) -> Arrays:
        return tuple(self._backend.run(STREAM_OUTPUTS, dict(zip(STREAM_INPUTS, inputs, strict=True))))

    def close(self) -> None:
        """Give memory and devices back. May be called twice."""
        self._backend.close()

    def _advance(self, state: StreamState) -> F32Array:
        """Run the next step on the available part of its window."""
        start, stop = self.geometry.window(state.step)
        n_there = min(stop, state.n_features) - start
        window = np.zeros((1, stop - start, self.n_mels), np.float32)
        first = start - state.first_feature
        window[0, :n_there] = state.features[first : first + n_there]
        log_probs, n_valid, state.caches = self.run_step(window, np.array([n_there]), state.caches)
        n_new = int(n_valid[0])
        if n_new < 1:
            raise BackendError(
                f"the streaming graph gave nothing for {n_there} feature frames of step {state.step}; it is "
                "not the one its geometry describes: export the model again"
            )
        state.step += 1
        state.n_frames += n_new
        following = min(self.geometry.window(state.step)[0], state.n_features)
        state.features = state.features[following - state.first_feature :]
        state.first_feature = following
        frames: F32Array = log_probs[0, :n_new]
        return frames

    @staticmethod
    def _check_open(state: StreamState) -> None:
        if state.flushed:
            raise AudioError("this stream was flushed; make a new one with start()")

    def _join(self, outputs: list[F32Array]) -> F32Array:
        return np.concatenate(outputs) if outputs else np.zeros((0, self.vocab_size), np.float32)
