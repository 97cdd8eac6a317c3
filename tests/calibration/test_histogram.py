"""The magnitude histogram against numpy, scipy and a plain reading of the entropy method."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.calibration.histogram import MIN_AMAX, N_BINS, MagnitudeHistogram, peak_magnitude
from edge_asr.errors import ConfigError

F32Array = npt.NDArray[np.float32]


def histogram_of(*tensors: F32Array) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for tensor in tensors:
        histogram.add(tensor)
    return histogram


def draw(kind: str, n_values: int = 60_000) -> F32Array:
    """Values as activations have them; "outliers" is a normal with five values far out."""
    generator = np.random.default_rng(7)
    values = generator.standard_normal(n_values)
    if kind == "laplace":
        values = generator.laplace(size=n_values)
    elif kind == "relu":
        values = np.maximum(values, 0.0)
    elif kind == "silu":
        values = 3 * values / (1 + np.exp(-3 * values))
    elif kind == "uniform":
        values = generator.uniform(-1, 1, n_values)
    elif kind == "outliers":
        values[:5] = (30, -31, 33, 36, -39)
    return values.astype(np.float32)


@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), max_size=30),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_counts_are_those_of_all_values_at_once_in_any_order(
    clips: list[list[float]], random: object
) -> None:
    tensors = [np.asarray(clip, np.float32) for clip in clips]
    histogram = histogram_of(*tensors)
    shuffled = list(tensors)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = histogram_of(*shuffled)
    everything = np.concatenate(tensors)
    edges = np.arange(N_BINS + 1) * histogram.bin_width
    # float64 has room for every edge and value, so numpy's own bins are exact.
    expected, _ = np.histogram(np.abs(everything.astype(np.float64)), edges)
    np.testing.assert_array_equal(histogram.counts, expected)
    np.testing.assert_array_equal(again.counts, expected)
    assert again.bin_width == histogram.bin_width
    assert histogram.n_values == everything.size
    assert histogram.peak == (np.abs(everything).max() if everything.size else 0.0)


def test_half_of_the_bins_resolve_the_peak_after_a_silent_clip() -> None:
    quiet, loud = np.full(100, 1e-5, np.float32), draw("normal")
    histogram = histogram_of(quiet, loud)
    assert len(histogram.counts) == N_BINS
    assert histogram.peak / histogram.bin_width >= N_BINS / 2
    assert histogram.counts.sum() == histogram.n_values == 60_100


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "outliers"])
def test_percentile_is_numpys_to_one_bin(kind: str, percentile: float) -> None:
    values = draw(kind)
    histogram = histogram_of(values)
    expected = max(float(np.percentile(np.abs(values), percentile, method="inverted_cdf")), MIN_AMAX)
    found = histogram.percentile_amax(percentile)
    assert expected <= found <= expected + histogram.bin_width
    if percentile == 100.0:
        assert found == histogram.peak


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "silu", "uniform", "outliers"])
def test_entropy_is_the_argmin_of_the_method_written_out(kind: str) -> None:
    histogram = histogram_of(draw(kind, 6_000))
    found = histogram.entropy_amax()
    counts = histogram.counts[: int(histogram.peak / histogram.bin_width) + 1].astype(float)
    counts[0] = counts[1]
    ends = np.arange(len(counts), 127, -2)
    divergences = [divergence_written_out(counts, int(end)) for end in ends]
    chosen = divergence_written_out(counts, round(found / histogram.bin_width))
    if found == histogram.peak:
        chosen = divergences[0]
    # Float64 sums in another order: two thresholds whose divergences agree to 1e-9 nats are as good.
    assert chosen == pytest.approx(min(divergences), abs=1e-9)


def divergence_written_out(counts: npt.NDArray[np.float64], end: int) -> float:
    """Migacz's pseudocode (GTC 2017, s7310, "Entropy calibration") for one threshold."""
    reference = counts[:end].copy()
    reference[-1] += counts[end:].sum()
    if counts[end - 1] == 0 and reference[-1] > 0:
        return float("inf")
    starts = end * np.arange(128) // 128
    occupied = counts[:end] > 0
    mass, bins = np.add.reduceat(counts[:end], starts), np.add.reduceat(occupied.astype(float), starts)
    spread = np.repeat(mass / np.maximum(bins, 1), np.diff(starts, append=end))
    candidate = np.where(occupied, spread, 0.0)
    return float(scipy.stats.entropy(reference, candidate))  # normalizes both


@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_entropy_is_near_onnxruntimes(kind: str) -> None:
    """Within 30 per cent: the divergence is flat near its least, and its histogram is two-sided, smoothed,
    with the bins that are left over in the last level. The exact reference is the test above."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = draw(kind)
    collector = HistogramCollector(
        method="entropy", symmetric=True, num_bins=2048, num_quantized_bins=256, percentile=0, scenario="same"
    )
    collector.collect({"x": [values]})
    (low, high, *_) = collector.compute_collection_result()["x"]
    assert histogram_of(values).entropy_amax() == pytest.approx(max(-low, high), rel=0.3)


def test_entropy_keeps_a_uniform_range_and_clips_outliers() -> None:
    uniform, outliers = histogram_of(draw("uniform")), histogram_of(draw("outliers"))
    assert uniform.entropy_amax() > 0.98 * uniform.peak
    assert 2.5 < outliers.entropy_amax() < 6.0  # of 39; the normal part ends near 4.5


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "silu", "uniform", "outliers"])
def test_mse_is_the_least_error_of_the_values_themselves(kind: str) -> None:
    """On the values instead of their bins, at every per cent of the peak: within 2 per cent of the least."""
    values = np.abs(draw(kind).astype(np.float64))

    def error(threshold: float) -> float:
        scale = threshold / 127
        return float(np.mean((values - np.minimum(np.rint(values / scale), 127) * scale) ** 2))

    least = min(error(values.max() * share / 100) for share in range(2, 101))
    assert error(histogram_of(draw(kind)).mse_amax()) <= 1.02 * least


@pytest.mark.parametrize("values", [[], [0.0], [0.0] * 500, [1e-45, -1e-40], [2e-7] * 9])
def test_silence_has_a_small_positive_range(values: list[float]) -> None:
    histogram = histogram_of(np.asarray(values, np.float32))
    assert histogram.entropy_amax() == MIN_AMAX
    assert histogram.mse_amax() == MIN_AMAX
    assert histogram.percentile_amax(99.99) == MIN_AMAX


@pytest.mark.parametrize("constant", [1.0, -1.0, 0.3, 3e38, 1e-6])
def test_constant_keeps_its_value(constant: float) -> None:
    histogram = histogram_of(np.full((3, 5), constant, np.float32))
    expected = abs(float(np.float32(constant)))
    assert histogram.percentile_amax(99.99) == pytest.approx(expected, rel=1e-6)
    assert histogram.entropy_amax() == pytest.approx(expected, rel=1e-6)
    assert histogram.mse_amax() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 17, 99])
def test_not_finite_is_refused_and_changes_nothing(bad: float, position: int) -> None:
    histogram = histogram_of(draw("normal"))
    before = histogram.counts
    values = np.ones((10, 10), np.float32)
    values.reshape(-1)[position] = bad
    with pytest.raises(ValueError, match=r"largest magnitude is (nan|inf)"):
        histogram.add(values)
    np.testing.assert_array_equal(histogram.counts, before)
    assert histogram.n_values == 60_000


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.1, float("nan")])
def test_percentile_out_of_range(percentile: float) -> None:
    with pytest.raises(ConfigError, match="above 0 and at most 100"):
        histogram_of(draw("normal", 100)).percentile_amax(percentile)


def test_peak_magnitude() -> None:
    assert peak_magnitude(np.asarray([1.0, -3.0], np.float32)) == 3.0
    assert peak_magnitude(np.asarray([-1.0, -3.0], np.float32)) == 3.0
    assert peak_magnitude(np.zeros((0, 4), np.float32)) == 0.0
    assert np.isnan(peak_magnitude(np.asarray([5.0, np.nan, -9.0], np.float32)))
