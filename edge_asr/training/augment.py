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
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.mel import hz_from_mel, mel_from_hz
from edge_asr.training.codecs import apply_codec
from edge_asr.training.config import AugmentConfig, SpecAugmentConfig
from edge_asr.training.noise import NoisePool, fit_length

Waveform = npt.NDArray[np.float32]


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
    n = max(2, int(rt60_s * sample_rate))
    decay = np.exp(np.float32(-np.log(1000.0)) * np.arange(n, dtype=np.float32) / np.float32(n))
    tail = rng.standard_normal(n, dtype=np.float32) * decay
    tail[: int(0.002 * sample_rate)] = 0.0
    direct_to_reverb = 10 ** (rng.uniform(0.0, 12.0) / 10)
    tail *= np.float32(1.0 / np.sqrt(max(float(np.sum(tail**2)) * direct_to_reverb, 1e-12)))
    tail[0] = 1.0
    return convolve(waveform, tail)


def convolve(waveform: Waveform, response: Waveform) -> Waveform:
    """`waveform` [S] in a room of the given impulse response, cut to [S]."""
    import scipy.signal

    wet = scipy.signal.oaconvolve(waveform, response)[: len(waveform)]
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


def clip_loudest(waveform: Waveform, fraction: float) -> Waveform:
    """Limit the loudest `fraction` of the samples [S] to the level of the next one."""
    if len(waveform) == 0:
        return waveform
    limit = np.quantile(np.abs(waveform), 1.0 - fraction)
    clipped: Waveform = np.clip(waveform, -limit, limit)
    return clipped


def augment_waveform(
    waveform: Waveform,
    config: AugmentConfig,
    sample_rate: int,
    noise: NoisePool,
    draw_babble: Callable[[], Sequence[Waveform]],
    rng: np.random.Generator,
    rooms: Sequence[Waveform] = (),
) -> Waveform:
    """Room or reverberation, gain, noise, clipping and codec, each with its probability; within full scale.

    `draw_babble` gives the waveforms that babble is mixed from; called only when babble is drawn. `rooms`
    are the impulse responses of `rooms.build_rooms`.
    """
    if config.room_prob and rng.random() < config.room_prob:
        waveform = convolve(waveform, rooms[int(rng.integers(len(rooms)))])
    elif rng.random() < config.reverb_prob:
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
    if config.clip_prob and rng.random() < config.clip_prob:
        waveform = clip_loudest(waveform, float(rng.uniform(*config.clip_fraction)))
    if config.codec_prob and rng.random() < config.codec_prob:
        waveform = apply_codec(waveform, str(rng.choice(config.codecs)), sample_rate, rng)
    return np.clip(waveform, -1.0, 1.0)


def build_warp(features: FeatureConfig, factor: float) -> npt.NDArray[np.float32]:
    """Matrix that stretches the frequency axis of log-mel features by `factor`, f32 [n_mels, n_mels].

    Jaitly and Hinton 2013 (vocal tract length perturbation): linear up to 4800 Hz or where that would reach,
    then linear to the Nyquist frequency. Bands are interpolated between their centers: `features @ matrix`.
    """
    nyquist, edge = features.sample_rate / 2, 0.6 * features.sample_rate / 2 * min(factor, 1.0)
    low, high = (float(mel_from_hz(f, features.mel_scale)) for f in (features.f_min, features.f_max))
    mels = np.linspace(low, high, features.n_mels + 2)[1:-1]
    hz = hz_from_mel(mels, features.mel_scale)
    warped = np.where(
        hz <= edge / factor,
        hz * factor,
        nyquist - (nyquist - edge) / (nyquist - edge / factor) * (nyquist - hz),
    )
    place = np.interp(mel_from_hz(warped, features.mel_scale), mels, np.arange(len(mels)))
    left = np.minimum(place.astype(np.int64), len(mels) - 2)
    matrix = np.zeros((len(mels), len(mels)), np.float32)
    columns = np.arange(len(mels))
    matrix[left, columns] = 1 - (place - left)
    matrix[left + 1, columns] = place - left
    return matrix


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
