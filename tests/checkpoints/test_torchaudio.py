"""torchaudio: golden fixtures, other settings against the network written out, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_checks import check_fixture, golden_folder
from torch import Tensor
from torch.nn import functional as F

from edge_asr.checkpoints import Checkpoint, LoadOptions, find_loader, load_any
from edge_asr.checkpoints.vocabularies import original_order
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor
from edge_asr.runtime.features.mel import build_mel_filters

FIXTURES = ("torchaudio-conformer", "torchaudio-conformer-norm")
D, HEADS, FF, LAYERS, KERNEL = 24, 3, 20, 2, 5
TOKENS = ["|", "a", "b", "<blank>", "c"]
CONFIG: dict[str, Any] = {
    "sample_rate": 16000,
    "mel_spectrogram": {"n_mels": D},
    "log": {"type": "add", "value": 1e-6},
    "conformer": {
        "input_dim": D,
        "num_heads": HEADS,
        "ffn_dim": FF,
        "num_layers": LAYERS,
        "depthwise_conv_kernel_size": KERNEL,
        "dropout": 0.1,
    },
    "tokens": TOKENS,
    "blank": 3,
    "word_delimiter": "|",
}


@pytest.mark.parametrize("name", FIXTURES)
def test_golden_outputs(golden_dir: Path, name: str) -> None:
    check_fixture(golden_folder(golden_dir, name))


@pytest.mark.slow
def test_golden_outputs_through_the_runtime(golden_dir: Path, golden_bundle: Callable[[str], Path]) -> None:
    check_fixture(
        golden_folder(golden_dir, "torchaudio-conformer-norm"), golden_bundle("torchaudio-conformer-norm")
    )


def random_weights(*, group_norm: bool = False) -> dict[str, Tensor]:
    """A state dict as torchaudio's Conformer and a Linear have it, nothing at its default."""
    generator = torch.Generator().manual_seed(7)

    def matrix(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * (1.5 / np.prod(shape[1:])) ** 0.5

    def vector(size: int, base: float = 0.0) -> Tensor:
        return base + 0.3 * torch.randn(size, generator=generator)

    weights: dict[str, Tensor] = {"head.weight": 3 * matrix(5, D), "head.bias": vector(5)}
    for layer in range(LAYERS):
        p = f"conformer.conformer_layers.{layer}"
        for name in ("ffn1", "ffn2"):
            weights |= {
                f"{p}.{name}.sequential.0.weight": vector(D, 1.0),
                f"{p}.{name}.sequential.0.bias": vector(D),
                f"{p}.{name}.sequential.1.weight": matrix(FF, D),
                f"{p}.{name}.sequential.1.bias": vector(FF),
                f"{p}.{name}.sequential.4.weight": matrix(D, FF),
                f"{p}.{name}.sequential.4.bias": vector(D),
            }
        for name in ("self_attn_layer_norm", "conv_module.layer_norm", "final_layer_norm"):
            weights |= {f"{p}.{name}.weight": vector(D, 1.0), f"{p}.{name}.bias": vector(D)}
        conv = f"{p}.conv_module.sequential"
        weights |= {
            f"{p}.self_attn.in_proj_weight": matrix(3 * D, D),
            f"{p}.self_attn.in_proj_bias": vector(3 * D),
            f"{p}.self_attn.out_proj.weight": matrix(D, D),
            f"{p}.self_attn.out_proj.bias": vector(D),
            f"{conv}.0.weight": matrix(2 * D, D, 1),
            f"{conv}.0.bias": vector(2 * D),
            f"{conv}.2.weight": matrix(D, 1, KERNEL),
            f"{conv}.2.bias": vector(D),
            f"{conv}.3.weight": vector(D, 1.0),
            f"{conv}.3.bias": vector(D),
            f"{conv}.5.weight": matrix(D, D, 1),
            f"{conv}.5.bias": vector(D),
        }
        if not group_norm:
            weights[f"{conv}.3.running_mean"] = vector(D)
            weights[f"{conv}.3.running_var"] = vector(D, 1.0).abs() + 0.1
            weights[f"{conv}.3.num_batches_tracked"] = torch.tensor(9)
    return weights


def changed(**sections: Any) -> dict[str, Any]:
    """The configuration with keys of its sections, or the sections, replaced."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in sections.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    return config


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> Path:
    """The folder, written."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(random_weights() if weights is None else weights, folder / "model.pt")
    return folder


def load(tmp_path: Path, config: dict[str, Any], weights: dict[str, Tensor] | None = None) -> Checkpoint:
    return load_any(write(tmp_path / "model", config, weights))


def plain_log_probs(w: dict[str, Tensor], x: Tensor, *, group_norm: bool, convolution_first: bool) -> Tensor:
    """One clip (T, D) through the network as its paper and torch's functions have it, without a mask."""

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"])

    def feed_forward(name: str, x: Tensor) -> Tensor:
        hidden = F.linear(norm(f"{name}.0", x), w[f"{name}.1.weight"], w[f"{name}.1.bias"])
        return F.linear(F.silu(hidden), w[f"{name}.4.weight"], w[f"{name}.4.bias"])

    def attention(p: str, x: Tensor) -> Tensor:
        x = norm(f"{p}.self_attn_layer_norm", x)[:, None]
        a = f"{p}.self_attn"
        output, _ = F.multi_head_attention_forward(
            *(x, x, x, D, HEADS, w[f"{a}.in_proj_weight"], w[f"{a}.in_proj_bias"], None, None, False, 0.0),
            *(w[f"{a}.out_proj.weight"], w[f"{a}.out_proj.bias"]),
            training=False,
            need_weights=False,
        )
        return output[:, 0]

    def convolution(p: str, x: Tensor) -> Tensor:
        c = f"{p}.conv_module.sequential"
        y = norm(f"{p}.conv_module.layer_norm", x).T[None]
        y = F.glu(F.conv1d(y, w[f"{c}.0.weight"], w[f"{c}.0.bias"]), dim=1)
        y = F.conv1d(y, w[f"{c}.2.weight"], w[f"{c}.2.bias"], padding=KERNEL // 2, groups=D)
        scale, shift = w[f"{c}.3.weight"], w[f"{c}.3.bias"]
        if group_norm:
            y = F.group_norm(y, 1, scale, shift)
        else:
            y = F.batch_norm(y, w[f"{c}.3.running_mean"], w[f"{c}.3.running_var"], scale, shift)
        return F.conv1d(F.silu(y), w[f"{c}.5.weight"], w[f"{c}.5.bias"])[0].T

    for layer in range(LAYERS):
        p = f"conformer.conformer_layers.{layer}"
        x = x + 0.5 * feed_forward(f"{p}.ffn1.sequential", x)
        for part in (convolution, attention) if convolution_first else (attention, convolution):
            x = x + part(p, x)
        x = x + 0.5 * feed_forward(f"{p}.ffn2.sequential", x)
        x = norm(f"{p}.final_layer_norm", x)
    return F.log_softmax(F.linear(x, w["head.weight"], w["head.bias"]), dim=-1)


@pytest.mark.parametrize("group_norm", [False, True])
@pytest.mark.parametrize("convolution_first", [False, True])
@torch.inference_mode()
def test_variants_against_the_network_written_out(
    tmp_path: Path, group_norm: bool, convolution_first: bool
) -> None:
    config = changed(conformer={"use_group_norm": group_norm, "convolution_first": convolution_first})
    weights = random_weights(group_norm=group_norm)
    checkpoint = load(tmp_path, config, weights)
    model = checkpoint.build_model()
    lengths = [1, 2, 37, 19]
    generator = torch.Generator().manual_seed(1)
    clips = [torch.randn(n, D, generator=generator) - 4.0 for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=float("nan"))
    log_probs, lens = model(batch, torch.tensor(lengths))
    assert lens.tolist() == lengths
    for row, clip in zip(log_probs, clips, strict=True):
        expected = plain_log_probs(
            weights, clip, group_norm=group_norm, convolution_first=convolution_first
        ).numpy()
        given = original_order(row[: len(clip)].numpy(), 3)
        # Float32 rounding of another order of sums; a padded batch must not matter.
        np.testing.assert_allclose(given, expected, atol=2e-5, rtol=0)


def test_the_blank_moves_last_and_the_delimiter_is_a_space(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, CONFIG)
    assert checkpoint.vocabulary.kind == "char"
    assert checkpoint.vocabulary.tokens == ("\u2581", "a", "b", "c", "<blk>")
    assert checkpoint.source_blank_id == 3
    assert checkpoint.vocabulary.decode([1, 0, 3]) == "a c"


def test_pieces_are_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    checkpoint = load(tmp_path, changed(tokens=["\u2581the", "s", "ing", "<b>", "\u2581a"]))
    assert checkpoint.vocabulary.kind == "sentencepiece"
    assert checkpoint.vocabulary.decode([0, 1, 3]) == "thes a"


def test_absent_arguments_have_the_defaults_of_torchaudio(tmp_path: Path) -> None:
    features = load(tmp_path, CONFIG).features
    expected = FeatureConfig.from_preset("torchaudio", n_mels=D, win_length=400, hop_length=200)
    assert features == expected
    assert features.window == "hann_periodic"
    assert (features.mel_scale, features.mel_norm, features.f_max) == ("htk", "none", 8000.0)


def test_arguments_of_the_spectrogram(tmp_path: Path) -> None:
    config = changed(
        sample_rate=8000,
        mel_spectrogram={
            "n_fft": 512,
            "win_length": 256,
            "hop_length": 80,
            "f_min": 20.0,
            "f_max": 3800.0,
            "power": 1.0,
            "norm": "slaney",
            "mel_scale": "slaney",
            "window_fn": "hamming_window",
        },
        log={"type": "clamp", "value": 1e-10},
    )
    features = load(tmp_path, config).features
    assert (features.sample_rate, features.n_fft, features.win_length, features.hop_length) == (
        *(8000, 512, 256, 80),
    )
    assert (features.f_min, features.f_max, features.power, features.window) == (
        *(20.0, 3800.0, 1.0, "hamming_periodic"),
    )
    assert (features.mel_scale, features.mel_norm) == ("slaney", "slaney")
    assert (features.log_guard, features.log_guard_value) == ("clamp", 1e-10)


@pytest.mark.parametrize(
    "mel",
    [
        {"hop_length": 160},
        {"hop_length": 160, "pad_mode": "constant", "win_length": 321, "n_fft": 512},
        {"hop_length": 221, "win_length": 551, "n_fft": 1024},
        {"hop_length": 160, "center": False, "wkwargs": {"periodic": False}},
        {"hop_length": 160, "center": False, "pad_mode": "constant"},
        {"hop_length": 160, "normalized": True, "window_fn": "hamming_window", "win_length": 320},
        {"hop_length": 160, "normalized": "frame_length", "window_fn": "blackman_window"},
    ],
)
@pytest.mark.parametrize("n_samples", [16000, 16001, 2400, 700])
def test_frames_against_torch(tmp_path: Path, mel: dict[str, Any], n_samples: int) -> None:
    """torch.stft in float64 and the same filters; the issue's tolerances."""
    features = load(tmp_path, changed(mel_spectrogram=mel)).features
    waveform = 0.1 * torch.randn(n_samples, generator=torch.Generator().manual_seed(6))
    n_fft = mel.get("n_fft", 400)
    win_length = mel.get("win_length", n_fft)
    window = getattr(torch, mel.get("window_fn", "hann_window"))(win_length, **mel.get("wkwargs", {}))
    spectrum = torch.stft(
        waveform.double(), n_fft, mel["hop_length"], win_length, window.double(), mel.get("center", True),
        mel.get("pad_mode", "reflect"), return_complex=True,
    )  # fmt: skip
    power = spectrum.abs() ** 2
    if mel.get("normalized") == "frame_length":
        power = power / n_fft
    elif mel.get("normalized"):
        power = power / window.double().pow(2).sum()
    filters = build_mel_filters(
        sample_rate=16000, n_fft=n_fft, n_mels=D, f_min=0.0, f_max=8000.0, scale="htk", norm="none"
    )
    expected = ((torch.from_numpy(filters) @ power) + 1e-6).log().T.numpy()
    given = FeatureExtractor(features)(waveform.numpy())
    assert given.shape == expected.shape
    assert np.abs(given - expected).max() <= 5e-4
    assert np.abs(given - expected).mean() <= 1e-5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mel_spectrogram": {"center": False, "n_fft": 512, "win_length": 400}}, "center"),
        ({"mel_spectrogram": {"pad_mode": "replicate"}}, "pad_mode"),
        ({"mel_spectrogram": {"normalized": "ortho"}}, "normalized"),
        ({"mel_spectrogram": {"wkwargs": {"beta": 3}}}, "beta"),
        ({"mel_spectrogram": {"power": 3.0}}, "power"),
        ({"mel_spectrogram": {"pad": 4}}, "pad"),
        ({"mel_spectrogram": {"n_fft": 401}}, "n_fft"),
        ({"mel_spectrogram": {"window_fn": "kaiser_window"}}, "window_fn"),
        ({"mel_spectrogram": {"dct": 3}}, "dct"),
        ({"mel_spectrogram": {"n_mels": 30}}, "input_dim"),
        ({"log": {"type": "log10"}}, "log.type"),
        ({"log": {"value": 0}}, "log_guard_value"),
        ({"conformer": {"subsampling": 4}}, "subsampling"),
        ({"conformer": {"depthwise_conv_kernel_size": 4}}, "conv_kernel_size"),
        ({"conformer": {"num_layers": 3}}, "conformer_layers.2"),
        ({"conformer": {"num_layers": 1}}, "conformer_layers.1"),
        ({"conformer": {"use_group_norm": True}}, "running_mean"),
        ({"tokens": ["a", "b"]}, "blank"),
        ({"tokens": "abc"}, "tokens"),
        ({"normalization": "global"}, "normalization"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(tmp_path, changed(**change) if "normalization" not in change else {**CONFIG, **change})


def test_a_feature_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="feature preset"):
        load_any(write(tmp_path / "model", CONFIG), LoadOptions(feature_preset="nemo"))


def test_detection_needs_both_files_and_a_conformer(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", CONFIG)
    loader = find_loader(folder)
    assert loader is not None
    assert loader.name == "torchaudio"
    for text in ("[1]", "{", '{"conformer": 3}', "\x00"):
        (folder / "config.json").write_text(text, encoding="utf-8")
        assert find_loader(folder) is None
    (folder / "model.pt").unlink()
    assert find_loader(folder) is None
