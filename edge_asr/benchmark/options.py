"""The checked options of `edge-asr bench`: what to measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_asr.benchmark.offline import MIN_RUNS
from edge_asr.benchmark.schema import BenchSettings
from edge_asr.errors import ConfigError
from edge_asr.runtime.decoding.choice import DecoderOptions

SESSIONS = 5
"""How many times, apart from each other, everything is measured, with a cold start in each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What a benchmark measures.

    Attributes:
        model: folder of a bundle or name of an embedded model.
        random: shape of a model of random weights, which then is measured instead.
        precisions: "auto", "fp32", "fp16", "int8".
        backend, threads, allow_unverified: as `Recognizer.load` takes them.
        decoding: the decoder of everything that is measured.
        seconds, batches: lengths of clips, and how many at once; every pair is measured.
        streams: so many at real-time pace; "max" looks for the most; None leaves them out.
        utterances: that each stream hears.
        warmup: unmeasured runs of each pair before each session.
        min_duration_s: least time of measured runs of each pair, all sessions together.
        audio: recording; None for the embedded sample.
        manifest: for error rates; normalization of both texts.

    Raises:
        ConfigError: a value out of range.
    """

    model: str = "tiny-en"
    random: str | None = None
    precisions: tuple[str, ...] = ("auto",)
    backend: str = "auto"
    threads: int | None = None
    allow_unverified: bool = False
    decoding: DecoderOptions = field(default_factory=DecoderOptions)
    seconds: tuple[float, ...] = (1.0, 5.0, 10.0, 30.0)
    batches: tuple[int, ...] = (1, 8)
    streams: int | str | None = None
    utterances: int = 6
    warmup: int = 2
    min_duration_s: float = 2.0
    audio: Path | None = None
    manifest: Path | None = None
    normalization: str = "none"

    def __post_init__(self) -> None:
        if not self.precisions or not self.seconds or not self.batches:
            raise ConfigError("precisions, seconds and batches must each name at least one")
        if not all(0.1 <= value <= 3600 for value in self.seconds):
            raise ConfigError(f"seconds are {list(self.seconds)}; each must be from 0.1 to 3600")
        if not all(value >= 1 for value in (*self.batches, self.utterances)):
            raise ConfigError(
                f"batches are {list(self.batches)}, utterances {self.utterances}; 1 is the least"
            )
        if not (self.streams in (None, "max") or (isinstance(self.streams, int) and self.streams >= 1)):
            raise ConfigError(f"streams is {self.streams!r}; give a number of at least 1, or max")
        if self.warmup < 0 or not 0 <= self.min_duration_s <= 3600:
            raise ConfigError(
                f"warmup is {self.warmup}, min_duration_s {self.min_duration_s}; neither may be "
                "negative, and 3600 s is the most"
            )

    def describe(self) -> BenchSettings:
        """Return the options for the report."""
        return BenchSettings(
            precisions=self.precisions,
            backend=self.backend,
            decoder=self.decoding.describe(),
            seconds=self.seconds,
            batches=self.batches,
            streams=None if self.streams is None else str(self.streams),
            utterances=self.utterances,
            threads=self.threads,
            warmup=self.warmup,
            min_duration_s=self.min_duration_s,
            min_runs=MIN_RUNS,
            sessions=SESSIONS,
        )
