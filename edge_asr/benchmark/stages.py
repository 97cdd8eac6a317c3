"""Where the time of one recognition goes, told by the recogniser's own run: features, copy, encode, decode.

`StagedRecognizer` is a `Recognizer` whose parts are watched. A call of it does what a call of `Recognizer`
does, the same code on the same data; only clocks are read in between (a microsecond or so a call). The stages
add up to the call's time:

    features   checks before the first feature, log-mel, normalisation and assembly of the batch
    encode     the backend's call, copies to and from the device with it
    decode     all the rest: greedy search, token and word times, segments, stitching of windows

Copies are inside `encode` and are also told apart where the backend can tell them (`copies.py`).
What this file does not do: repeat runs, summarise, compare texts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.backends import Backend
from edge_asr.runtime.features.extractor import FeatureExtractor, FeatureStream
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Transcript

F32Array = npt.NDArray[np.float32]
I64Array = npt.NDArray[np.int64]


@dataclass(slots=True)
class RunTimes:
    """One call, seconds.

    Attributes:
        total_s: the whole call.
        processor_s: processor time of all threads of the process meanwhile.
        features_s, encode_s, decode_s: its stages; they add up to `total_s`.
        passes: rows and feature frames, [B, T], of each run of the model.
    """

    total_s: float = 0.0
    processor_s: float = 0.0
    features_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    passes: list[tuple[int, int]] = field(default_factory=list)


class StagedRecognizer(Recognizer):
    """A recogniser that knows where its time went. Load it as `Recognizer.load`; one thread at a time."""

    def __init__(self, backend: Backend, **parts: Any) -> None:
        self.times = RunTimes()
        self._began: float | None = None
        super().__init__(_WatchedBackend(backend, self), **parts)
        self._extractor = _WatchedExtractor(self._extractor, self)

    @property
    def inner_backend(self) -> Backend:
        """The backend itself."""
        backend = self.backend
        assert isinstance(backend, _WatchedBackend)
        return backend.inner

    def run(self, clips: Sequence[F32Array], sample_rate: int) -> tuple[list[Transcript], RunTimes]:
        """Recognise clips as a user would, one by `transcribe`, several by `transcribe_batch`.

        Args:
            clips: waveforms [S].
            sample_rate: Hz.

        Returns:
            Their transcripts, and the times of this call.
        """
        self.times = times = RunTimes()
        busy = time.process_time()
        self._began = began = time.perf_counter()
        if len(clips) == 1:
            transcripts = [self.transcribe(clips[0], sample_rate)]
        else:
            transcripts = self.transcribe_batch([(clip, sample_rate) for clip in clips])
        times.total_s = time.perf_counter() - began
        times.processor_s = time.process_time() - busy
        times.decode_s = times.total_s - times.features_s - times.encode_s
        return transcripts, times

    @contextmanager
    def making_features(self) -> Iterator[None]:
        """Count the block as features; the first one of a call from where the call began."""
        began, self._began = self._began or time.perf_counter(), None
        yield
        self.times.features_s += time.perf_counter() - began

    def _encode(self, clips: list[F32Array]) -> list[F32Array]:
        began, encode_s = time.perf_counter(), self.times.encode_s
        log_probs = super()._encode(clips)
        # What is not the backend's: normalising and laying rows side by side.
        self.times.features_s += time.perf_counter() - began - (self.times.encode_s - encode_s)
        return log_probs


class _WatchedBackend:
    """A backend, timed."""

    def __init__(self, inner: Backend, owner: StagedRecognizer) -> None:
        self.inner = inner
        self._owner = owner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def precision(self) -> str:
        return self.inner.precision

    def log_probs(self, features: F32Array, feature_lens: I64Array) -> F32Array:
        began = time.perf_counter()
        log_probs = self.inner.log_probs(features, feature_lens)
        self._owner.times.encode_s += time.perf_counter() - began
        self._owner.times.passes.append((features.shape[0], features.shape[1]))
        return log_probs

    def close(self) -> None:
        self.inner.close()


class _WatchedExtractor(FeatureExtractor):
    """A feature extractor, timed, streams included."""

    def __init__(self, inner: FeatureExtractor, owner: StagedRecognizer) -> None:
        super().__init__(inner.config)
        self._owner = owner

    def __call__(self, waveform: npt.ArrayLike) -> F32Array:
        with self._owner.making_features():
            return super().__call__(waveform)

    def stream(self) -> FeatureStream:
        return _WatchedStream(self, self._owner)


class _WatchedStream(FeatureStream):
    """A feature stream, timed."""

    def __init__(self, extractor: FeatureExtractor, owner: StagedRecognizer) -> None:
        super().__init__(extractor)
        self._owner = owner

    def push(self, waveform: npt.ArrayLike) -> F32Array:
        with self._owner.making_features():
            return super().push(waveform)

    def flush(self) -> F32Array:
        with self._owner.making_features():
            return super().flush()
