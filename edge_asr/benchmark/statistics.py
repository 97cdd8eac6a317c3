"""Summarizes a list of measured times: extremes, mean, percentiles, jitter. It measures nothing.

Percentiles interpolate linearly between the two nearest samples, as numpy does by default. A percentile
beyond all but the last sample (p99 of 20 runs) is close to the maximum; `n` is reported too, so that readers
can see this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from edge_asr.errors import ConfigError

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The summary of a list of samples, in the samples' unit.

    Attributes:
        n: samples.
        min, mean, max: those of the samples.
        p50, p90, p95, p99: percentiles.
        jitter: mean of |x[i] - x[i-1]| over neighbors in time: what changes from one run to the next, and
            so not a slow drift, which the percentiles show. The differences are those of RFC 3550, section
            6.4.1, without its smoothing. 0 for a single sample.
    """

    n: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    jitter: float

    def to_dict(self) -> dict[str, float]:
        """Return the numbers by name, with four significant digits."""
        return {field.name: four_digits(getattr(self, field.name)) for field in fields(self)}


def summarize(samples: Sequence[float]) -> Summary:
    """Summarize samples in the order in which they were taken.

    Raises:
        ConfigError: no samples, or one that is not finite.
    """
    values = np.asarray(samples, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ConfigError(f"{values.size} samples cannot be summarized; it takes finite ones, at least one")
    p50, p90, p95, p99 = (float(point) for point in np.percentile(values, PERCENTILES))
    return Summary(
        n=len(values),
        min=float(values.min()),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(values.max()),
        jitter=float(np.abs(np.diff(values)).mean()) if len(values) > 1 else 0.0,
    )


def ratio_by_round(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Compute the quartiles and the median of a / b, round by round, of runs that took turns."""
    low, median, high = np.percentile(np.array(a) / np.array(b), [25, 50, 75])
    return float(low), float(median), float(high)


def four_digits(value: float) -> float:
    """Round to four significant digits, which is more than any timing deserves."""
    return float(f"{value:.4g}")
