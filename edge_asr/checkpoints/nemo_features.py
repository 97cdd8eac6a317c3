"""NeMo's AudioToMelSpectrogramPreprocessor as a `FeatureConfig`, in both of its generations.

It reads every setting that decides a log-mel band. "fixed" normalization becomes the model's own CMVN. The
window and filters stored in the checkpoint must be those that the settings give.
What this file does not do: dither (0 at inference), `pad_to` (frames past the clip are ignored).

Up to NeMo 2.4 clips were mirrored at their ends and had L // hop + 1 frames; from 2.5 on they are padded with
zeros and have L // hop (PR 13827). A file says which version wrote it, not always which one trained it.

Source: nemo/collections/asr/modules/audio_preprocessing.py, parts/preprocessing/features.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_asr.checkpoints.assembly import TensorMap, build_features
from edge_asr.checkpoints.safe_yaml import Settings
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import build_window
from edge_asr.runtime.features.mel import build_mel_filters

GENERATIONS = ("nemo", "nemo-2.4")
_NEW_SINCE = (2, 5)
_GUARDS = {"tiny": float(np.finfo(np.float32).tiny), "eps": float(np.finfo(np.float32).eps)}
# librosa in float32 against ours in float64.
_FILTER_TOLERANCE = 1e-5
_IGNORED = (
    "dither", "pad_to", "pad_value", "max_duration", "nb_augmentation_prob", "nb_max_freq", "rng",
    "use_grads",
)  # fmt: skip


def features_from_config(
    values: Mapping[str, Any], where: str, preset: str | None, notes: list[str]
) -> tuple[FeatureConfig, tuple[Tensor, Tensor] | None]:
    """The front end, and (mean, 1 / deviation) of a fixed normalization, [n_mels] each, or None.

    Raises:
        CheckpointError: a front end that edge-asr does not have; it names the setting.
    """
    settings = Settings(values, where).section("preprocessor")
    name = str(settings.take("_target_", "AudioToMelSpectrogramPreprocessor")).rpartition(".")[2]
    if name != "AudioToMelSpectrogramPreprocessor":
        raise settings.refusal("_target_", name, "AudioToMelSpectrogramPreprocessor")
    rate = settings.integer("sample_rate", 16000)
    window = _samples(settings, "window_size", "n_window_size", 0.02, rate)
    hop = _samples(settings, "window_stride", "n_window_stride", 0.01, rate)
    if min(window, hop) < 1:
        raise settings.refusal("window_size", f"{window} samples, its stride {hop}", "one sample or more")
    n_fft = _number(settings, "n_fft", None) or 2 ** math.ceil(math.log2(window))
    preemphasis = _number(settings, "preemph", 0.97)
    settings.expect("log", (True,), True)
    settings.expect("frame_splicing", (1,), 1)
    for key in ("exact_pad", "stft_exact_pad", "stft_conv", "use_torchaudio"):
        settings.expect(key, (False,), False)
    n_mels = settings.integer("features", 64)
    cmvn, normalize = _normalization(settings, n_mels)
    guard = settings.take("log_zero_guard_value", 2.0**-24)
    if isinstance(guard, str) and guard in _GUARDS:
        guard = _GUARDS[guard]
    guard = Settings({"log_zero_guard_value": guard}, settings.where).number("log_zero_guard_value")
    features = build_features(
        settings.where,
        _generation(values, preset, notes),
        sample_rate=rate,
        n_mels=n_mels,
        n_fft=int(n_fft),
        win_length=window,
        hop_length=hop,
        window=settings.expect("window", ("hann", "hamming", "blackman", "bartlett"), "hann"),
        preemphasis=0.0 if preemphasis is None else preemphasis,
        power=float(settings.expect("mag_power", (1, 2, 1.0, 2.0), 2.0)),
        f_min=_number(settings, "lowfreq", 0) or 0.0,
        f_max=_number(settings, "highfreq", None) or rate / 2,
        mel_norm=settings.expect("mel_norm", ("slaney", None), "slaney") or "none",
        log_guard=settings.expect("log_zero_guard_type", ("add", "clamp"), "add"),
        log_guard_value=guard,
        normalize=normalize,
    )
    settings.ignore(*_IGNORED)
    settings.finish()
    return features, cmvn


def check_stored_front_end(weights: TensorMap, features: FeatureConfig, where: str) -> None:
    """The checkpoint's own window and filters must be what the settings say; both count as used then.

    Raises:
        CheckpointError: they are other ones (a front end that was changed by hand, or rounded to 16 bits).
    """
    expected = {
        "window": build_window(features.window, features.win_length),
        "fb": build_mel_filters(
            sample_rate=features.sample_rate,
            n_fft=features.n_fft,
            n_mels=features.n_mels,
            f_min=features.f_min,
            f_max=features.f_max,
            scale=features.mel_scale,
            norm=features.mel_norm,
        )[None],
    }
    for name, value in expected.items():
        stored = f"preprocessor.featurizer.{name}"
        if stored not in weights:
            continue
        tensor = weights.take(stored)
        ours = torch.from_numpy(np.asarray(value)).to(torch.float32)
        if tensor.shape != ours.shape or float((tensor - ours).abs().max()) > _FILTER_TOLERANCE:
            raise CheckpointError(
                f"{where}: the stored {stored} is not what preprocessor's settings give; edge-asr takes "
                "NeMo's own windows and mel filters, in float32"
            )


def _samples(settings: Settings, seconds_key: str, samples_key: str, default: float, rate: int) -> int:
    samples = _number(settings, samples_key, None)
    seconds = _number(settings, seconds_key, None if samples else default)
    length = samples or (seconds or 0.0) * rate
    if length > rate:
        raise settings.refusal(seconds_key, seconds or samples, "a second at most")
    return int(length)  # truncated, as NeMo does


def _number(settings: Settings, key: str, default: float | None) -> float | None:
    """A finite number, or null."""
    value = settings.take(key, default)
    if value is None:
        return None
    number = float(Settings({key: value}, settings.where).number(key))
    if not math.isfinite(number):
        raise settings.refusal(key, value, "a finite number")
    return number


def _normalization(settings: Settings, n_mels: int) -> tuple[tuple[Tensor, Tensor] | None, str]:
    value = settings.take("normalize", "per_feature")
    if value in ("per_feature", "all_features"):
        return None, str(value)
    if isinstance(value, Mapping):
        if set(value) != {"fixed_mean", "fixed_std"}:
            raise settings.refusal("normalize", sorted(value), "fixed_mean and fixed_std, nothing else")
        try:
            mean, std = (torch.tensor(value[key], dtype=torch.float64).flatten() for key in sorted(value))
        except (TypeError, ValueError, RuntimeError):
            raise settings.refusal("normalize", value, "numbers in fixed_mean and fixed_std") from None
        if mean.numel() != n_mels or std.numel() != n_mels or not bool((std > 0).all()):
            raise settings.refusal(
                "normalize", f"{mean.numel()} means and {std.numel()} deviations", f"{n_mels} each, above 0"
            )
        return (mean.to(torch.float32), (1.0 / std).to(torch.float32)), "none"
    return None, "none"  # NeMo: any other value normalizes nothing


def _generation(values: Mapping[str, Any], preset: str | None, notes: list[str]) -> str:
    """Which preset, and a note that says why."""
    if preset is not None and preset not in GENERATIONS:
        raise CheckpointError(f"feature preset {preset!r} is none of NeMo's: {', '.join(GENERATIONS)}")
    version = str(values.get("nemo_version") or "")
    match = re.match(r"(\d+)\.(\d+)", version)
    found = None
    if match:
        found = "nemo" if (int(match[1]), int(match[2])) >= _NEW_SINCE else "nemo-2.4"
    if preset is not None:
        said = f"NeMo {version}" if version else "no version"
        notes.append(f"The front end {preset!r} was asked for; the file says {said}.")
        return preset
    if found is None:
        notes.append(
            "The file does not say its NeMo version: the front end of 2.5 and later is assumed. For a model "
            "trained before, give the feature preset nemo-2.4."
        )
        return "nemo"
    notes.append(f"The front end {found!r} is that of NeMo {version}, which wrote the file.")
    return found
