"""Fixtures of features alone: NeMo's front end before 2.5, `<version>_<norm|raw>_clip<i>` in golden.npz."""

from __future__ import annotations

import re

import numpy as np

from edge_asr.runtime.features import FeatureConfig, FeatureExtractor
from golden.compare import Result
from golden.fixtures import Fixture

_KEY = re.compile(r"v(\d+)\.(\d+)\.\d+_(norm|raw)_clip(\d+)")


def compare_features_only(fixture: Fixture) -> Result:
    """Our presets against each array."""
    golden = fixture.arrays()
    waveforms = fixture.waveforms()
    worst, mean, n_compared = 0.0, 0.0, 0
    for key, expected in golden.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        preset = "nemo" if (int(match[1]), int(match[2])) >= (2, 5) else "nemo-2.4"
        normalize = "per_feature" if match[3] == "norm" else "none"
        config = FeatureConfig.from_preset(preset, n_mels=expected.shape[1], normalize=normalize)
        given = FeatureExtractor(config)(waveforms[int(match[4])])
        errors = np.abs(given - expected[: int(golden[f"{key}_len"].ravel()[0])])
        worst, mean = max(worst, float(errors.max())), max(mean, float(errors.mean(dtype=np.float64)))
        n_compared += 1
    if n_compared == 0:
        return Result(error="it holds neither log-probs nor features of a known form")
    return Result(feature_max=worst, feature_mean=mean)
