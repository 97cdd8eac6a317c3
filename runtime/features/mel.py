"""Mel filter banks, as the projects whose front ends we reproduce build them.

`FeatureConfig.mel_scale` names one of three recipes:
- `slaney`: librosa's default (Slaney's Auditory Toolbox): linear below 1 kHz, logarithmic above,
  triangles drawn in Hz. NeMo and ESPnet use it.
- `htk`: 2595 log10(1 + f / 700), triangles drawn in Hz. torchaudio's default.
- `kaldi`: 1127 ln(1 + f / 700), triangles drawn in mel (kaldi/src/feat/mel-computations.cc).

What this file does not do: apply a filter bank to spectra (extractor.py).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]

# Slaney's scale: 200/3 Hz per mel up to 1 kHz, then 27 logarithmic steps for each factor of 6.4.
# Source: librosa/core/convert.py, hz_to_mel.
_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = _SLANEY_BREAK_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def mel_from_hz(hz: npt.ArrayLike, scale: str) -> F64Array:
    """Convert frequencies in Hz to mel on the `slaney`, `htk` or `kaldi` scale; same shape, float64."""
    freq = np.asarray(hz, dtype=np.float64)
    if scale == "slaney":
        safe = np.maximum(freq, _SLANEY_BREAK_HZ)
        log_part = _SLANEY_BREAK_MEL + np.log(safe / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
        return np.where(freq < _SLANEY_BREAK_HZ, freq / _SLANEY_HZ_PER_MEL, log_part)
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + freq / 700.0))
    return np.asarray(1127.0 * np.log1p(freq / 700.0))


def hz_from_mel(mel: npt.ArrayLike, scale: str) -> F64Array:
    """Convert mel to Hz, the inverse of `mel_from_hz`."""
    value = np.asarray(mel, dtype=np.float64)
    if scale == "slaney":
        above = np.maximum(value - _SLANEY_BREAK_MEL, 0.0)
        log_part = _SLANEY_BREAK_HZ * np.exp(_SLANEY_LOG_STEP * above)
        return np.where(value < _SLANEY_BREAK_MEL, value * _SLANEY_HZ_PER_MEL, log_part)
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (value / 2595.0) - 1.0))
    return np.asarray(700.0 * np.expm1(value / 1127.0))


def build_mel_filters(
    *, sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float, scale: str, norm: str
) -> F64Array:
    """Build triangular mel filters over power-spectrum bins.

    Args:
        sample_rate: Hz.
        n_fft: FFT length; there are n_fft // 2 + 1 bins, `sample_rate / n_fft` Hz apart.
        n_mels: number of filters.
        f_min, f_max: lower edge of the first and upper edge of the last triangle, Hz.
        scale: "slaney", "htk" or "kaldi" (see the head of this file).
        norm: "slaney" (each triangle has unit area in Hz) or "none" (unit peak).

    Returns:
        [n_mels, n_fft // 2 + 1], float64.
    """
    edges_mel = np.linspace(float(mel_from_hz(f_min, scale)), float(mel_from_hz(f_max, scale)), n_mels + 2)
    bins_hz = np.arange(n_fft // 2 + 1, dtype=np.float64) * sample_rate / n_fft
    if scale == "kaldi":
        axis, edges = mel_from_hz(bins_hz, scale), edges_mel
    else:
        axis, edges = bins_hz, hz_from_mel(edges_mel, scale)
    left, center, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (axis - left) / (center - left)
    falling = (right - axis) / (right - center)
    filters = np.maximum(0.0, np.minimum(rising, falling))  # (M, bins)
    if scale == "kaldi":
        # Kaldi leaves the Nyquist bin out of every filter (mel-computations.cc: num_fft_bins).
        filters[:, -1] = 0.0
    if norm == "slaney":
        edges_hz = hz_from_mel(edges_mel, scale)
        filters *= (2.0 / (edges_hz[2:] - edges_hz[:-2]))[:, None]
    return filters
