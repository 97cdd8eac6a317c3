"""What tests of benchmarks share: fake machines, and an invented report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.benchmark import schema
from edge_asr.benchmark.clocks import Clocks
from edge_asr.benchmark.provenance import MachineRecord
from edge_asr.benchmark.schema import BenchReport, Times
from edge_asr.diagnostics.machine import Machine

FakeMachine = Callable[..., Machine]


@pytest.fixture
def fake_machine(tmp_path: Path) -> FakeMachine:
    """`fake_machine(files={path: text}, programs={name: shell})`: nothing of this machine shines through."""

    def make(files: dict[str, str] | None = None, programs: dict[str, str] | None = None) -> Machine:
        root, folder = tmp_path / "root", tmp_path / "programs"
        folder.mkdir(exist_ok=True)
        root.mkdir(exist_ok=True)
        for path, text in (files or {}).items():
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).write_text(text)
        for name, body in (programs or {}).items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        return Machine(root=root, search_path=str(folder))

    return make


def invented_cell(seconds: float, batch: int, total_s: list[float]) -> schema.Cell:
    """A cell whose encoder takes all of the time; every number in it is invented."""
    times = Times.of(total_s, sessions=[8] * 5)
    stages = dict.fromkeys(schema.STAGES, times)
    stages |= {name: Times.missing("invented: no copy") for name in ("copy_to_device", "copy_to_host")}
    return schema.Cell(
        seconds=seconds,
        batch=batch,
        audio_s=seconds * batch,
        mode="transcribe",
        n_warmup=1,
        n_runs=len(total_s),
        passes=((batch, round(seconds * 100)),),
        text_sha256="ab" * 32,
        text_is_empty=False,
        stages=stages,
        processor=times,
        rtfx=100.0,
        rtfx_without_features=110.0,
        memory=schema.Memory(
            imported_rss_bytes=1_000_000,
            loaded_rss_bytes=2_000_000,
            peak_rss_bytes=3_000_000,
            rss_reason=None,
            gpu_bytes=None,
            gpu_reason="invented: no GPU",
        ),
        power=(),
        power_reason="invented: no sensor",
    )


def invented_report(scale: float = 1.0, noise: float = 0.01, seed: int = 0) -> BenchReport:
    """A report with two lengths and two batches; times are `scale` times 10 ms an audio second, and noise."""
    rng = np.random.default_rng(seed)

    def times(audio_s: float) -> list[float]:
        return (scale * 0.01 * audio_s * (1 + noise * rng.standard_normal(40))).tolist()

    clocks = Clocks(
        cpu_governor="performance",
        cpu_mhz_min=1500.0,
        cpu_mhz_mean=1500.0,
        cpu_mhz_max=1500.0,
        cpu_reason=None,
        gpu_sm_mhz=None,
        gpu_memory_mhz=None,
        gpu_celsius=None,
        gpu_reason="invented: no GPU",
        power_mode=None,
        power_mode_reason="invented: no Jetson",
    )
    machine = MachineRecord(
        cpu="Invented CPU",
        cpu_features=("avx2",),
        n_cpus=2,
        affinity=(0, 1),
        memory_bytes=2**34,
        gpu=None,
        jetson=None,
        system="Invented Linux",
        kernel="6.0",
        architecture="x86_64",
        container=None,
        hypervisor=False,
        python="CPython 3.12.0",
        packages={"numpy": "2.0"},
        environment={},
        edge_asr="0.1.0",
        git_commit="abc",
        git_reason=None,
        load_before=0.1,
        load_after=0.2,
        steal_share=0.0,
        clocks_before=clocks,
        clocks_after=clocks,
    )
    streams = schema.Streams(
        mode="windowed",
        n_streams=2,
        n_utterances=3,
        audio_s=10.0,
        update_interval_s=0.3,
        sustained=False,
        why_not="invented: 1 times audio was lost",
        source_late=Times.of([0.0001]),
        n_gaps=1,
        n_overflows=1,
        lost_s=0.02,
        n_finals=6,
        text_sha256="ef" * 32,
        update_compute=Times.of(times(1.0)),
        **{
            name: Times.missing("invented: audio was lost")
            for name in (
                "first_partial",
                "partial_interval",
                "partial_lag",
                "end_to_final",
                "endpoint_wait",
                "final_compute",
            )
        },
    )
    configuration = schema.Configuration(
        precision="int8",
        backend="cpu",
        backend_reason="cpu, int8, 1 threads; invented",
        threads=1,
        file="model.int8.onnx",
        sha256="cd" * 32,
        size_bytes=4_000_000,
        cold=schema.ColdStart(
            seconds=1.0,
            n_runs=5,
            stages={name: Times.of(times(1.0)[:5], sessions=[1] * 5) for name in schema.COLD_STAGES},
            warm_ms=10.0,
        ),
        cells=tuple(invented_cell(s, b, times(s * b)) for s in (1.0, 5.0) for b in (1, 4)),
        streams=(streams,),
        streams_reason=None,
        most_sustained=None,
        accuracy=None,
        accuracy_reason="not asked for: --manifest FILE",
    )
    return BenchReport(
        schema_version=schema.SCHEMA_VERSION,
        created="2026-11-24T12:00:00+00:00",
        seconds_taken=12.5,
        model=schema.Model(
            name="invented",
            family="conformer-ctc",
            preset=None,
            n_parameters=3_000_000,
            subsampling_factor=4,
            source="invented",
            is_random=False,
            streams=False,
            bundle_sha256="12" * 32,
        ),
        settings=schema.BenchSettings(
            precisions=("int8",),
            backend="auto",
            decoder="greedy",
            seconds=(1.0, 5.0),
            batches=(1, 4),
            streams="2",
            utterances=3,
            threads=1,
            warmup=1,
            min_duration_s=0.0,
            min_runs=10,
            sessions=5,
        ),
        audio=schema.Audio(source="invented", sha256="34" * 32, sample_rate=16_000, duration_s=7.0),
        machine=machine,
        configurations=(configuration,),
    )


@pytest.fixture
def report() -> BenchReport:
    """`invented_report()`."""
    return invented_report()


@pytest.fixture
def make_report() -> Callable[..., BenchReport]:
    """`make_report(scale, noise, seed)`."""
    return invented_report


@pytest.fixture
def replace_machine() -> Callable[..., BenchReport]:
    """`replace_machine(report, cpu=...)`: the same on another machine."""

    def replace(report: BenchReport, **changes: Any) -> BenchReport:
        return dataclasses.replace(report, machine=dataclasses.replace(report.machine, **changes))

    return replace
