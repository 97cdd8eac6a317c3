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
from edge_asr.runtime.engine import cuda
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
        ("execute", 1),  # the one that is recorded
        ("copy to host", 1),
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
        ({"n_mels": 64}, "takes 64 feature channels, the bundle gives 80"),
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
