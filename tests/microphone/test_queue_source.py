"""A source that an application fills: every sample comes out once, what does not fit is reported."""

from __future__ import annotations

import threading
import time
from queue import Empty
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import WORDS, ToneRecognizer, speak

from edge_asr.audio import mono_from_waveform, resample
from edge_asr.errors import AudioError, ConfigError, DeviceError
from edge_asr.runtime.live.events import Error, Final, Gap
from edge_asr.runtime.live.queue_source import QueueSource
from edge_asr.runtime.live.recognizer import LiveRecognizer
from edge_asr.runtime.live.sources import Loss

RATE = 16_000


def noise(n_samples: int) -> np.ndarray:
    return np.random.default_rng(n_samples).normal(0, 0.1, n_samples).astype(np.float32)


def read_all(source: QueueSource) -> tuple[np.ndarray, list[Loss]]:
    """Everything up to the end, which has been called."""
    samples, losses = [np.zeros(0, np.float32)], []
    while (block := source.read()) is not None:
        samples.append(block.samples)
        losses += block.losses
    return np.concatenate(samples), losses


@settings(max_examples=30)
@given(
    rate=st.sampled_from([8_000, 16_000, 44_100, 48_000]),
    cuts=st.lists(st.integers(0, 20_000), max_size=8).map(sorted),
    form=st.sampled_from(["float32", "float64", "int16", "stereo"]),
)
def test_what_is_pushed_is_what_is_heard(rate: int, cuts: list[int], form: str) -> None:
    sound = noise(20_000)
    pushed: Any = {
        "float32": sound,
        "float64": sound.astype(np.float64),
        "int16": (sound * 32767).astype(np.int16),
        "stereo": np.stack([sound, sound[::-1]], axis=1),
    }[form]
    source = QueueSource(rate)
    for block in np.split(pushed, cuts):
        assert source.push(block)
    source.end()
    heard, losses = read_all(source)
    assert losses == []
    assert np.array_equal(heard, resample(mono_from_waveform(pushed), rate, RATE))
    assert source.queued_s == 0.0


def test_the_buffer_of_the_caller_may_be_reused_at_once() -> None:
    source, buffer = QueueSource(), np.full(320, 0.5, np.float32)
    source.push(buffer)
    buffer[:] = np.nan
    source.end()
    assert np.array_equal(read_all(source)[0], np.full(320, 0.5, np.float32))


def test_the_first_channel_or_the_mean() -> None:
    both = np.array([[0.25, 0.75]] * 100, np.float32)
    for mix, level in (("first", 0.25), ("mean", 0.5)):
        source = QueueSource(mix=mix)  # type: ignore[arg-type]
        source.push(both)
        source.end()
        assert np.array_equal(read_all(source)[0], np.full(100, level, np.float32))


@settings(max_examples=30)
@given(blocks=st.lists(st.integers(1, 3_000), max_size=40), reads=st.lists(st.booleans(), min_size=40))
def test_every_sample_is_heard_or_reported_as_lost(blocks: list[int], reads: list[bool]) -> None:
    """Whatever comes between pushing and reading; and the queue never holds more than it may."""
    source = QueueSource(queue_s=0.25)  # 4000 samples
    heard, lost_s, n_pushed = 0, 0.0, 0

    def take(block: Any) -> None:
        nonlocal heard, lost_s
        heard += len(block.samples)
        lost_s += sum(loss.lost_s for loss in block.losses)
        assert {(loss.reason, loss.estimated) for loss in block.losses} <= {("queue_overflow", False)}

    for n_samples, reads_now in zip(blocks, reads, strict=False):
        taken = source.push(noise(n_samples))
        n_pushed += n_samples
        assert source.queued_s <= 0.25
        assert taken or source.queued_s + n_samples / RATE > 0.25
        if reads_now:
            try:
                take(source.read_within(0.0))
            except Empty:
                assert source.queued_s == 0.0
    source.end()
    while (block := source.read()) is not None:
        take(block)
    assert heard + round(lost_s * RATE) == n_pushed
    assert source.n_dropped_samples == round(lost_s * RATE)


def test_nothing_is_smeared_across_a_hole() -> None:
    source = QueueSource(48_000, queue_s=0.1)
    for level in (0.1, 0.2, 0.3):  # the second does not fit
        source.push(np.full(4_800, level, np.float32))
        if level == 0.2:
            assert source.read() is not None
    source.end()
    before = source.read()
    after = source.read()
    assert before is not None
    assert after is not None
    assert (before.losses, len(after.losses)) == ((), 1)
    assert np.abs(before.samples).max() < 0.12
    assert after.samples[-1] > 0.25


def test_after_the_end_nothing_is_taken_and_it_stays_the_end() -> None:
    source = QueueSource()
    source.stop()
    assert not source.push(noise(10))
    assert source.n_dropped_samples == 0
    assert [source.read(), source.read()] == [None, None]


def test_an_error_comes_after_what_was_heard() -> None:
    source = QueueSource()
    source.push(noise(100))
    source.end(DeviceError("the bus is gone"))
    assert source.read() is not None
    for _ in range(2):
        with pytest.raises(DeviceError, match="the bus is gone"):
            source.read()


@pytest.mark.parametrize("bad", [np.array([np.nan]), np.zeros(10, np.uint8), np.zeros((2, 2, 2))])
def test_what_is_no_sound_is_refused_where_it_is_read(bad: np.ndarray) -> None:
    source = QueueSource()
    assert source.push(bad)
    with pytest.raises(AudioError, match="the waveform"):
        source.read()


def test_sound_that_should_have_come_is_missed_on_a_live_source(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    source = QueueSource(is_live=True)
    for index in range(500):
        now += 0.02 + (1.0 if index == 200 else 0.0)
        source.push(noise(320))
    source.end()
    (loss,) = read_all(source)[1]
    assert (loss.reason, loss.estimated) == ("missing", True)
    assert loss.lost_s == pytest.approx(1.0, abs=0.02)


def test_what_a_driver_lost_is_reported() -> None:
    source = QueueSource()
    source.push(noise(100))
    source.push(noise(100), overflowed=True)
    source.end()
    assert read_all(source)[1] == [Loss(lost_s=0.0, reason="device_overflow", estimated=True)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"queue_s": 0}, "queue_s is 0"),
        ({"queue_s": float("inf")}, "queue_s is inf"),
        ({"mix": "loudest"}, "mix is 'loudest'"),
    ],
)
def test_config_errors_say_what_and_the_value(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        QueueSource(**values)


def test_live_recognition_of_what_an_application_pushes() -> None:
    """From another thread, at 48 kHz in 16-bit stereo, as fast as it goes."""
    audio = speak(WORDS[:4], rate=48_000)
    stereo = (np.stack([audio, audio], axis=1) * 32767).astype(np.int16)
    source = QueueSource(48_000)

    def application() -> None:
        for start in range(0, len(stereo), 960):
            source.push(stereo[start : start + 960])
        source.end()

    with LiveRecognizer(ToneRecognizer(), source) as live:
        threading.Thread(target=application).start()
        events = list(live)
    assert " ".join(e.text for e in events if isinstance(e, Final)).split() == list(WORDS[:4])
    assert not any(isinstance(event, Gap | Error) for event in events)
