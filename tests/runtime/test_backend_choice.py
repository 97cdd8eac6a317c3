"""Which backend and precision a bundle gets, and what is said about it; engines run on the fake TensorRT."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import soundfile
from engine_bundles import add_engine, copy_bundle
from fake_tensorrt import FakeGpu

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.bundle.manifest import CpuGraph
from edge_asr.cli import options
from edge_asr.errors import BackendError, BundleError, EngineError, MissingDependencyError
from edge_asr.runtime import backends, onnxruntime_backend
from edge_asr.runtime.backends import choose_backend, choose_precision, create_backend
from edge_asr.runtime.engine.backend import TensorRTBackend
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.tested import load_tested

PROFILES = ((10, 200, 200, 1, 1, 8), (200, 800, 800, 1, 1, 8), (800, 3000, 3000, 1, 1, 8))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    return lambda *precisions, **artifact: copy_bundle(tmp_path / "bundle", *precisions, **artifact)


@pytest.fixture
def no_cuda_provider() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; the test is about one that lacks it")


# --- precision ---


@pytest.mark.parametrize(("ratio", "cpu"), [(None, "int8"), (0.99, "int8"), (1.0, "fp32"), (1.7, "fp32")])
def test_auto_on_a_cpu_passes_over_an_int8_that_is_not_faster(
    make_bundle: Callable[..., Bundle],
    ratio: float | None,
    cpu: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bundle = make_bundle("int8", cpu_time_over_fp32=ratio)
    with caplog.at_level(logging.INFO):
        assert choose_precision(bundle, "auto", "cpu") == cpu
    assert ("not int8, its time is" in caplog.text) is (cpu == "fp32")
    assert choose_precision(bundle, "int8", "cpu") == "int8"  # by name, always
    assert choose_precision(bundle, "auto", "cuda") == "fp32"


def test_a_bundle_with_only_a_slow_precision_runs_it(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("int8", cpu_time_over_fp32=1.2)
    only = dataclasses.replace(
        bundle, info=dataclasses.replace(bundle.info, artifacts=bundle.info.artifacts[1:])
    )
    assert choose_precision(only, "auto", "cpu") == "int8"


def test_fp16_comes_last_on_a_cpu_and_first_on_a_gpu(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle("fp16", "int8")
    chosen = {device: choose_precision(bundle, "auto", device) for device in ("cpu", "cuda", "tensorrt")}
    assert chosen == {"cpu": "int8", "cuda": "fp16", "tensorrt": "fp16"}


# --- the copy for onnxruntime's CPU provider ---


def add_cpu_graph(bundle: Bundle, version: str, content: bytes | None = None) -> Bundle:
    """Its INT8 file once more, or `content`, as the copy."""
    file = bundle.path / "model.int8.cpu.onnx"
    file.write_bytes(bundle.artifact_path("int8").read_bytes() if content is None else content)
    graph = CpuGraph(
        file=file.name, sha256=sha256_of(file), size_bytes=file.stat().st_size, onnxruntime=version
    )
    artifacts = tuple(
        dataclasses.replace(a, cpu_graph=graph) if a.precision == "int8" else a for a in bundle.info.artifacts
    )
    info = dataclasses.replace(bundle.info, artifacts=artifacts)
    (bundle.path / "bundle.json").write_text(json.dumps(info.to_dict()))
    return Bundle.load(bundle.path)


def path_run(bundle: Bundle, **wanted: Any) -> str:
    backend = create_backend(bundle, backend="cpu", num_threads=1, **wanted)
    assert isinstance(backend, OnnxRuntimeBackend)
    return backend.path.name


@pytest.mark.parametrize(
    ("version", "path"),
    [("1.0.0", "model.int8.cpu.onnx"), ("1.999.0", "model.int8.onnx"), ("2.0.0", "model.int8.onnx")],
)
def test_a_copy_made_by_a_later_onnxruntime_is_passed_over(
    make_bundle: Callable[..., Bundle], version: str, path: str
) -> None:
    bundle = add_cpu_graph(make_bundle("int8"), version)
    assert path_run(bundle) == path
    assert path_run(bundle, precision="fp32") == "model.onnx"


def test_a_copy_that_cannot_be_loaded_is_replaced_with_a_warning(
    make_bundle: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = add_cpu_graph(make_bundle("int8"), "1.0.0", b"no graph")
    assert path_run(bundle) == "model.int8.onnx"
    assert "cannot load" in caplog.text
    assert "model.int8.onnx is taken instead" in caplog.text
    caplog.clear()
    with pytest.raises(BackendError, match="num_threads is 0"):
        create_backend(bundle, backend="cpu", num_threads=0)
    assert caplog.text == ""  # a wrong argument is no fault of the copy


def test_a_copy_is_checked_as_the_other_files_are(make_bundle: Callable[..., Bundle]) -> None:
    bundle = add_cpu_graph(make_bundle("int8"), "1.0.0")
    copy = bundle.path / "model.int8.cpu.onnx"
    content = bytearray(copy.read_bytes())
    content[-1000] ^= 1
    copy.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.int8\.cpu\.onnx .* is not the file"):
        Bundle.load(bundle.path)
    data = json.loads((bundle.path / "bundle.json").read_text())
    data["artifacts"][1]["cpu_graph"]["speed"] = 2
    (bundle.path / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="speed"):
        Bundle.load(bundle.path)
    del data["artifacts"][1]["cpu_graph"]["speed"]
    data["artifacts"][1]["cpu_graph"]["onnxruntime"] = "latest"
    (bundle.path / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="names onnxruntime 'latest'"):
        Bundle.load(bundle.path)
    copy.unlink()
    data["artifacts"][1]["cpu_graph"]["onnxruntime"] = "1.0.0"
    (bundle.path / "bundle.json").write_text(json.dumps(data))
    with pytest.raises(BundleError, match="is missing"):
        Bundle.load(bundle.path)


# --- auto ---


def test_auto_without_engines_touches_no_tensorrt(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, no_cuda_provider: None
) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "cuda"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would raise
    monkeypatch.delitem(sys.modules, "edge_asr.runtime.engine.backend")
    choice = choose_backend(make_bundle(), num_threads=1)
    assert choice.backend.name == "cpu"
    assert choice.backend.max_frames is None
    assert choice.reason.startswith(
        "auto chose cpu, fp32, 1 threads; not tensorrt: the bundle has no engine for it; "
    )
    assert "not cuda: backend 'cuda' needs CUDAExecutionProvider" in choice.reason
    assert "edge_asr.runtime.engine.backend" not in sys.modules


def test_fake_tensorrt_auto_takes_an_engine_that_fits(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = make_bundle()
    path = add_engine(bundle, gpu)
    with caplog.at_level(logging.INFO):
        choice = choose_backend(bundle)
    assert isinstance(choice.backend, TensorRTBackend)
    assert choice.reason == f"auto chose tensorrt, fp32, {path.relative_to(bundle.path)}"
    assert choice.backend.max_frames == 400
    assert choice.reason in caplog.text
    choice.backend.close()


def test_fake_tensorrt_auto_prefers_fp16_then_int8_and_what_was_proven(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("fp16", "int8")

    def chosen(**arguments: Any) -> str:
        backend = create_backend(bundle, **arguments)
        backend.close()
        return f"{backend.name} {backend.precision}"

    add_engine(bundle, gpu, "fp32")
    assert chosen() == "tensorrt fp32"
    add_engine(bundle, gpu, "int8")
    assert chosen() == "tensorrt int8"
    add_engine(bundle, gpu, "fp16", proof=None)
    assert chosen() == "tensorrt int8"
    assert chosen(allow_unverified=True) == "tensorrt int8"
    assert chosen(precision="fp16", allow_unverified=True) == "tensorrt fp16"
    add_engine(bundle, gpu, "fp16")
    assert chosen() == "tensorrt fp16"
    assert chosen(backend="tensorrt", precision="fp32") == "tensorrt fp32"


def test_fake_tensorrt_an_fp16_engine_runs_where_the_bundle_has_no_fp16_file(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = make_bundle()
    add_engine(bundle, gpu, "fp16", profiles=PROFILES)
    for wanted in ({}, {"precision": "fp16"}, {"backend": "tensorrt"}):
        backend = create_backend(bundle, **wanted)
        assert (backend.name, backend.precision) == ("tensorrt", "fp16")
        backend.close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_tested(bundle.path, precision="fp16").close()
    with pytest.raises(BundleError, match="no fp16 model"):
        create_backend(bundle, precision="fp16", backend="cpu")


@pytest.mark.parametrize("fault", ["other GPU", "unproven", "no tensorrt", "no GPU", "broken plan"])
def test_fake_tensorrt_auto_says_why_not_the_engine(
    gpu: FakeGpu,
    make_bundle: Callable[..., Bundle],
    monkeypatch: pytest.MonkeyPatch,
    no_cuda_provider: None,
    fault: str,
) -> None:
    bundle = make_bundle()
    add_engine(
        bundle,
        gpu,
        device={"gpu_name": "Thor"} if fault == "other GPU" else {},
        proof=None if fault == "unproven" else {"passed": True},
    )
    why = {
        "other GPU": "gpu_name is Thor, here Orin",
        "unproven": "was never compared with its model",
        "no tensorrt": "tensorrt is needed here and is not installed",
        "no GPU": "CUDA_ERROR_NO_DEVICE",
        "broken plan": "TensorRT refuses the plan: magicTag is wrong",
    }[fault]
    if fault == "no tensorrt":
        monkeypatch.delitem(sys.modules, "tensorrt")
        monkeypatch.setattr(sys, "meta_path", [_Absent("tensorrt"), *sys.meta_path])
    elif fault == "no GPU":
        gpu.devices = 0
    elif fault == "broken plan":
        gpu.fail("deserialize")
    choice = choose_backend(bundle, num_threads=1)
    assert choice.backend.name == "cpu"
    assert "; not tensorrt: " in choice.reason
    assert why in choice.reason
    choice.backend.close()
    # By name it is an error that says the same, never another backend.
    if fault == "broken plan":
        gpu.fail("deserialize")
    with pytest.raises((EngineError, BackendError, MissingDependencyError), match=why):
        create_backend(bundle, backend="tensorrt")


class _Absent:
    """An importer that knows a module is not installed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_wrong_precision_is_an_error_also_for_auto(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    with pytest.raises(BundleError, match="no fp16 model"):
        choose_backend(bundle, precision="fp16")
    with pytest.raises(BackendError, match="'fp8' is unknown"):
        choose_backend(bundle, precision="fp8")


# --- by name ---


def test_an_unknown_name_lists_the_known(make_bundle: Callable[..., Bundle]) -> None:
    with pytest.raises(
        BackendError, match="'openvino' is unknown; use one of auto, tensorrt, tensorrt-rtx, cuda, cpu"
    ):
        create_backend(make_bundle(), backend="openvino")


def test_fake_tensorrt_rtx_only_by_name(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, no_cuda_provider: None
) -> None:
    gpu = FakeGpu("rtx").install(monkeypatch)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    bundle = make_bundle()
    add_engine(bundle, gpu, profiles=PROFILES)
    choice = choose_backend(bundle, num_threads=1)
    assert choice.backend.name == "cpu"
    assert "not tensorrt: the bundle has no engine for it;" in choice.reason
    with create_recognizer(bundle, backend="tensorrt-rtx") as recognizer:
        assert recognizer.backend.name == "tensorrt-rtx"
        assert recognizer.backend_reason.startswith("tensorrt-rtx, fp32, engines/tensorrt-rtx-1.7.1.116-orin")


def test_tensorrt_by_name_without_an_engine_names_the_command(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle("fp16")
    with pytest.raises(EngineError, match="has no fp16 engine; build one with: edge-asr build"):
        create_backend(bundle, backend="tensorrt")


def test_tensorrt_by_name_where_it_is_not_installed(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [_Absent("tensorrt"), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edge-asr\[tensorrt-cu13\]'"):
        create_backend(make_bundle(), backend="tensorrt")


def test_a_fake_jetson_is_sent_to_engines_not_to_the_gpu_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(onnxruntime_backend, "_PROVIDERS", {"cuda": "NoSuchExecutionProvider"})
    for name in ("JETSON_RELEASE", "DEVICE_TREE"):
        monkeypatch.setattr(onnxruntime_backend, name, tmp_path / name)
    with pytest.raises(BackendError, match=r"pip install 'edge-asr\[gpu\]'"):
        onnxruntime_backend.check_device("cuda")
    (tmp_path / "DEVICE_TREE").write_bytes(b"nvidia,p3768-0000\0nvidia,tegra234\0")
    with pytest.raises(BackendError, match="kernels for a Jetson's GPU: build a TensorRT engine") as caught:
        onnxruntime_backend.check_device("cuda")
    assert "edge-asr[gpu]" not in str(caught.value)


@pytest.mark.parametrize("num_threads", [0, 1025, 100_000, True, 1.5])
def test_a_number_of_threads_that_cannot_be_meant(
    make_bundle: Callable[..., Bundle], num_threads: Any
) -> None:
    with pytest.raises(BackendError, match="give a whole number from 1 to 1024, or None"):
        create_backend(make_bundle(), backend="cpu", num_threads=num_threads)


def test_the_command_line_offers_the_same_names() -> None:
    @click.command()
    @options.recognizer_options
    def command(**_: Any) -> None: ...

    (backend,) = (parameter for parameter in command.params if parameter.name == "backend")
    assert tuple(backend.type.choices) == backends.BACKENDS  # type: ignore[attr-defined]
    (threads,) = (parameter for parameter in command.params if parameter.name == "num_threads")
    assert threads.type.max == onnxruntime_backend.MAX_THREADS  # type: ignore[attr-defined]


# --- the recognizer ---


def create_recognizer(bundle: Bundle, **arguments: Any) -> Recognizer:
    return Recognizer.load(bundle.path, **arguments)


def test_fake_tensorrt_a_recognizer_gives_the_text_of_the_cpu(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle], sample_path: Path
) -> None:
    """The embedded sample three times over (longer than a window), and a batch of its pieces."""
    bundle = make_bundle()
    add_engine(bundle, gpu, profiles=PROFILES)
    samples, rate = soundfile.read(sample_path, dtype="float32")
    long = np.tile(samples, 3)
    clips = [(samples[: rate * n], rate) for n in (1, 2, 3)] + [(samples[:80], rate)]
    with (
        create_recognizer(bundle, backend="cpu", num_threads=1) as cpu,
        create_recognizer(bundle, backend="tensorrt") as engine,
    ):
        assert engine.windows == cpu.windows
        assert engine.transcribe(long, rate).text == cpu.transcribe(long, rate).text != ""
        expected = [transcript.text for transcript in cpu.transcribe_batch(clips)]
        assert [transcript.text for transcript in engine.transcribe_batch(clips)] == expected
    gpu.assert_all_released()


def test_default_windows_fit_the_default_profiles(gpu: FakeGpu, make_bundle: Callable[..., Bundle]) -> None:
    from edge_asr.export.engine.profiles import DEFAULT_PROFILE_SECONDS

    with create_recognizer(make_bundle(), backend="cpu", num_threads=1) as recognizer:
        assert recognizer.windows.window_frames * 0.01 <= DEFAULT_PROFILE_SECONDS[-1]


def test_fake_tensorrt_windows_shrink_to_a_short_engine(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle], sample_path: Path
) -> None:
    bundle = make_bundle()
    add_engine(bundle, gpu, profiles=PROFILES[:2])
    samples, rate = soundfile.read(sample_path, dtype="float32")
    with create_recognizer(bundle, backend="tensorrt") as recognizer:
        assert (recognizer.windows.window_frames, recognizer.windows.overlap_frames) == (800, 400)
        assert recognizer.transcribe(np.tile(samples, 2), rate).text


def test_fake_tensorrt_an_engine_too_short_for_windows(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    add_engine(bundle, gpu, profiles=PROFILES[:1])
    told = r"takes at most 200 feature frames, 800 are needed; .* edge-asr build .* --force"
    with pytest.raises(EngineError, match=told):
        create_recognizer(bundle, backend="tensorrt")
    gpu.assert_all_released()
    with create_recognizer(bundle, num_threads=1) as recognizer:
        assert "at most 200 feature frames" in recognizer.backend_reason
        assert recognizer.backend.name != "tensorrt"


def test_fake_tensorrt_allow_unverified_reaches_the_engine(
    gpu: FakeGpu, make_bundle: Callable[..., Bundle]
) -> None:
    bundle = make_bundle()
    add_engine(bundle, gpu, profiles=PROFILES, proof=None)
    with pytest.raises(EngineError, match="was never compared"):
        create_recognizer(bundle, backend="tensorrt")
    with create_recognizer(bundle, backend="tensorrt", allow_unverified=True) as recognizer:
        assert recognizer.backend.name == "tensorrt"
