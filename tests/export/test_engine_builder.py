"""The engine builder: real plans by TensorRT-RTX on the CPU, and all else with a fake TensorRT.

RTX builder on CPU: execution not tested; tiny-en and a larger model are in test_engine_rtx.py. The fake
(fake_tensorrt_builder.py) shows what we ask of 8.6, 10 and 11 and what happens around the build; engines are
stand-ins there, run by onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import (
    AudioError,
    BundleError,
    ConfigError,
    EngineError,
    GateError,
    ManifestError,
    MissingDependencyError,
)
from edge_asr.export.engine import builder as engine_builder
from edge_asr.export.engine import put as engine_put
from edge_asr.export.engine.builder import build_engine, default_precisions
from edge_asr.export.engine.model import make_engine_model
from edge_asr.export.engine.opset17 import convert_to_opset17
from edge_asr.export.engine.parser import parse_network
from edge_asr.export.engine.plan import SearchOptions
from edge_asr.export.engine.put import EngineReport
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.proof.cases import CasePlan
from edge_asr.runtime.engine import backend as tensorrt_backend
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.lookup import artifact_of, build_command, find_engine
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineSidecar
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from engine_models import quantize
from fake_cuda import FakeCuda
from fake_tensorrt_builder import LAYERS, PLAN, VERSIONS, FakeBuilder, Style

ORIN = DeviceIdentity(
    gpu_name="Orin",
    compute_capability="8.7",
    driver="12.6",
    jetpack="R36.4.3",
    os="linux",
    arch="aarch64",
    multiprocessors=8,
)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@pytest.fixture(scope="session")
def three_precisions(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random bundle with an fp16 and an int8 model, made as the project makes them, but not proven."""
    folder = tmp_path_factory.mktemp("three") / "bundle"
    shutil.copytree(random_bundle, folder)
    data = json.loads((folder / "bundle.json").read_text())
    fp32 = onnx.load(folder / "model.onnx")
    models = {
        "fp16": convert_to_fp16(fp32),
        "int8": quantize(fp32, tmp_path_factory.mktemp("quantized"), "good"),
    }
    for precision, model in models.items():
        path = folder / f"model.{precision}.onnx"
        path.write_bytes(model.SerializeToString())
        changes = {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}
        data["artifacts"].append(
            {**data["artifacts"][0], "file": path.name, "precision": precision, **changes}
        )
    (folder / "bundle.json").write_text(json.dumps(data))
    return folder


@pytest.fixture
def bundle(three_precisions: Path, tmp_path: Path) -> Bundle:
    """A copy that a test may write into."""
    return Bundle.load(shutil.copytree(three_precisions, tmp_path / "bundle"))


def files_in(bundle: Bundle) -> dict[str, bytes]:
    engines = bundle.path / "engines"
    return {str(p.relative_to(engines)): p.read_bytes() for p in engines.rglob("*") if p.is_file()}


# --- TensorRT-RTX ---


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rtx_builder_on_cpu_execution_not_tested_plan_and_sidecar(
    precision: Precision, rtx: ModuleType, no_gpu: DeviceIdentity, bundle: Bundle
) -> None:
    seen: list[tuple[str, int, int]] = []
    report = build_engine(
        bundle,
        precision,
        flavor="tensorrt-rtx",
        profile_seconds=(0.1, 0.5, 2),
        batch=(1, 2, 4),
        progress=lambda *step: seen.append(step),
    )
    folder = bundle.path / "engines" / f"tensorrt-rtx-{rtx.__version__}-no-gpu-linux-x86_64"
    assert report.plan == folder / f"model.{precision}.plan"
    assert sorted(p.name for p in folder.iterdir()) == [f"model.{precision}.json", f"model.{precision}.plan"]
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing temporary is left
    sidecar = EngineSidecar.read(folder / f"model.{precision}.json")
    assert sidecar == report.sidecar
    assert sidecar.onnx_sha256 == artifact_of(bundle, precision).sha256
    assert sidecar.plan_sha256 == hashlib.sha256(report.plan.read_bytes()).hexdigest()
    assert [(p.min_frames, p.max_frames) for p in sidecar.profiles] == [(64, 64), (64, 256)]
    tensors = {t.name: (t.mode, t.dtype, t.shape) for t in sidecar.tensors}
    assert tensors == {
        "audio_signal": ("input", "float32", (-1, 80, -1)),
        "length": ("input", "int64", (-1,)),
        "logprobs": ("output", "float32", (-1, -1, len(bundle.vocabulary))),
    }
    assert "STRONGLY_TYPED" in sidecar.flags
    assert ("TF32" in sidecar.flags) == (precision != "fp32")
    assert sidecar.proof is None
    assert engine_put.NOT_RUN + build_command(bundle, precision, "tensorrt-rtx") in report.notes
    found = find_engine(
        bundle, precision, flavor="tensorrt-rtx", tensorrt_version=sidecar.tensorrt_version, device=no_gpu
    )
    assert found == (report.plan, sidecar)
    built = [step for step in seen if step[0] == f"build {precision} engine" and step[2]]
    assert built[-1][1:] == (1000, 1000)
    assert built == sorted(built)


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", PRECISIONS)
def test_rtx_builder_on_cpu_execution_not_tested_parses_the_opset_17_copy(
    precision: Precision, rtx: ModuleType, three_precisions: Path
) -> None:
    """What TensorRT 8.6 is given; a parser of today is the only one at hand."""
    copy = convert_to_opset17(onnx.load(Bundle.load(three_precisions).artifact_path(precision)))
    flag = 1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = rtx.Builder(create_logger(rtx)).create_network(flag)
    parse_network(rtx, network, copy.SerializeToString(), "opset17.onnx")
    assert [network.get_input(i).name for i in range(network.num_inputs)] == ["audio_signal", "length"]


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_timing_cache_does_nothing(
    rtx: ModuleType, bundle: Bundle, tmp_path: Path
) -> None:
    cache = tmp_path / "timing.cache"
    report = build_engine(
        bundle,
        "fp32",
        flavor="tensorrt-rtx",
        profile_seconds=(0.1, 0.5),
        timing_cache=cache,
        workspace_mb=256,
    )
    assert engine_put.NO_TIMING_CACHE in report.notes
    assert not cache.exists()
    assert report.sidecar.workspace_mb == 256


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_ctrl_c_ends_the_build(
    rtx: ModuleType, bundle: Bundle
) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(bundle, "fp32", flavor="tensorrt-rtx", profile_seconds=(0.1, 0.5), progress=interrupt)
    assert not (bundle.path / "engines").exists()


# --- fake TensorRT ---


REAL_BACKEND = inspect.signature(tensorrt_backend.TensorRTBackend)


class StandInEngine(OnnxRuntimeBackend):
    """What the builder takes for an engine: its plan's model on onnxruntime."""

    offset = 0.0
    only_half = False

    def __init__(self, bundle: Bundle, precision: str, **options: Any) -> None:
        REAL_BACKEND.bind(bundle, precision, **options)  # the real one takes such arguments
        plan, sidecar = options["engine"]
        content = plan.read_bytes()
        assert content.startswith(PLAN)
        assert hashlib.sha256(content).hexdigest() == sidecar.plan_sha256
        assert options["allow_unverified"] is True
        path = plan.with_suffix(".onnx")
        path.write_bytes(content[len(PLAN) :])
        super().__init__(path, precision=precision)
        path.unlink()
        self.name = options["flavor"]

        self.wrong = self.offset and not (self.only_half and "FLOAT32_SOFTMAX" in sidecar.flags)

    def warm_up(self, n_frames: Any) -> None:
        self.warmed_up = list(n_frames)

    def log_probs(self, features: Any, feature_lens: Any) -> Any:
        assert self.warmed_up  # what is proven are recorded runs
        log_probs = super().log_probs(features, feature_lens)
        return np.roll(log_probs, 1, axis=1) if self.wrong else log_probs


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Style], FakeBuilder]:
    """Put a fake TensorRT and an Orin in place; engines run on onnxruntime and the proof is short."""

    def put(style: Style) -> FakeBuilder:
        fake = FakeBuilder(style)
        monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
        return fake

    monkeypatch.setattr(DeviceIdentity, "detect", classmethod(lambda cls: ORIN))
    monkeypatch.setattr(engine_builder, "TensorRTBackend", StandInEngine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = CasePlan(random_lengths=1, max_random_s=0.5, max_batch=2)
    build_cases = engine_builder.build_engine_cases
    monkeypatch.setattr(engine_builder, "build_engine_cases", lambda *a: build_cases(*a, short))
    # int8 of random weights says little about the model; what is tested here is the road.
    bars = engine_builder.prove_engine.__globals__["BARS"]
    monkeypatch.setitem(
        bars, "int8", dataclasses.replace(bars["int8"], min_agreement=0.0, min_case_agreement=0.0)
    )
    return put


OPTIONS: dict[str, Any] = {"profile_seconds": (0.1, 0.5, 1), "batch": (1, 1, 2)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("style", ["8.6", "10", "11"])
def test_fake_tensorrt_is_asked_for_what_it_has(
    style: Style, precision: Precision, install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    fake = install(style)
    report = build_engine(bundle, precision, workspace_mb=512, **OPTIONS)
    given = onnx.load_from_string(fake.model)
    onnx.checker.check_model(given)
    if style == "8.6":
        assert fake.network_flags == ["EXPLICIT_BATCH"]
        wanted = {"fp32": set(), "fp16": {"FP16", "TF32"}, "int8": {"FP16", "INT8", "TF32"}}[precision]
        assert given.opset_import[0].version == 17
        assert engine_builder.OPSET_17 in report.notes
    else:
        assert "STRONGLY_TYPED" in fake.network_flags
        wanted = set() if precision == "fp32" else {"TF32"}
        longest = report.sidecar.profiles[-1].max_frames
        assert fake.model == make_engine_model(bundle, precision, max_frames=longest).SerializeToString()
        assert report.notes == (engine_builder._window_note(bundle, report.sidecar.profiles),)
    assert fake.builder_flags == wanted
    assert fake.previews == (["PROFILE_SHARING_0806"] if style == "8.6" else [])
    assert set(report.sidecar.flags) == {*fake.network_flags, *wanted, *fake.previews, "max_aux_streams=0"}
    assert fake.config.max_aux_streams == 0
    assert fake.config.profiling_verbosity.name == "DETAILED"
    assert fake.limits == {"WORKSPACE": 512 << 20}
    assert fake.monitored == (style != "8.6")
    assert fake.profiles == [
        {"audio_signal": ((1, 80, 64), (1, 80, 64), (2, 80, 64)), "length": ((1,), (1,), (2,))},
        {"audio_signal": ((1, 80, 64), (1, 80, 128), (2, 80, 128)), "length": ((1,), (1,), (2,))},
    ]
    folder = f"tensorrt-{VERSIONS[style]}-orin-8mp-sm87-linux-aarch64"
    assert set(files_in(bundle)) == {
        f"{folder}/model.{precision}.plan",
        f"{folder}/model.{precision}.json",
        f"{folder}/layers.{precision}.json",
        f"{folder}/timing.cache",
    }
    assert files_in(bundle)[f"{folder}/layers.{precision}.json"].decode() == LAYERS
    sidecar = EngineSidecar.read(report.plan.with_suffix(".json"))
    assert (
        sidecar.onnx_sha256 == artifact_of(bundle, precision).sha256
    )  # of the bundle's file, not of the copy
    assert sidecar.proven
    assert sidecar.proof is not None
    assert sidecar.proof["n_cases"] > 20
    assert "proven: " in report.describe()


def test_fake_tensorrt_engine_that_fails_its_proof_is_deleted(
    install: Callable[[Style], FakeBuilder], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10")
    monkeypatch.setattr(StandInEngine, "offset", 1.0)
    with pytest.raises(GateError, match=r"fp16 engine of .* failed its proof and was deleted: \d+ findings"):
        build_engine(bundle, "fp16", **OPTIONS)
    assert not (bundle.path / "engines").exists()


def test_fake_tensorrt_fused_attention_that_is_wrong_is_built_again_with_a_float32_softmax(
    install: Callable[[Style], FakeBuilder], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10")
    monkeypatch.setattr(StandInEngine, "offset", 1.0)
    monkeypatch.setattr(StandInEngine, "only_half", True)
    report = build_engine(bundle, "fp16", **OPTIONS)
    assert engine_put.WIDE_SOFTMAX in report.notes
    assert engine_put.WIDE_SOFTMAX_FLAG in EngineSidecar.read(report.plan.with_suffix(".json")).flags
    assert report.proven


def test_fake_tensorrt_takes_the_builder_options(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    fake = install("10")
    search = SearchOptions(optimization_level=5, aux_streams=None, timing_iterations=4)
    report = build_engine(bundle, "fp32", search=search, **OPTIONS)
    assert fake.config.builder_optimization_level == 5
    assert (fake.config.avg_timing_iterations, fake.config.max_aux_streams) == (4, -1)
    assert {"builder_optimization_level=5", "avg_timing_iterations=4"} <= set(report.sidecar.flags)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "optimization_level is 6; give 0 to 5, or leave it out"),
        ({"aux_streams": -1}, "aux_streams is -1; give 0 or more, or leave it out"),
        ({"timing_iterations": 0}, "timing_iterations is 0; give 1 or more, or leave it out"),
    ],
)
def test_search_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchOptions(**options)


def test_fake_tensorrt_has_no_attention_operator(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    install("10")
    message = (
        "tensorrt 10.3.0.26 has no attention operator, which came with .* 10.14; leave out --attention-op"
    )
    with pytest.raises(EngineError, match=message):
        build_engine(bundle, "fp16", attention_operator=True, **OPTIONS)


def test_fake_tensorrt_reference_is_computed_once_for_all_precisions(
    install: Callable[[Style], FakeBuilder], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("10")
    build_engine(bundle, "fp32", **OPTIONS)
    ran: list[str] = []
    log_probs = OnnxRuntimeBackend.log_probs

    def counting(self: OnnxRuntimeBackend, *arguments: Any) -> Any:
        ran.append(type(self).__name__)
        return log_probs(self, *arguments)

    monkeypatch.setattr(OnnxRuntimeBackend, "log_probs", counting)
    build_engine(bundle, "fp16", **OPTIONS)
    assert set(ran) == {"StandInEngine"}


@pytest.mark.parametrize("failure", ["proof", "build", "parse", "ctrl-c"])
def test_fake_tensorrt_old_engine_survives_a_failed_build(
    failure: str,
    install: Callable[[Style], FakeBuilder],
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = install("10")
    build_engine(bundle, "fp32", **OPTIONS)
    before = files_in(bundle)
    options = dict(OPTIONS)
    expected: type[BaseException] = EngineError
    if failure == "proof":
        monkeypatch.setattr(StandInEngine, "offset", 1.0)
        expected = GateError
    elif failure == "build":
        fake.fails = "Error Code 2: OutOfMemory (no further information)"
    elif failure == "parse":
        parser = sys.modules["tensorrt"].OnnxParser
        monkeypatch.setattr(parser, "parse", lambda self, model: False)
    else:
        expected = KeyboardInterrupt

        def interrupt(stage: str, done: int, total: int) -> None:
            if total == 1000:
                raise KeyboardInterrupt

        options["progress"] = interrupt
    with pytest.raises(expected):
        build_engine(bundle, "fp32", force=True, **options)
    assert files_in(bundle) == before


def test_fake_tensorrt_precisions_share_a_folder_and_its_timing_cache(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    fake = install("10")
    first = build_engine(bundle, "fp32", **OPTIONS)
    assert fake.cache_in == b""
    second = build_engine(bundle, "fp16", **OPTIONS)
    assert fake.cache_in == b"+"
    assert first.plan.parent == second.plan.parent
    assert {p.name for p in first.plan.parent.iterdir()} == {
        *("model.fp32.plan", "model.fp32.json", "model.fp16.plan", "model.fp16.json", "timing.cache"),
        *("layers.fp32.json", "layers.fp16.json"),
    }
    assert (first.plan.parent / "timing.cache").read_bytes() == b"++"


def test_fake_tensorrt_timing_cache_of_the_users_own(
    install: Callable[[Style], FakeBuilder], bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install("10")
    cache = tmp_path / "caches" / "mine.cache"
    monkeypatch.setattr(StandInEngine, "offset", 1.0)
    with pytest.raises(GateError):
        build_engine(bundle, "fp32", timing_cache=cache, **OPTIONS)
    assert cache.read_bytes() == b"+"  # the timings of a failed engine are as good
    monkeypatch.setattr(StandInEngine, "offset", 0.0)
    build_engine(bundle, "fp32", timing_cache=cache, **OPTIONS)
    assert cache.read_bytes() == b"++"
    cache.write_bytes(b"damaged")
    build_engine(bundle, "fp32", timing_cache=cache, force=True, **OPTIONS)
    assert fake.cache_in == b""  # a damaged one only costs time
    assert cache.read_bytes() == b"+"


def test_fake_tensorrt_existing_engine_needs_force(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    install("10")
    first = build_engine(bundle, "fp32", **OPTIONS)
    with pytest.raises(EngineError, match=r"model\.fp32\.plan exists; add --force"):
        build_engine(bundle, "fp32", **OPTIONS)
    second = build_engine(bundle, "fp32", force=True, profile_seconds=(0.1, 0.5))
    assert (
        len(EngineSidecar.read(first.plan.with_suffix(".json")).profiles) == len(second.sidecar.profiles) == 1
    )


def test_fake_tensorrt_says_what_failed_and_what_may_help(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    fake = install("10")
    for said, advice in (
        ("Error Code 2: OutOfMemory (requested size 123)", "--workspace-mb"),
        ("CUDA initialization failure with error: 35", "`edge-asr doctor`"),
        ("Could not find any implementation for node X", "-vv"),
    ):
        fake.fails = said
        with pytest.raises(EngineError, match=r"cannot build an engine of model\.onnx") as caught:
            build_engine(bundle, "fp32", **OPTIONS)
        assert said in str(caught.value)
        assert advice in str(caught.value)


def test_fake_tensorrt_without_a_gpu_does_not_build(
    install: Callable[[Style], FakeBuilder],
    bundle: Bundle,
    no_gpu: DeviceIdentity,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("10")
    monkeypatch.setattr(DeviceIdentity, "detect", classmethod(lambda cls: no_gpu))
    with pytest.raises(EngineError, match="no GPU was found"):
        build_engine(bundle, "fp32", **OPTIONS)


def test_fake_tensorrt_wrong_inputs_show_before_the_build(
    install: Callable[[Style], FakeBuilder], bundle: Bundle, tmp_path: Path
) -> None:
    fake = install("10")
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio_filepath": "none.wav", "text": "a"}\n')
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"flavor": "tensorflow"}, ConfigError, "flavor is 'tensorflow'"),
        ({"workspace_mb": 0}, ConfigError, "workspace_mb is 0"),
        ({"profile_seconds": (3, 2)}, ConfigError, "profile seconds are 3,2"),
        ({"manifest": manifest}, ManifestError, "1 whose sound is missing"),
        ({"clips": [tmp_path / "none.wav"]}, AudioError, "check --clips"),
    ]
    for options, error, words in cases:
        with pytest.raises(error, match=words):
            build_engine(bundle, "fp32", **{**OPTIONS, **options})
    assert fake.model == b""


def test_fake_tensorrt_needs_the_fp32_model_for_its_proof(
    install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    install("10")
    artifacts = tuple(a for a in bundle.info.artifacts if a.precision != "fp32")
    without = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, artifacts=artifacts))
    with pytest.raises(BundleError, match="no fp32 model"):
        build_engine(without, "fp16", **OPTIONS)


@pytest.mark.parametrize("style", ["8.6", "10"])
def test_fake_tensorrt_an_fp16_engine_needs_no_fp16_file(
    style: Style, install: Callable[[Style], FakeBuilder], bundle: Bundle
) -> None:
    fake = install(style)
    artifacts = (bundle.artifact("fp32"),)
    without = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, artifacts=artifacts))
    (bundle.path / "model.fp16.onnx").unlink()
    report = build_engine(without, "fp16", **OPTIONS)
    assert report.proven
    assert (report.sidecar.onnx_file, report.sidecar.precision) == ("model.onnx", "fp16")
    types = {i.data_type for i in onnx.load_from_string(fake.model).graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in types, "FP16" in fake.builder_flags) == (
        style == "10",
        style == "8.6",
    )


# --- without any TensorRT ---


def test_missing_tensorrt_is_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"tensorrt is needed here and is not installed; .*pip"):
        build_engine(bundle, "fp32")


@pytest.mark.parametrize("obstacle", ["file", "link", "read-only"])
def test_fake_tensorrt_places_that_cannot_be_written(
    obstacle: str,
    install: Callable[[Style], FakeBuilder],
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    install("10")
    engines = bundle.path / "engines"
    if obstacle == "file":
        engines.write_text("")
        words = "engines is a file"
    elif obstacle == "link":
        (tmp_path / "elsewhere").mkdir()
        engines.symlink_to(tmp_path / "elsewhere")
        words = "engines is a link"
    else:  # root may write anywhere, so the system's answer is replaced
        monkeypatch.setattr(os, "access", lambda path, mode: path != bundle.path)
        words = f"{bundle.path} cannot be written; copy the bundle"
    with pytest.raises(EngineError, match=words):
        build_engine(bundle, "fp32", **OPTIONS)


def test_default_precisions(bundle: Bundle) -> None:
    assert default_precisions(bundle) == ["fp16", "int8"]
    assert default_precisions(Bundle.load("tiny-en"))[:1] in (["fp32"], ["fp16"], ["int8"])


def test_report_is_json(install: Callable[[Style], FakeBuilder], bundle: Bundle) -> None:
    install("10")
    report = build_engine(bundle, "fp32", **OPTIONS)
    assert isinstance(report, EngineReport)
    data = json.loads(json.dumps(report.to_dict()))
    assert data["plan"] == str(report.plan)
    assert data["device"]["gpu_name"] == "Orin"
    assert data["proof"]["passed"] is True


@pytest.mark.parametrize(
    ("total_gib", "integrated", "limit_mb", "most_rows"),
    [(4, True, 1024, 1), (62, True, 2048, 1), (62, False, None, 8)],
)
def test_fake_tensorrt_is_asked_for_little_where_gpu_and_processor_share_memory(
    total_gib: int,
    integrated: bool,
    limit_mb: int | None,
    most_rows: int,
    install: Callable[[Style], FakeBuilder],
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A quarter of the memory for the builder, at most 2 GiB, and one row; all of a GPU that has its own."""
    gpu = FakeCuda()
    gpu.integrated, gpu.total_bytes = integrated, total_gib << 30
    gpu.install_cuda(monkeypatch)
    fake = install("10")
    passes = SimpleNamespace(passed=True, to_dict=lambda: {"passed": True})
    monkeypatch.setattr(engine_builder, "prove_engine", lambda *_, **__: passes)
    report = build_engine(bundle, "fp32", profile_seconds=(0.1, 1))
    assert fake.limits == ({} if limit_mb is None else {"WORKSPACE": limit_mb << 20})
    assert {profile["length"][2] for profile in fake.profiles} == {(most_rows,)}
    assert any("GPU and processor share" in note for note in report.notes) is integrated
    assert report.sidecar.workspace_mb == limit_mb
