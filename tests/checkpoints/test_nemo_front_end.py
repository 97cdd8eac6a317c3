"""NeMo's front end: both generations, all settings, fixed normalization."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from golden_checks import arrays_of, golden_folder
from make_nemo import CONFIG, changed, load, random_weights, write_nemo

from edge_asr.checkpoints import LoadOptions, load_any
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor


@pytest.mark.parametrize("version", ["1.23.0", "2.4.0"])
def test_the_older_front_end(golden_dir: Path, version: str) -> None:
    folder = golden_folder(golden_dir, "nemo-features-old")
    golden = arrays_of(folder)
    extractor = FeatureExtractor(FeatureConfig.from_preset("nemo-2.4", normalize="per_feature"))
    for index in range(3):
        expected = golden[f"v{version}_norm_clip{index}"]
        waveform, _ = soundfile.read(folder.parent / f"audio_{index}.flac", dtype="float32")
        errors = np.abs(extractor(waveform) - expected)
        assert errors.max() <= 5e-4
        assert errors.mean() <= 1e-5


def test_log_probs_on_the_older_front_end(golden_dir: Path) -> None:
    """NeMo 1.23 and 2.4 with the weights of a newer file: its front end is asked for."""
    folder = golden_folder(golden_dir, "nemo-fastconformer-bpe")
    golden = arrays_of(golden_folder(golden_dir, "nemo-features-old"))
    checkpoint = load_any(folder / "model.nemo", LoadOptions(feature_preset="nemo-2.4"))
    model, extractor = checkpoint.build_model(), FeatureExtractor(checkpoint.features)
    for index in range(3):
        waveform, _ = soundfile.read(folder.parent / f"audio_{index}.flac", dtype="float32")
        features = torch.from_numpy(extractor(waveform))[None]
        with torch.no_grad():
            log_probs = model(features, torch.tensor([features.shape[1]]))[0][0].numpy()
        for version in ("1.23.0", "2.4.0"):
            assert np.abs(log_probs - golden[f"v{version}_logp_clip{index}"]).max() <= 1e-3


@pytest.mark.parametrize(
    ("version", "asked", "preset"),
    [
        ("1.23.0", None, "nemo-2.4"),
        ("2.4.1", None, "nemo-2.4"),
        ("2.5.0", None, "nemo"),
        ("2.10.0rc0", None, "nemo"),
        (None, None, "nemo"),
        ("3.0.0", "nemo-2.4", "nemo-2.4"),
    ],
)
def test_the_generation_is_read_or_asked_for_and_said(
    tmp_path: Path, version: str | None, asked: str | None, preset: str
) -> None:
    path = write_nemo(tmp_path / "model.nemo", changed(nemo_version=version))
    checkpoint = load_any(path, LoadOptions(feature_preset=asked))
    assert checkpoint.features.preset == preset
    assert checkpoint.features.framing == ("center_zero" if preset == "nemo" else "center_reflect")
    assert any((asked or "front end") in note for note in checkpoint.notes)


def test_settings_of_the_front_end(tmp_path: Path) -> None:
    checkpoint = load(
        tmp_path,
        changed(
            preprocessor={
                "sample_rate": 8000,
                "window_size": 0.02,
                "window_stride": 0.0125,
                "window": "hamming",
                "n_fft": None,
                "preemph": None,
                "lowfreq": 100,
                "highfreq": 3800,
                "mag_power": 1.0,
                "mel_norm": None,
                "log_zero_guard_type": "clamp",
                "log_zero_guard_value": "eps",
                "normalize": "all_features",
            }
        ),
    )
    features = checkpoint.features
    assert (features.sample_rate, features.win_length, features.hop_length, features.n_fft) == (
        8000,
        160,
        100,
        256,
    )
    assert (features.window, features.preemphasis, features.power) == ("hamming", 0.0, 1.0)
    assert (features.f_min, features.f_max, features.mel_norm) == (100.0, 3800.0, "none")
    assert (features.log_guard, features.normalize) == ("clamp", "all_features")
    assert features.log_guard_value == torch.finfo(torch.float32).eps


def test_fixed_normalization_is_the_models_cmvn(tmp_path: Path) -> None:
    mean, std = np.linspace(-8.0, -4.0, 16), np.linspace(1.0, 3.0, 16)
    fixed = {"fixed_mean": mean.tolist(), "fixed_std": std.tolist()}
    weights = random_weights(changed())
    checkpoint = load(tmp_path, changed(preprocessor={"normalize": fixed}), weights=weights)
    plain = load(tmp_path, changed(preprocessor={"normalize": "NA"}), weights=weights)
    assert checkpoint.features.normalize == plain.features.normalize == "none"
    assert (checkpoint.provenance["normalize"], plain.provenance["normalize"]) == ("fixed", "none")
    features = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0))
    normalized = (features - torch.tensor(mean).float()) / torch.tensor(std).float()
    lengths = torch.tensor([40])
    with torch.no_grad():
        given = checkpoint.build_model()(features, lengths)[0]
        expected = plain.build_model()(normalized, lengths)[0]
    torch.testing.assert_close(given, expected, atol=1e-4, rtol=0)


def test_a_front_end_changed_by_hand_is_refused(tmp_path: Path) -> None:
    weights = {**random_weights(CONFIG), "preprocessor.featurizer.window": torch.hann_window(400)}  # periodic
    with pytest.raises(CheckpointError, match=r"stored preprocessor\.featurizer\.window is not what"):
        load(tmp_path, CONFIG, weights=weights)
