"""Clips have exact lengths; the ends of speech of a signal are where the recording was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_asr.benchmark.audio_clips import (
    LEAD_S,
    NOISE_DBFS,
    PAUSE_S,
    Recording,
    find_phrases,
    spoken_signal,
)
from edge_asr.errors import AudioError

RATE = 16_000


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def test_phrases_are_found_to_ten_milliseconds_and_short_pauses_do_not_part_them() -> None:
    waveform = np.concatenate([quiet(0.7), tone(0.5), quiet(0.3), tone(0.4), quiet(0.8), tone(1.0), quiet(1)])
    assert find_phrases(waveform, RATE) == [(11_200, 30_400), (43_200, 59_200)]
    assert find_phrases(quiet(1.0), RATE) == find_phrases(quiet(0.001), RATE) == []


def test_the_sample_has_three_phrases_and_begins_with_speech() -> None:
    recording = Recording.load(None, RATE)
    phrases = find_phrases(recording.waveform, RATE)
    assert len(phrases) == 3
    assert phrases[0][0] == 0
    assert "robot_commands" in recording.source
    assert len(recording.describe().sha256) == 64


@pytest.mark.parametrize(("seconds", "batch"), [(0.5, 1), (1.0, 3), (30.0, 2)])
def test_clips_have_their_length_and_rows_differ(seconds: float, batch: int) -> None:
    clips = Recording.load(None, RATE).clips(seconds, batch)
    assert [len(clip) for clip in clips] == [round(seconds * RATE)] * batch
    assert len({clip.tobytes() for clip in clips}) == batch


def test_nothing_of_the_recording_lies_behind_the_end_of_speech() -> None:
    waveform = np.concatenate([tone(0.5), quiet(1.0), tone(0.25)])
    signal = spoken_signal(waveform, RATE, 3)
    assert len(signal.utterances) == 3
    assert [end - begin for begin, end in signal.utterances] == [8_000, 4_000, 8_000]
    assert signal.utterances[0][0] == LEAD_S * RATE
    assert len(signal.waveform) == round((LEAD_S + 3 * PAUSE_S + 1.25) * RATE)
    noise = 10 ** (NOISE_DBFS / 20)
    for begin, end in signal.utterances:
        after = signal.waveform[end : end + round(PAUSE_S * RATE)]
        assert np.sqrt(np.mean(after**2)) == pytest.approx(noise, rel=0.05)
        assert np.abs(signal.waveform[begin:end]).max() > 0.25
        assert np.abs(signal.waveform[end - 400 : end - 100]).max() > 0.2  # speech up to the fade of 5 ms


def test_silence_and_endless_speech_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", quiet(1.0), RATE)
    with pytest.raises(AudioError, match="is silent"):
        Recording.load(tmp_path / "silent.wav", RATE)
    with pytest.raises(AudioError, match="no phrase of at most 15 s"):
        spoken_signal(tone(16.0), RATE, 1)
