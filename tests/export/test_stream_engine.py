"""The engine of a streaming graph: its proof on a fake TensorRT, and its build by TensorRT-RTX.

The fake's numbers are onnxruntime's, so a proof passes unless a test spoils them. RTX builder on CPU:
execution not tested.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

import fake_tensorrt
from engine_bundles import STREAMS, add_stream_engine
from fake_tensorrt import FakeGpu

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import BundleError, EngineError
from edge_asr.export.engine.put import BuildOptions
from edge_asr.export.engine.streams import build_stream_cases, build_stream_engine, prove_stream_engine
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.engine.lookup import sidecar_path_of
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.engine.trust import is_sealed


@pytest.fixture
def bundle(streaming_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.load(shutil.copytree(streaming_bundle, tmp_path / "bundle"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


def prove(bundle: Bundle, plan: Path) -> Any:
    waveforms = load_clips(find_clips(), bundle.info.features.sample_rate)
    name, waveform = next(iter(waveforms.items()))
    return prove_stream_engine(
        bundle, plan, EngineSidecar.read(sidecar_path_of(plan)), {name: waveform[: 3 * 16000]}
    )


def test_fake_tensorrt_a_stream_is_proven_chunk_by_chunk_on_recorded_steps(
    gpu: FakeGpu, bundle: Bundle
) -> None:
    proof = prove(bundle, add_stream_engine(bundle, gpu, proof=None))
    assert proof.passed, proof.failures
    assert proof.frame_agreement == 1.0
    assert proof.padding_error is not None
    names = [result.name for result in proof.step.results]
    assert {f"{STREAMS[1]} streams, padding {p}" for p in ("zeros", "noise")} <= set(names)
    assert gpu.calls.count("cuGraphLaunch") > 100
    gpu.assert_all_released()


@pytest.mark.parametrize("when", ["always", "in pauses"])
def test_fake_tensorrt_a_stream_that_forgets_fails(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Caches that come back empty leave single chunks right and streams wrong."""
    plan = add_stream_engine(bundle, gpu)
    session = fake_tensorrt.onnx_session(str(bundle.path / "stream.onnx"), bundle.streaming.artifact.sha256)

    class Forgets:
        def run(self, names: Any, feeds: dict[str, Any]) -> list[Any]:
            given = session.run(names, feeds)
            rows = np.full(len(feeds["length"]), True) if when == "always" else feeds["length"] == 0
            for cache in given[2:]:
                cache[rows] = 0
            return list(given)

    monkeypatch.setattr(fake_tensorrt, "onnx_session", lambda *_: Forgets())
    proof = prove(bundle, plan)
    assert not proof.passed
    gpu.assert_all_released()


def test_cases_of_a_stream_fill_every_profile(gpu: FakeGpu, bundle: Bundle) -> None:
    sidecar = EngineSidecar.read(sidecar_path_of(add_stream_engine(bundle, gpu)))
    waveforms = load_clips(find_clips(), bundle.info.features.sample_rate)
    cases = build_stream_cases(waveforms, bundle, sidecar)
    assert STREAMS[1] in {len(case.features) for case in cases}
    assert {1, 3} <= {len(case.features) for case in cases}


@pytest.mark.tensorrt
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_rtx_builder_on_cpu_execution_not_tested_streams(
    precision: Precision, rtx: ModuleType, streaming_int8_bundle: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(streaming_int8_bundle, tmp_path / "bundle")
    bundle = Bundle.load(copy, allow_unverified=True, check_hashes=False)
    report = build_stream_engine(bundle, precision, BuildOptions(flavor="tensorrt-rtx"), streams=(1, 8))
    assert any("has no GPU" in note for note in report.notes)
    assert report.plan.name == f"stream.{precision}.plan"
    assert [p.max_batch for p in report.sidecar.profiles] == [1, 8]
    assert report.sidecar.onnx_file == ("stream.int8.onnx" if precision == "int8" else "stream.onnx")
    assert {t.name for t in report.sidecar.tensors if t.mode == "input"} >= {"cache_last_time", "length"}
    assert is_sealed(report.sidecar)
    with pytest.raises(EngineError, match="exists; add --force"):
        build_stream_engine(bundle, precision, BuildOptions(flavor="tensorrt-rtx"), streams=(1, 8))


@pytest.mark.tensorrt
def test_a_bundle_without_that_stream(rtx: ModuleType, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has its streaming graph in fp32 only, and an engine in int8"):
        build_stream_engine(bundle, "int8", BuildOptions(flavor="tensorrt-rtx"))
    with pytest.raises(BundleError, match="stream"):
        build_stream_engine(Bundle.load("tiny-en"), "fp16", BuildOptions(flavor="tensorrt-rtx"))
