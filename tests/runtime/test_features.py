"""Features as a machine: bits do not depend on how samples arrive, shapes, threads, bad input."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import AudioError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import BLOCK_FRAMES, FeatureExtractor

PRESETS = ["nemo", "nemo-2.4", "kaldi"]
EXTRACTORS = {name: FeatureExtractor(FeatureConfig.from_preset(name)) for name in PRESETS}
# WeNet's: frames in float32, the transform in float64.
EXTRACTORS["wenet"] = FeatureExtractor(FeatureConfig.from_preset("kaldi", float32_tables=True))


def noise(n_samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def stream_in(extractor: FeatureExtractor, pieces: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    stream = extractor.stream()
    return np.concatenate([*[stream.push(piece) for piece in pieces], stream.flush()])


@settings(max_examples=60, deadline=None)
@given(
    preset=st.sampled_from(sorted(EXTRACTORS)),
    n_samples=st.integers(0, 3 * BLOCK_FRAMES * 160),
    cuts=st.lists(st.floats(0, 1), max_size=30),
    seed=st.integers(0, 2**16),
)
def test_streaming_equals_whole_file_bit_for_bit(
    preset: str, n_samples: int, cuts: list[float], seed: int
) -> None:
    waveform = noise(n_samples, seed)
    pieces = np.split(waveform, sorted(int(cut * n_samples) for cut in cuts))
    whole = EXTRACTORS[preset](waveform)
    assert whole.shape == (EXTRACTORS[preset].n_frames(n_samples), 80)
    assert np.array_equal(stream_in(EXTRACTORS[preset], pieces), whole)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_piece", [1, 7, 160, 401, 1600])
def test_small_pieces_give_the_same_bits(preset: str, n_piece: int) -> None:
    waveform = noise(4321)
    pieces = [waveform[i : i + n_piece] for i in range(0, len(waveform), n_piece)]
    assert np.array_equal(stream_in(EXTRACTORS[preset], pieces), EXTRACTORS[preset](waveform))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_frame_has_the_same_bits_in_a_longer_clip(preset: str) -> None:
    waveform = noise(BLOCK_FRAMES * 160 + 5000)
    short = EXTRACTORS[preset](waveform[:20000])[:100]  # frames whose windows lie inside both
    assert np.array_equal(EXTRACTORS[preset](waveform)[:100], short)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_push_returns_every_finished_frame(preset: str) -> None:
    """A live recognizer must not wait for a block: frames come as soon as their window is full."""
    stream = EXTRACTORS[preset].stream()
    half = 0 if preset == "kaldi" else 200
    n_seen = 0
    for n_pushed in range(100, 5000, 100):
        n_seen += len(stream.push(noise(100)))
        first_free = (n_pushed - 400 + half) // 160 + 1
        if preset == "nemo-2.4" and n_pushed <= 200:
            first_free = 0  # the mirror image of frame 0 needs sample 200
        assert n_seen == max(first_free, 0)


@pytest.mark.parametrize(
    ("preset", "n_samples", "n_frames"),
    [
        ("nemo", 159, 0), ("nemo", 160, 1), ("nemo", 16000, 100),
        ("nemo-2.4", 200, 0), ("nemo-2.4", 201, 2), ("nemo-2.4", 16000, 101),
        ("kaldi", 399, 0), ("kaldi", 400, 1), ("kaldi", 16000, 98),
    ],
)  # fmt: skip
def test_frame_counts(preset: str, n_samples: int, n_frames: int) -> None:
    assert EXTRACTORS[preset].n_frames(n_samples) == n_frames
    assert EXTRACTORS[preset](noise(n_samples)).shape == (n_frames, 80)


def test_threads_share_an_extractor() -> None:
    clips = [noise(16000 + 777 * i, i) for i in range(24)]
    expected = [EXTRACTORS["nemo"](clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(EXTRACTORS["nemo"], clips * 3))
    for result, wanted in zip(results, expected * 3, strict=True):
        assert np.array_equal(result, wanted)


def test_extractor_pickles_for_data_loader_workers() -> None:
    copy = pickle.loads(pickle.dumps(EXTRACTORS["kaldi"]))  # noqa: S301 - our own bytes
    assert np.array_equal(copy(noise(5000)), EXTRACTORS["kaldi"](noise(5000)))


def test_the_waveform_is_not_written_to() -> None:
    waveform = noise(5000)
    waveform.flags.writeable = False
    for extractor in EXTRACTORS.values():
        extractor(waveform)


def test_config_round_trip() -> None:
    for preset in PRESETS:
        config = FeatureConfig.from_preset(preset, n_mels=64, normalize="per_feature")
        assert FeatureConfig.from_dict(config.to_dict()) == config
    assert FeatureConfig() == FeatureConfig.from_preset("nemo")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_mel": 80}, "n_mel"),
        ({"preset": "nema"}, "nema"),
        ({"n_mels": 0}, "n_mels"),
        ({"n_mels": 80.0}, "n_mels"),
        ({"window": "haan"}, "haan"),
        ({"win_length": 600}, "600"),
        ({"f_max": 9000.0}, "9000"),
        ({"preemphasis": 1.5}, "1.5"),
        ({"remove_dc": 1}, "remove_dc"),
        ({"f_min": "20"}, "f_min"),
    ],
)
def test_a_bad_config_names_the_value(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        FeatureConfig.from_dict({**FeatureConfig().to_dict(), **changes})


def test_per_feature_cannot_stream() -> None:
    with pytest.raises(ConfigError, match="per_feature"):
        FeatureExtractor(FeatureConfig.from_preset("nemo", normalize="per_feature")).stream()


def test_a_flushed_stream_says_so() -> None:
    stream = EXTRACTORS["nemo"].stream()
    stream.flush()
    with pytest.raises(ConfigError, match="flushed"):
        stream.push(noise(10))


def test_a_stereo_waveform_is_refused() -> None:
    with pytest.raises(AudioError, match=r"\[10, 2\]"):
        EXTRACTORS["nemo"](np.zeros((10, 2), np.float32))
