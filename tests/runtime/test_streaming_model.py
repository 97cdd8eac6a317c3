"""The runtime's streaming model: any cutting gives the same bits, nothing is lost, and PyTorch agrees.

The reference is the checkpoint in PyTorch, the whole clip at once under the bundle's chunk mask. Tolerance
1e-4, the bar of the export's proof.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import Bundle
from edge_asr.checkpoints import load_checkpoint
from edge_asr.errors import AudioError, BackendError, BundleError
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.stream_steps import HostSteps
from edge_asr.runtime.streaming_model import StreamingModel, StreamState

F32Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def streaming(streaming_bundle: Path) -> StreamingModel:
    return StreamingModel.load(streaming_bundle, num_threads=1)


@pytest.fixture(scope="module")
def speech_features(streaming_bundle: Path, sample_path: Path) -> F32Array:
    """[t, 80] of the embedded sample."""
    return FeatureExtractor(Bundle.load(streaming_bundle).info.features)(read_audio(sample_path))


def run(model: StreamingModel, pieces: list[F32Array]) -> F32Array:
    state = model.start()
    return np.concatenate([*(model.push(state, piece) for piece in pieces), model.flush(state)])


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 90), max_size=12), n_frames=st.integers(0, 330))
def test_any_cutting_gives_the_same_bits(
    streaming: StreamingModel, speech_features: F32Array, sizes: list[int], n_frames: int
) -> None:
    features = speech_features[:n_frames]
    cuts = np.minimum(np.cumsum(sizes, dtype=int), n_frames)
    pieces = np.split(features, cuts)
    np.testing.assert_array_equal(run(streaming, pieces), run(streaming, [features]))


@pytest.mark.parametrize("n_frames", [0, 1, 3, 4, 31, 32, 33, 35, 36, 37, 64, 67, 68, 69, 500])
def test_every_frame_of_the_whole_clip_comes_out(
    streaming: StreamingModel, random_checkpoint: Path, speech_features: F32Array, n_frames: int
) -> None:
    given = run(streaming, [speech_features[:n_frames]])
    assert given.shape == (-(-n_frames // 4), streaming.vocab_size)
    if n_frames:
        model = load_checkpoint(random_checkpoint).build_model()
        geometry = streaming.geometry
        with torch.inference_mode():
            whole, _ = model(
                torch.from_numpy(speech_features[None, :n_frames]),
                torch.tensor([n_frames]),
                chunk_frames=geometry.chunk_frames,
                left_chunks=geometry.left_frames // geometry.chunk_frames,
            )
        np.testing.assert_allclose(given, whole[0].numpy(), rtol=0, atol=1e-4)


def test_log_probs_come_as_soon_as_their_window_is_whole(
    streaming: StreamingModel, speech_features: F32Array
) -> None:
    geometry = streaming.geometry
    state = streaming.start()
    given = [len(streaming.push(state, frame[None])) for frame in speech_features[:200]]
    ends = {geometry.window(step)[1] for step in range(10)}
    assert [n + 1 for n, count in enumerate(given) if count] == sorted(end for end in ends if end <= 200)
    assert set(given) == {0, geometry.chunk_frames}
    assert state.n_frames == sum(given)
    assert len(state.features) <= geometry.window_frames  # a stream of any length takes bounded memory


def test_streams_of_one_model_do_not_disturb_each_other(
    streaming: StreamingModel, speech_features: F32Array
) -> None:
    clips = [speech_features[:300], speech_features[150:450]]
    states: list[StreamState] = [streaming.start() for _ in clips]
    parts: list[list[F32Array]] = [[], []]
    for start in range(0, 300, 30):
        for state, part, clip in zip(states, parts, clips, strict=True):
            part.append(streaming.push(state, clip[start : start + 30]))
    for state, part, clip in zip(states, parts, clips, strict=True):
        part.append(streaming.flush(state))
        np.testing.assert_array_equal(np.concatenate(part), run(streaming, [clip]))


def test_what_a_fork_hears_its_twin_does_not(streaming: StreamingModel, speech_features: F32Array) -> None:
    features = speech_features[:300]
    state, parts = streaming.start(), []
    for begin in range(0, 300, 37):
        parts.append(streaming.push(state, features[begin : begin + 37]))
        kept = [np.array(array) for array in (*state.caches, state.features)]
        fork = state.fork()
        streaming.push(fork, features[::-1])
        streaming.flush(fork)
        for array, before in zip((*state.caches, state.features), kept, strict=True):
            np.testing.assert_array_equal(array, before)
    parts.append(streaming.flush(state))
    np.testing.assert_array_equal(np.concatenate(parts), run(streaming, [features]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: np.full_like(p, np.nan), "gave NaN"),
        (lambda p: p[:, :1], "its bundle describes float32"),
        (lambda p: p[:, :, :5], "its bundle describes float32"),
    ],
)
def test_an_answer_that_the_bundle_does_not_describe_is_refused(
    streaming: StreamingModel,
    speech_features: F32Array,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[F32Array], F32Array],
    message: str,
) -> None:
    assert isinstance(streaming._steps, HostSteps)
    backend = streaming._steps._backend
    answer = backend.run

    def run_spoiled(outputs: Any, feeds: Any) -> Any:
        log_probs, *rest = answer(outputs, feeds)
        return [spoil(log_probs), *rest]

    monkeypatch.setattr(backend, "run", run_spoiled)
    with pytest.raises(BackendError, match=message):
        streaming.push(streaming.start(), speech_features[:300])


def test_features_of_a_stream_and_their_log_probs_are_those_of_the_file(
    streaming: StreamingModel, streaming_bundle: Path, sample_path: Path, speech_features: F32Array
) -> None:
    """Samples in, log-probs out, as a recognizer would: FeatureStream in front of it."""
    waveform = read_audio(sample_path)
    stream = FeatureExtractor(Bundle.load(streaming_bundle).info.features).stream()
    state = streaming.start()
    parts = [
        streaming.push(state, stream.push(waveform[i : i + 1600])) for i in range(0, len(waveform), 1600)
    ]
    parts += [streaming.push(state, stream.flush()), streaming.flush(state)]
    np.testing.assert_array_equal(np.concatenate(parts), run(streaming, [speech_features]))


def test_what_cannot_be_pushed_is_refused(streaming: StreamingModel, speech_features: F32Array) -> None:
    state = streaming.start()
    for wrong in (speech_features[:, :40], speech_features[0]):
        with pytest.raises(AudioError, match=r"give \[frames, 80\]"):
            streaming.push(state, wrong)
    streaming.flush(state)
    for call in (lambda: streaming.push(state, speech_features), lambda: streaming.flush(state)):
        with pytest.raises(AudioError, match="was flushed"):
            call()


def test_an_offline_bundle_has_no_streaming_model() -> None:
    bundle = Bundle.load("tiny-en")
    offline = dataclasses.replace(bundle, info=dataclasses.replace(bundle.info, streaming=None))
    with pytest.raises(BundleError, match="no streaming model; export the checkpoint again with --streaming"):
        StreamingModel.load(offline)
