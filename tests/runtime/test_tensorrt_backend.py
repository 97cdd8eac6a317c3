"""The TensorRT backend on a fake TensorRT and a fake GPU (fake_tensorrt.py): no real engine runs here.

The fake computes true answers with onnxruntime from its "device" memory, so the numbers that come back are
compared with `OnnxRuntimeBackend` on the unpadded batch. Failures and release: test_tensorrt_failures.py.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from engine_bundles import F32Array, add_engine, assert_agrees, batch, copy_bundle
from fake_cuda import OTHER_CONTEXT
from fake_tensorrt import FakeGpu

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError, EngineError
from edge_asr.runtime.engine import runner as tensorrt_engine
from edge_asr.runtime.engine.backend import TensorRTBackend, bucket_frames, choose_profile
from edge_asr.runtime.engine.sidecar import EngineProfile
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


SHAPES = [[1], [4], [9], [10], [99], [100], [101], [399], [400], [57, 12, 3], [130, 128, 1, 90], [33] * 9]


@pytest.mark.parametrize("graphs", [True, False])
def test_fake_tensorrt_gives_the_numbers_of_onnxruntime(
    gpu: FakeGpu, bundle: Bundle, reference: Any, graphs: bool
) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32", use_cuda_graphs=graphs)
    assert (backend.name, backend.precision, backend.max_frames) == ("tensorrt", "fp32", 400)
    for repeat in range(3):  # an ordinary run, the recorded one, a launch
        for lens in SHAPES:
            assert_agrees(backend, reference, lens, seed=repeat)
    assert_agrees(backend, reference, [5], n_frames=64)  # padded by the caller
    assert ("cuGraphLaunch" in gpu.calls) is graphs
    backend.close()
    gpu.assert_all_released()


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("style", ["8.6", "11", "rtx"])
def test_fake_tensorrt_of_other_versions(
    style: str, graphs: bool, bundle: Bundle, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.6: int32 lengths, other names; 11: without the old names; RTX: records by itself."""
    gpu = FakeGpu(style).install(monkeypatch)
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32", flavor=gpu.flavor, use_cuda_graphs=graphs)  # type: ignore[arg-type]
    for repeat in range(3):
        for lens in ([7], [101, 64]):
            assert_agrees(backend, reference, lens, seed=repeat)
    assert ("cuGraphLaunch" in gpu.calls) is (graphs and style != "rtx")
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_pads_up_to_the_smallest_batch(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu, profiles=((10, 64, 128, 2, 3, 3),))
    with_three_rows = TensorRTBackend(bundle, "fp32")
    for lens in ([70], [70, 3], [128, 1, 99], [50] * 4, [50] * 5):
        assert_agrees(with_three_rows, reference, lens)
    with_three_rows.close()


def test_fake_tensorrt_call_order(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    """Copies before and after on the same stream; the second run is recorded, the third is one launch."""
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    run = ["set shape", "set shape", "copy to device", "copy to device", "execute", "copy to host"]
    wait = ["cuStreamSynchronize"]
    context = ["create context", "set profile", *wait, "set address", "set address", "set address"]
    record = ["cuStreamBeginCapture", *run[2:], "cuStreamEndCapture", "cuGraphInstantiate"]
    for expected in (run + wait, context + run + wait + record, ["cuGraphLaunch", *wait]):
        gpu.calls.clear()
        assert_agrees(backend, reference, [60])
        assert gpu.calls == expected
    gpu.calls.clear()
    assert_agrees(backend, reference, [58], seed=1)  # the bucket of 60: 64 frames
    assert gpu.calls == ["cuGraphLaunch", *wait]
    backend.close()


def test_fake_tensorrt_allocates_once(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu)
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
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    for n_frames in (16, 24, 32, 16):  # the last makes 16 the one used latest
        assert_agrees(backend, reference, [n_frames])
        assert_agrees(backend, reference, [n_frames])
    assert len(gpu.graphs) == 2
    gpu.calls.clear()
    for n_frames in (32, 16):
        assert_agrees(backend, reference, [n_frames])
    assert gpu.calls.count("cuGraphLaunch") == 2
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_more_frames_than_any_profile(gpu: FakeGpu, bundle: Bundle) -> None:
    add_engine(bundle, gpu)
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
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    with pytest.raises(BackendError, match=told):
        backend.log_probs(np.zeros(shape, np.float32), np.array(lens, np.int64))
    backend.close()


def test_fake_tensorrt_threads_share_a_backend(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu)
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
    """Also in a thread that has none; the fake asserts the rest."""
    gpu.devices = 2
    gpu.contexts.append(OTHER_CONTEXT)  # as a program that uses its second GPU
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    assert_agrees(backend, reference, [20])
    assert gpu.contexts == [OTHER_CONTEXT]
    with ThreadPoolExecutor(1) as fresh:
        for _ in range(2):
            fresh.submit(assert_agrees, backend, reference, [20]).result()
        assert fresh.submit(lambda: gpu.contexts).result() == []
        fresh.submit(backend.close).result()
    gpu.assert_all_released()


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
