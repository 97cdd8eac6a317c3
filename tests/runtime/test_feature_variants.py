"""Front ends of other projects, setting by setting, against torch.stft and the formulas of their sources."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor, build_window
from edge_asr.runtime.features.mel import build_mel_filters
from edge_asr.runtime.features.normalization import normalize_features

# float32 in the transform and in the logarithm of small numbers.
TOLERANCE = 2e-3
WINDOWS = {
    "hann": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "bartlett": torch.bartlett_window,
}


@pytest.fixture(scope="module")
def waveform() -> npt.NDArray[np.float32]:
    """Noise that grows and falls, with a tone."""
    generator = np.random.default_rng(0)
    time = np.arange(9_123) / 16_000
    noise = generator.normal(0.0, 0.1, len(time)) * (1.1 + np.sin(7.0 * time))
    return (noise + 0.2 * np.sin(2 * np.pi * 440.0 * time)).astype(np.float32)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("length", [8, 160, 400])
def test_windows(name: str, periodic: bool, length: int) -> None:
    expected = WINDOWS[name](length, periodic=periodic, dtype=torch.float64).numpy()
    given = build_window(name + "_periodic" * periodic, length)
    np.testing.assert_allclose(given, expected, atol=1e-12)


def plain_features(waveform: npt.NDArray[np.float32], config: FeatureConfig) -> npt.NDArray[np.float64]:
    """Log-mel by torch.stft in float64, written from the projects' front ends."""
    samples = torch.from_numpy(waveform).double() * config.input_scale
    if config.preemphasis:
        samples = torch.cat((samples[:1], samples[1:] - config.preemphasis * samples[:-1]))
    window = torch.from_numpy(build_window(config.window, config.win_length))
    mode = "reflect" if config.framing == "center_reflect" else "constant"
    spectrum = torch.stft(
        samples,
        config.n_fft,
        hop_length=config.hop_length,
        win_length=config.win_length,
        window=window,
        center=True,
        pad_mode=mode,
        return_complex=True,
    )
    filters = build_mel_filters(
        sample_rate=config.sample_rate,
        n_fft=config.n_fft,
        n_mels=config.n_mels,
        f_min=config.f_min,
        f_max=config.f_max,
        scale=config.mel_scale,
        norm=config.mel_norm,
    )
    mel = (torch.from_numpy(filters) @ (spectrum.abs() ** config.power)).T.numpy()
    guard = config.log_guard_value
    log_mel = np.log(mel + guard) if config.log_guard == "add" else np.log(np.maximum(mel, guard))
    n_frames = len(waveform) // config.hop_length + (config.framing == "center_reflect")
    return np.asarray(log_mel[:n_frames])


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("nemo", {}),
        ("nemo", {"power": 1.0, "window": "blackman", "n_mels": 40, "preemphasis": 0.0}),
        (
            "nemo",
            {"win_length": 320, "hop_length": 128, "n_fft": 1024, "log_guard": "clamp", "window": "bartlett"},
        ),
        ("nemo-2.4", {"window": "hamming", "f_min": 60.0, "f_max": 7000.0}),
        ("espnet", {}),
        ("espnet", {"win_length": 400, "hop_length": 100, "mel_scale": "htk", "window": "hamming_periodic"}),
        ("torchaudio", {}),
        ("torchaudio", {"n_fft": 512, "mel_scale": "slaney", "mel_norm": "slaney", "log_guard": "clamp"}),
    ],
)
def test_settings_against_torch(
    waveform: npt.NDArray[np.float32], preset: str, changes: dict[str, object]
) -> None:
    config = FeatureConfig.from_preset(preset, **changes)
    given = FeatureExtractor(config)(waveform)
    expected = plain_features(waveform, config)
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= TOLERANCE
    assert np.abs(given - expected).mean() <= 1e-5


def test_streams_of_new_front_ends_give_the_same_bits(waveform: npt.NDArray[np.float32]) -> None:
    for preset in ("espnet", "torchaudio", "waveform"):
        extractor = FeatureExtractor(FeatureConfig.from_preset(preset, normalize="none"))
        stream = extractor.stream()
        pieces = [stream.push(part) for part in np.array_split(waveform, 13)] + [stream.flush()]
        assert np.array_equal(np.concatenate(pieces), extractor(waveform))


def test_normalizations_against_their_formulas() -> None:
    features = np.random.default_rng(1).normal(-5.0, 3.0, (50, 7)).astype(np.float32)
    values = features.astype(np.float64)

    def normalized(kind: str, array: npt.NDArray[np.float32] = features) -> npt.NDArray[np.float32]:
        copy = array.copy()
        normalize_features(copy, kind)
        return copy

    mean = values - values.mean(axis=0)
    expected = {
        "none": values,
        "per_feature": mean / (values.std(axis=0, ddof=1) + 1e-5),
        "all_features": (values - values.mean()) / (values.std(ddof=1) + 1e-5),
        "mean": mean,
        "mean_std": mean / values.std(axis=0),
        "std": values / values.std(axis=0),
        "waveform": (values - values.mean()) / np.sqrt(values.var() + 1e-7),
    }
    for kind, array in expected.items():
        np.testing.assert_allclose(normalized(kind), array, atol=2e-6, err_msg=kind)
        assert normalized(kind, features[:0]).shape == (0, 7)
        assert np.isfinite(normalized(kind, features[:1])).all()
    # Digital silence through "std", which ESPnet divides by 1e-20.
    silence = np.full((5, 7), np.log(1e-10), np.float32)
    assert np.array_equal(normalized("std", silence), silence)


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("nemo", {"power": 3.0}, "power is 3.0"),
        ("nemo", {"window": "kaiser"}, "window is 'kaiser'"),
        ("nemo", {"normalize": "waveform"}, "goes with kind 'waveform' only"),
        ("waveform", {"n_mels": 2}, "need n_mels, hop_length and win_length 1"),
        ("nemo", {"kind": "mfcc"}, "kind is 'mfcc'"),
    ],
)
def test_what_is_no_front_end(preset: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureConfig.from_preset(preset, **changes)
