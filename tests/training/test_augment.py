"""Augmentation does what its parameters say, and the same seed does the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.training.augment import (
    add_noise,
    add_reverberation,
    augment_waveform,
    build_warp,
    change_speed,
    clip_loudest,
    join_waveforms,
    mask_features,
)
from edge_asr.training.config import AugmentConfig, SpecAugmentConfig
from edge_asr.training.noise import NoisePool, fit_length

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)).astype(np.float32)
POOL = NoisePool(RATE, seed=1)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 1.25])
def test_speed_changes_length_and_pitch(speed: float) -> None:
    changed = change_speed(TONE, speed)
    assert len(changed) == pytest.approx(RATE / speed, abs=2)
    assert changed.dtype == np.float32
    peak = np.argmax(np.abs(np.fft.rfft(changed * np.hanning(len(changed))))) * RATE / len(changed)
    assert peak == pytest.approx(500 * speed, abs=RATE / len(changed))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_has_the_asked_snr(snr_db: float) -> None:
    noise = POOL.cut("pink", RATE, np.random.default_rng(0))
    added = add_noise(TONE, noise, snr_db).astype(np.float64) - TONE
    measured = 10 * np.log10(np.mean(TONE.astype(np.float64) ** 2) / np.mean(added**2))
    assert measured == pytest.approx(snr_db, abs=0.01)


def test_noise_on_digital_silence_stays_silent() -> None:
    silence = np.zeros(100, np.float32)
    assert not add_noise(silence, np.ones(100, np.float32), 10.0).any()
    np.testing.assert_array_equal(add_noise(TONE, np.zeros(RATE, np.float32), 10.0), TONE)


@pytest.mark.parametrize("kind", ["white", "pink"])
def test_noise_pool(kind: str) -> None:
    long = POOL.cut(kind, 70 * RATE, np.random.default_rng(0))  # longer than the pool: it wraps
    assert long.shape == (70 * RATE,)
    assert np.std(long) == pytest.approx(1.0, abs=0.05)
    spectrum = np.abs(np.fft.rfft(long[: 16 * RATE])) ** 2
    low, high = (spectrum[16 * a : 16 * b].mean() for a, b in ((100, 200), (1600, 3200)))
    expected = 1.0 if kind == "white" else 16.0
    assert low / high == pytest.approx(expected, rel=0.2)


def test_reverberation_keeps_length_and_direct_sound() -> None:
    click = np.zeros(RATE, np.float32)
    click[100] = 1.0
    wet = add_reverberation(click, 0.3, RATE, np.random.default_rng(0))
    assert wet.shape == click.shape
    assert wet[100] == pytest.approx(1.0, abs=1e-5)
    assert not np.abs(wet[:100]).max() > 1e-5
    early, late = (np.sum(wet[100 + a : 100 + a + 800] ** 2) for a in (400, 3200))
    assert early > 30 * late > 0  # 60 dB in 0.3 s is 35 dB over those 0.175 s
    assert not np.abs(wet[100 + int(0.3 * RATE) :]).max() > 1e-4


def test_joining_puts_gaps_between() -> None:
    parts = [TONE[:1000], TONE[:500]]
    joined = join_waveforms(parts, [0.1, 0.25, 0.05], RATE, POOL, np.random.default_rng(0))
    assert len(joined) == 1500 + int(0.4 * RATE)
    np.testing.assert_array_equal(joined[1600:2600], parts[0])
    np.testing.assert_array_equal(joined[2600 + 4000 : 2600 + 4500], parts[1])
    gap = joined[2600 : 2600 + 4000]
    assert 1e-5 < np.std(gap) < 0.02
    assert join_waveforms([TONE], [0.0, 0.0], RATE, POOL, np.random.default_rng(0)) is TONE


@pytest.mark.parametrize("n_samples", [10, 100, 250])
def test_fit_length(n_samples: int) -> None:
    fitted = fit_length(np.arange(100, dtype=np.float32), n_samples, np.random.default_rng(3))
    assert len(fitted) == n_samples
    steps = np.diff(fitted) % 100
    assert (steps == 1).all()
    assert len(fit_length(np.zeros(0, np.float32), n_samples, np.random.default_rng(3))) == n_samples


def test_whole_chain_is_repeatable_and_bounded() -> None:
    config = AugmentConfig(noise_prob=1.0, reverb_prob=1.0, gain_db=(20.0, 20.0), noise_kinds=("babble",))

    def run(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return augment_waveform(TONE, config, RATE, POOL, lambda: [TONE[::-1]], rng)

    np.testing.assert_array_equal(run(1), run(1))
    assert (run(1) != run(2)).any()
    assert np.abs(run(1)).max() == 1.0  # clipped


def test_nothing_drawn_nothing_changed() -> None:
    config = AugmentConfig(noise_prob=0.0, reverb_prob=0.0, gain_db=(0.0, 0.0))

    def no_babble() -> list[np.ndarray]:
        raise AssertionError("babble was loaded though no noise is added")

    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augment_waveform(TONE, config, RATE, POOL, no_babble, rng), TONE)


def test_clipping_limits_the_loudest_samples() -> None:
    ramp = np.linspace(-1, 1, 1001, dtype=np.float32)
    clipped = clip_loudest(ramp, 0.1)
    assert np.mean(clipped != ramp) == pytest.approx(0.1, abs=0.005)
    assert np.abs(clipped).max() == pytest.approx(0.9, abs=0.005)
    np.testing.assert_array_equal(clip_loudest(ramp, 0.0), ramp)


def test_every_new_kind_is_drawn_and_repeatable() -> None:
    config = AugmentConfig(
        reverb_prob=0.0,
        noise_prob=1.0,
        noise_kinds=("recorded",),
        noise_manifest="noise.jsonl",
        noise_snr_db=(20.0, 20.0),
        gain_db=(0.0, 0.0),
        room_prob=1.0,
        clip_prob=1.0,
        codec_prob=1.0,
        codecs=("mu_law",),
    )
    hum = (8000 * np.sin(2 * np.pi * 50 * np.arange(RATE // 2) / RATE)).astype(np.int16)
    pool = NoisePool(RATE, seed=1, recorded=[hum])
    delayed = np.zeros(400, np.float32)
    delayed[[0, 399]] = 1.0

    def run(config: AugmentConfig) -> np.ndarray:
        return augment_waveform(TONE, config, RATE, pool, list, np.random.default_rng(3), [delayed])

    whole = run(config)
    np.testing.assert_array_equal(whole, run(config))
    spectrum = np.abs(np.fft.rfft(whole * np.hanning(len(whole))))
    assert spectrum[50] == pytest.approx(0.1 * spectrum[500], rel=0.3)  # 20 dB
    for off in ({"room_prob": 0.0}, {"noise_prob": 0.0}, {"clip_prob": 0.0}, {"codec_prob": 0.0}):
        assert np.abs(run(dataclasses.replace(config, **off)) - whole).max() > 1e-3, off


@pytest.mark.parametrize("factor", [0.9, 1.1])
@pytest.mark.parametrize("hz", [500.0, 1000.0, 3000.0])
def test_warping_moves_tones_as_a_vocal_tract_does(hz: float, factor: float) -> None:
    features = FeatureConfig.from_preset("nemo", normalize="none")
    extract = FeatureExtractor(features)

    def tone(hz: float) -> np.ndarray:
        return (0.3 * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)).astype(np.float32)

    warped = extract(tone(hz)) @ build_warp(features, factor)
    assert abs(int(warped[50].argmax()) - int(extract(tone(hz / factor))[50].argmax())) <= 1
    np.testing.assert_allclose(build_warp(features, 1.0), np.eye(80), atol=1e-5)


def test_masks_have_the_fill_and_the_width() -> None:
    fill = np.arange(80, dtype=np.float32)
    config = SpecAugmentConfig(n_freq_masks=1, max_freq_bins=10, n_time_masks=1, max_time_frames=30)
    widest_frequency = widest_time = 0
    for seed in range(60):
        features = np.full((200, 80), -99.0, np.float32)
        masked = mask_features(features, config, fill, np.random.default_rng(seed))
        changed = masked != -99.0
        np.testing.assert_array_equal(masked[changed], np.broadcast_to(fill, masked.shape)[changed])
        columns, rows = changed.all(axis=0).sum(), changed.all(axis=1).sum()
        assert changed.sum() == columns * 200 + rows * 80 - columns * rows
        widest_frequency, widest_time = max(widest_frequency, columns), max(widest_time, rows)
    assert widest_frequency == 10
    assert 15 <= widest_time <= 20  # max_time_fraction 0.1 of 200 frames


def test_masks_on_one_frame() -> None:
    features = np.ones((1, 80), np.float32)
    mask_features(features, SpecAugmentConfig(), np.zeros(80, np.float32), np.random.default_rng(0))
    assert features.shape == (1, 80)
