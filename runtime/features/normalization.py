"""Normalization of features over their clip, as the projects whose models we load do it.

What this file does not do: global statistics of a training set; those are inside the model graph.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]

_NORM_EPS = 1e-5  # nemo/collections/asr/parts/preprocessing/features.py, CONSTANT
_WAVEFORM_EPS = 1e-7  # transformers, feature_extraction_wav2vec2.py, zero_mean_unit_var_norm
_LEAST_DEVIATION = 1e-4
"""Least deviation of a band that changes at all, in log-mel: 1000 times float32 rounding of its values."""
_UTTERANCE_MVN_EPS = 1e-20  # espnet2/layers/utterance_mvn.py


def normalize_features(features: F32Array, normalize: str) -> None:
    """Normalize the features [T, n_mels] of a clip in place, as `FeatureConfig.normalize` says.

    - "none": nothing.
    - "per_feature", "all_features": each band, or all at once, to zero mean and unit deviation (unbiased,
      + 1e-5), as NeMo does (nemo/collections/asr/parts/preprocessing/features.py, normalize_batch).
    - "mean", "mean_std", "std": each band to zero mean, and to unit deviation (population, at least 1e-20),
      or to unit deviation alone, as ESPnet's utterance_mvn does (espnet2/layers/utterance_mvn.py). With "std"
      a band that does not change keeps its values.
    - "waveform": zero mean and unit variance, (x - mean) / sqrt(variance + 1e-7), as transformers'
      Wav2Vec2FeatureExtractor does.
    """
    if normalize == "none" or len(features) == 0:
        return
    if normalize == "per_feature":
        normalize_per_feature(features)
    elif normalize == "waveform":
        values = features.astype(np.float64)
        features[:] = (values - values.mean()) / np.sqrt(values.var() + _WAVEFORM_EPS)
    elif normalize == "all_features":
        values = features.astype(np.float64)
        deviation = values.std(ddof=1) if values.size > 1 else 0.0
        features[:] = (values - values.mean()) / (deviation + _NORM_EPS)
    else:
        centered = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
        if normalize != "std":
            features[:] = centered
        if normalize != "mean":
            deviation = np.sqrt(np.square(centered, dtype=np.float64).mean(axis=0))
            if normalize == "std":
                # Digital silence divided by 1e-20 would become infinite in any network.
                deviation[deviation < _LEAST_DEVIATION] = 1.0
            features /= np.maximum(deviation, _UTTERANCE_MVN_EPS).astype(np.float32)


def normalize_per_feature(features: F32Array) -> None:
    """Bring each band of [T, n_mels] to zero mean and unit deviation over T, in place, as NeMo does.

    The deviation is unbiased (T - 1) plus 1e-5; one frame has deviation 0.
    """
    n_frames = len(features)
    if n_frames == 0:
        return
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = np.square(features, dtype=np.float64).sum(axis=0) / max(n_frames - 1, 1)
    features /= (np.sqrt(variance) + _NORM_EPS).astype(np.float32)
