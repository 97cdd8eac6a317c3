"""The TensorRT backend on a fake TensorRT and a fake GPU (fake_tensorrt.py): no real engine runs here.

The fake computes true answers with onnxruntime from its "device" memory, so the numbers that come back are
compared with `OnnxRuntimeBackend` on the unpadded batch. Tolerance: 1e-4, the export's own bar, for padding
changes rounding only.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import fake_tensorrt as fake
from fake_tensorrt import FakeGpu

from edge_asr.bundle import Bundle
from edge_asr.errors import BackendError, EngineError, MissingDependencyError
from edge_asr.runtime import tensorrt_engine
from edge_asr.runtime.backends import OnnxRuntimeBackend
from edge_asr.runtime.cuda import Cuda
from edge_asr.runtime.engines import EngineProfile, EngineSidecar, find_engine
from edge_asr.runtime.tensorrt_backend import (
    TensorRTBackend,
    bucket_frames,
    choose_profile,
)

F32Array = npt.NDArray[np.float32]
TOLERANCE = 1e-4


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fake.copy_bundle(tmp_path / "bundle")


@pytest.fixture(scope="module")
def reference() -> Iterator[Callable[[F32Array, list[int]], F32Array]]:
    bundle = Bundle.load("tiny-en")
    backend = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", num_threads=1)
    yield lambda features, lens: backend.log_probs(features, np.array(lens, np.int64))
    backend.close()


def batch(lens: list[int], n_frames: int | None = None, seed: int = 0) -> F32Array:
    """Log-mel-like noise [B, T, 80]; what lies behind a row's length is loud, so a leak would show."""
    n_frames = max(lens) if n_frames is None else n_frames
    features = np.random.default_rng(seed).normal(-8, 3, (len(lens), n_frames, 80)).astype(np.float32)
    for row, length in zip(features, lens, strict=True):
        row[length:] = 7.0
    return features


def assert_agrees(
    backend: TensorRTBackend, reference: Any, lens: list[int], n_frames: int | None = None, seed: int = 0
) -> None:
    features = batch(lens, n_frames, seed)
    expected = reference(features, lens)
    got = backend.log_probs(features, np.array(lens, np.int64))
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    for row, (length, a, b) in enumerate(zip(lens, got, expected, strict=True)):
        n_valid = -(-length // 4)
        np.testing.assert_allclose(a[:n_valid], b[:n_valid], atol=TOLERANCE, err_msg=f"row {row} of {lens}")


SHAPES = [[1], [4], [9], [10], [99], [100], [101], [399], [400], [57, 12, 3], [130, 128, 1, 90], [33] * 9]


@pytest.mark.parametrize("graphs", [True, False])
def test_fake_tensorrt_gives_the_numbers_of_onnxruntime(
    gpu: FakeGpu, bundle: Bundle, reference: Any, graphs: bool
) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32", use_cuda_graphs=graphs)
    assert (backend.name, backend.precision, backend.max_frames) == ("tensorrt", "fp32", 400)
    for repeat in range(3):  # an ordinary run, the recorded one, a launch
        for lens in SHAPES:
            assert_agrees(backend, reference, lens, seed=repeat)
    assert_agrees(backend, reference, [5], n_frames=64)  # padded by the caller
    assert ("cudaGraphLaunch" in gpu.calls) is graphs
    backend.close()
    gpu.assert_all_released()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("style", ["8.6", "11", "rtx"])
def test_fake_tensorrt_of_other_versions(
    style: str, graphs: bool, bundle: Bundle, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.6: int32 lengths, other names; 11: without the old names; RTX: records by itself."""
    gpu = FakeGpu(style).install(monkeypatch)
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32", flavor=gpu.flavor, use_cuda_graphs=graphs)  # type: ignore[arg-type]
    for repeat in range(3):
        for lens in ([7], [101, 64]):
            assert_agrees(backend, reference, lens, seed=repeat)
    assert ("cudaGraphLaunch" in gpu.calls) is (graphs and style != "rtx")
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_pads_up_to_the_smallest_batch(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    fake.add_engine(bundle, gpu, profiles=((10, 64, 128, 2, 3, 3),))
    with_three_rows = TensorRTBackend(bundle, "fp32")
    for lens in ([70], [70, 3], [128, 1, 99], [50] * 4, [50] * 5):
        assert_agrees(with_three_rows, reference, lens)
    with_three_rows.close()


def test_fake_tensorrt_call_order(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    """Copies before and after on the same stream; the second run is recorded, the third is one launch."""
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    run = ["set shape", "set shape", "copy to device", "copy to device", "execute", "copy to host"]
    wait = ["cudaStreamSynchronize"]
    context = ["create context", "set profile", *wait, "set address", "set address", "set address"]
    record = ["cudaStreamBeginCapture", *run[2:], "cudaStreamEndCapture", "cudaGraphInstantiate"]
    for expected in (run + wait, context + run + wait + record, ["cudaGraphLaunch", *wait]):
        gpu.calls.clear()
        assert_agrees(backend, reference, [60])
        assert gpu.calls == expected
    gpu.calls.clear()
    assert_agrees(backend, reference, [58], seed=1)  # the bucket of 60: 64 frames
    assert gpu.calls == ["cudaGraphLaunch", *wait]
    backend.close()


def test_fake_tensorrt_allocates_once(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    before = sorted((address, kind, size) for address, (kind, size, _) in gpu.memory.items())
    kinds = [kind for _, kind, _ in before]
    assert (kinds.count("device"), kinds.count("pinned")) == (4, 3)  # activations; both inputs, the output
    for lens in SHAPES:
        assert_agrees(backend, reference, lens)
    assert before == sorted((address, kind, size) for address, (kind, size, _) in gpu.memory.items())
    backend.close()


def test_fake_tensorrt_keeps_the_latest_graphs(
    gpu: FakeGpu, bundle: Bundle, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "MAX_CUDA_GRAPHS", 2)
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    for n_frames in (16, 24, 32, 16):  # the last makes 16 the one used latest
        assert_agrees(backend, reference, [n_frames])
        assert_agrees(backend, reference, [n_frames])
    assert len(gpu.graphs) == 2
    gpu.calls.clear()
    for n_frames in (32, 16):
        assert_agrees(backend, reference, [n_frames])
    assert gpu.calls.count("cudaGraphLaunch") == 2
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_more_frames_than_any_profile(gpu: FakeGpu, bundle: Bundle) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    with pytest.raises(EngineError) as caught:
        backend.log_probs(batch([401]), np.array([401], np.int64))
    message = str(caught.value)
    assert "401 feature frames (4.01 s)" in message
    assert "10 to 100, 100 to 400" in message
    command = f"edge-asr build {bundle.path} --precision fp32 --force --profile-seconds 0.1,1,4,4.01"
    assert message.endswith(command)
    backend.close()


@pytest.mark.parametrize(
    ("shape", "lens", "told"),
    [
        ((1, 8, 79), [8], r"\[1, 8, 79\]"),
        ((8, 80), [8], r"\[8, 80\]"),
        ((1, 0, 80), [0], r"\[1, 0, 80\]"),
        ((2, 8, 80), [8], r"feature_lens is \[8\]"),
        ((1, 8, 80), [9], "from 1 to 8"),
        ((1, 8, 80), [0], "from 1 to 8"),
    ],
)
def test_fake_tensorrt_wrong_inputs(
    gpu: FakeGpu, bundle: Bundle, shape: tuple[int, ...], lens: list[int], told: str
) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    with pytest.raises(BackendError, match=told):
        backend.log_probs(np.zeros(shape, np.float32), np.array(lens, np.int64))
    backend.close()


def test_fake_tensorrt_threads_share_a_backend(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    shapes = [[n] for n in (20, 21, 64, 110, 20, 300)] * 3 + [[40, 30], [90] * 6]
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        start.wait()
        for lens in np.random.default_rng(seed).permutation(np.array(shapes, dtype=object)):
            assert_agrees(backend, reference, list(lens), seed=seed)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_uses_and_restores_the_current_device(
    gpu: FakeGpu, bundle: Bundle, reference: Any
) -> None:
    gpu.devices, gpu.current_device = 2, 1
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    gpu.calls.clear()
    assert_agrees(backend, reference, [20])
    assert gpu.current_device == 1
    assert (gpu.calls[0], gpu.calls[-1]) == ("cudaSetDevice 0", "cudaSetDevice 1")
    backend.close()


# --- release ---


def test_fake_tensorrt_close_twice_and_after(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    for _ in range(3):
        assert_agrees(backend, reference, [60])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    gpu.assert_all_released()


def test_fake_tensorrt_a_forgotten_backend_is_released(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    assert_agrees(backend, reference, [60])
    del backend
    gpu.assert_all_released()


def test_fake_tensorrt_release_goes_on_after_a_failure(
    gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    gpu.fail("cudaFree", after=1)
    with caplog.at_level(logging.WARNING):
        backend.close()
    assert "cudaErrorIllegalAddress" in caplog.text
    gpu.assert_all_released()


LOADING = [
    "cudaStreamCreateWithFlags",
    "deserialize",
    "cudaMalloc",
    "cudaHostAlloc",
    "create context",
    "set profile",
    "set shape",
    "set address",
    "cudaStreamSynchronize",
]


@pytest.mark.parametrize("call", LOADING)
def test_fake_tensorrt_a_failed_load_leaves_nothing(gpu: FakeGpu, bundle: Bundle, call: str) -> None:
    """Each call of the load fails in turn, at its first, second, ... time."""
    fake.add_engine(bundle, gpu)
    TensorRTBackend(bundle, "fp32").close()
    n_calls = gpu.calls.count(call)
    assert n_calls >= 1
    for n_before in range(n_calls):
        gpu.fail(call, after=n_before)
        with pytest.raises(BackendError, match=r"TensorRT refuses|cannot create|cannot run here"):
            TensorRTBackend(bundle, "fp32")
        gpu.assert_all_released()


# --- failures of a run ---


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("execute", "enqueue went wrong"),
        ("set shape", "shape out of range"),
        ("copy to device", "cudaMemcpyAsync: .*cudaErrorIllegalAddress"),
        ("copy to host", "cudaMemcpyAsync: .*cudaErrorIllegalAddress"),
        ("cudaStreamSynchronize", "cudaStreamSynchronize: .*cudaErrorIllegalAddress"),
    ],
)
def test_fake_tensorrt_a_failed_run(
    gpu: FakeGpu, bundle: Bundle, reference: Any, call: str, told: str
) -> None:
    """It is an error that says why, and nothing of it is left in the next run."""
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    gpu.fail(call)
    with pytest.raises(BackendError, match=told):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    for seed in range(3):
        assert_agrees(backend, reference, [60], seed=seed)
    gpu.fail("cudaGraphLaunch")
    with pytest.raises(BackendError, match="cudaGraphLaunch"):
        backend.log_probs(batch([60]), np.array([60], np.int64))
    backend.close()


@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("create context", 0),
        ("set profile", 0),
        ("cudaStreamBeginCapture", 0),
        ("execute", 1),  # the one that is recorded
        ("copy to host", 1),
        ("cudaStreamEndCapture", 0),
        ("cudaGraphInstantiate", 0),
    ],
)
def test_fake_tensorrt_goes_on_without_graphs(
    gpu: FakeGpu, bundle: Bundle, reference: Any, caplog: pytest.LogCaptureFixture, call: str, after: int
) -> None:
    fake.add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    assert_agrees(backend, reference, [60])
    gpu.fail(call, after=after)
    for seed in range(3):
        assert_agrees(backend, reference, [60], seed=seed)
    assert "cudaGraphLaunch" not in gpu.calls
    assert caplog.text.count("going on without CUDA graphs") == 1
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
    fake.add_engine(bundle, gpu, plan=plan)
    with pytest.raises(EngineError, match=told):
        TensorRTBackend(bundle, "fp32")
    gpu.assert_all_released()


@pytest.mark.parametrize(
    ("proof", "why"), [(None, "was never compared"), ({"passed": False}, "failed its proof")]
)
def test_fake_tensorrt_unproven_engines(gpu: FakeGpu, bundle: Bundle, proof: Any, why: str) -> None:
    fake.add_engine(bundle, gpu, proof=proof)
    with pytest.raises(EngineError, match=f"{why}.*edge-asr build .* --precision fp32 --force"):
        TensorRTBackend(bundle, "fp32")
    TensorRTBackend(bundle, "fp32", allow_unverified=True).close()


def test_fake_tensorrt_an_engine_given_by_its_path(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    """As the builder does before the engine has its place; it is checked like any other."""
    path = fake.add_engine(bundle, gpu, proof=None)
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
    fake.add_engine(bundle, gpu)
    gpu.devices = 0
    with pytest.raises(BackendError, match=r"'tensorrt' cannot run here: .*cudaErrorNoDevice.*doctor"):
        TensorRTBackend(bundle, "fp32")


def test_fake_tensorrt_without_cuda_bindings(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.add_engine(bundle, gpu)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError, match=r"edge-asr\[tensorrt\]"):
        TensorRTBackend(bundle, "fp32")


# --- shapes ---


@given(st.integers(1, 100_000))
def test_buckets_are_near_and_few(n_frames: int) -> None:
    bucket = bucket_frames(n_frames)
    assert n_frames <= bucket < max(n_frames * 9 / 8, n_frames + 8)
    assert bucket_frames(bucket) == bucket


def test_there_are_few_buckets_below_30_s() -> None:
    assert len({bucket_frames(n) for n in range(1, 3001)}) <= 8 + 8 * 6


@st.composite
def profile_lists(draw: st.DrawFn) -> tuple[EngineProfile, ...]:
    profiles = []
    for _ in range(draw(st.integers(1, 5))):
        frames = sorted(draw(st.lists(st.integers(1, 60), min_size=3, max_size=3)))
        rows = sorted(draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)))
        values = dict(zip(("min_frames", "opt_frames", "max_frames"), frames, strict=True))
        values |= dict(zip(("min_batch", "opt_batch", "max_batch"), rows, strict=True))
        profiles.append(EngineProfile(**values))
    return tuple(profiles)


@given(profile_lists(), st.integers(1, 70), st.integers(1, 12))
def test_the_smallest_profile_that_is_enough(
    profiles: tuple[EngineProfile, ...], n_frames: int, n_rows: int
) -> None:
    index = choose_profile(profiles, n_frames, n_rows)
    long_enough = [p for p in profiles if p.max_frames >= n_frames]
    if index is None:
        assert not long_enough
        return
    chosen = profiles[index]
    assert chosen.max_frames == min(p.max_frames for p in long_enough)
    same = [p.max_batch for p in long_enough if p.max_frames == chosen.max_frames]
    enough = [b for b in same if b >= n_rows]
    assert chosen.max_batch == (min(enough) if enough else max(same))


# --- the fake against the real thing ---


def _signature_arity(documented: str, name: str) -> set[int]:
    """Numbers of positional arguments, without self, in a pybind11 docstring."""
    found = re.findall(rf"\b{name}\(self: [^,)]*(.*?)\) -> ", documented)
    return {len(re.findall(r", \w+: ", arguments)) for arguments in found}


def test_the_fake_has_only_what_the_real_tensorrt_rtx_has() -> None:
    """What the backend calls on the fake exists, with as many arguments, in the installed module."""
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
    pairs = {
        fake.FakeRuntime: real.Runtime,
        fake.FakeLogger: real.ILogger,
        fake.FakeEngineRtx: real.ICudaEngine,
        fake.FakeContext: real.IExecutionContext,
        fake.FakeRuntimeConfig: real.IRuntimeConfig,
    }
    n_compared = 0
    for ours, theirs in pairs.items():
        for name, member in inspect.getmembers(ours):
            if name.startswith("_") or name == "constructed":
                continue
            assert hasattr(theirs, name), f"{theirs.__name__} has no {name}"
            if inspect.isfunction(member):
                arity = len(inspect.signature(member).parameters) - 1
                assert arity in _signature_arity(getattr(theirs, name).__doc__, name), name
                n_compared += 1
    assert n_compared >= 15
    for name in ("num_io_tensors", "num_optimization_profiles"):  # set in the fake's constructor
        assert hasattr(real.ICudaEngine, name)
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED.name == "USER_MANAGED"
    assert real.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE.name == "WHOLE_GRAPH_CAPTURE"
    assert {"FLOAT", "INT64", "INT32"} <= set(real.DataType.__members__)
    assert real.TensorLocation.DEVICE.name == "DEVICE"
    assert {s.name for s in fake.Severity} <= set(real.ILogger.Severity.__members__)


def test_the_fake_has_only_what_the_real_cuda_bindings_have() -> None:
    """Runs where cuda-bindings is installed; it needs no GPU."""
    pytest.importorskip("cuda.bindings", reason="needs cuda-bindings of the tensorrt extra")
    from cuda.bindings import driver, runtime

    for name in dir(fake.FakeCudaRuntime):
        assert not name.startswith("cuda") or hasattr(runtime, name), name
    for name in ("cuInit", "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"):
        assert hasattr(driver, name)


def test_rtx_runtime_on_cpu_execution_not_tested_a_plan_that_is_none(gpu: FakeGpu, bundle: Bundle) -> None:
    """The real deserialiser refuses; its reason comes through our logger into the error."""
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
    fake.add_engine(bundle, gpu)
    _, sidecar = find_engine(
        bundle,
        "fp32",
        flavor="tensorrt",
        tensorrt_version=gpu.version,
        device=EngineSidecar.read(next(bundle.path.glob("engines/*/*.json"))).device,
    )
    with pytest.raises(EngineError, match=r"refuses the plan: .*(?i:magicTag|serialization)"):
        tensorrt_engine.EngineRunner(
            b"not a plan" * 50, sidecar, trt=real, cuda=Cuda(), n_mels=80, use_cuda_graphs=True
        )
    gpu.assert_all_released()
