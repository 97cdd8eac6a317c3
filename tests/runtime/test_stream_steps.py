"""Where the caches of streams live: on the host, on a device (IO binding), on a TensorRT engine.

The IO binding really runs, on onnxruntime's CPU provider; no CUDA runs here. The engine is a fake TensorRT on
a fake GPU (fake_tensorrt.py), whose numbers are onnxruntime's. The reference are caches on the host.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_bundles import STREAMS, add_engine, add_stream_engine
from fake_tensorrt import WORKSPACE_BYTES, FakeGpu

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.errors import BackendError, EngineError
from edge_asr.proof.streams import LockstepStreams
from edge_asr.runtime.engine.lookup import sidecar_path_of
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.engine.stream_runner import EngineSteps
from edge_asr.runtime.engine.trust import seal
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.live.streaming_decoder import StreamingDecoder, streaming_decoders
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.stream_steps import BoundSteps, HostSteps, StreamSteps
from edge_asr.runtime.streaming_model import StreamingModel

F32Array = npt.NDArray[np.float32]
TOLERANCE = 1e-4  # the export's own bar: rows of a batch differ in the last bits


@pytest.fixture(scope="module")
def speech(streaming_bundle: Path, sample_path: Path) -> F32Array:
    return FeatureExtractor(Bundle.load(streaming_bundle).info.features)(read_audio(sample_path))[:400]


@pytest.fixture(scope="module")
def reference(streaming_bundle: Path) -> Iterator[StreamingModel]:
    model = StreamingModel.load(streaming_bundle, num_threads=1)
    yield model
    model.close()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


@pytest.fixture
def bundle(streaming_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.load(shutil.copytree(streaming_bundle, tmp_path / "bundle"))


def open_model(steps: StreamSteps, bundle: Bundle) -> StreamingModel:
    return StreamingModel(steps, bundle.streaming.geometry, n_mels=80, vocab_size=bundle.info.vocabulary_size)


def run(model: StreamingModel, features: F32Array, size: int = 37) -> F32Array:
    state = model.start()
    pieces = [features[begin : begin + size] for begin in range(0, len(features), size)]
    return np.concatenate([*(model.push(state, piece) for piece in pieces), model.flush(state)])


def check_everything(model: StreamingModel, reference: StreamingModel, speech: F32Array) -> None:
    """A stream, its forks, and batches of streams that end at different steps, give what the host gives."""
    for n_frames in (1, 31, 36, 64, 69, 400):
        expected = run(reference, speech[:n_frames])
        np.testing.assert_allclose(run(model, speech[:n_frames]), expected, rtol=0, atol=TOLERANCE)
    states = [m.start() for m in (model, reference)]
    for begin in range(0, 400, 50):
        forks = [state.fork() for state in states]
        ended = [m.flush(fork) for m, fork in zip((model, reference), forks, strict=True)]
        np.testing.assert_allclose(*ended, rtol=0, atol=TOLERANCE)
        pushed = [
            m.push(s, speech[begin : begin + 50]) for m, s in zip((model, reference), states, strict=True)
        ]
        np.testing.assert_allclose(*pushed, rtol=0, atol=TOLERANCE)
    lens = np.array([400, 333, 90, 12, 200], np.int64)
    rows = np.stack([np.roll(speech, 31 * n, axis=0) for n in range(len(lens))])
    for n_rows in (2, 3, 5):  # more than a profile takes are run in parts
        given, expected = (
            LockstepStreams(m).log_probs(rows[:n_rows], lens[:n_rows]) for m in (model, reference)
        )
        for row, length in enumerate(lens[:n_rows]):
            n_valid = -(-int(length) // 4)
            np.testing.assert_allclose(given[row, :n_valid], expected[row, :n_valid], rtol=0, atol=TOLERANCE)


def join_streams_that_never_ran_together(model: StreamingModel, speech: F32Array) -> list[F32Array]:
    """Three streams, each a step ahead of the next, then one step of all, in an order of their own."""
    geometry = model.geometry
    caches: list[Any] = []
    for row in range(3):
        state = model.start()
        model.push(state, speech[row * 40 : row * 40 + geometry.window(row + 1)[1]])
        caches.append(state.caches)
    order = (2, 0, 1)
    joined = tuple(np.concatenate([caches[i][k] for i in order]) for k in range(len(caches[0])))
    windows = np.stack([speech[i : i + geometry.window_frames] for i in (7, 60, 99)])
    log_probs, _, following = model.run_step(windows, np.full(3, geometry.window_frames), joined)
    parts = [log_probs]
    for keep in ([1, 2], [2], [0, 1, 2]):  # of the rows of one batch
        kept = tuple(array[keep] for array in following)
        parts.append(model.run_step(windows[keep], np.full(len(keep), geometry.window_frames), kept)[0])
    return parts


def check_joining(model: StreamingModel, reference: StreamingModel, speech: F32Array) -> None:
    pairs = zip(*(join_streams_that_never_ran_together(m, speech) for m in (model, reference)), strict=True)
    for given, expected in pairs:
        np.testing.assert_allclose(given, expected, rtol=0, atol=TOLERANCE)


# --- IO binding, on the CPU provider ---


@pytest.fixture
def bound(bundle: Bundle) -> Iterator[StreamingModel]:
    backend = OnnxRuntimeBackend(
        bundle.path / bundle.streaming.artifact.file, precision="fp32", num_threads=1
    )
    model = open_model(BoundSteps(backend, bundle.streaming.geometry), bundle)
    yield model
    model.close()


def test_caches_on_a_device_give_what_those_on_the_host_give(
    bound: StreamingModel, reference: StreamingModel, speech: F32Array
) -> None:
    check_everything(bound, reference, speech)
    check_joining(bound, reference, speech)


def test_caches_on_a_device_stay_there(bound: StreamingModel, speech: F32Array) -> None:
    """A stream that goes on alone passes on the very values that the run before left."""
    steps: Any = bound._steps
    fed: list[Any] = []
    run_on_device = steps._backend.run_on_device
    steps._backend.run_on_device = lambda outputs, feeds: fed.append(feeds) or run_on_device(outputs, feeds)
    state = bound.start()
    bound.push(state, speech[:150])
    assert len(fed) == 4
    for feeds in fed[1:]:
        kinds = {name: type(value).__name__ for name, value in feeds.items()}
        assert [kinds[name] for name in STREAM_INPUTS] == ["ndarray", "ndarray", *["OrtValue"] * 3]


def test_a_failed_step_on_a_device_is_a_backend_error(bound: StreamingModel) -> None:
    with pytest.raises(BackendError, match="onnxruntime failed on features of shape"):
        bound.run_step(np.zeros((1, 2, 80), np.float32), np.array([2]), bound.initial_caches())
    bound.close()
    with pytest.raises(BackendError, match="was closed"):
        bound.push(bound.start(), np.zeros((100, 80), np.float32))


def test_a_graph_on_cuda_keeps_its_caches_there(bundle: Bundle) -> None:
    backend = OnnxRuntimeBackend(bundle.path / bundle.streaming.artifact.file, precision="fp32")
    assert type(open_model(backend, bundle)._steps) is HostSteps  # type: ignore[arg-type]
    backend.name = "cuda"
    steps = open_model(backend, bundle)._steps  # type: ignore[arg-type]
    assert type(steps) is BoundSteps
    assert (steps.n_places, steps.max_rows) == (1, 32)
    backend.close()


# --- an engine, on a fake TensorRT ---


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize("style", ["10", "11", "rtx"])
def test_fake_tensorrt_streams(
    style: str,
    integrated: bool,
    bundle: Bundle,
    reference: StreamingModel,
    speech: F32Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu(style).install(monkeypatch)
    gpu.integrated = integrated
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device=gpu.flavor)
    check_everything(model, reference, speech)
    model.warm_up(3)
    check_everything(model, reference, speech)
    check_joining(model, reference, speech)
    model.close()
    gpu.assert_all_released()


def test_fake_tensorrt_a_step_is_one_launch_and_its_caches_stay(
    gpu: FakeGpu, bundle: Bundle, speech: F32Array
) -> None:
    """A stream that goes on copies nothing: recorded both ways, a step reads where the last one wrote."""
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    model.warm_up(2)  # of both numbers of streams, the first window and the others, both ways
    assert len(gpu.graphs) == 8
    state = model.start()
    gpu.calls.clear()
    model.push(state, speech[:150])
    step = ["cuGraphLaunch", "cuStreamSynchronize"]
    assert gpu.calls == ["fill"] * 3 + step * 4  # the caches of a new stream are zeros
    before = len(gpu.memory)
    for _ in range(20):  # slots that no state refers to are used again
        model.push(state, speech[:32])
        fork = state.fork()
        model.push(fork, speech[:9])
        model.flush(fork)
    assert len(gpu.memory) <= before + 2
    assert WORKSPACE_BYTES in [size for _, size, _ in gpu.memory.values()]
    model.close()
    del state, fork
    gc.collect()
    gpu.assert_all_released()


def test_fake_tensorrt_streams_of_a_profile_go_on_without_copies_whoever_steps(
    gpu: FakeGpu, bundle: Bundle, speech: F32Array
) -> None:
    """The rows of the others pass through a step; each copied six times a step before."""
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    length = model.geometry.window_frames
    window = speech[None, :length]
    rows: list[Any] = [None] * STREAMS[1]

    def step(*which: int) -> None:
        joined = np.empty(len(which), object)
        joined[:] = [rows[n] for n in which]
        _, _, (following,) = model.run_step(
            np.repeat(window, len(which), axis=0), np.full(len(which), length), (joined,)
        )
        for n, row in zip(which, following, strict=True):
            rows[n] = row

    step(0, 1, 2)
    gpu.calls.clear()
    for which in ((2, 0), (1, 2), (1, 0, 2), (0, 1), (2, 1, 0)):
        step(*which)
    assert "copy on device" not in gpu.calls
    assert "fill" not in gpu.calls
    step(1)  # by itself it runs in the profile of one stream
    assert gpu.calls.count("copy on device") == 3
    model.close()


@pytest.mark.parametrize("seed", range(3))
def test_fake_tensorrt_states_never_change_whatever_happens_to_others(
    seed: int, gpu: FakeGpu, bundle: Bundle, reference: StreamingModel, speech: F32Array
) -> None:
    """Steps of any streams in any order, forks, states kept and dropped, recordings between them."""
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    random = np.random.default_rng(seed)
    length = model.geometry.window_frames
    states = [(model.initial_caches(), reference.initial_caches())]
    for number in range(60):
        chosen = random.integers(0, len(states), random.integers(1, 6))  # one may be chosen twice
        starts = random.integers(0, len(speech) - length, len(chosen))
        windows = np.stack([speech[a : a + length] for a in starts])
        lens = random.choice([length, length, 0, length - 9], len(chosen))
        given, expected = (
            m.run_step(windows, lens, tuple(np.concatenate(a) for a in zip(*caches, strict=True)))
            for m, caches in zip(
                (model, reference), zip(*(states[i] for i in chosen), strict=True), strict=True
            )
        )
        np.testing.assert_array_equal(given[1], expected[1])
        for row, n_valid in enumerate(given[1]):
            pair = (given[0][row, :n_valid], expected[0][row, :n_valid])
            np.testing.assert_allclose(*pair, rtol=0, atol=TOLERANCE)
            states.append(
                (
                    tuple(cache[row : row + 1].copy() for cache in given[2]),
                    tuple(cache[row : row + 1].copy() for cache in expected[2]),
                )
            )
        del given
        while len(states) > 7:
            del states[random.integers(0, len(states))]
        if number in (20, 40):
            model.warm_up(STREAMS[number // 20 - 1])
    assert {"cuGraphLaunch", "copy on device", "fill"} <= set(gpu.calls)
    model.close()
    states.clear()
    gc.collect()
    gpu.assert_all_released()


def test_fake_tensorrt_caches_of_two_shapes_cannot_change_places(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = add_stream_engine(bundle, gpu)
    content = json.loads(path.read_text())
    name = STREAM_OUTPUTS[3]
    content["tensors"][name][1][-1] += 1
    data = json.dumps(content).encode()
    path.write_bytes(data)
    sidecar = EngineSidecar.read(sidecar_path_of(path))
    told = dataclasses.replace(
        sidecar, plan_sha256=hashlib.sha256(data).hexdigest(), plan_size_bytes=len(data)
    )
    sidecar_path_of(path).write_text(seal(told).to_json())
    with pytest.raises(EngineError, match=rf"takes {STREAM_INPUTS[3]} of float32 .* and gives {name} of"):
        EngineSteps(bundle, "fp32")
    gpu.assert_all_released()


def test_fake_tensorrt_streams_of_many_threads_share_steps(
    gpu: FakeGpu, bundle: Bundle, reference: StreamingModel, speech: F32Array
) -> None:
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    model.warm_up(3)
    start = threading.Barrier(4)

    def work(shift: int) -> None:
        features = np.roll(speech, 29 * shift, axis=0)
        start.wait()
        np.testing.assert_allclose(run(model, features), run(reference, features), rtol=0, atol=TOLERANCE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    model.close()
    gpu.assert_all_released()


@pytest.mark.parametrize("call", ["execute", "copy on device", "cuStreamSynchronize", "cuMemAlloc"])
def test_fake_tensorrt_a_failed_step_leaves_the_stream(
    gpu: FakeGpu, bundle: Bundle, reference: StreamingModel, speech: F32Array, call: str
) -> None:
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    expected = run(reference, speech[:150])
    state = model.start()
    first = [model.push(state, speech[:40])]
    held = state.fork()  # which lies where the next step but one writes, and must be saved
    first.append(model.push(state, speech[40:72]))
    caches = (speech[None, 60:96], np.array([36]), state.caches)
    gpu.fail(call)
    with pytest.raises(BackendError):
        model.run_step(*caches)
    for number, kept in enumerate((state, held)):
        rest = [model.push(kept, speech[(72, 40)[number] : 150]), model.flush(kept)]
        given = np.concatenate([*first[: 2 - number], *rest])
        np.testing.assert_allclose(given, expected, rtol=0, atol=TOLERANCE)
    model.close()
    with pytest.raises(BackendError, match="was closed"):
        model.run_step(*caches)
    del state, held, kept, caches
    gc.collect()
    gpu.assert_all_released()


def test_fake_tensorrt_a_failed_recording_is_no_failure(
    gpu: FakeGpu,
    bundle: Bundle,
    reference: StreamingModel,
    speech: F32Array,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_stream_engine(bundle, gpu)
    model = StreamingModel.load(bundle, device="tensorrt")
    gpu.fail("cuStreamBeginCapture")
    model.warm_up(3)
    assert "continuing without CUDA graphs" in caplog.text
    np.testing.assert_allclose(run(model, speech), run(reference, speech), rtol=0, atol=TOLERANCE)
    model.close()
    gpu.assert_all_released()


def test_fake_tensorrt_an_engine_of_the_stream_is_found_by_its_precision(
    gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(EngineError, match="has no fp16 streaming engine; build one with"):
        StreamingModel.load(bundle, device="tensorrt", precision="fp16")
    add_engine(bundle, gpu)  # that of the offline graph is another
    with pytest.raises(EngineError, match="has no fp32 streaming engine"):
        StreamingModel.load(bundle, device="tensorrt")
    add_stream_engine(bundle, gpu, "fp16")
    StreamingModel.load(bundle, device="tensorrt").close()
    assert "partials run in fp16" in caplog.text
    with pytest.raises(EngineError, match="no int8 streaming engine"):
        EngineSteps(bundle, "int8")


def test_fake_tensorrt_an_engine_of_another_graph_does_not_run(gpu: FakeGpu, bundle: Bundle) -> None:
    path = add_stream_engine(bundle, gpu, sealed=False)
    with pytest.raises(EngineError, match="not built by you on this machine"):
        EngineSteps(bundle, "fp32")
    sidecar = sidecar_path_of(path)
    sidecar.write_text(sidecar.read_text().replace('"stream.onnx"', '"model.onnx"'))
    with pytest.raises(EngineError, match=r"onnx_file is model\.onnx, here stream\.onnx"):
        EngineSteps(bundle, "fp32", allow_unverified=True)


def test_fake_tensorrt_partials_run_beside_the_recognizers_engine(
    gpu: FakeGpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """Streaming if the graph has an engine that may run, else windows."""
    add_engine(bundle, gpu, profiles=((10, 3000, 3000, 1, 1, 1),))
    with Recognizer.load(bundle.path, backend="tensorrt") as recognizer:
        assert streaming_decoders(recognizer) is None
    add_stream_engine(bundle, gpu)
    with Recognizer.load(bundle.path, backend="tensorrt") as recognizer:
        make: Callable[[], StreamingDecoder] | None = streaming_decoders(recognizer)
        assert make is not None
        assert isinstance(recognizer.streaming_model()._steps, EngineSteps)
        assert "cuGraphInstantiate" in gpu.calls  # it is warm
    add_stream_engine(bundle, gpu, proof=None)
    with Recognizer.load(bundle.path, backend="tensorrt") as recognizer:
        assert streaming_decoders(recognizer) is None
        assert "partials: windowed" in caplog.text
        with pytest.raises(EngineError, match="was never compared"):
            streaming_decoders(recognizer, "streaming")
    gc.collect()
    gpu.assert_all_released()
