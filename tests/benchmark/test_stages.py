"""A watched recognizer gives what a plain one gives, and its stages add up to the call."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.benchmark.audio_clips import Recording
from edge_asr.benchmark.stages import StagedRecognizer
from edge_asr.runtime.recognizer import Recognizer

RATE = 16_000


@pytest.fixture(scope="module")
def watched() -> Iterator[StagedRecognizer]:
    recognizer = StagedRecognizer.load("tiny-en", num_threads=1)
    assert isinstance(recognizer, StagedRecognizer)
    with recognizer:
        yield recognizer


@pytest.fixture(scope="module")
def plain() -> Iterator[Recognizer]:
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        yield recognizer


def clips(seconds: float, batch: int = 1) -> list[npt.NDArray[np.float32]]:
    return Recording.load(None, RATE).clips(seconds, batch)


def test_it_is_what_load_gives(watched: StagedRecognizer, plain: Recognizer) -> None:
    assert watched.backend.name == plain.backend.name == "cpu"
    assert watched.backend.precision == plain.backend.precision
    assert watched.bundle is not None
    assert watched.backend_reason == plain.backend_reason


@pytest.mark.parametrize("seconds", [0.05, 2.0, 60.0])  # too short, one window, several
def test_one_clip(watched: StagedRecognizer, plain: Recognizer, seconds: float) -> None:
    (clip,) = clips(seconds)
    (transcript,), times = watched.run([clip], RATE)
    assert transcript == plain.transcribe(clip, RATE)
    assert times.features_s + times.encode_s + times.decode_s == pytest.approx(times.total_s)
    assert min(times.features_s, times.encode_s, times.decode_s, times.processor_s) > 0
    assert sum(frames for _, frames in times.passes) >= seconds * 100 - 2
    assert len(times.passes) == (1 if seconds < 24 else 3)


def test_a_batch(watched: StagedRecognizer, plain: Recognizer) -> None:
    rows = clips(2.0, batch=3)
    transcripts, times = watched.run(rows, RATE)
    assert transcripts == plain.transcribe_batch([(row, RATE) for row in rows])
    assert times.passes == [(3, 200)]
    assert times.features_s + times.encode_s + times.decode_s == pytest.approx(times.total_s)


def test_each_call_begins_anew(watched: StagedRecognizer) -> None:
    _, first = watched.run(clips(2.0), RATE)
    _, second = watched.run(clips(2.0), RATE)
    assert first.passes == second.passes == [(1, 200)]
    assert first is not second
