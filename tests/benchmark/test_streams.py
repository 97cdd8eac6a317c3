"""Streams at real-time pace with a fake recognizer of loud and quiet, and latencies of invented events."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.benchmark import streams as streams_module
from edge_asr.benchmark.audio_clips import Recording, SpokenSignal, spoken_signal
from edge_asr.benchmark.fresh_process import hash_texts
from edge_asr.benchmark.schema import Streams
from edge_asr.benchmark.streams import (
    NO_TEXT,
    RANDOM,
    Latencies,
    even_sessions,
    find_most_sustained,
    measure_latencies,
    run_streams,
)
from edge_asr.errors import BackendError, GateError
from edge_asr.metrics import compute_error_rates
from edge_asr.runtime.live.events import Event, Final, Partial
from edge_asr.runtime.live.stream import LiveConfig
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.transcript import Token, Transcript, Word, split_segments

RATE = 16_000


class FakeLoudness:
    """Fake: the text is a letter for each 200 ms that are loud. No model."""

    def __init__(self, *, slowness_s: float = 0.0, mute: bool = False) -> None:
        self.slowness_s = slowness_s
        self.mute = mute
        self.n_calls = 0
        self.lies = False
        self.fails_after = 10**9

    def transcribe(self, waveform: Any, sample_rate: int) -> Transcript:
        self.n_calls += 1
        if self.n_calls > self.fails_after:
            raise BackendError("the fake has broken")
        time.sleep(self.slowness_s)
        step = sample_rate // 5
        n_steps = len(waveform) // step
        levels = np.abs(np.asarray(waveform[: n_steps * step])).reshape(n_steps, step).max(axis=1)
        loud = np.flatnonzero(levels > 0.05).tolist() if n_steps and not self.mute else []
        # The proof is made in the main thread, streams run in others.
        letter = "y" if self.lies and threading.current_thread() is threading.main_thread() else "x"
        tokens = tuple(
            Token(text=letter, start_s=i * 0.2, end_s=i * 0.2 + 0.2, confidence=1.0, id=1) for i in loud
        )
        words = (
            (
                Word(
                    text=letter * len(loud), start_s=tokens[0].start_s, end_s=tokens[-1].end_s, confidence=1.0
                ),
            )
            if tokens
            else ()
        )
        return Transcript(
            text=" ".join(word.text for word in words),
            tokens=tokens,
            words=words,
            segments=split_segments(words),
            duration_s=len(waveform) / sample_rate,
        )


@pytest.fixture
def signal() -> SpokenSignal:
    """One utterance of 0.6 s: 1.0 s of silence, a tone, 2.0 s of silence."""
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(9_600) / RATE)).astype(np.float32)
    return spoken_signal(tone, RATE, 1)


def test_streams_at_real_time_pace(signal: SpokenSignal) -> None:
    began = time.monotonic()
    found = run_streams(FakeLoudness(), signal, 3)
    assert time.monotonic() - began >= len(signal.waveform) / RATE
    assert (found.mode, found.n_streams, found.n_finals, found.n_gaps) == ("windowed", 3, 3, 0)
    assert found.n_overflows == found.lost_s == 0
    for name in ("first_partial", "end_to_final", "endpoint_wait", "final_compute"):
        times = getattr(found, name)
        assert times.summary is not None, name
        assert times.summary.n == 3, name
    total, wait, compute = (
        np.array(getattr(found, name).samples_ms)
        for name in ("end_to_final", "endpoint_wait", "final_compute")
    )
    assert total == pytest.approx(wait + compute, rel=1e-4)
    # The endpoint waits for its pause; less would mean another end of speech than the true one.
    assert wait.min() > 1e3 * LiveConfig().endpoint.pause_s - 60
    assert len(found.text_sha256) == 64


def test_a_recognizer_slower_than_the_updates_is_not_sustained(signal: SpokenSignal) -> None:
    config = LiveConfig(partial_interval_s=0.05)
    found = run_streams(FakeLoudness(slowness_s=0.06), signal, 1, config=config)
    assert not found.sustained
    assert found.why_not is not None
    assert "interval 50 ms" in found.why_not


def test_a_final_that_is_not_what_transcribe_gives_is_refused(signal: SpokenSignal) -> None:
    recognizer = FakeLoudness()
    recognizer.lies = True
    with pytest.raises(GateError, match="no number of this run is reported"):
        run_streams(recognizer, signal, 1)


def test_a_stream_that_breaks_is_an_error(signal: SpokenSignal) -> None:
    recognizer = FakeLoudness()
    recognizer.fails_after = 0
    with pytest.raises(BackendError, match="has broken"):
        run_streams(recognizer, signal, 2)


def test_without_text_there_are_reasons(signal: SpokenSignal) -> None:
    found = run_streams(FakeLoudness(mute=True), signal, 1)
    assert found.end_to_final.reason == found.first_partial.reason == NO_TEXT
    assert found.text_sha256 == hash_texts([])
    random = run_streams(FakeLoudness(), signal, 1, is_random=True)
    assert random.end_to_final.reason == RANDOM
    assert random.update_compute.summary is not None


def test_lost_audio_is_told_and_leaves_no_latencies(
    signal: SpokenSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        streams_module.PacedSource.__init__, "__kwdefaults__", {"delay_s": 0.0, "queue_s": 0.1}
    )
    found = run_streams(FakeLoudness(slowness_s=0.5), signal, 1)
    assert found.n_gaps == found.n_overflows >= 1
    assert found.lost_s > 0
    assert not found.sustained
    assert found.why_not == f"{found.n_gaps} times audio was lost"
    assert found.end_to_final.reason is not None


@given(st.integers(0, 500), st.integers(1, 20))
def test_even_sessions_are_even_and_whole(n_samples: int, n_sessions: int) -> None:
    sizes = even_sessions(n_samples, n_sessions)
    assert sum(sizes) == n_samples
    assert len(sizes) == min(n_samples, n_sessions)
    assert not sizes or max(sizes) - min(sizes) <= 1


def partial(end_s: float, text: str = "x") -> Partial:
    return Partial(id=0, text=text, start_s=0.5, end_s=end_s)


def final(start_s: float, end_s: float, compute_s: float) -> Final:
    return Final(
        id=0,
        text="x",
        start_s=start_s,
        end_s=end_s,
        tokens=(),
        words=(),
        segment_start_samples=round(start_s * RATE),
        segment_end_samples=round(end_s * RATE),
        reason="pause",
        endpoint_wait_s=0.6,
        compute_s=compute_s,
    )


def test_latencies_of_invented_events() -> None:
    """Two utterances, 1.0 to 2.0 s and 4.0 to 5.0 s, spoken from monotonic time 100 on."""
    signal = SpokenSignal(
        waveform=np.zeros(7 * RATE, np.float32),
        sample_rate=RATE,
        utterances=((RATE, 2 * RATE), (4 * RATE, 5 * RATE)),
    )
    events: list[tuple[float, Event]] = [
        (101.42, partial(1.4)),
        (101.75, partial(1.7)),
        (102.80, final(0.6, 2.3, 0.05)),
        (104.50, partial(4.4)),
        (104.60, partial(4.5, "")),  # taken back: no text
        (104.90, final(3.6, 4.6, 0.02)),  # ends inside the second utterance: not its end
        (105.90, final(4.6, 5.3, 0.03)),
    ]
    found = Latencies()
    measure_latencies(found, events, signal, lambda sample: 100 + sample / RATE)
    assert found.first_partial == pytest.approx([0.42, 0.50])
    assert found.partial_interval == pytest.approx([0.33])
    assert found.partial_lag == pytest.approx([0.02, 0.05, 0.10])
    assert found.end_to_final == pytest.approx([0.80, 0.90])
    assert found.endpoint_wait == pytest.approx([0.75, 0.87])
    assert found.final_compute == pytest.approx([0.05, 0.03])


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 7, 8, 200, 1000])
def test_the_most_sustained_is_found(limit: int, report: Any) -> None:
    (example,) = report.configurations[0].streams
    tried: list[int] = []

    def try_streams(n_streams: int) -> Streams:
        tried.append(n_streams)
        return dataclasses.replace(example, n_streams=n_streams, sustained=n_streams <= limit)

    results, most = find_most_sustained(try_streams)
    assert most == min(limit, 256)
    assert [r.n_streams for r in results] == sorted(set(tried))
    assert len(tried) == len(set(tried)) <= 18


def test_the_embedded_model_live() -> None:
    signal = spoken_signal(Recording.load(None, RATE).waveform, RATE, 1)
    with Recognizer.load("tiny-en", num_threads=1) as recognizer:
        found = run_streams(recognizer, signal, 1)
        begin, end = signal.utterances[0]
        heard = recognizer.transcribe(signal.waveform[begin:end], RATE).text
    assert compute_error_rates(["enter seven two five"], [heard]).wer <= 0.25  # whatever the weights
    assert found.n_finals == 1
    assert found.end_to_final.summary is not None
    assert found.first_partial.summary is not None
