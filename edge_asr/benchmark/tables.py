"""Makes the tables of a benchmark and of a comparison, as rows of text, which table.py formats."""

from __future__ import annotations

from collections.abc import Iterator

from edge_asr.benchmark.compare import Comparison
from edge_asr.benchmark.schema import BenchReport, Cell, Configuration, Streams, Times
from edge_asr.benchmark.table import Table

STATISTICS = ("min", "mean", "p50", "p90", "p95", "p99", "max", "jitter")
_STREAM_TIMES = (
    "first_partial",
    "partial_interval",
    "partial_lag",
    "end_to_final",
    "endpoint_wait",
    "final_compute",
    "update_compute",
    "source_late",
)


def bench_tables(report: BenchReport) -> list[Table]:
    """Make all tables of a benchmark, in order."""
    tables = [_overview(report), _stages(report), _cold(report), _memory(report)]
    if any(cell.power for c in report.configurations for cell in c.cells):
        tables.append(_power(report))
    if any(c.streams for c in report.configurations):
        tables += [_streams(report), _stream_times(report)]
    return tables


def _overview(report: BenchReport) -> Table:
    rows = []
    for configuration, cell in _cells(report):
        total = cell.stages["total"].summary
        joules = [r.joules_per_audio_s for r in cell.power if r.joules_per_audio_s is not None]
        rates = configuration.accuracy
        rows.append(
            (
                _name(configuration),
                *_cell_name(cell),
                "-" if total is None else number(total.p50),
                "-" if total is None else number(total.p99),
                number(cell.rtfx),
                number(cell.rtfx_without_features),
                "-" if cell.memory.peak_rss_bytes is None else f"{cell.memory.peak_rss_bytes / 1e6:.0f}",
                " + ".join(number(value) for value in joules) or "-",
                "-" if rates is None else f"{rates.wer:.2%}",
            )
        )
    notes = [
        "RTFx: seconds of audio in a second, of the median; once more without the time of features. "
        "Peak MB: resident set of a process that did only this."
    ]
    if not any(cell.power for _, cell in _cells(report)):
        (_, first), *_rest = _cells(report)
        notes.append(f"No energy: {first.power_reason}.")
    if any(cell.text_is_empty for _, cell in _cells(report)):
        notes.append("Some texts are empty, so that their proof says little.")
    for configuration in report.configurations:
        rates = configuration.accuracy
        if rates is None:
            notes.append(f"No WER ({_name(configuration)}): {configuration.accuracy_reason}.")
        else:
            notes.append(
                f"WER ({_name(configuration)}): {rates.n_utterances} utterances, {rates.n_words} words of "
                f"{rates.manifest}, text normalization {rates.normalization}; CER {rates.cer:.2%}; "
                f"RTFx there {number(rates.rtfx)}."
            )
    columns = (
        "model",
        "audio s",
        "batch",
        "p50 ms",
        "p99 ms",
        "RTFx",
        "without",
        "peak MB",
        "J / audio s",
        "WER",
    )
    return Table(title="Overview", columns=columns, rows=tuple(rows), notes=tuple(notes), n_labels=1)


def _stages(report: BenchReport) -> Table:
    rows: list[tuple[str, ...]] = []
    missing: dict[str, None] = {}
    few = False
    for configuration, cell in _cells(report):
        for stage, times in (*cell.stages.items(), ("processor", cell.processor)):
            label = (_name(configuration), *_cell_name(cell), stage.replace("_", " "))
            if times.summary is None:
                missing[f"No {stage.replace('_', ' ')} ({_name(configuration)}): {times.reason}."] = None
                continue
            few = few or times.summary.n < 100
            rows.append((*label, str(times.summary.n), *_statistics(times)))
    notes = [*missing]
    if few:
        notes.append("p99 of fewer than 100 runs is close to the maximum.")
    notes.append(
        "Jitter: mean difference between one run and the next. Copies, where reported, are inside encode. "
        "processor: processor time of all threads."
    )
    columns = ("model", "audio s", "batch", "stage, ms", "n", *STATISTICS)
    return Table(title="Stages", columns=columns, rows=tuple(rows), notes=tuple(notes), n_labels=4)


def _cold(report: BenchReport) -> Table:
    rows = []
    notes = [
        "Fresh processes, from their start to the first text of one clip; disk caches are warm. "
        "second: the same clip again there."
    ]
    for configuration in report.configurations:
        cold = configuration.cold
        for stage, times in cold.stages.items():
            if times.summary is not None:
                rows.append(
                    (_name(configuration), stage.replace("_", " "), str(times.summary.n), *_statistics(times))
                )
        if cold.warm_ms is not None:
            notes.append(f"Warm ({_name(configuration)}, {cold.seconds:g} s): {number(cold.warm_ms)} ms.")
    columns = ("model", "stage, ms", "n", *STATISTICS)
    seconds = report.configurations[0].cold.seconds
    return Table(
        title=f"Cold start, {seconds:g} s of audio",
        columns=columns,
        rows=tuple(rows),
        notes=tuple(notes),
        n_labels=2,
    )


def _memory(report: BenchReport) -> Table:
    rows = []
    reasons: dict[str, None] = {}
    for configuration, cell in _cells(report):
        memory = cell.memory
        values = (memory.imported_rss_bytes, memory.loaded_rss_bytes, memory.peak_rss_bytes, memory.gpu_bytes)
        megabytes = ("-" if value is None else f"{value / 1e6:.1f}" for value in values)
        rows.append((_name(configuration), *_cell_name(cell), *megabytes))
        for what, reason in (("resident set", memory.rss_reason), ("GPU memory", memory.gpu_reason)):
            if reason is not None:
                reasons[f"No {what} ({_name(configuration)}): {reason}."] = None
    return Table(
        title="Memory, MB",
        columns=("model", "audio s", "batch", "imported", "loaded", "peak", "GPU"),
        rows=tuple(rows),
        notes=tuple(reasons),
    )


def _power(report: BenchReport) -> Table:
    rows = []
    scopes: dict[str, None] = {}
    for configuration, cell in _cells(report):
        for reading in cell.power:
            values = (reading.idle_watts, reading.watts, reading.joules_per_audio_s)
            cells = ("-" if value is None else number(value) for value in values)
            parts = ", ".join(f"{name} {number(watts)} W" for name, watts in reading.parts_watts.items())
            rows.append((_name(configuration), *_cell_name(cell), reading.reader, *cells, parts))
            scopes[f"{reading.reader} measures {reading.scope}."] = None
            if reading.reason is not None:
                scopes[f"{reading.reader} gives no whole: {reading.reason}."] = None
    columns = ("model", "audio s", "batch", "sensor", "idle W", "W", "J / audio s", "parts")
    return Table(title="Power", columns=columns, rows=tuple(rows), notes=tuple(scopes))


def _streams(report: BenchReport) -> Table:
    rows, notes = [], []
    for configuration, streams in _all_streams(report):
        compute = streams.update_compute.summary
        rows.append(
            (
                _name(configuration),
                streams.mode,
                str(streams.n_streams),
                "yes" if streams.sustained else f"NO: {streams.why_not}",
                "-" if compute is None else number(compute.p99),
                number(streams.update_interval_s * 1e3),
                str(streams.n_gaps),
                str(streams.n_overflows),
                number(streams.lost_s),
                str(streams.n_finals),
            )
        )
    for configuration in report.configurations:
        if configuration.most_sustained is not None:
            notes.append(f"Most streams sustained ({_name(configuration)}): {configuration.most_sustained}.")
    notes.append(
        "Sustained: p99 of one call of the recognizer is below the interval of updates, and no audio was "
        "lost. All streams share one loaded model."
    )
    columns = (
        "model",
        "mode",
        "streams",
        "sustained",
        "p99 update ms",
        "interval ms",
        "gaps",
        "overflows",
        "lost s",
        "finals",
    )
    return Table(
        title="Streams at real-time pace", columns=columns, rows=tuple(rows), notes=tuple(notes), n_labels=4
    )


def _stream_times(report: BenchReport) -> Table:
    rows = []
    missing: dict[str, None] = {}
    for configuration, streams in _all_streams(report):
        for name in _STREAM_TIMES:
            times: Times = getattr(streams, name)
            label = (_name(configuration), str(streams.n_streams), name.replace("_", " "))
            if times.summary is None:
                missing[f"No {label[2]} ({label[0]}, {label[1]} streams): {times.reason}."] = None
            else:
                rows.append((*label, str(times.summary.n), *_statistics(times)))
    notes = (
        *missing,
        "first partial: from the true onset of speech. end to final: from the true end of speech to the "
        "final text, the sum of endpoint wait and final compute. partial lag: from the newest sample that a "
        "partial covers to the partial.",
    )
    columns = ("model", "streams", "latency, ms", "n", *STATISTICS)
    return Table(title="Streaming latencies", columns=columns, rows=tuple(rows), notes=notes, n_labels=3)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Make tables of ratios, and of error rates if both have them."""
    rows = tuple(
        (
            ratio.what,
            number(ratio.a_ms),
            number(ratio.b_ms),
            f"{ratio.ratio:.3f}",
            f"{ratio.low:.3f} .. {ratio.high:.3f}",
            ratio.verdict,
        )
        for ratio in comparison.ratios
    )
    columns = ("what", "A p50 ms", "B p50 ms", "B / A", "interval", "verdict")
    notes = tuple(f"Only one has {what}." for what in comparison.only_one)
    tables = [Table(title="Ratios", columns=columns, rows=rows, notes=notes)]
    if comparison.error_rates:
        rates = tuple((what, f"{a:.2%}", f"{b:.2%}") for what, a, b in comparison.error_rates)
        tables.append(Table(title="Error rates", columns=("what", "A", "B"), rows=rates))
    return tables


def number(value: float) -> str:
    """Format four significant digits, or all before the point."""
    if value == 0:
        return "0"
    if abs(value) >= 999.95:
        return f"{value:.0f}"
    return f"{value:#.4g}" if abs(value) >= 1e-4 else f"{value:.2g}"


def _statistics(times: Times) -> Iterator[str]:
    for name in STATISTICS:
        yield number(getattr(times.summary, name))


def _cells(report: BenchReport) -> Iterator[tuple[Configuration, Cell]]:
    for configuration in report.configurations:
        for cell in configuration.cells:
            yield configuration, cell


def _all_streams(report: BenchReport) -> Iterator[tuple[Configuration, Streams]]:
    for configuration in report.configurations:
        for streams in configuration.streams:
            yield configuration, streams


def _cell_name(cell: Cell) -> tuple[str, str]:
    return f"{cell.seconds:g}", str(cell.batch)


def _name(configuration: Configuration) -> str:
    return f"{configuration.precision} {configuration.backend}"
