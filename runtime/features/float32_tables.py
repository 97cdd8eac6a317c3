"""Window and mel filters with the roundings of torch's and torchaudio's float32 arithmetic.

In float32 the corners of a filter's triangle move by up to 5e-4 Hz. If a filter is as narrow as the distance
of the bins, only its foot may lie on a bin, and then the logarithm of its output changes by 1e-3 or more. A
rounded window leaks 1e-7 of the loudest bin into an almost empty one. So this file rounds the same values in
the same order. A few values in a hundred still differ in the last bit, because torch has its own cosine and
power.

What this file does not do: apply the tables (extractor.py).

Sources: torchaudio, functional/functional.py, `melscale_fbanks`, and compliance/kaldi.py, `get_mel_banks` and
`_feature_window_function`; torch, aten/src/ATen/native, TensorFactories.cpp (windows) and
cpu/RangeFactoriesKernel.cpp (linspace: from both ends to the middle, each product and sum rounded once).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.features.mel import mel_from_hz

F32Array = npt.NDArray[np.float32]
F64Array = npt.NDArray[np.float64]


def build_float32_window(name: str, length: int) -> F64Array:
    """Build the window of `extractor.build_window` with float32 values."""
    shape, _, periodic = name.partition("_")
    period = length if periodic else max(length - 1, 1)
    index = np.arange(length, dtype=np.float32)
    if shape in ("hann", "hamming", "povey"):
        offset, height = (0.54, 0.46) if shape == "hamming" else (0.5, 0.5)
        window = _cosine(index * np.float32(2.0 * np.pi / period)) * -np.float32(height) + np.float32(offset)
        if shape == "povey":
            # In torch the exponent is a float32 too.
            window = np.power(window.astype(np.float64), np.float64(np.float32(0.85))).astype(np.float32)
    elif shape == "blackman":
        angle = index * np.float32(np.pi / period)
        window = _cosine(angle * np.float32(4.0)) * np.float32(0.08)
        window = window - _cosine(angle * np.float32(2.0)) * np.float32(0.5) + np.float32(0.42)
    elif shape == "bartlett":
        rising = index * np.float32(2.0 / period)
        window = np.where(index <= period // 2, rising, np.float32(2.0) - rising)
    else:
        window = np.ones(length, np.float32)
    return np.asarray(window, np.float64)


def _cosine(angle: F32Array) -> F32Array:
    return np.asarray(np.cos(angle.astype(np.float64)), np.float32)


def build_float32_mel_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, scale: str, norm: str
) -> F64Array:
    """Build the filters of `mel.build_mel_filters` with float32 values.

    n_fft and the sample rate are even except with "kaldi", which has the norm "none".
    """
    if scale == "kaldi":
        return _build_kaldi_filters(sample_rate, n_fft, n_mels, f_min, f_max)
    edges_mel = _linspace(float(mel_from_hz(f_min, scale)), float(mel_from_hz(f_max, scale)), n_mels + 2)
    edges = _hz_from_mel(edges_mel, scale)
    bins = _linspace(0.0, float(sample_rate // 2), n_fft // 2 + 1)
    width = edges[1:] - edges[:-1]
    slopes = edges[:, None] - bins[None, :]  # (M + 2, bins)
    falling = -slopes[:-2] / width[:-1, None]
    rising = slopes[2:] / width[1:, None]
    filters = np.maximum(np.float32(0.0), np.minimum(falling, rising))
    if norm == "slaney":
        filters *= (np.float32(2.0) / (edges[2:] - edges[:-2]))[:, None]
    return np.asarray(filters, np.float64)


def _build_kaldi_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float) -> F64Array:
    """Build triangles drawn in mel; each corner is a rounded multiple of the step."""
    low, high = float(mel_from_hz(f_min, "kaldi")), float(mel_from_hz(f_max, "kaldi"))
    step = np.float32((high - low) / (n_mels + 1))
    corners = np.float32(low) + np.arange(n_mels + 2, dtype=np.float32) * step
    left, center, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    hz = np.float32(sample_rate / n_fft) * np.arange(n_fft // 2, dtype=np.float32)
    ratio = np.float32(1.0) + hz / np.float32(700.0)
    mel = np.float32(1127.0) * np.log(ratio.astype(np.float64)).astype(np.float32)
    rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
    filters = np.maximum(np.float32(0.0), np.minimum(rising, falling))
    # Kaldi leaves the Nyquist bin out of every filter.
    return np.pad(filters, ((0, 0), (0, 1))).astype(np.float64)


def _linspace(start: float, end: float, count: int) -> F32Array:
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    # A product of two float32 is exact in float64, so only the sum is rounded.
    rising = np.float64(first) + step * index
    falling = np.float64(last) - step * (count - 1 - index)
    return np.asarray(np.where(index < count // 2, rising, falling), np.float32)


def _hz_from_mel(mel: F32Array, scale: str) -> F32Array:
    if scale == "htk":
        exponent = (mel / np.float32(2595.0)).astype(np.float64)
        power = np.power(10.0, exponent).astype(np.float32)
        return np.asarray(np.float32(700.0) * (power - np.float32(1.0)))
    exponent = (np.float32(np.log(6.4) / 27.0) * (mel - np.float32(15.0))).astype(np.float64)
    logarithmic = np.float32(1000.0) * np.exp(exponent).astype(np.float32)
    return np.asarray(np.where(mel >= np.float32(15.0), logarithmic, np.float32(200.0 / 3.0) * mel))
