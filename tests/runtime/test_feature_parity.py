"""Features against the originals: NeMo's and WeNet's own output, and kaldi-native-fbank.

Bars: log-mel before normalisation, max abs error <= 5e-4, mean <= 1e-5. Kaldi's log has no offset,
so bands 70 dB below the loudest of a frame carry the originals' float32 rounding noise, up to 4e-3;
there ours is measured against the same formula written out in float64, and against the originals
with their own distance from that formula allowed on top.
"""

from __future__ import annotations

from pathlib import Path

import kaldi_native_fbank
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from golden.compare import float32_weight

from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.features.mel import build_mel_filters
from edge_asr.runtime.features.normalization import normalize_per_feature

MAX_ERROR = 5e-4
MEAN_ERROR = 1e-5

Array = npt.NDArray[np.floating]


@pytest.fixture(scope="module", params=[0, 1, 2])
def clip(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def read_clip(folder: Path, clip: int) -> npt.NDArray[np.float32]:
    waveform, sample_rate = soundfile.read(folder.parent / f"audio_{clip}.flac", dtype="float32")
    assert sample_rate == 16000
    return np.asarray(waveform)


def assert_close(ours: Array, theirs: Array, allowance: Array | float = 0.0) -> None:
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs)
    assert (error <= MAX_ERROR + allowance).all(), f"max abs error {error.max():.2e}"
    assert error.mean() <= MEAN_ERROR


def kaldi_in_float64(waveform: Array) -> Array:
    """kaldi/src/feat/feature-fbank.cc written out in float64, straight from its definition."""
    samples = waveform.astype(np.float64) * 32768.0
    frames = np.stack([samples[k : k + 400] for k in range(0, len(samples) - 399, 160)])
    frames -= frames.mean(axis=1, keepdims=True)
    emphasized = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    power = np.abs(np.fft.rfft(emphasized * window, 512)) ** 2
    filters = build_mel_filters(
        sample_rate=16000, n_fft=512, n_mels=80, f_min=20.0, f_max=8000.0, scale="kaldi", norm="none"
    )
    return np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))


def kaldi_native(waveform: npt.NDArray[np.float32]) -> Array:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = 16000
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = 80
    options.mel_opts.low_freq = 20
    options.mel_opts.high_freq = 0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16000, waveform * 32768)
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


def test_nemo_without_normalisation(golden_dir: Path, clip: int) -> None:
    folder = golden_dir / "nemo-fastconformer-streaming"  # normalize: NA
    with np.load(folder / "golden.npz") as golden:
        n_frames = int(golden[f"clip{clip}_feat_len"][0])
        theirs = golden[f"clip{clip}_feat"][0, :n_frames]
    assert_close(FeatureExtractor(FeatureConfig.from_preset("nemo"))(read_clip(folder, clip)), theirs)


def test_nemo_per_feature(golden_dir: Path, clip: int) -> None:
    folder = golden_dir / "nemo-conformer-bpe"
    with np.load(folder / "golden.npz") as golden:
        n_frames = int(golden[f"clip{clip}_feat_len"][0])
        theirs = golden[f"clip{clip}_feat"][0, :n_frames]
    config = FeatureConfig.from_preset("nemo", normalize="per_feature")
    assert_close(FeatureExtractor(config)(read_clip(folder, clip)), theirs)


def test_nemo_before_2_5(golden_dir: Path, clip: int) -> None:
    folder = golden_dir / "nemo-features-old"
    config = FeatureConfig.from_preset("nemo-2.4", normalize="per_feature")
    with np.load(folder / "golden.npz") as golden:
        assert_close(FeatureExtractor(config)(read_clip(folder, clip)), golden[f"v2.4.0_norm_clip{clip}"])


def test_kaldi_against_its_definition(golden_dir: Path, clip: int) -> None:
    waveform = read_clip(golden_dir / "wenet-conformer", clip)
    ours = FeatureExtractor(FeatureConfig.from_preset("kaldi"))(waveform)
    assert_close(ours, kaldi_in_float64(waveform))


def test_kaldi_against_wenet(golden_dir: Path, clip: int) -> None:
    folder = golden_dir / "wenet-conformer"
    waveform = read_clip(folder, clip)
    with np.load(folder / "golden.npz") as golden:
        theirs = golden[f"clip{clip}_feat"][0]
    noise = np.abs(theirs - kaldi_in_float64(waveform))
    exact = FeatureExtractor(FeatureConfig.from_preset("kaldi"))(waveform)
    assert_close(exact, theirs, noise)
    # With the roundings of its tables and frames, as the loader has them, half as far on average.
    rounded = FeatureExtractor(FeatureConfig.from_preset("kaldi", float32_tables=True))(waveform)
    # Its own noise in bands too weak for float32 comes on top there, so those count by their amplitude.
    assert_close(theirs + (rounded - theirs) * float32_weight(theirs, 2.0), theirs, noise)
    assert np.abs(rounded - theirs).mean() <= 0.6 * np.abs(exact - theirs).mean()


def test_kaldi_against_kaldi_native_fbank(golden_dir: Path, clip: int) -> None:
    waveform = read_clip(golden_dir / "wenet-conformer", clip)
    theirs = kaldi_native(waveform)
    noise = np.abs(theirs - kaldi_in_float64(waveform))
    assert_close(FeatureExtractor(FeatureConfig.from_preset("kaldi"))(waveform), theirs, noise)


@pytest.mark.parametrize("n_samples", [0, 1, 159, 399, 400, 401, 559, 560, 561, 720, 1000, 16000, 16001])
def test_kaldi_native_fbank_at_hop_edges(n_samples: int) -> None:
    """White noise has no band far below the rest, so the plain bar holds, at every length."""
    waveform = np.random.default_rng(n_samples).normal(0, 0.1, n_samples).astype(np.float32)
    ours = FeatureExtractor(FeatureConfig.from_preset("kaldi"))(waveform)
    if n_samples < 400:
        assert ours.shape == (0, 80)
    else:
        assert_close(ours, kaldi_native(waveform))


def test_kaldi_silence_is_the_floor() -> None:
    ours = FeatureExtractor(FeatureConfig.from_preset("kaldi"))(np.zeros(4000, np.float32))
    assert np.array_equal(ours, np.full((23, 80), np.log(np.float32(2.0**-23)), np.float32))


def test_per_feature_normalisation_is_unbiased() -> None:
    features = np.random.default_rng(0).normal(3, 2, (50, 80)).astype(np.float32)
    expected = (features - features.mean(0)) / (features.std(0, ddof=1) + 1e-5)
    normalize_per_feature(features)
    np.testing.assert_allclose(features, expected, atol=2e-6)
