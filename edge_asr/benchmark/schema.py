"""The records of bench.json, version `SCHEMA_VERSION`.

docs/bench.md explains every field. Wherever a number can be missing a `reason` or `*_reason` stands beside
it: one of the two is null. Times are in the unit of their name. Adding, removing or redefining a field raises
the version. What this file does not do: measure, print.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.benchmark.provenance import MachineRecord
from edge_asr.benchmark.statistics import Summary, summarize
from edge_asr.errors import ConfigError
from edge_asr.records import json_from_record, read_json, record_from_json

SCHEMA_VERSION = 2
STAGES = ("features", "copy_to_device", "encode", "copy_to_host", "decode", "total")
COLD_STAGES = ("python", "import", "load", "audio", "first", "to_first_text", "second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times of one thing in milliseconds, or why there are none.

    Attributes:
        summary: summary of the samples; null if there are none.
        reason: why not; null when there are some.
        samples_ms: every measured time, in order.
        sessions: how many of them were taken in each session; sessions lie apart in time.
    """

    summary: Summary | None
    reason: str | None
    samples_ms: tuple[float, ...] = ()
    sessions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.summary is None) == (self.reason is None):
            raise ConfigError(f"times have a summary or a reason for having none; reason is {self.reason!r}")
        if sum(self.sessions) != len(self.samples_ms):
            raise ConfigError(f"sessions of {self.sessions} runs do not make {len(self.samples_ms)} samples")

    @classmethod
    def of(
        cls,
        seconds: Sequence[float],
        reason_if_none: str = "nothing was measured",
        *,
        sessions: Sequence[int] = (),
    ) -> Times:
        """Make times from measured seconds, of one session unless given; without any, from the reason."""
        if not seconds:
            return cls(summary=None, reason=reason_if_none)
        samples = tuple(float(f"{value * 1e3:.6g}") for value in seconds)
        sizes = tuple(sessions) or (len(samples),)
        return cls(summary=summarize(samples), reason=None, samples_ms=samples, sessions=sizes)

    @classmethod
    def missing(cls, reason: str) -> Times:
        """Make times without samples, with the reason."""
        return cls(summary=None, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory of a fresh process that did only this.

    Attributes:
        imported_rss_bytes: peak resident set after the imports, before the model was loaded.
        loaded_rss_bytes: peak after loading.
        peak_rss_bytes: peak after the runs.
        rss_reason: why these are null.
        gpu_bytes: GPU memory of the process after the runs.
        gpu_reason: why that is null.
    """

    imported_rss_bytes: int | None
    loaded_rss_bytes: int | None
    peak_rss_bytes: int | None
    rss_reason: str | None
    gpu_bytes: int | None
    gpu_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerReading:
    """What one sensor reported while the same run was repeated.

    Attributes:
        reader: "tegrastats", "jtop", "nvml" or "rapl".
        scope: what the sensor covers, in words.
        seconds: how long it was read.
        watts: mean over that time; null when the sensor has parts only.
        reason: why null.
        idle_watts: mean of two seconds in which nothing ran; the model was loaded.
        joules_per_audio_s: energy in that time over seconds of audio recognized in it.
        parts_watts: mean of each rail or zone.
    """

    reader: str
    scope: str
    seconds: float
    watts: float | None
    reason: str | None
    idle_watts: float | None
    joules_per_audio_s: float | None
    parts_watts: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One length and batch size.

    Attributes:
        seconds: length of a clip. batch: clips at once. audio_s: their product.
        mode: "transcribe" or "transcribe_batch".
        n_warmup, n_runs: runs before each session, and measured in all.
        passes: [rows, feature frames] of each pass of the model in one run.
        text_sha256: hash of the text of every run, and of a plain recognizer in a process of its own.
        text_is_empty: then the proof says little.
        stages: times by stage, `STAGES`; copies are also inside "encode".
        processor: processor time of all threads in a run; it leaves out the turns of other programs.
        rtfx, rtfx_without_features: audio_s over the median time.
        memory, power: see there; power_reason says why there is none.
    """

    seconds: float
    batch: int
    audio_s: float
    mode: str
    n_warmup: int
    n_runs: int
    passes: tuple[tuple[int, ...], ...]
    text_sha256: str
    text_is_empty: bool
    stages: dict[str, Times]
    processor: Times
    rtfx: float
    rtfx_without_features: float
    memory: Memory
    power: tuple[PowerReading, ...]
    power_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """Fresh processes from their start to the first text.

    Attributes:
        seconds: length of the clip.
        n_runs: processes.
        stages: times by stage, `COLD_STAGES`; "to_first_text" is the sum of those before it, "second" the
            same clip again in the same process.
        warm_ms: median of the same clip in a process that has warmed up; null when it was not measured.
    """

    seconds: float
    n_runs: int
    stages: dict[str, Times]
    warm_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """N recognizers that hear speech at real-time pace.

    Attributes:
        mode: "streaming": every update is a step or more of the streaming graph; "windowed": it encodes the
            last seconds of the utterance again.
        n_streams, n_utterances: at once; in each.
        audio_s: length of what each stream hears.
        update_interval_s: audio between two updates.
        sustained: p99 of `update_compute` is below the update interval, and nothing was lost.
        why_not: when it is not.
        update_compute: one call of the recognizer, partials and finals alike.
        first_partial: from the true onset of speech to the first partial text.
        partial_interval: between two partials of an utterance.
        partial_lag: from the newest audio that a partial covers to the partial.
        end_to_final: from the true end of speech to the final text; the sum of the next two.
        endpoint_wait: from the true end of speech to the decision that it has ended.
        final_compute: from that decision to the final text.
        source_late: how late the source itself delivered audio, which is inside all latencies.
        n_gaps, n_overflows, lost_s: losses of audio over all streams.
        n_finals: over all streams.
        text_sha256: hash of all finals; each equals `transcribe` of the samples that it names.
    """

    mode: str
    n_streams: int
    n_utterances: int
    audio_s: float
    update_interval_s: float
    sustained: bool
    why_not: str | None
    update_compute: Times
    first_partial: Times
    partial_interval: Times
    partial_lag: Times
    end_to_final: Times
    endpoint_wait: Times
    final_compute: Times
    source_late: Times
    n_gaps: int
    n_overflows: int
    lost_s: float
    n_finals: int
    text_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Error rates on a manifest, as fractions, and how fast that went."""

    manifest: str
    manifest_sha256: str
    normalization: str
    n_utterances: int
    n_words: int
    audio_s: float
    wer: float
    cer: float
    rtfx: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One artifact on one backend.

    Attributes:
        precision, backend: as chosen; backend_reason: how.
        threads: threads of the model; null if the backend has none of its own.
        file, sha256, size_bytes: the artifact, or the plan of the engine.
        cold: fresh processes.
        cells: one for each length and batch size.
        streams: one for each number of streams that was tried; streams_reason says why none.
        most_sustained: with `--streams max`, the most streams found to be sustained; else null.
        accuracy: on the manifest; accuracy_reason says why null.
    """

    precision: str
    backend: str
    backend_reason: str
    threads: int | None
    file: str
    sha256: str
    size_bytes: int
    cold: ColdStart
    cells: tuple[Cell, ...]
    streams: tuple[Streams, ...]
    streams_reason: str | None
    most_sustained: int | None
    accuracy: Accuracy | None
    accuracy_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What was measured.

    Attributes:
        name, family, preset, n_parameters, subsampling_factor: those of the bundle.
        source: as named on the command line.
        is_random: weights are random; text and error rates mean nothing.
        streams: the bundle has a streaming graph.
        bundle_sha256: hash of bundle.json.
    """

    name: str
    family: str
    preset: str | None
    n_parameters: int
    subsampling_factor: int
    source: str
    is_random: bool
    streams: bool
    bundle_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Audio:
    """What was heard: its name, the hash of its samples (float32, at `sample_rate`) and its length."""

    source: str
    sha256: str
    sample_rate: int
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """The requested measurement, as in the options of the command; `min_runs` and `sessions` are fixed."""

    precisions: tuple[str, ...]
    backend: str
    decoder: str
    seconds: tuple[float, ...]
    batches: tuple[int, ...]
    streams: str | None
    utterances: int
    threads: int | None
    warmup: int
    min_duration_s: float
    min_runs: int
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """A whole benchmark: the content of bench.json."""

    schema_version: int
    created: str
    seconds_taken: float
    model: Model
    settings: BenchSettings
    audio: Audio
    machine: MachineRecord
    configurations: tuple[Configuration, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        data: dict[str, Any] = json_from_record(self)
        return data

    @classmethod
    def from_dict(cls, data: Any) -> BenchReport:
        """Read the JSON form.

        Raises:
            ConfigError: another schema version, an unknown or missing key, a wrong type.
        """
        return cls._from_json(data, cls.__name__)

    @classmethod
    def read(cls, path: Path) -> BenchReport:
        """Read bench.json.

        Raises:
            ConfigError: not such a file, or see `from_dict`; the message names it.
        """
        path = path / "bench.json" if path.is_dir() else path
        try:
            return cls._from_json(read_json(path), str(path))
        except FileNotFoundError as error:
            raise ConfigError(f"no benchmark at {path}; give a bench.json, or the folder of one") from error

    @classmethod
    def _from_json(cls, data: Any, where: str) -> BenchReport:
        version = data.get("schema_version") if isinstance(data, dict) else SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"{where} has schema_version {version!r}, this edge-asr reads {SCHEMA_VERSION}; "
                "measure again, or use the edge-asr that wrote it"
            )
        remedy = "read it with the edge-asr that wrote it, or measure again"
        return record_from_json(cls, data, where, remedy=remedy)
