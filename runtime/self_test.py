"""Runs a bundle's own clip on this machine, with this runtime, and compares with what the exporter heard.

An INT8 graph or a new onnxruntime can give other words on another processor without any error. So a bundle
carries a clip, and for each precision its text, the best token of each frame and its log-prob, offline and
of its streaming graph. `run_self_test` compares.
What this file does not do: make the entry of the bundle (edge_asr.proof.self_test), remember a result or act
on it (tested.py).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.errors import BackendError, BundleError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.backends import Backend
from edge_asr.runtime.decoding.greedy import greedy_decode
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.streaming_model import StreamingModel
from edge_asr.vocabulary import Vocabulary

_log = logging.getLogger(__name__)

STEPS_PER_NAT = 64
"""Log-probs are kept in steps of 1/64."""
_ROUNDING = 0.5
"""Words that differ are no fault while every log-prob is this near: a machine that rounds otherwise may
decide otherwise where two tokens are equally probable."""


class Loaded(Protocol):
    """The part of `Recognizer` that is tested."""

    backend: Backend
    bundle: Bundle | None
    features: FeatureConfig
    vocabulary: Vocabulary

    @property
    def execution(self) -> str:
        """What runs."""
        ...

    def log_probs(self, waveform: npt.ArrayLike, sample_rate: int, /) -> npt.NDArray[np.float32]:
        """Log-probs of a waveform."""
        ...

    def streaming_model(self) -> StreamingModel:
        """Return the streaming graph of the bundle."""
        ...


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What became of the clip.

    Attributes:
        execution: what ran: precision, backend and runtime.
        text, expected: what was heard here and by the exporter.
        frame_agreement: share of frames with the same best token.
        max_deviation: largest difference of a log-prob of the exporter's best tokens, in nats.
    """

    execution: str
    text: str
    expected: str
    frame_agreement: float
    max_deviation: float

    @property
    def passed(self) -> bool:
        """Tell whether the words are the same, or differ by rounding alone."""
        return self.text == self.expected or self.max_deviation <= _ROUNDING

    @property
    def closeness(self) -> str:
        """Say how near the two are."""
        return (
            f"{self.frame_agreement:.1%} of frames agree, log-probs differ by up to {self.max_deviation:.2f}"
        )

    def __str__(self) -> str:
        if self.passed:
            return f"{self.execution}: the same words; {self.closeness}"
        return (
            f"{self.execution} hears {self.text!r} in the bundle's clip, and the exporter heard "
            f"{self.expected!r}; {self.closeness}"
        )


def run_self_test(recognizer: Loaded, *, stream: bool = False) -> SelfTestResult:
    """Run the clip of the recognizer's bundle, with greedy search.

    Args:
        recognizer: what is tested.
        stream: test its streaming graph, not what transcribes.

    Raises:
        BundleError: there is no bundle, it carries no self-test, or its clip was altered.
        BackendError: the model failed.
    """
    bundle = recognizer.bundle
    entry = None if bundle is None else bundle.info.self_test
    model = recognizer.streaming_model() if stream else None
    precision = recognizer.backend.precision if model is None else model.precision
    references = None if entry is None else entry.references if model is None else entry.stream
    reference = (references or {}).get(precision)
    if bundle is None or entry is None or reference is None:
        where = "a recognizer without a bundle" if bundle is None else str(bundle.path)
        raise BundleError(f"{where} carries no self-test of this precision; export the model again")
    clip = bundle.path / entry.clip
    if not clip.is_file() or sha256_of(clip) != entry.sha256:
        raise BundleError(f"{clip} is not the file that bundle.json describes; copy the bundle again")
    rate = recognizer.features.sample_rate
    waveform = read_audio(clip, rate)
    if model is None:
        log_probs = recognizer.log_probs(waveform, rate)
    else:
        log_probs = stream_log_probs(model, waveform, recognizer.features)
    try:
        argmax, values = (np.array(reference[key].split(), np.int64) for key in ("argmax", "values"))
        if not len(argmax) == len(values) == len(log_probs):
            raise ValueError(f"it has {len(argmax)} frames, the model gave {len(log_probs)}")
        here = np.maximum(log_probs[np.arange(len(argmax)), argmax], -100.0)
    except (ValueError, OverflowError, IndexError) as error:
        raise BundleError(f"the self-test of {bundle.path}: {error}; export the model again") from error
    ids = greedy_decode(log_probs, recognizer.vocabulary.blank_id).ids.tolist()
    return SelfTestResult(
        execution=recognizer.execution if model is None else model.execution,
        text=recognizer.vocabulary.decode(ids),
        expected=reference["text"],
        frame_agreement=float(np.mean(np.argmax(log_probs, axis=1) == argmax)),
        max_deviation=float(np.max(np.abs(here - values / STEPS_PER_NAT))),
    )


def has_stream_test(bundle: Bundle) -> bool:
    """Tell whether a bundle can tell what its streaming graph must hear."""
    entry = bundle.info.self_test
    return bundle.info.streaming is not None and entry is not None and bool(entry.stream)


def stream_log_probs(
    model: StreamingModel, waveform: npt.NDArray[np.float32], features: FeatureConfig
) -> npt.NDArray[np.float32]:
    """Run a waveform [S], at the rate of the features, through a streaming graph; return [T', V]."""
    return model.log_probs(FeatureExtractor(features)(waveform))


def find_problem(recognizer: Loaded, *, stream: bool = False) -> str:
    """Run the self-test, and say what is wrong in one sentence; an empty one is a pass.

    Raises:
        BundleError, AudioError: the bundle has no self-test, or its clip cannot be read.
    """
    try:
        result = run_self_test(recognizer, stream=stream)
    except BackendError as error:
        execution = recognizer.streaming_model().execution if stream else recognizer.execution
        return f"{execution} fails on the bundle's clip: {error}"
    _log.info("self-test: %s", result)
    return "" if result.passed else str(result)
