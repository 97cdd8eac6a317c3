"""Windows and mel filters with torch's float32 roundings, against torch and torchaudio's formulas."""

import math

import numpy as np
import pytest

from edge_asr.errors import ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor, build_window
from edge_asr.runtime.features.float32_tables import build_float32_mel_filters, build_float32_window
from edge_asr.runtime.features.mel import build_mel_filters

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("length", [320, 400, 513])
@pytest.mark.parametrize("shape", ["hann", "hamming", "blackman", "bartlett"])
@pytest.mark.parametrize("periodic", [False, True])
def test_windows_are_torch_windows_but_for_last_bits(shape: str, periodic: bool, length: int) -> None:
    name = f"{shape}_periodic" if periodic else shape
    expected = getattr(torch, f"{shape}_window")(length, periodic=periodic).double().numpy()
    given = build_float32_window(name, length)
    # torch's vectorized cosine is not correctly rounded: one value in twenty is a last bit off, no more.
    assert np.abs(given - expected).max() <= 1.2e-7
    assert np.mean(given != expected) < 0.08
    np.testing.assert_allclose(given, build_window(name, length), atol=5e-7)


def torchaudio_filters(
    n_fft: int, n_mels: int, f_min: float, f_max: float, rate: int, scale: str
) -> "np.ndarray":
    """The formula of torchaudio's `melscale_fbanks` in torch's float32, triangle by triangle."""
    step = math.log(6.4) / 27.0

    def mel(hz: float) -> float:
        if scale == "htk":
            return 2595.0 * math.log10(1.0 + hz / 700.0)
        return hz * 3.0 / 200.0 if hz < 1000.0 else 15.0 + math.log(hz / 1000.0) / step

    points = torch.linspace(mel(f_min), mel(f_max), n_mels + 2)
    if scale == "htk":
        corners = 700.0 * (10.0 ** (points / 2595.0) - 1.0)
    else:
        corners = torch.where(points >= 15.0, 1000.0 * torch.exp(step * (points - 15.0)), 200.0 / 3 * points)
    bins = torch.linspace(0, rate // 2, n_fft // 2 + 1)
    rows = []
    for left, center, right in zip(corners[:-2], corners[1:-1], corners[2:], strict=True):
        rising, falling = (bins - left) / (center - left), (right - bins) / (right - center)
        rows.append(torch.minimum(rising, falling).clamp(min=0.0))
    return torch.stack(rows).double().numpy()


@pytest.mark.parametrize(
    ("n_fft", "n_mels", "f_min", "f_max", "rate", "scale"),
    [
        (400, 80, 0.0, 8000.0, 16000, "htk"),
        (400, 128, 0.0, 8000.0, 16000, "htk"),
        (512, 40, 20.0, 3800.0, 8000, "slaney"),
        (1024, 64, 125.0, 7500.0, 16000, "htk"),
    ],
)
def test_filters_have_the_roundings_of_torchaudio(
    n_fft: int, n_mels: int, f_min: float, f_max: float, rate: int, scale: str
) -> None:
    expected = torchaudio_filters(n_fft, n_mels, f_min, f_max, rate, scale)
    sizes = {"sample_rate": rate, "n_fft": n_fft, "n_mels": n_mels, "f_min": f_min, "f_max": f_max}
    given = build_float32_mel_filters(**sizes, scale=scale, norm="none")  # type: ignore[arg-type]
    exact = build_mel_filters(**sizes, scale=scale, norm="none")  # type: ignore[arg-type]
    # Where a corner falls on another last bit, its two triangles move; most are the same bits.
    assert np.mean(given[expected > 0] != expected[expected > 0]) < 0.15
    assert np.abs(given - expected).max() < 2e-5
    assert np.mean(exact[expected > 0] != expected[expected > 0]) > 0.5
    area = build_float32_mel_filters(**sizes, scale=scale, norm="slaney")  # type: ignore[arg-type]
    np.testing.assert_allclose(
        area,
        build_mel_filters(**sizes, scale=scale, norm="slaney"),
        atol=1e-6,  # type: ignore[arg-type]
    )


def test_the_torchaudio_preset_has_them_and_others_do_not() -> None:
    assert FeatureConfig.from_preset("torchaudio").float32_tables
    assert not FeatureConfig.from_preset("nemo").float32_tables
    config = FeatureConfig.from_preset("torchaudio", n_mels=128, log_guard="clamp", log_guard_value=1e-10)
    exact = FeatureConfig.from_dict({**config.to_dict(), "float32_tables": False})
    samples = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    difference = np.abs(FeatureExtractor(config)(samples) - FeatureExtractor(exact)(samples))
    assert 1e-5 < difference.max() < 1e-2


def torchaudio_kaldi_filters(n_fft: int, n_mels: int, rate: int) -> "np.ndarray":
    """The formula of torchaudio.compliance.kaldi's `get_mel_banks` in torch's float32, filter by filter."""
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (20.0, rate / 2))
    step = (high - low) / (n_mels + 1)
    mel = 1127.0 * (1.0 + (rate / n_fft) * torch.arange(n_fft // 2) / 700.0).log()
    rows = []
    for band in torch.arange(n_mels):
        left, center, right = (low + (band + offset) * step for offset in (0.0, 1.0, 2.0))
        rising, falling = (mel - left) / (center - left), (right - mel) / (right - center)
        rows.append(torch.minimum(rising, falling).clamp(min=0.0))
    return torch.nn.functional.pad(torch.stack(rows), (0, 1)).double().numpy()


@pytest.mark.parametrize(("n_fft", "n_mels", "rate"), [(512, 80, 16000), (256, 23, 8000), (1024, 40, 24000)])
def test_kaldi_filters_have_the_roundings_of_torchaudio(n_fft: int, n_mels: int, rate: int) -> None:
    expected = torchaudio_kaldi_filters(n_fft, n_mels, rate)
    sizes = {"sample_rate": rate, "n_fft": n_fft, "n_mels": n_mels, "f_min": 20.0, "f_max": rate / 2}
    given = build_float32_mel_filters(**sizes, scale="kaldi", norm="none")  # type: ignore[arg-type]
    exact = build_mel_filters(**sizes, scale="kaldi", norm="none")  # type: ignore[arg-type]
    inside = expected > 0
    # torch's vectorized logarithm is a last bit off in a few values, which moves two triangles each.
    assert np.mean(given[inside] != expected[inside]) < 0.15
    assert np.abs(given - expected).max() < 3e-5
    assert np.mean(exact[inside] != expected[inside]) > 0.5


def test_poveys_window_has_the_roundings_of_torch() -> None:
    expected = torch.hann_window(400, periodic=False).pow(0.85).double().numpy()
    given = build_float32_window("povey", 400)
    assert np.abs(given - expected).max() <= 1.2e-7
    assert np.mean(given != expected) < 0.08
    np.testing.assert_allclose(given, build_window("povey", 400), atol=5e-7)


def test_frames_have_the_roundings_of_torch_ahead_of_an_exact_transform() -> None:
    """Kaldi's steps in torch's float32, the transform in float64: the same bits but for last ones."""
    config = FeatureConfig.from_preset("kaldi", float32_tables=True)
    generator = torch.Generator().manual_seed(3)
    # Loud below 500 Hz and almost silent above, where only the roundings of the frame are heard.
    waveform = torch.randn(16000, generator=generator)
    low = torch.fft.irfft(torch.fft.rfft(waveform) * (torch.arange(8001) < 500), 16000)
    samples = (low / low.abs().max() * 20000).round() / 32768
    frames = (samples * 32768).unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
    frames = frames * torch.hann_window(400, periodic=False).pow(0.85)
    power = torch.fft.rfft(frames.double(), 512).abs().pow(2)
    filters = torch.from_numpy(torchaudio_kaldi_filters(512, 80, 16000))
    expected = (power @ filters.T).clamp(min=2.0**-23).log().numpy()
    given = FeatureExtractor(config)(samples.numpy())
    assert given.shape == expected.shape
    exact = FeatureExtractor(FeatureConfig.from_preset("kaldi"))(samples.numpy())
    ours, others = np.abs(given - expected).mean(), np.abs(exact - expected).mean()
    assert ours < 0.5 * others, (ours, others)


@pytest.mark.parametrize(
    "overrides",
    [{"mel_scale": "kaldi", "mel_norm": "slaney"}, {"n_fft": 401}, {"sample_rate": 16001}],
)
def test_what_torchaudio_has_not_is_refused(overrides: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="float32_tables"):
        FeatureConfig.from_preset("torchaudio", **overrides)
