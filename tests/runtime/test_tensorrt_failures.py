"""The TensorRT backend when things fail, and when they end: errors, refusals, release.

On a fake TensorRT and a fake GPU (fake_tensorrt.py); no real engine runs here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_bundles import F32Array, add_engine, assert_agrees, batch, copy_bundle
from fake_tensorrt import FakeGpu

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError, DeviceError, EngineError
from edge_asr.runtime.engine import cuda, lookup
from edge_asr.runtime.engine.backend import TensorRTBackend
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return copy_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def reference() -> Iterator[Callable[[F32Array, list[int]], F32Array]]:
    bundle = Bundle.load("tiny-en")
    backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    yield lambda features, lens: backend.log_probs(features, np.array(lens, np.int64))
    backend.close()


# --- release ---


def test_fake_tensorrt_close_twice_and_after(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    for _ in range(3):
        assert_agrees(backend, reference, [60])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    gpu.assert_all_released()


def test_fake_tensorrt_a_forgotten_backend_is_released(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    assert_agrees(backend, reference, [60])
    del backend
    gpu.assert_all_released()


def test_fake_tensorrt_release_goes_on_after_a_failure(
    gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    gpu.fail("cuMemFree", after=1)
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in caplog.text
    gpu.assert_all_released()


LOADING = [
    "cuStreamCreate",
    "create runtime",
    "deserialize",
    "cuMemAlloc",
    "cuMemHostAlloc",
    "create context",
    "set profile",
    "set shape",
    "set address",
    "cuStreamSynchronize",
]


@pytest.mark.parametrize("call", LOADING)
def test_fake_tensorrt_a_failed_load_leaves_nothing(gpu: FakeGpu, bundle: Bundle, call: str) -> None:
    """Each call of the load fails in turn, at its first, second, ... time."""
    add_engine(bundle, gpu)
    TensorRTBackend(bundle, "fp32").close()
    n_calls = gpu.calls.count(call)
    assert n_calls >= 1
    for n_before in range(n_calls):
        gpu.fail(call, after=n_before)
        with pytest.raises(
            BackendError, match=r"TensorRT refuses|cannot create|cannot start|cannot run here"
        ):
            TensorRTBackend(bundle, "fp32")
        gpu.assert_all_released()


# --- failures of a run ---


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("execute", "enqueue went wrong"),
        ("set shape", "shape out of range"),
        ("copy to device", "cuMemcpyHtoDAsync_v2: .*CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("copy to host", "cuMemcpyDtoHAsync_v2: .*CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuStreamSynchronize", "cuStreamSynchronize: .*CUDA_ERROR_ILLEGAL_ADDRESS"),
    ],
)
def test_fake_tensorrt_a_failed_run(
    gpu: FakeGpu, bundle: Bundle, reference: Any, call: str, told: str
) -> None:
    """It is an error that says why, and nothing of it is left in the next run."""
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    gpu.fail(call)
    with pytest.raises(BackendError, match=told):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    backend.warm_up([60])
    for seed in range(3):
        assert_agrees(backend, reference, [60], seed=seed)
    gpu.fail("cuGraphLaunch")
    with pytest.raises(BackendError, match="cuGraphLaunch"):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    backend.close()


@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("create context", 0),
        ("set profile", 0),
        ("cuStreamBeginCapture", 0),
        ("execute", 2),  # the one that is recorded
        ("copy to host", 2),
        ("cuStreamEndCapture", 0),
        ("cuGraphInstantiate", 0),
    ],
)
def test_fake_tensorrt_goes_on_without_graphs(
    gpu: FakeGpu, bundle: Bundle, reference: Any, caplog: pytest.LogCaptureFixture, call: str, after: int
) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    assert_agrees(backend, reference, [60])
    gpu.fail(call, after=after)
    for seed in range(3):
        backend.warm_up([60])
        assert_agrees(backend, reference, [60], seed=seed)
    assert "cuGraphLaunch" not in gpu.calls
    assert caplog.text.count("continuing without CUDA graphs") == 1
    backend.close()
    gpu.assert_all_released()


# --- what is refused ---


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        ({"profiles": ((10, 100, 100, 1, 1, 4), (100, 400, 401, 1, 1, 4))}, "profile 1 .*max_frames=401"),
        ({"profiles": ((10, 100, 100, 1, 1, 4),)}, "has 1 profiles, its sidecar 2"),
        ({"dtypes": {"logprobs": "HALF"}}, "logprobs of HALF"),
        ({"output": "logits"}, "tensor logits"),
        ({"n_mels": 64}, r"of shape \[-1, 64, -1\], the bundle gives \[-1, 80, -1\]"),
    ],
)
def test_fake_tensorrt_a_plan_that_is_not_what_its_sidecar_says(
    gpu: FakeGpu, bundle: Bundle, plan: dict[str, Any], told: str
) -> None:
    add_engine(bundle, gpu, plan=plan)
    with pytest.raises(EngineError, match=told):
        TensorRTBackend(bundle, "fp32")
    gpu.assert_all_released()


@pytest.mark.parametrize(
    ("proof", "why"), [(None, "was never compared"), ({"passed": False}, "failed its proof")]
)
def test_fake_tensorrt_unproven_engines(gpu: FakeGpu, bundle: Bundle, proof: Any, why: str) -> None:
    add_engine(bundle, gpu, proof=proof)
    with pytest.raises(EngineError, match=f"{why}.*edge-asr build .* --precision fp32 --force"):
        TensorRTBackend(bundle, "fp32")
    TensorRTBackend(bundle, "fp32", allow_unverified=True).close()


def test_fake_tensorrt_an_engine_that_another_machine_built(
    gpu: FakeGpu, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded one has no seal or another machine's; and what a seal covers cannot be changed."""
    for sealed in (False, True):
        path = add_engine(bundle, gpu, sealed=sealed)
        if sealed:
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
        with pytest.raises(EngineError) as caught:
            TensorRTBackend(bundle, "fp32")
        assert str(caught.value) == (
            f"the engine {path} is a native program that was not built by you on this machine; build it on "
            f"this device with: edge-asr build {bundle.path} --precision fp32 --force, "
            "or pass --allow-unverified (allow_unverified=True) to run it anyway"
        )
        TensorRTBackend(bundle, "fp32", allow_unverified=True).close()
    path = add_engine(bundle, gpu)  # sealed by the other machine
    TensorRTBackend(bundle, "fp32").close()
    sidecar = path.with_suffix(".json")
    sidecar.write_text(sidecar.read_text().replace('"build_time_s": 1.5', '"build_time_s": 1.6'))
    with pytest.raises(EngineError, match="was not built by you on this machine"):
        TensorRTBackend(bundle, "fp32")


def test_fake_tensorrt_the_plan_that_was_hashed_is_the_one_that_runs(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, so a plan that is swapped after the check does not run."""
    path = add_engine(bundle, gpu)
    read = lookup._read_plan

    def swap(plan_path: Path, sidecar: EngineSidecar) -> bytes | str:
        content = read(plan_path, sidecar)
        path.write_bytes(b"another program")
        return content

    monkeypatch.setattr(lookup, "_read_plan", swap)
    TensorRTBackend(bundle, "fp32").close()
    with pytest.raises(EngineError, match="plan_size_bytes"):
        TensorRTBackend(bundle, "fp32")


def test_fake_tensorrt_an_engine_given_by_its_path(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    """As the builder does before the engine has its place; it is checked like any other."""
    path = add_engine(bundle, gpu, proof=None)
    hidden = path.parent.rename(path.parent.with_name(".under-way")) / path.name
    sidecar = EngineSidecar.read(hidden.with_suffix(".json"))
    backend = TensorRTBackend(bundle, "fp32", engine=(hidden, sidecar), allow_unverified=True)
    assert_agrees(backend, reference, [60])
    backend.close()
    with pytest.raises(EngineError, match="has no fp32 engine"):
        TensorRTBackend(bundle, "fp32", allow_unverified=True)
    hidden.write_bytes(hidden.read_bytes() + b" ")
    with pytest.raises(EngineError, match="plan_size_bytes"):
        TensorRTBackend(bundle, "fp32", engine=(hidden, sidecar), allow_unverified=True)


def test_fake_tensorrt_without_a_gpu(gpu: FakeGpu, bundle: Bundle) -> None:
    add_engine(bundle, gpu)
    gpu.devices = 0
    with pytest.raises(BackendError, match=r"'tensorrt' cannot run here: .*CUDA_ERROR_NO_DEVICE.*doctor"):
        TensorRTBackend(bundle, "fp32")


def test_fake_tensorrt_without_a_driver(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_engine(bundle, gpu)

    def no_libcuda() -> None:
        raise DeviceError("the CUDA driver's library does not load")

    monkeypatch.setattr(cuda, "load_driver", no_libcuda)
    with pytest.raises(BackendError, match="cannot run here: the CUDA driver's library does not load"):
        TensorRTBackend(bundle, "fp32")
