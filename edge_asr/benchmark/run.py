"""Runs a whole benchmark in order. `run_benchmark` is `edge-asr bench` as a function.

For each precision: fresh processes (peak memory, the texts that all runs are proven against); then sessions,
in each of which there is a cold start and every clip is run for a while; then power, streams, error rates.
Precisions and batch sizes of one length take turns. What this file does not do: measure anything itself,
print.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, cast

from edge_asr.audio import STREAM_SAMPLE_RATE
from edge_asr.benchmark import schema
from edge_asr.benchmark.audio_clips import Recording, spoken_signal
from edge_asr.benchmark.fresh_process import FreshRun, cold_start, run_fresh
from edge_asr.benchmark.offline import MIN_RUNS, Task, measure, time_copies
from edge_asr.benchmark.options import SESSIONS, BenchOptions
from edge_asr.benchmark.power import PowerMeter, Progress
from edge_asr.benchmark.provenance import Surroundings
from edge_asr.benchmark.schema import BenchReport, Cell, Configuration, PowerReading, Times
from edge_asr.benchmark.stages import StagedRecognizer
from edge_asr.benchmark.statistics import four_digits
from edge_asr.benchmark.streams import find_most_sustained, run_streams, warm_decoder
from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import PRECISIONS, Artifact, CpuGraph, Precision
from edge_asr.bundle.names import MANIFEST_NAME
from edge_asr.diagnostics.machine import Machine
from edge_asr.manifest import Manifest
from edge_asr.runtime.decoding.choice import DecoderOptions
from edge_asr.runtime.engine.backend import TensorRTBackend
from edge_asr.runtime.live.streaming_decoder import streaming_decoders
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer

MIN_POWER_S = 2.0
NO_STREAMS = "not asked for: --streams N"
NO_MANIFEST = "not asked for: --manifest FILE"
RANDOM_TEXT = "the weights are random: error rates mean nothing"


@dataclass(slots=True, kw_only=True)
class _Subject:
    """One precision on one backend, loaded, and what is known of it so far."""

    recognizer: StagedRecognizer
    load: dict[str, Any]
    decoding: DecoderOptions
    fresh: dict[tuple[float, int], FreshRun] = field(default_factory=dict)
    tasks: dict[tuple[float, int], Task] = field(default_factory=dict)
    cold: list[FreshRun] = field(default_factory=list)
    cells: dict[tuple[float, int], Cell] = field(default_factory=dict)

    @property
    def name(self) -> str:
        backend = self.recognizer.backend
        return f"{backend.precision} on {backend.name}"


def run_benchmark(
    options: BenchOptions, *, progress: Progress | None = None, machine: Machine | None = None
) -> BenchReport:
    """Run a benchmark.

    Args:
        options: what.
        progress: called as it goes on.
        machine: where system files and programs are; None for this machine.

    Raises:
        GateError: a run whose text is not that of `transcribe`; nothing is reported.
        BundleError, BackendError, AudioError, ManifestError, MissingDependencyError: what is asked for
            cannot be had.
    """
    began, created = time.monotonic(), datetime.now(timezone.utc)
    machine = machine or Machine()
    show = progress or (lambda stage, share: None)
    manifest = _read_manifest(options)
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="edge-asr-bench-")))
        bundle = _find_bundle(options, folder, show)
        recording = Recording.load(options.audio, bundle.info.features.sample_rate)
        subjects = _load(options, bundle, resources)
        uses_gpu = any(subject.recognizer.backend.name != "cpu" for subject in subjects)
        surroundings = Surroundings(machine, uses_gpu=uses_gpu)
        pairs = [(s, b) for s in dict.fromkeys(options.seconds) for b in dict.fromkeys(options.batches)]
        for subject in subjects:
            _make_tasks(subject, pairs, recording, folder, show)
        for session in range(SESSIONS):
            _measure_session(options, subjects, recording, folder, session, show)
        meter = PowerMeter(machine, uses_gpu, show)
        for subject in subjects:
            for pair, task in subject.tasks.items():
                power = meter.read(task, max(options.min_duration_s, MIN_POWER_S), show)
                subject.cells[pair] = _cell(task, pair[0], subject.fresh[pair], options.warmup, power)
        configurations = []
        for subject in subjects:
            streams, most, streams_reason = _run_streams(options, subject, show)
            accuracy, accuracy_reason = _accuracy(options, subject, manifest, show)
            warm = subject.cells.get((options.seconds[0], 1))
            total = None if warm is None else warm.stages["total"].summary
            configurations.append(
                Configuration(
                    precision=subject.recognizer.backend.precision,
                    backend=subject.recognizer.backend.name,
                    backend_reason=subject.recognizer.backend_reason,
                    threads=subject.recognizer.backend.num_threads,
                    **_describe_file(bundle, subject.recognizer),
                    cold=cold_start(subject.cold, options.seconds[0], None if total is None else total.p50),
                    cells=tuple(subject.cells.values()),
                    streams=tuple(streams),
                    streams_reason=streams_reason,
                    most_sustained=most,
                    accuracy=accuracy,
                    accuracy_reason=accuracy_reason,
                )
            )
        return BenchReport(
            schema_version=schema.SCHEMA_VERSION,
            created=created.isoformat(timespec="seconds"),
            seconds_taken=round(time.monotonic() - began, 1),
            model=_describe_model(options, bundle),
            settings=options.describe(),
            audio=recording.describe(),
            machine=surroundings.describe(),
            configurations=tuple(configurations),
        )


def _read_manifest(options: BenchOptions) -> Manifest | None:
    """Check the options before anything that takes time."""
    if options.manifest is None or options.random is not None:
        return None
    from edge_asr.benchmark.accuracy import read_whole_manifest
    from edge_asr.errors import require

    require("jiwer", extra="eval")
    return read_whole_manifest(options.manifest)


def _find_bundle(options: BenchOptions, folder: Path, show: Progress) -> Bundle:
    if options.random is None:
        return Bundle.load(options.model, allow_unverified=options.allow_unverified)
    from edge_asr.benchmark.random_models import export_random

    def show_export(stage: str, done: int, total: int) -> None:
        show(f"random {options.random}: {stage}", done / total if total else 0.0)

    wanted = [p for p in PRECISIONS if p in options.precisions]
    return export_random(options.random, folder, precisions=wanted, progress=show_export)


def _load(options: BenchOptions, bundle: Bundle, resources: ExitStack) -> list[_Subject]:
    subjects: dict[tuple[str, str], _Subject] = {}
    for precision in options.precisions:
        recognizer = StagedRecognizer.load(
            bundle.path,
            precision=precision,
            backend=options.backend,
            num_threads=options.threads,
            allow_unverified=options.allow_unverified,
            decoder=options.decoding.factory(),
        )
        resources.callback(recognizer.close)
        backend = recognizer.backend
        load = {
            "path_or_name": str(bundle.path.resolve()),
            "precision": backend.precision,
            "backend": backend.name,
            "num_threads": options.threads,
            "allow_unverified": options.allow_unverified,
        }
        assert isinstance(recognizer, StagedRecognizer)
        # "auto" may be one that is also named.
        subjects.setdefault(
            (backend.precision, backend.name),
            _Subject(recognizer=recognizer, load=load, decoding=options.decoding),
        )
    return list(subjects.values())


def _make_tasks(
    subject: _Subject, pairs: list[tuple[float, int]], recording: Recording, folder: Path, show: Progress
) -> None:
    """Prepare the subjects, with the texts of fresh processes and their memory."""
    for index, (seconds, batch) in enumerate(pairs):
        show(f"{subject.name}: memory and reference texts", index / len(pairs))
        clips = recording.clips(seconds, batch)
        fresh = run_fresh(subject.load, clips, recording.sample_rate, folder, decoding=subject.decoding)
        subject.fresh[seconds, batch] = fresh
        subject.tasks[seconds, batch] = Task(
            name=f"{subject.name}, {seconds:g} s, batch {batch}",
            recognizer=subject.recognizer,
            clips=clips,
            sample_rate=recording.sample_rate,
            text_sha256=fresh.text_sha256,
        )


def _measure_session(
    options: BenchOptions,
    subjects: list[_Subject],
    recording: Recording,
    folder: Path,
    session: int,
    show: Progress,
) -> None:
    """Run one session: a cold start of each subject, then each length in turn."""
    name = f"session {session + 1} of {SESSIONS}"
    clips = recording.clips(options.seconds[0], 1)
    for subject in subjects:
        show(f"{name}: cold start, {subject.name}", 0.0)
        fresh = run_fresh(subject.load, clips, recording.sample_rate, folder, decoding=subject.decoding)
        subject.cold.append(fresh)
    for seconds in dict.fromkeys(options.seconds):
        measure(
            [task for s in subjects for pair, task in s.tasks.items() if pair[0] == seconds],
            warmup=options.warmup,
            min_duration_s=options.min_duration_s / SESSIONS,
            min_runs=-(-MIN_RUNS // SESSIONS),
            progress=partial(show, f"{name}: clips of {seconds:g} s"),
        )


def _cell(
    task: Task, seconds: float, fresh: FreshRun, n_warmup: int, power: tuple[list[PowerReading], str | None]
) -> Cell:
    runs, batch = task.runs, len(task.clips)
    there, back = time_copies(task.recognizer.backend, runs[-1].passes, len(runs))
    stages = {
        "features": Times.of([run.features_s for run in runs], sessions=task.sessions),
        "copy_to_device": there,
        "encode": Times.of([run.encode_s for run in runs], sessions=task.sessions),
        "copy_to_host": back,
        "decode": Times.of([run.decode_s for run in runs], sessions=task.sessions),
        "total": Times.of([run.total_s for run in runs], sessions=task.sessions),
    }
    without = Times.of([run.total_s - run.features_s for run in runs])
    return Cell(
        seconds=seconds,
        batch=batch,
        audio_s=task.audio_s,
        mode=task.mode,
        n_warmup=n_warmup,
        n_runs=len(runs),
        passes=tuple(runs[-1].passes),
        text_sha256=task.text_sha256,
        text_is_empty=not any(fresh.texts),
        stages=stages,
        processor=Times.of([run.processor_s for run in runs], sessions=task.sessions),
        rtfx=_rtfx(task.audio_s, stages["total"]),
        rtfx_without_features=_rtfx(task.audio_s, without),
        memory=fresh.memory,
        power=tuple(power[0]),
        power_reason=power[1],
    )


def _rtfx(audio_s: float, times: Times) -> float:
    assert times.summary is not None
    return four_digits(audio_s / (times.summary.p50 / 1e3))


def _run_streams(
    options: BenchOptions, subject: _Subject, show: Progress
) -> tuple[list[schema.Streams], int | None, str | None]:
    bundle = subject.recognizer.bundle
    # A bundle made for streaming is asked for its live latencies also when nobody says so.
    wanted = options.streams or (1 if bundle is not None and bundle.info.streaming is not None else None)
    if wanted is None:
        return [], None, NO_STREAMS
    recording = Recording.load(options.audio, STREAM_SAMPLE_RATE)
    signal = spoken_signal(recording.waveform, STREAM_SAMPLE_RATE, options.utterances)
    with Recognizer.load(**subject.load, decoder=options.decoding.factory()) as recognizer:
        recognizer.transcribe(signal.waveform, STREAM_SAMPLE_RATE)  # warm
        make_decoder = streaming_decoders(recognizer)
        if make_decoder is not None:
            warm_decoder(make_decoder(), signal)

        def listen(n_streams: int) -> schema.Streams:
            show(f"{subject.name}: {n_streams} streams at real-time pace", 0.0)
            return run_streams(
                recognizer,
                signal,
                n_streams,
                is_random=options.random is not None,
                make_decoder=make_decoder,
            )

        if wanted == "max":
            tried, most = find_most_sustained(listen)
            return tried, most, None
        assert isinstance(wanted, int)
        return [listen(n) for n in dict.fromkeys((1, wanted))], None, None


def _accuracy(
    options: BenchOptions, subject: _Subject, manifest: Manifest | None, show: Progress
) -> tuple[schema.Accuracy | None, str | None]:
    if options.manifest is None:
        return None, NO_MANIFEST
    if manifest is None:
        return None, RANDOM_TEXT
    from edge_asr.benchmark.accuracy import measure_accuracy

    stage = f"{subject.name}: error rates on {manifest.name}"
    rates = measure_accuracy(
        subject.recognizer,
        manifest,
        options.manifest,
        options.normalization,
        lambda share: show(stage, share),
    )
    return rates, None


def _describe_file(bundle: Bundle, recognizer: StagedRecognizer) -> dict[str, Any]:
    backend = recognizer.backend
    if isinstance(backend, TensorRTBackend):
        plan = backend.plan_path
        return {
            "file": str(plan.relative_to(bundle.path)),
            "sha256": sha256_of(plan),
            "size_bytes": plan.stat().st_size,
        }
    artifact = bundle.artifact(cast(Precision, backend.precision))
    ran: Artifact | CpuGraph = artifact
    if artifact.cpu_graph is not None and isinstance(backend, OnnxRuntimeBackend):
        ran = artifact.cpu_graph if backend.path.name == artifact.cpu_graph.file else artifact
    return {"file": ran.file, "sha256": ran.sha256, "size_bytes": ran.size_bytes}


def _describe_model(options: BenchOptions, bundle: Bundle) -> schema.Model:
    info = bundle.info
    return schema.Model(
        name=info.name,
        family=info.family,
        preset=info.preset,
        n_parameters=info.n_parameters,
        subsampling_factor=info.subsampling_factor,
        source=options.model if options.random is None else f"--random {options.random}",
        is_random=options.random is not None,
        streams=info.streaming is not None,
        bundle_sha256=sha256_of(bundle.path / MANIFEST_NAME),
    )
