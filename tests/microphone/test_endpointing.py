"""Levels, noise floor and cuts; the configuration's errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tones import silence, tone

from edge_asr.errors import ConfigError
from edge_asr.runtime.live.endpointing import EndpointConfig, Endpointer, LevelMeter

RATE = 16_000


def noise(duration_s: float, level: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(round(duration_s * RATE))).astype(np.float32)


@given(st.lists(st.integers(0, 700), min_size=1, max_size=40))
def test_cutting_the_stream_otherwise_changes_nothing(lens: list[int]) -> None:
    audio = noise(sum(lens) / RATE, 0.01) * np.linspace(0, 10, sum(lens), dtype=np.float32)
    pieces, whole = LevelMeter(EndpointConfig()), LevelMeter(EndpointConfig())
    for piece in np.split(audio, np.cumsum(lens)[:-1]):
        pieces.push(piece)
    whole.push(audio)
    for name in ("n_frames", "noise_dbfs", "active_run_frames", "last_active_frame"):
        assert getattr(pieces, name) == getattr(whole, name)


@pytest.mark.parametrize("level", [0.001, 0.01, 0.1])
def test_noise_floor_finds_the_noise_and_calls_it_quiet(level: float) -> None:
    meter = LevelMeter(EndpointConfig())
    meter.push(noise(4.0, level))
    # The minimum of thirty means of 1600 squares lies about 0.3 dB under their expectation.
    assert meter.noise_dbfs == pytest.approx(20 * np.log10(level), abs=1.0)
    assert meter.active_run_frames == 0


def test_noise_floor_stays_down_while_someone_speaks() -> None:
    meter = LevelMeter(EndpointConfig())
    meter.push(noise(3.0, 0.001))
    syllable = np.concatenate([noise(0.3, 0.1), noise(0.1, 0.001)])
    meter.push(np.tile(syllable, 25))
    assert meter.noise_dbfs == pytest.approx(-60, abs=1.0)


def test_full_scale_and_digital_silence_are_finite() -> None:
    meter = LevelMeter(EndpointConfig())
    for value in (0.0, 1.0, 0.0, -1.0):
        meter.push(np.full(8000, value, np.float32))
    assert np.isfinite(meter.noise_dbfs)
    assert meter.threshold_dbfs == -60.0


def test_quietest_place_is_found() -> None:
    meter = LevelMeter(EndpointConfig())
    audio = noise(3.0, 0.1)
    audio[30_000:32_000] = 0
    meter.push(audio)
    assert meter.quietest_sample(16_000, 44_000) == pytest.approx(31_000, abs=320)


def test_quietest_place_in_too_short_a_stretch_is_its_middle() -> None:
    meter = LevelMeter(EndpointConfig())
    meter.push(noise(1.0, 0.1))
    assert meter.quietest_sample(1000, 1100) == 1050


def test_onset_reaches_back_but_not_before_the_last_utterance() -> None:
    endpointer = Endpointer()
    endpointer.push(noise(1.0, 1e-5))
    assert endpointer.onset(0) is None
    endpointer.push(noise(0.1, 0.1))
    rise_s = 1.0
    onset = endpointer.onset(0)
    assert onset is not None
    assert onset / RATE == pytest.approx(rise_s - endpointer.config.pre_roll_s, abs=0.04)
    assert endpointer.onset(15_000) == 15_000


def test_a_click_is_no_onset() -> None:
    endpointer = Endpointer()
    endpointer.push(noise(1.0, 1e-5))
    endpointer.push(noise(0.03, 0.3))
    assert endpointer.onset(0) is None


def test_a_pause_needs_both_quiet_and_blanks() -> None:
    endpointer = Endpointer()
    endpointer.push(noise(1.0, 1e-5))
    endpointer.push(noise(1.0, 0.1))
    endpointer.push(noise(0.7, 1e-5))
    now = round(2.7 * RATE)
    end = endpointer.endpoint(10_000, now, round(1.9 * RATE))
    assert end is not None
    assert end.reason == "pause"
    assert end.sample / RATE == pytest.approx(2.0 + endpointer.config.tail_s, abs=0.05)
    assert endpointer.endpoint(10_000, now, round(2.4 * RATE)) is None


def test_the_end_of_a_pause_is_known_when_its_tail_was_heard() -> None:
    endpointer = Endpointer()
    endpointer.push(np.concatenate([silence(1), tone("alpha"), silence(2)]))
    end = round(1.25 * RATE)
    tail = round(endpointer.config.tail_s * RATE)
    found = endpointer.pause_end(RATE, 3 * RATE, end)
    assert found is not None
    assert found == pytest.approx(end + tail, abs=320)
    # What is prepared is what the pause will end in.
    endpoint = endpointer.endpoint(RATE, 3 * RATE, end)
    assert endpoint is not None
    assert endpoint.sample == found
    assert endpointer.pause_end(RATE, found - 1, end) is None
    assert endpointer.pause_end(RATE, 3 * RATE, 2 * RATE) == 2 * RATE + tail  # a token without a sound


def test_a_token_that_comes_late_does_not_delay_the_end_and_is_kept() -> None:
    endpointer = Endpointer(EndpointConfig.preset("agent"))
    endpointer.push(noise(1.0, 1e-5))
    endpointer.push(noise(1.0, 0.1))
    endpointer.push(noise(0.25, 1e-5))
    now = round(2.25 * RATE)
    end = endpointer.endpoint(10_000, now, round(2.24 * RATE))
    assert end is not None
    assert end.speech_end / RATE == pytest.approx(2.0, abs=0.05)
    assert end.sample == round(2.24 * RATE)  # not the 0.2 s of the pause, which would cut it off


def test_blanks_end_an_utterance_in_a_noise_that_stays() -> None:
    endpointer = Endpointer()
    endpointer.push(noise(3.0, 0.1))
    token_end = RATE
    assert endpointer.endpoint(0, round(2.4 * RATE), token_end) is None
    end = endpointer.endpoint(0, round(2.6 * RATE), token_end)
    assert end is not None
    assert end.reason == "pause"
    assert token_end < end.sample <= round(2.6 * RATE)


def test_sound_without_a_token_is_dropped() -> None:
    endpointer = Endpointer()
    endpointer.push(noise(3.0, 0.1))
    end = endpointer.endpoint(0, round(1.6 * RATE), None)
    assert end is not None
    assert end.reason == "no_words"


def test_cut_prefers_the_widest_gap_between_words() -> None:
    endpointer = Endpointer()
    audio = noise(20.0, 0.1)
    audio[270_000:271_000] = 0  # a stop inside a word: quieter than any gap
    endpointer.push(audio)
    gaps = [(250_000, 251_000), (280_000, 286_000), (100_000, 200_000)]
    assert 280_000 <= endpointer.cut(gaps, 320_000) <= 286_000
    assert 270_000 <= endpointer.cut([], 320_000) <= 271_000


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"pause_s": 0.0}, "pause_s is 0.0"),
        ({"margin_db": float("nan")}, "margin_db is nan"),
        ({"tail_s": 0.7}, "got 0.7"),
        ({"max_utterance_s": 3.0}, "max_utterance_s is 3.0"),
    ],
)
def test_config_errors_say_what_and_the_value(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EndpointConfig(**values)
