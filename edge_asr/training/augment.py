"""Waveform and feature augmentation in numpy, cheap enough for two cores.

Everything is drawn from the generator passed in, so the same item always gives the same features.
Measured on one Xeon core: soxr's speed change 0.7 s per hour of audio, the whole pipeline (read, speed,
join, reverberation, noise, features, masks) 1.8 s, where one training step of a 5.3 M model costs 62 s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.errors import require
from edge_asr.training.config import AugmentConfig, SpecAugmentConfig

Waveform = npt.NDArray[np.float32]

_POOL_S = 60.0


class NoisePool:
    """A minute of white and pink noise of unit power, cut at random places."""

    def __init__(self, sample_rate: int, seed: int = 0) -> None:
        rng = np.random.default_rng([seed, 2])
        n = int(_POOL_S * sample_rate)
        white = rng.standard_normal(n, dtype=np.float32)
        spectrum = np.fft.rfft(white)
        # Power falls as 1/f; below 20 Hz flat, so that no huge drift appears.
        frequency = np.maximum(np.fft.rfftfreq(n, 1 / sample_rate), 20.0)
        pink = np.fft.irfft(spectrum / np.sqrt(frequency), n).astype(np.float32)
        self._noises = {"white": white, "pink": pink / np.float32(pink.std())}

    def cut(self, kind: str, n_samples: int, rng: np.random.Generator) -> Waveform:
        """f32 [n_samples] of "white" or "pink", power 1."""
        noise = self._noises[kind]
        start = int(rng.integers(len(noise)))
        return (
            np.take(noise, range(start, start + n_samples), mode="wrap")
            if (start + n_samples > len(noise))
            else noise[start : start + n_samples].copy()
        )


def change_speed(waveform: Waveform, speed: float) -> Waveform:
    """Play `waveform` [S] `speed` times as fast, pitch included: f32 [about S / speed]."""
    if speed == 1.0:
        return waveform
    soxr = require("soxr", extra="train")
    changed: Waveform = soxr.resample(waveform, speed, 1.0, quality="HQ")
    return changed


def join_waveforms(
    parts: Sequence[Waveform],
    gaps_s: Sequence[float],
    sample_rate: int,
    noise: NoisePool,
    rng: np.random.Generator,
) -> Waveform:
    """Parts with near-silence before, between and after them; level -80 to -50 dB of full scale."""
    if len(parts) == 1 and not any(gaps_s):
        return parts[0]
    level = np.float32(10 ** (rng.uniform(-80, -50) / 20))
    pieces: list[Waveform] = []
    for index, gap_s in enumerate(gaps_s):
        n_gap = int(gap_s * sample_rate)
        if n_gap:
            pieces.append(noise.cut("pink", n_gap, rng) * level)
        if index < len(parts):
            pieces.append(parts[index])
    return np.concatenate(pieces)


def add_reverberation(
    waveform: Waveform, rt60_s: float, sample_rate: int, rng: np.random.Generator
) -> Waveform:
    """Convolve with a direct path plus exponentially decaying noise (60 dB down after rt60_s)."""
    import scipy.signal

    n = max(2, int(rt60_s * sample_rate))
    decay = np.exp(np.float32(-np.log(1000.0)) * np.arange(n, dtype=np.float32) / np.float32(n))
    tail = rng.standard_normal(n, dtype=np.float32) * decay
    tail[: int(0.002 * sample_rate)] = 0.0
    direct_to_reverb = 10 ** (rng.uniform(0.0, 12.0) / 10)
    tail *= np.float32(1.0 / np.sqrt(max(float(np.sum(tail**2)) * direct_to_reverb, 1e-12)))
    tail[0] = 1.0
    wet = scipy.signal.oaconvolve(waveform, tail)[: len(waveform)]
    reverberant: Waveform = wet.astype(np.float32, copy=False)
    return reverberant


def add_noise(waveform: Waveform, noise: Waveform, snr_db: float) -> Waveform:
    """Add `noise` [S] at a signal-to-noise ratio over the whole waveform [S]."""
    signal_power = float(np.dot(waveform, waveform)) / max(len(waveform), 1)
    noise_power = float(np.dot(noise, noise)) / max(len(noise), 1)
    if signal_power <= 0.0 or noise_power <= 0.0:
        return waveform
    scale = np.sqrt(signal_power / noise_power) * 10 ** (-snr_db / 20)
    noisy: Waveform = waveform + np.float32(scale) * noise
    return noisy


def fit_length(waveform: Waveform, n_samples: int, rng: np.random.Generator) -> Waveform:
    """Cut at a random place, or repeat, to exactly n_samples."""
    if len(waveform) == 0:
        return np.zeros(n_samples, np.float32)
    start = int(rng.integers(len(waveform)))
    return np.resize(np.roll(waveform, -start), n_samples)


def augment_waveform(
    waveform: Waveform,
    config: AugmentConfig,
    sample_rate: int,
    noise: NoisePool,
    draw_babble: Callable[[], Sequence[Waveform]],
    rng: np.random.Generator,
) -> Waveform:
    """Reverberation, gain and noise, each with its probability; clipped to full scale.

    `draw_babble` gives the waveforms that babble is mixed from; called only when babble is drawn.
    """
    if rng.random() < config.reverb_prob:
        waveform = add_reverberation(waveform, float(rng.uniform(*config.reverb_rt60_s)), sample_rate, rng)
    gain_db = rng.uniform(*config.gain_db)
    waveform = waveform * np.float32(10 ** (gain_db / 20))
    if rng.random() < config.noise_prob:
        kind = str(rng.choice(config.noise_kinds))
        if kind == "babble":
            background = np.zeros(len(waveform), np.float32)
            for clip in draw_babble():
                background += fit_length(clip, len(waveform), rng)
        else:
            background = noise.cut(kind, len(waveform), rng)
        waveform = add_noise(waveform, background, float(rng.uniform(*config.noise_snr_db)))
    return np.clip(waveform, -1.0, 1.0)


def mask_features(
    features: npt.NDArray[np.float32],
    config: SpecAugmentConfig,
    fill: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """SpecAugment without time warping (Park et al. 2019), in place.

    Args:
        features: f32 [T, n_mels], changed and returned.
        fill: f32 [n_mels], the value of masked cells.
    """
    n_frames, n_mels = features.shape
    for _ in range(config.n_freq_masks):
        width = int(rng.integers(0, min(config.max_freq_bins, n_mels) + 1))
        start = int(rng.integers(0, n_mels - width + 1))
        features[:, start : start + width] = fill[start : start + width]
    longest = min(config.max_time_frames, int(config.max_time_fraction * n_frames))
    for _ in range(config.n_time_masks):
        width = int(rng.integers(0, longest + 1))
        start = int(rng.integers(0, n_frames - width + 1))
        features[start : start + width] = fill
    return features
