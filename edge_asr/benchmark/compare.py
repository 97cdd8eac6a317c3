"""Compares two benchmarks: ratios of medians with their spread, and which of them are more than noise.

A ratio is B over A. Its interval comes from resampling blocks of neighboring runs (moving-block bootstrap,
Künsch 1989, blocks of about sqrt(n) runs): neighbors in time are alike on a busy machine, and resampling
single runs would make the interval too narrow. It is then widened to reach from the fastest session of B over
the slowest of A to the reverse, because a machine drifts from one minute to the next by more than its runs
differ. A ratio whose interval holds 1 is "within noise". With five sessions each, equal benchmarks are called
different by chance in less than one of a hundred cases: in only 2 of the 252 orders of ten sessions do all of
one lie before all of the other. The interval does not cover what differs between two occasions as a whole
(another job on the machine, another temperature); known differences are listed. Benchmarks on different audio
are not compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_asr.benchmark.schema import BenchReport, Cell, Configuration, Times
from edge_asr.errors import ConfigError

N_RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_SESSIONS = 3
"""Least number of sessions that shows how a machine drifts; with fewer, runs alone must suffice."""
_MACHINE_FIELDS = (
    "cpu",
    "n_cpus",
    "affinity",
    "memory_bytes",
    "gpu",
    "jetson",
    "system",
    "kernel",
    "container",
    "python",
    "packages",
    "environment",
    "edge_asr",
    "git_commit",
)
_CLOCK_FIELDS = ("cpu_governor", "power_mode")
_STREAM_TIMES = ("update_compute", "first_partial", "partial_lag", "end_to_final", "final_compute")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """B over A for one quantity.

    Attributes:
        what: which.
        a_ms, b_ms: medians.
        ratio: b_ms / a_ms.
        low, high: interval of the ratio, see the top of this file.
        verdict: "within noise", "slower" or "faster"; "too few runs" below five on either side.
    """

    what: str
    a_ms: float
    b_ms: float
    ratio: float
    low: float
    high: float
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two benchmarks compared.

    Attributes:
        a, b: names of the models.
        differences: what else is not the same, each in words.
        ratios: the ratios of what both measured.
        only_one: what only one of them measured.
        error_rates: WER of both where both have it on the same manifest: (what, A, B).
    """

    a: str
    b: str
    differences: tuple[str, ...]
    ratios: tuple[Ratio, ...]
    only_one: tuple[str, ...]
    error_rates: tuple[tuple[str, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return dataclasses.asdict(self)


def compare(a: BenchReport, b: BenchReport) -> Comparison:
    """Compare two benchmarks.

    Raises:
        ConfigError: other audio, or nothing in common.
    """
    if a.audio.sha256 != b.audio.sha256:
        raise ConfigError(
            f"A was measured on {a.audio.source} ({a.audio.sha256[:12]}), B on {b.audio.source} "
            f"({b.audio.sha256[:12]}); measure both on the same --audio"
        )
    times_a, times_b = dict(_all_times(a)), dict(_all_times(b))
    common = [what for what in times_a if what in times_b]
    if not common:
        raise ConfigError(
            "the two have nothing in common: no precision, length and batch size that both measured"
        )
    rates_a, rates_b = dict(_error_rates(a)), dict(_error_rates(b))
    return Comparison(
        a=a.model.name,
        b=b.model.name,
        differences=tuple(find_differences(a, b)),
        ratios=tuple(ratio_of_medians(what, times_a[what], times_b[what]) for what in common),
        only_one=tuple(what for what in (*times_a, *times_b) if (what in times_a) != (what in times_b)),
        error_rates=tuple((what, rates_a[what], rates_b[what]) for what in rates_a if what in rates_b),
    )


def ratio_of_medians(what: str, a: Times, b: Times) -> Ratio:
    """Compute B over A with its interval.

    Args:
        what: name of the quantity.
        a, b: measured times.
    """
    median_a, median_b = float(np.median(a.samples_ms)), float(np.median(b.samples_ms))
    resampled = _resample_medians(b.samples_ms, seed=1) / _resample_medians(a.samples_ms, seed=0)
    low, high = (float(v) for v in np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    if min(len(a.sessions), len(b.sessions)) >= MIN_SESSIONS:
        sessions_a, sessions_b = _session_medians(a), _session_medians(b)
        low = min(low, min(sessions_b) / max(sessions_a))
        high = max(high, max(sessions_b) / min(sessions_a))
    if min(len(a.samples_ms), len(b.samples_ms)) < 5:
        verdict = "too few runs"
    elif low <= 1.0 <= high:
        verdict = "within noise"
    else:
        verdict = "slower" if low > 1.0 else "faster"
    return Ratio(
        what=what,
        a_ms=median_a,
        b_ms=median_b,
        ratio=median_b / median_a,
        low=low,
        high=high,
        verdict=verdict,
    )


def find_differences(a: BenchReport, b: BenchReport) -> Iterator[str]:
    """List what differs between two benchmarks, apart from the results."""
    for name in ("bundle_sha256", "source", "is_random"):
        yield from _differ(f"model.{name}", getattr(a.model, name), getattr(b.model, name))
    for name in _MACHINE_FIELDS:
        yield from _differ(f"machine.{name}", getattr(a.machine, name), getattr(b.machine, name))
    for name in _CLOCK_FIELDS:
        before = (getattr(report.machine.clocks_before, name) for report in (a, b))
        yield from _differ(f"clocks.{name}", *before)
    for which, report in (("A", a), ("B", b)):
        if report.machine.is_busy:
            load, n_cpus = report.machine.load_before, report.machine.n_cpus
            yield f"{which} was measured beside other work: load average {load} on {n_cpus} processors"
    for name in ("decoder", "threads", "warmup", "min_duration_s", "utterances"):
        yield from _differ(f"settings.{name}", getattr(a.settings, name), getattr(b.settings, name))
    files_a, files_b = ({_name(c): c for c in r.configurations} for r in (a, b))
    for key in files_a:
        if key in files_b:
            yield from _differ(f"{key}: sha256", files_a[key].sha256[:12], files_b[key].sha256[:12])
            yield from _differ(f"{key}: threads", files_a[key].threads, files_b[key].threads)
            yield from _text_differences(key, files_a[key], files_b[key])


def _text_differences(key: str, a: Configuration, b: Configuration) -> Iterator[str]:
    texts = {(c.seconds, c.batch): c.text_sha256 for c in a.cells}
    changed = [c for c in b.cells if texts.get((c.seconds, c.batch), c.text_sha256) != c.text_sha256]
    if changed:
        cells = ", ".join(f"{c.seconds:g} s x {c.batch}" for c in changed)
        yield f"{key}: the recognized text differs at {cells}"


def _differ(what: str, a: Any, b: Any) -> Iterator[str]:
    if a != b:
        yield f"{what}: {a!r} in A, {b!r} in B"


def _name(configuration: Configuration) -> str:
    return f"{configuration.precision} on {configuration.backend}"


def _all_times(report: BenchReport) -> Iterator[tuple[str, Times]]:
    """Yield (name, times) of everything that was timed."""
    for configuration in report.configurations:
        name = _name(configuration)
        for cell in configuration.cells:
            stages = {**cell.stages, "processor": cell.processor}
            yield from _present(f"{name}, {_cell_name(cell)}", stages)
        yield from _present(
            f"{name}, cold start, {configuration.cold.seconds:g} s", configuration.cold.stages
        )
        for streams in configuration.streams:
            times = {stage: getattr(streams, stage) for stage in _STREAM_TIMES}
            yield from _present(f"{name}, {streams.n_streams} streams {streams.mode}", times)


def _cell_name(cell: Cell) -> str:
    return f"{cell.seconds:g} s, batch {cell.batch}"


def _present(prefix: str, stages: dict[str, Times]) -> Iterator[tuple[str, Times]]:
    for stage, times in stages.items():
        if times.summary is not None:
            yield f"{prefix}: {stage}", times


def _error_rates(report: BenchReport) -> Iterator[tuple[str, float]]:
    for configuration in report.configurations:
        rates = configuration.accuracy
        if rates is not None:
            key = f"{_name(configuration)}, {rates.manifest} ({rates.manifest_sha256[:12]})"
            yield f"{key}: WER, normalization {rates.normalization}", rates.wer


def _session_medians(times: Times) -> list[float]:
    edges = np.cumsum(times.sessions)[:-1]
    return [
        float(np.median(session)) for session in np.split(np.array(times.samples_ms), edges) if len(session)
    ]


def _resample_medians(samples: Sequence[float], *, seed: int) -> Any:
    """Compute medians of block-resampled samples, [N_RESAMPLES]."""
    values = np.asarray(samples, np.float64)
    n = len(values)
    block = max(1, round(n**0.5))
    n_blocks = -(-n // block)
    rng = np.random.default_rng(seed)
    begins = rng.integers(0, n - block + 1, (N_RESAMPLES, n_blocks))
    indexes = (begins[:, :, None] + np.arange(block)).reshape(N_RESAMPLES, -1)[:, :n]
    return np.median(values[indexes], axis=1)
