"""The TensorRT backend on a fake TensorRT and a fake GPU (fake_tensorrt.py): no real engine runs here.

The fake computes true answers with onnxruntime from its "device" memory, so the numbers that come back are
compared with `OnnxRuntimeBackend` on the unpadded batch. Failures and release: test_tensorrt_failures.py.
"""

from __future__ import annotations

import logging
import re
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

import fake_tensorrt
from engine_bundles import F32Array, add_engine, assert_agrees, batch, copy_bundle
from fake_cuda import OTHER_CONTEXT
from fake_tensorrt import WORKSPACE_BYTES, FakeGpu

from edge_asr.bundle.folder import Bundle
from edge_asr.errors import BackendError, EngineError
from edge_asr.export.engine.profiles import build_profiles
from edge_asr.frames import OutputFrames
from edge_asr.runtime.engine import runner as tensorrt_engine
from edge_asr.runtime.engine.backend import TensorRTBackend
from edge_asr.runtime.engine.shapes import choose_profile, grid_frames, grid_up_to
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
    for repeat in range(2):
        for lens in SHAPES:
            assert_agrees(backend, reference, lens, seed=repeat)
        assert "cuGraphLaunch" not in gpu.calls[: None if repeat == 0 else 0]  # nothing is recorded in a run
        backend.warm_up()
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
    for repeat in range(2):
        for lens in ([7], [101, 64]):
            assert_agrees(backend, reference, lens, seed=repeat)
        backend.warm_up([7], 1)
    assert ("cuGraphLaunch" in gpu.calls) is (graphs and style != "rtx")
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_rtx_keeps_the_kernels_that_it_compiled(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the user's cache, for they are programs; those of another GPU are compiled anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gpu = FakeGpu("rtx").install(monkeypatch)
    add_engine(bundle, gpu)
    path = None
    for kept, told in ((None, False), (b"compiled here", False), (b"compiled elsewhere", True)):
        if path is not None and kept is not None:
            path.write_bytes(kept)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            backend = TensorRTBackend(bundle, "fp32", flavor="tensorrt-rtx")
        assert ("compiling anew" in caplog.text) is told
        backend.log_probs(batch([60]), np.array([60], np.int64))
        backend.close()
        (path,) = (tmp_path / "cache" / "edge-asr" / "rtx").iterdir()
        assert path.read_bytes() == b"compiled here"
    gpu.assert_all_released()


def test_fake_tensorrt_pads_up_to_the_smallest_batch(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    add_engine(bundle, gpu, profiles=((10, 64, 128, 2, 3, 3),))
    with_three_rows = TensorRTBackend(bundle, "fp32")
    for lens in ([70], [70, 3], [128, 1, 99], [50] * 4, [50] * 5):
        assert_agrees(with_three_rows, reference, lens)
    with_three_rows.close()


def test_fake_tensorrt_call_order(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    """Copies before and after on the same stream; recording takes a context and two runs; then one launch."""
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    shape = ["set shape", "set shape"]
    run = ["copy to device", "copy to device", "execute", "copy to host"]
    wait = ["cuStreamSynchronize"]
    context = ["create context", "set profile", *wait, "set address", "set address", "set address"]
    record = ["cuStreamBeginCapture", *run, "cuStreamEndCapture", "cuGraphInstantiate"]
    for _ in range(2):
        gpu.calls.clear()
        assert_agrees(backend, reference, [60])
        assert gpu.calls == shape + run + wait
    gpu.calls.clear()
    backend.warm_up([60])
    assert gpu.calls == context + shape + run + wait + run + wait + record
    for length in (60, 58):  # 64 frames
        gpu.calls.clear()
        assert_agrees(backend, reference, [length], seed=1)
        assert gpu.calls == ["cuGraphLaunch", *wait]
    backend.close()


def test_fake_tensorrt_copies_nothing_on_one_memory(gpu: FakeGpu, bundle: Bundle, reference: Any) -> None:
    gpu.integrated = True
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    backend.warm_up([100])
    for lens in ([60], [100], [130, 128, 1, 90]):
        assert_agrees(backend, reference, lens)
    assert not [call for call in gpu.calls if call.startswith("copy")]
    assert gpu.events  # and its few cores are left to others while it computes
    kinds = [kind for kind, _, _ in gpu.memory.values()]
    assert (kinds.count("device"), kinds.count("pinned")) == (2, 6)  # of two profiles: activations; tensors
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_a_profile_takes_memory_once_it_is_used(
    gpu: FakeGpu, bundle: Bundle, reference: Any
) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")

    def count() -> tuple[int, int]:
        kinds = [kind for kind, _, _ in gpu.memory.values()]
        return kinds.count("device"), kinds.count("pinned")

    for lens in ([1], [100], [9, 40, 3, 4]):
        assert_agrees(backend, reference, lens)
        assert count() == (4, 3)  # activations; both inputs, the output
    sizes = [size for kind, size, _ in gpu.memory.values() if kind == "device"]
    assert WORKSPACE_BYTES in sizes  # of this profile, not the largest of all
    for _ in range(2):
        for lens in SHAPES:
            assert_agrees(backend, reference, lens)
        assert count() == (8, 6)
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_a_profile_that_does_not_fit_leaves_the_others(
    gpu: FakeGpu, bundle: Bundle, reference: Any
) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    before = len(gpu.memory)
    for n_before in range(4):
        gpu.fail("cuMemAlloc", after=n_before)
        with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY"):
            backend.log_probs(batch([300]), np.array([300], np.int64))
        assert len(gpu.memory) == before
        assert_agrees(backend, reference, [60])
    assert_agrees(backend, reference, [300])
    backend.close()
    gpu.assert_all_released()


def test_fake_tensorrt_keeps_the_latest_graphs(
    gpu: FakeGpu, bundle: Bundle, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "MAX_CUDA_GRAPHS", 2)
    add_engine(bundle, gpu, profiles=((10, 400, 400, 1, 1, 4),))
    backend = TensorRTBackend(bundle, "fp32")
    backend.warm_up([128, 256])
    assert_agrees(backend, reference, [128])  # now the one used latest
    gpu.calls.clear()
    backend.warm_up([384])
    assert "create context" not in gpu.calls  # it takes that of the oldest
    assert len(gpu.graphs) == 2
    gpu.calls.clear()
    for n_frames in (384, 128, 256):
        assert_agrees(backend, reference, [n_frames])
    assert gpu.calls.count("cuGraphLaunch") == 2
    backend.close()
    gpu.assert_all_released()


LIVE_PROFILES = ((64, 256, 256, 1, 1, 8), (256, 1024, 1024, 1, 1, 8), (1024, 3072, 3072, 1, 1, 8))


def growing_utterance(backend: TensorRTBackend, n_frames: int) -> int:
    """Partials every 0.3 s over at most 8 s, then the final; how many runs that is."""
    lengths = [min(n, 800) for n in range(30, n_frames, 30)] + [n_frames + 60]
    for length in lengths:
        backend.log_probs(batch([length]), np.array([length], np.int64))
    return len(lengths)


def test_fake_tensorrt_growing_utterances_are_replayed(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every run of live use is one launch from the first word on: nothing is created or recorded."""
    monkeypatch.setattr(fake_tensorrt, "onnx_session", lambda *_: Zeros(bundle))
    add_engine(bundle, gpu, profiles=LIVE_PROFILES)
    backend = TensorRTBackend(bundle, "fp32")
    backend.warm_up()
    gpu.calls.clear()
    n_runs = sum(growing_utterance(backend, n) for n in (700, 700, 150, 1400, 90, 2400))
    assert set(gpu.calls) == {"cuGraphLaunch", "cuStreamSynchronize"}
    assert gpu.calls.count("cuGraphLaunch") == n_runs > 150
    with caplog.at_level(logging.INFO):
        backend.close()
    most = LIVE_PROFILES[-1][2] // bundle.info.subsampling_factor
    n_shapes = sum(n <= most for n in (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768))
    assert f"{n_runs} runs, {n_runs} of them replayed ({n_shapes} recorded)" in caplog.text
    gpu.assert_all_released()


class Zeros:
    """Stands for a model where numbers do not matter."""

    def __init__(self, bundle: Bundle) -> None:
        self._factor, self._n_tokens = bundle.info.subsampling_factor, len(bundle.vocabulary)

    def run(self, names: Any, feeds: dict[str, F32Array]) -> list[F32Array]:
        rows, _, frames = feeds["audio_signal"].shape
        return [np.zeros((rows, -(-frames // self._factor), self._n_tokens), np.float32)]


def test_fake_tensorrt_more_frames_than_any_profile(gpu: FakeGpu, bundle: Bundle) -> None:
    add_engine(bundle, gpu)
    backend = TensorRTBackend(bundle, "fp32")
    with pytest.raises(EngineError) as caught:
        backend.log_probs(batch([401]), np.array([401], np.int64))
    message = str(caught.value)
    assert "401 feature frames (4.01 s)" in message
    assert "10 to 100, 100 to 400" in message
    advised = re.fullmatch(
        rf".*edge-asr build {bundle.path} --precision fp32 --force --profile-seconds ([\d.,]+)", message
    )
    assert advised
    seconds = tuple(map(float, advised[1].split(",")))
    profiles = build_profiles(bundle.info.features, seconds, rule=bundle.info.output_frames)
    assert profiles[-1].max_frames >= 401  # what it advises can be built, and suffices
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


RULES = [OutputFrames(factor=4), OutputFrames(factor=8), OutputFrames(factor=8, first=-6)]


@given(st.integers(1, 100_000), st.sampled_from([*RULES, OutputFrames(factor=4, first=7)]))
def test_lengths_of_the_grid_give_frames_in_sixteens(n_frames: int, rule: OutputFrames) -> None:
    padded = grid_frames(n_frames, rule)
    assert padded >= n_frames
    assert rule.n_graph(padded) % 16 == 0
    assert rule.n_graph(padded) <= max(16, 1.5 * rule.n_graph(n_frames) + 16)
    assert grid_frames(padded, rule) == padded


@pytest.mark.parametrize("rule", RULES)
def test_the_grid_is_geometric(rule: OutputFrames) -> None:
    outputs = [rule.n_graph(n) for n in grid_up_to(3000, rule)]
    ladder = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
    assert outputs == ladder[: len(outputs)]
    assert len(outputs) == {4: 11, 8: 9}[rule.factor]


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
