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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import DEFAULT_MODEL, Bundle
from edge_asr.bundle.manifest import PRECISIONS
from edge_asr.errors import AudioError, BackendError, EngineError
from edge_asr.runtime.backends import ENGINE_PRECISIONS, check_log_probs
from edge_asr.runtime.decoding.decoder import Emissions
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, open_artifact
from edge_asr.runtime.step_batching import Arrays, StepBatcher
from edge_asr.runtime.stream_steps import BoundSteps, HostSteps, StreamSteps
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    from edge_asr.runtime.engine.sidecar import Flavor

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]
logger = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class StreamState:
    """The state of one stream between two pushes, from `StreamingModel.start`; `push` and `flush` change it.

    Attributes:
        caches: the graph's own state: [1, L, left, width] and [1, L, D, k - 1] float32, [1] int64; on a GPU
            one array with a reference to it.
        features: [t, n_mels] float32, feature frames that a later window still reads.
        first_feature: number of the first of them in the stream.
        n_features: feature frames pushed so far.
        step: number of the next step.
        n_frames: log-prob frames given so far.
        flushed: whether nothing more can be pushed.
    """

    caches: Arrays
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
        steps: runs the graph; closed with this. An onnxruntime backend keeps the caches on its device.
        geometry: the geometry that it was exported with.
        n_mels, vocab_size: bands of the features, and outputs, the blank included.

    Attributes:
        gives_encoded: whether it also gives what an attention decoder attends to.
    """

    def __init__(
        self,
        steps: OnnxRuntimeBackend | StreamSteps,
        geometry: StreamingGeometry,
        *,
        n_mels: int,
        vocab_size: int,
    ) -> None:
        self.geometry = geometry
        self.n_mels, self.vocab_size = n_mels, vocab_size
        if isinstance(steps, OnnxRuntimeBackend):
            steps = (BoundSteps if steps.name == "cuda" else HostSteps)(steps, geometry)
        self._steps: StreamSteps = steps
        self.precision = steps.precision
        self.execution = f"{steps.precision} stream on {steps.runtime}"
        self.gives_encoded = steps.gives_encoded
        self._run = StepBatcher(steps.run, n_places=steps.n_places, max_rows=steps.max_rows)

    @classmethod
    def load(
        cls,
        bundle: Bundle | str | Path = DEFAULT_MODEL,
        *,
        precision: str = "fp32",
        num_threads: int | None = None,
        device: str = "cpu",
        allow_unverified: bool = False,
    ) -> StreamingModel:
        """Load the streaming graph of a bundle, in the precision asked for if the bundle has it.

        Args:
            bundle: a bundle, its folder, or the name of an embedded model.
            precision: "fp32", "fp16" or "int8".
            num_threads: see `OnnxRuntimeBackend`.
            device: "cpu", "cuda", or for the bundle's engine "tensorrt" or "tensorrt-rtx".
            allow_unverified: also run an engine that was not proven, or not built here.

        Raises:
            BundleError: there is no bundle, or it lacks a streaming graph.
            EngineError: no engine of the graph may run here.
            MissingDependencyError, BackendError: see `OnnxRuntimeBackend` and `TensorRTBackend`.
        """
        if not isinstance(bundle, Bundle):
            bundle = Bundle.load(bundle)
        streaming = bundle.streaming
        shape = {"n_mels": bundle.info.features.n_mels, "vocab_size": bundle.info.vocabulary_size}
        if device in ("tensorrt", "tensorrt-rtx"):
            steps = _open_engine(bundle, precision, cast("Flavor", device), allow_unverified)
            return cls(steps, streaming.geometry, **shape)
        artifact = streaming.find(precision)
        if artifact.precision != precision and "int8" in (artifact.precision, precision):
            logger.warning(
                "the bundle has no streaming graph in %s: partials run in %s", precision, artifact.precision
            )
        backend = open_artifact(bundle, artifact, device=device, num_threads=num_threads, fixed_shapes=True)
        return cls(backend, streaming.geometry, **shape)

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
        return self.push_features(state, features).log_probs

    def push_features(self, state: StreamState, features: F32Array) -> Emissions:
        """Take features as `push`, and return the frames of the encoder too, if the graph gives them."""
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
        return self.finish(state).log_probs

    def finish(self, state: StreamState) -> Emissions:
        """End the stream as `flush`, and return the frames of the encoder too, if the graph gives them."""
        self._check_open(state)
        state.flushed = True
        outputs = []
        while state.n_frames < self.geometry.output_frames.n_valid(state.n_features):
            outputs.append(self._advance(state))
        return self._join(outputs)

    def log_probs(self, features: F32Array) -> F32Array:
        """Run a whole clip, [t, n_mels]; return its log-probs, [n, V].

        Raises:
            AudioError, BackendError: as `push`.
        """
        state = self.start()
        return np.concatenate([self.push(state, features), self.flush(state)])

    def warm_up(self, n_streams: int = 1) -> None:
        """Prepare for up to so many streams at once: an engine records their steps. The others do nothing.

        Raises:
            BackendError: a run failed.
        """
        self._steps.warm_up(n_streams)

    def observe_steps(self, observe: Callable[[float, int], None]) -> None:
        """Call `observe` after each step, in place of the one before: `StepBatcher.observe`."""
        self._run.observe = observe

    def initial_caches(self, batch: int = 1) -> Arrays:
        """Return the graph's state for new streams."""
        return self._steps.initial_caches(batch)

    def run_step(
        self, features: F32Array, feature_lens: I64Array, caches: Arrays
    ) -> tuple[F32Array, I64Array, Arrays]:
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
        emissions, n_valid, following = self._run_window(features, feature_lens, caches)
        return emissions.log_probs, n_valid, following

    def _run_window(
        self, features: F32Array, feature_lens: I64Array, caches: Arrays
    ) -> tuple[Emissions, I64Array, Arrays]:
        """Run the graph as `run_step`; with the frames of the encoder [B, chunk, D] if it gives them."""
        inputs = (np.ascontiguousarray(features.transpose(0, 2, 1)), feature_lens, *caches)
        log_probs, n_valid, *following = self._run(inputs)
        shape = (len(features), self.geometry.chunk_frames, self.vocab_size)
        check_log_probs(log_probs, shape, n_valid.tolist())
        encoded = following.pop() if self.gives_encoded else None
        return Emissions(log_probs, encoded), n_valid, tuple(following)

    def close(self) -> None:
        """Give memory and devices back. May be called twice."""
        self._steps.close()

    def _advance(self, state: StreamState) -> Emissions:
        """Run the next step on the available part of its window."""
        start, stop = self.geometry.window(state.step)
        n_there = min(stop, state.n_features) - start
        window = np.zeros((1, stop - start, self.n_mels), np.float32)
        first = start - state.first_feature
        window[0, :n_there] = state.features[first : first + n_there]
        emissions, n_valid, state.caches = self._run_window(window, np.array([n_there]), state.caches)
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
        encoded = None if emissions.encoded is None else emissions.encoded[0, :n_new]
        return Emissions(emissions.log_probs[0, :n_new], encoded)

    @staticmethod
    def _check_open(state: StreamState) -> None:
        if state.flushed:
            raise AudioError("this stream was flushed; make a new one with start()")

    def _join(self, outputs: list[Emissions]) -> Emissions:
        nothing = np.zeros((0, self.vocab_size), np.float32)
        return Emissions.join(outputs) if outputs else Emissions(nothing, nothing)


def choose_stream_device(bundle: Bundle, backend: str) -> str:
    """Return where the streaming graph runs beside a backend: there too, if it can, else on the CPU."""
    if backend in ("tensorrt", "tensorrt-rtx"):
        from edge_asr.runtime.engine.lookup import has_engine

        return backend if has_engine(bundle, cast("Flavor", backend), graph="stream") else "cpu"
    return "cuda" if backend == "cuda" else "cpu"


def _open_engine(bundle: Bundle, precision: str, flavor: Flavor, allow_unverified: bool) -> StreamSteps:
    """Open the engine of a precision, or of another one that the bundle has.

    Raises:
        EngineError: none may run here; the message is that of the first.
    """
    from edge_asr.runtime.engine.lookup import has_engine
    from edge_asr.runtime.engine.stream_runner import EngineSteps

    named = [p for p in PRECISIONS if p == precision]
    others = [p for p in ENGINE_PRECISIONS if p not in named and has_engine(bundle, flavor, p, "stream")]
    errors = []
    for candidate in named + others:
        try:
            steps = EngineSteps(bundle, candidate, flavor=flavor, allow_unverified=allow_unverified)
        except EngineError as error:
            errors.append(error)
            continue
        if candidate != precision:
            logger.warning("no %s engine of the streaming graph: partials run in %s", precision, candidate)
        return steps
    raise errors[0]
