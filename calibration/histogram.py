"""A histogram of magnitudes that merges exactly, and the thresholds derived from it.

One histogram gathers the |x| of one tensor over a whole calibration set in a fixed 32 KiB. Its bin
width is always a power of two and doubles by merging neighbors when a larger value comes, so the counts
depend neither on the order of the clips nor on how they are cut, and a silent first clip costs nothing
(onnxruntime 1.32's HistogramCollector keeps the first width and grows in length instead).
What this file does not do: run the model (ranges.py). It knows nothing of ONNX.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError

#: At least half of the bins lie below the largest value seen, so 2048 to 4096 bins resolve it.
N_BINS = 4096
#: Positive int8 levels; the symmetric scale is amax / 127.
N_LEVELS = 128
#: Never zero, because a scale divides. A tensor that stays below this in all of calibration is silent.
MIN_AMAX = 1e-6

_MIN_EXPONENT = math.frexp(MIN_AMAX)[1]
_ENTROPY_STEP = 2  # bins between candidates, as fine as every step of TensorRT's 2048 bins
_MSE_FRACTIONS = 0.98 ** np.arange(195)
_BLOCK = 1 << 16  # values at a time, so that temporaries stay in the cache


class MagnitudeHistogram:
    """Counts of |x| over [0, 2^k), 2^k being the first power of two above the largest seen."""

    __slots__ = ("_counts", "_exponent", "n_values", "peak")

    def __init__(self) -> None:
        self._counts = np.zeros(N_BINS, np.int64)
        self._exponent = _MIN_EXPONENT
        self.n_values = 0
        self.peak = 0.0
        """Largest |x| seen, exact."""

    @property
    def bin_width(self) -> float:
        """Return the width of a bin: 2^k / 4096."""
        return math.ldexp(1.0, self._exponent) / N_BINS

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """[4096] int64: values with i * bin_width <= |x| < (i + 1) * bin_width."""
        counts: npt.NDArray[np.int64] = self._counts.copy()
        return counts

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count every element of a tensor.

        Args:
            values: any shape, float32.

        Raises:
            ValueError: an element is NaN or infinite; the histogram does not change.
        """
        peak = peak_magnitude(values)
        if not math.isfinite(peak):
            raise ValueError(f"its largest magnitude is {peak}")
        self._widen(math.frexp(peak)[1])
        self.peak = max(self.peak, peak)
        self.n_values += values.size
        flat = values.reshape(-1)
        scale = np.float32(1.0 / self.bin_width)  # a power of two: exact, so no value changes its bin
        for start in range(0, flat.size, _BLOCK):
            magnitude = np.abs(flat[start : start + _BLOCK])
            magnitude *= scale
            self._counts += np.bincount(magnitude.astype(np.int64), minlength=N_BINS)

    def entropy_amax(self) -> float:
        """Find the threshold whose 128 levels lose the least information (Kullback-Leibler).

        This is the method of TensorRT's entropy calibrator (Migacz, "8-bit inference with TensorRT", GTC
        2017, s7310): for each threshold, the reference is the histogram below it with all that lies above
        added to its last bin; the candidate is the histogram below it spread evenly over the occupied bins of
        each of 128 levels. As in NVIDIA's pytorch-quantization (calib/histogram.py), the first bin is
        replaced by the second, because the zeros of a ReLU are exact under any scale, and thresholds whose
        last bin is empty are not considered, except the peak itself.
        """
        n_used = min(int(self.peak / self.bin_width) + 1, N_BINS)
        if n_used <= N_LEVELS:
            return max(self.peak, MIN_AMAX)
        counts = self._counts[:n_used].astype(np.float64)
        counts[0] = counts[1]
        ends = np.arange(n_used, N_LEVELS - 1, -_ENTROPY_STEP)  # (C,), the peak first
        divergence = _divergences(counts, ends)
        best = ends[int(np.argmin(divergence))]
        return max(min(float(best) * self.bin_width, self.peak), MIN_AMAX)

    def percentile_amax(self, percentile: float) -> float:
        """Find the magnitude that `percentile` percent of the values do not exceed, as the edge of a bin.

        Raises:
            ConfigError: the percentile is not above 0 and at most 100.
        """
        if not 0.0 < percentile <= 100.0:
            raise ConfigError(f"percentile is {percentile}; give one above 0 and at most 100, such as 99.99")
        wanted = math.ceil(self.n_values * (percentile / 100.0))
        index = int(np.searchsorted(np.cumsum(self._counts), wanted))
        return max(min((index + 1) * self.bin_width, self.peak), MIN_AMAX)

    def mse_amax(self) -> float:
        """Find the threshold whose int8 rounding and clipping together make the least squared error.

        It works like `_compute_amax_mse` of NVIDIA's pytorch-quantization (calib/histogram.py): every bin
        counts with its center. Thresholds go down from the peak in steps of 2 percent, to a fiftieth of it.
        """
        n_used = min(int(self.peak / self.bin_width) + 1, N_BINS)
        counts = self._counts[:n_used].astype(np.float64)
        magnitudes = (np.arange(n_used) + 0.5) * self.bin_width
        best, least = self.peak, math.inf
        for threshold in self.peak * _MSE_FRACTIONS:
            scale = max(threshold, MIN_AMAX) / (N_LEVELS - 1)
            rounded = np.minimum(np.rint(magnitudes / scale), N_LEVELS - 1) * scale
            error = float(counts @ (magnitudes - rounded) ** 2)
            if error < least:
                best, least = float(threshold), error
        return max(best, MIN_AMAX)

    def _widen(self, exponent: int) -> None:
        """Merge bins until the range is at least 2^exponent."""
        for _ in range(self._exponent, exponent):
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[: N_BINS // 2] = merged
            self._counts[N_BINS // 2 :] = 0
            if not merged.any():
                break
        self._exponent = max(self._exponent, exponent)


def peak_magnitude(values: npt.NDArray[np.float32]) -> float:
    """Return the largest |x|; NaN if any element is NaN, 0 without elements."""
    if values.size == 0:
        return 0.0
    # If an element is NaN both are: numpy's extremes propagate it (onnxruntime's reductions need not).
    return max(float(values.max()), -float(values.min()))


def _divergences(counts: npt.NDArray[np.float64], ends: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the KL divergence of 128 levels from the histogram, clipped at each of `ends` bins.

    Every term is a sum over a run of bins, so cumulative sums give all thresholds at once.

    Args:
        counts: [n] occurrences per bin.
        ends: [C] thresholds in bins, 128 to n.

    Returns:
        [C] in nats; inf where the candidate has no mass in the bin that takes the outliers.
    """
    total = counts.sum()
    below = _cumulative(counts)
    occupied = _cumulative(counts > 0)
    self_information = _cumulative(_xlogx(counts))

    edges = ends[:, None] * np.arange(N_LEVELS + 1) // N_LEVELS  # (C, 129)
    level_mass = np.diff(below[edges])  # (C, 128)
    level_bins = np.diff(occupied[edges])
    # Log of what one occupied bin of a level gets; the mass of an empty level is never used.
    level_log = np.log(np.where(level_mass > 0, level_mass / np.maximum(level_bins, 1), 1.0))

    last = counts[ends - 1]
    kept = below[ends]
    outliers = total - kept
    reference = self_information[ends] - _xlogx(last) + _xlogx(last + outliers)
    cross = (level_mass * level_log).sum(axis=1) + outliers * level_log[:, -1]
    divergence = (reference - cross) / total - np.log(total) + np.log(np.where(kept > 0, kept, total))
    return np.where((last > 0) | (outliers == 0), divergence, np.inf)


def _cumulative(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return [n + 1]: sums of the first i values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values * np.log(np.where(values > 0, values, 1.0))
