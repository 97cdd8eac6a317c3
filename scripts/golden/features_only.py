"""Fixtures of features alone: NeMo's front end before 2.5, `<version>_<norm|raw>_clip<i>` in golden.npz."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.features.extractor import FeatureExtractor
from golden.compare import Result, worst_of
from golden.fixtures import Fixture

_KEY = re.compile(r"v(\d+)\.(\d+)\.\d+_(norm|raw)_clip(\d+)")


#: Arguments of FilterbankFeatures (nemo/collections/asr/parts/preprocessing/features.py) by our fields.
_FIELDS = {
    "nfilt": "n_mels",
    "sample_rate": "sample_rate",
    "n_window_size": "win_length",
    "n_window_stride": "hop_length",
    "n_fft": "n_fft",
    "window": "window",
    "preemph": "preemphasis",
    "lowfreq": "f_min",
    "highfreq": "f_max",
    "mag_power": "power",
    "mel_norm": "mel_norm",
    "log_zero_guard_type": "log_guard",
    "log_zero_guard_value": "log_guard_value",
    "normalize": "normalize",
}


def _changes(params: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(params) - {*_FIELDS, "pad_to", "dither"})
    if unknown:
        raise ValueError(f"the parameters {unknown} of the front end are unknown")
    return {_FIELDS[name]: value for name, value in params.items() if name in _FIELDS}


def compare_features_only(fixture: Fixture) -> Result:
    """Our presets against each array."""
    golden = fixture.arrays()
    waveforms = fixture.waveforms()
    worst, mean = 0.0, 0.0
    dumped: dict[str, Any] = {}
    for key, expected in golden.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        preset = "nemo" if (int(match[1]), int(match[2])) >= (2, 5) else "nemo-2.4"
        changes = _changes(fixture.info.get("params", {}))
        if match[3] == "raw":
            changes["normalize"] = "none"
        config = FeatureConfig.from_preset(preset, **changes)
        given = FeatureExtractor(config)(waveforms[int(match[4])])
        dumped[key] = given
        errors = np.abs(given - expected[: int(golden[f"{key}_len"].ravel()[0])])
        worst = worst_of(worst, float(errors.max()))
        mean = worst_of(mean, float(errors.mean(dtype=np.float64)))
    if not dumped:
        return Result(error="it holds neither log-probs nor features of a known form")
    return Result(feature_max=worst, feature_mean=mean, dumped=dumped)
