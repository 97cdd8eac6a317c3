"""ESPnet's default front end and its normalizations, as a `FeatureConfig` and the model's CMVN.

It supports `frontend: default` (STFT, mel bands of librosa, logarithm), `utterance_mvn`, and `global_mvn`
from the weights or the statistics file.
What this file does not do: other front ends (s3prl, fused, whisper, sliding_window), WPE, beamforming.

Sources: espnet2/asr/frontend/default.py, espnet2/layers/{stft,log_mel,global_mvn,utterance_mvn}.py.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_asr.checkpoints.assembly import TensorMap, build_features
from edge_asr.checkpoints.safe_yaml import Settings
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.mel import build_mel_filters

_WINDOWS = {
    "hann": "hann_periodic",
    "hamming": "hamming_periodic",
    "blackman": "blackman_periodic",
    "bartlett": "bartlett_periodic",
    None: "rectangular",
}
MAX_STATISTICS_BYTES = 16 << 20
_EPS = 1e-20  # of both normalizations
_UNITS = {"": 1, "k": 1000, "m": 1000**2}


def sample_rate_from_value(value: Any, where: str) -> int:
    """Hz from 16000 or "16k" (humanfriendly.parse_size in ESPnet: decimal units).

    Raises:
        CheckpointError: neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([km]?)(?:hz)?\s*", str(value).lower())
    if match is None or isinstance(value, bool):
        raise CheckpointError(f"{where}.fs is {value!r}; edge-asr takes Hz, such as 16000 or '16k'")
    return round(float(match.group(1)) * _UNITS[match.group(2)])


def features_from_settings(
    frontend: Settings, normalize: str | None, normalize_conf: Settings
) -> FeatureConfig:
    """The front end that `frontend_conf` and `normalize` say.

    Raises:
        CheckpointError: a setting that edge-asr does not have.
    """
    where = frontend.where
    rate = sample_rate_from_value(frontend.take("fs", 16000), where)
    n_fft = frontend.integer("n_fft", 512)
    win_length = frontend.integer("win_length", None)
    window = frontend.take("window", "hann")
    if window not in _WINDOWS:
        raise frontend.refusal("window", window, ", ".join(str(name) for name in _WINDOWS))
    for key, value in (("pad_mode", "reflect"), ("onesided", True), ("apply_stft", True)):
        frontend.expect(key, (value,), value)
    win_length = n_fft if win_length is None else win_length
    framing = framing_from_center(frontend, n_fft, win_length)
    # torch.stft multiplies by 1 / sqrt(n_fft), which may as well be done to the samples.
    scale = n_fft**-0.5 if frontend.flag("normalized", False) else 1.0
    f_min, f_max = frontend.number("fmin", None), frontend.number("fmax", None)
    htk = frontend.flag("htk", False)
    enhancement = frontend.section("frontend_conf", {})
    for key in ("use_wpe", "use_beamformer"):
        enhancement.expect(key, (False,), False)
    features = build_features(
        where,
        "espnet",
        sample_rate=rate,
        n_mels=frontend.integer("n_mels", 80),
        n_fft=n_fft,
        win_length=win_length,
        framing=framing,
        hop_length=frontend.integer("hop_length", 128),
        window=_WINDOWS[window],
        input_scale=scale,
        mel_scale="htk" if htk else "slaney",
        f_min=0.0 if f_min is None else float(f_min),
        f_max=rate / 2 if f_max is None else float(f_max),
        normalize=_clip_normalization(normalize, normalize_conf),
    )
    frontend.finish()
    return features


def framing_from_center(settings: Settings, n_fft: int, win_length: int) -> str:
    """`FeatureConfig.framing` of torch.stft's `center` with reflected edges.

    Raises:
        CheckpointError: frames of n_fft samples, not centered, around a shorter window.
    """
    if settings.flag("center", True):
        return "center_reflect"
    if win_length != n_fft:
        raise settings.refusal(
            "center", False, f"it with a window as long as n_fft ({n_fft}, not {win_length})"
        )
    return "snip_edges"


def _clip_normalization(normalize: str | None, settings: Settings) -> str:
    if normalize != "utterance_mvn":
        return "none"
    means, variances = settings.flag("norm_means", True), settings.flag("norm_vars", False)
    eps = settings.number("eps", _EPS)
    settings.finish()
    if variances and eps != _EPS:
        raise settings.refusal("eps", eps, f"{_EPS}")
    if variances:
        return "mean_std" if means else "std"
    return "mean" if means else "none"


def move_cmvn(
    weights: TensorMap, settings: Settings, n_mels: int, read_file: Callable[[str], bytes], notes: list[str]
) -> None:
    """`global_mvn` as the model's `cmvn.mean` and `cmvn.istd`; what the weights hold counts, as in ESPnet.

    Args:
        weights: may hold normalize.mean and normalize.std.
        settings: normalize_conf.
        n_mels: mel bands.
        read_file: content of the statistics file of a name.
        notes: gets a sentence when the statistics file is used.

    Raises:
        CheckpointError: no statistics, or of another size.
    """
    name = settings.take("stats_file", None)
    means, variances = settings.flag("norm_means", True), settings.flag("norm_vars", True)
    eps = settings.number("eps", _EPS)
    settings.finish()
    if "normalize.mean" in weights:
        mean, std = weights.take("normalize.mean"), weights.take("normalize.std")
    elif isinstance(name, str):
        mean, std = statistics_from_file(read_file(name), name, eps)
        notes.append(f"Mean and deviation of the features were read from {name}.")
    else:
        raise CheckpointError(
            f"{settings.where} names no stats_file and the weights hold none; copy it along"
        )
    for what, value in (("mean", mean), ("std", std)):
        if value.shape != (n_mels,) or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{settings.where}: the {what} of the features has shape {tuple(value.shape)}; {n_mels} "
                "finite values are needed"
            )
    if not bool((std > 0).all()):
        raise CheckpointError(
            f"{settings.where}: a deviation of the features is not above 0; compute it again"
        )
    weights.ours["cmvn.mean"] = mean if means else torch.zeros(n_mels)
    weights.ours["cmvn.istd"] = (1.0 / std.double()).float() if variances else torch.ones(n_mels)


def statistics_from_file(content: bytes, where: str, eps: float) -> tuple[Tensor, Tensor]:
    """(mean, std) float32 from ESPnet's npz of count, sum and sum_square, or Kaldi's matrix as npy.

    Raises:
        CheckpointError: neither.
    """
    try:
        stats = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(stats, np.ndarray):
            count, total, squares = stats[0].flatten()[-1], stats[0, :-1], stats[1, :-1]
        else:
            count, total, squares = stats["count"], stats["sum"], stats["sum_square"]
        mean = np.asarray(total, np.float64) / count
        variance = np.asarray(squares, np.float64) / count - mean * mean
    except (ValueError, KeyError, IndexError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{where} is damaged or no statistics of ESPnet ({error}); it needs count, sum and sum_square"
        ) from error
    std = np.sqrt(np.maximum(variance, eps))
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def check_stored_filters(weights: TensorMap, features: FeatureConfig, where: str) -> None:
    """The mel filters that the weights hold are those that the settings say.

    Raises:
        CheckpointError: others.
    """
    name = "frontend.logmel.melmat"
    if name not in weights:
        return
    stored = weights.take(name).numpy()  # (bins, bands)
    expected = build_mel_filters(
        sample_rate=features.sample_rate,
        n_fft=features.n_fft,
        n_mels=features.n_mels,
        f_min=features.f_min,
        f_max=features.f_max,
        scale=features.mel_scale,
        norm=features.mel_norm,
    )
    expected = expected.T
    if expected.shape != stored.shape or np.abs(expected - stored).max() > 1e-5 * np.abs(stored).max():
        raise CheckpointError(
            f"{where}: the stored {name} is not what frontend_conf says; use these weights' own config.yaml"
        )
