"""Runs that did not do their work are refused; those that did are as many and as long as asked for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.benchmark.audio_clips import Recording
from edge_asr.benchmark.fresh_process import hash_texts
from edge_asr.benchmark.offline import Task, measure, repeat
from edge_asr.benchmark.stages import StagedRecognizer
from edge_asr.errors import GateError
from edge_asr.runtime.recognizer import Recognizer

RATE = 16_000


@pytest.fixture
def recognizer(random_bundle: Path) -> Iterator[StagedRecognizer]:
    loaded = StagedRecognizer.load(random_bundle, num_threads=1)
    assert isinstance(loaded, StagedRecognizer)
    with loaded:
        yield loaded


def task(recognizer: StagedRecognizer, bundle: Path, batch: int = 1) -> Task:
    clips = Recording.load(None, RATE).clips(1.0, batch)
    with Recognizer.load(bundle, num_threads=1) as plain:
        texts = (
            [plain.transcribe(clips[0], RATE).text]
            if batch == 1
            else [t.text for t in plain.transcribe_batch([(clip, RATE) for clip in clips])]
        )
    assert all(texts), "the proof needs a text"
    return Task(
        name="test", recognizer=recognizer, clips=clips, sample_rate=RATE, text_sha256=hash_texts(texts)
    )


@pytest.mark.parametrize("batch", [1, 3])
def test_proven_runs_are_counted(recognizer: StagedRecognizer, random_bundle: Path, batch: int) -> None:
    tasks = [task(recognizer, random_bundle, batch) for _ in range(2)]
    shares: list[float] = []
    measure(tasks, warmup=1, min_duration_s=0.0, min_runs=4, progress=shares.append)
    assert [len(t.runs) for t in tasks] == [4, 4]
    measure(tasks, warmup=0, min_duration_s=0.0, min_runs=2)
    assert [t.sessions for t in tasks] == [[4, 2], [4, 2]]
    assert [len(t.runs) for t in tasks] == [6, 6]
    assert tasks[0].audio_s == batch
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert gc.isenabled()


def test_both_the_runs_and_the_time_are_reached(recognizer: StagedRecognizer, random_bundle: Path) -> None:
    one = task(recognizer, random_bundle)
    measure([one], warmup=0, min_duration_s=0.2, min_runs=2)
    assert sum(run.total_s for run in one.runs) >= 0.2
    assert len(one.runs) >= 2
    assert repeat(one, 0.0) == 1


class _OtherAnswer:
    """A backend in front of another one, whose log-probs are `change`d."""

    def __init__(self, inner: Any, change: Any) -> None:
        self.inner, self.change = inner, change
        self.name, self.precision = inner.name, inner.precision

    def log_probs(self, features: Any, feature_lens: Any) -> Any:
        return self.change(self.inner.log_probs(features, feature_lens))

    def close(self) -> None:
        self.inner.close()


def test_a_backend_that_answers_something_else_is_refused(
    recognizer: StagedRecognizer, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(recognizer, random_bundle)
    other = _OtherAnswer(recognizer.backend, lambda log_probs: np.roll(log_probs, 1, axis=2))
    monkeypatch.setattr(recognizer, "backend", other)
    with pytest.raises(GateError, match="not the text that transcribe gives"):
        measure([one], warmup=0, min_duration_s=0.0)
    assert one.runs == []
    assert gc.isenabled()


def test_a_run_without_the_model_is_refused_though_the_text_is_right(
    recognizer: StagedRecognizer, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task(recognizer, random_bundle)
    remembered = recognizer.transcribe(one.clips[0], RATE)
    monkeypatch.setattr(recognizer, "transcribe", lambda waveform, sample_rate: remembered)
    with pytest.raises(GateError, match="did not happen as asked"):
        one.run()
