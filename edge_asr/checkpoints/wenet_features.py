"""WeNet's front end (torchaudio's Kaldi fbank) as a `FeatureConfig`, and its global CMVN.

It reads `fbank_conf` and `resample_conf` of train.yaml, and the statistics in JSON or Kaldi's text for
weights that do not hold them.
What this file does not do: dither (that of train.yaml is for training; recognize.py sets it to 0), MFCC,
Whisper's log-mel.

Sources: wenet/dataset/processor.py (compute_fbank), torchaudio/compliance/kaldi.py, wenet/utils/cmvn.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edge_asr.checkpoints.assembly import TensorMap, build_features
from edge_asr.checkpoints.safe_archive import read_file
from edge_asr.checkpoints.safe_yaml import MAX_BYTES, Settings, load_json
from edge_asr.errors import CheckpointError
from edge_asr.feature_config import FeatureConfig

#: torchaudio.compliance.kaldi, _feature_window_function; all symmetric.
_WINDOWS = {
    "povey": "povey",
    "hanning": "hann",
    "hamming": "hamming",
    "blackman": "blackman",
    "rectangular": "rectangular",
}
_MIN_VARIANCE = 1e-20  # wenet/utils/cmvn.py

# Augmentation, batching and shuffling of the training data.
_IGNORED = (
    "batch_conf", "batch_type", "batch_size", "max_frames_in_batch", "filter_conf", "shuffle", "shuffle_conf",
    "list_shuffle", "list_shuffle_conf", "sort", "sort_conf", "spec_aug", "spec_aug_conf", "spec_sub",
    "spec_sub_conf", "spec_trim", "spec_trim_conf", "speed_perturb", "speed_perturb_conf", "cycle",
    "language_conf", "singal_channel_conf", "reverb_source", "noise_source", "wav_distortion_conf",
    "split_with_space",
    "max_length", "min_length", "token_max_length", "token_min_length",
)  # fmt: skip


def features_from_settings(dataset: Settings, collate: Any = None) -> FeatureConfig:
    """The front end that dataset_conf says.

    Args:
        dataset: dataset_conf.
        collate: collate_conf, which held the front end before 2022 under other names.

    Raises:
        CheckpointError: a setting that edge-asr does not have.
    """
    dataset.expect("feats_type", ("fbank",), "fbank")
    dataset.expect("speaker_conf", (None,), None)
    rate = dataset.section("resample_conf", {}).integer("resample_rate", 16000)
    if isinstance(collate, Mapping) and "fbank_conf" not in dataset:
        fbank = _older_fbank(Settings(collate, "train.yaml.collate_conf"))
    else:
        fbank = dataset.section("fbank_conf", {})
    length_ms, shift_ms = fbank.number("frame_length", 25), fbank.number("frame_shift", 10)
    win_length, hop_length = int(rate * length_ms * 0.001), int(rate * shift_ms * 0.001)
    window = fbank.expect("window_type", tuple(_WINDOWS), "povey")
    if win_length < 1:
        raise fbank.refusal("frame_length", length_ms, "milliseconds that hold samples")
    features = build_features(
        fbank.where,
        "kaldi",
        sample_rate=rate,
        n_mels=fbank.integer("num_mel_bins", 23),
        n_fft=1 << (win_length - 1).bit_length(),  # round_to_power_of_two
        win_length=win_length,
        hop_length=hop_length,
        window=_WINDOWS[window],
        f_max=rate / 2,
        float32_tables=True,
    )
    fbank.ignore("dither")
    fbank.finish()
    for key in ("mfcc_conf", "log_mel_spectrogram_conf"):
        dataset.expect(key, (None,), None)
    dataset.ignore(*_IGNORED)
    dataset.finish()
    return features


def _older_fbank(collate: Settings) -> Settings:
    """collate_conf.feature_extraction_conf under the names of fbank_conf.

    Source: WeNet of 2021, wenet/dataset/dataset.py (_extract_feature), where mel_bins had no default.
    """
    older = collate.section("feature_extraction_conf", {})
    older.expect("feature_type", ("fbank",), "fbank")
    older.expect("using_pitch", (False,), False)
    values = {"num_mel_bins": older.integer("mel_bins", 80)}
    for key in ("frame_length", "frame_shift"):
        if key in older:
            values[key] = older.take(key)
    older.ignore("wav_dither")
    older.finish()
    return Settings(values, older.where)


def move_cmvn(
    weights: TensorMap, n_mels: int, path: Path | None, is_json: bool, where: str, notes: list[str]
) -> None:
    """The model's `cmvn.mean` and `cmvn.istd`; what the weights hold counts, as in WeNet.

    Args:
        weights: may hold encoder.global_cmvn.mean and .istd.
        n_mels: mel bands.
        path: the statistics file, if the folder has it.
        is_json: its form; Kaldi's text otherwise.
        where: the settings, for messages.
        notes: gets a sentence when the file is used.

    Raises:
        CheckpointError: no statistics, or of another size.
    """
    if "encoder.global_cmvn.mean" in weights:
        mean, istd = weights.take("encoder.global_cmvn.mean"), weights.take("encoder.global_cmvn.istd")
    elif path is not None:
        mean, istd = statistics_from_file(path, is_json)
        notes.append(f"Mean and deviation of the features were read from {path.name}.")
    else:
        raise CheckpointError(
            f"{where} asks for a global CMVN, whose file is missing and which the weights do not hold; "
            "copy global_cmvn along"
        )
    for what, value in (("mean", mean), ("inverse deviation", istd)):
        if value.shape != (n_mels,) or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{where}: the {what} of the features has shape {tuple(value.shape)}; {n_mels} finite values "
                "are needed"
            )
    weights.ours["cmvn.mean"], weights.ours["cmvn.istd"] = mean, istd


def statistics_from_file(path: Path, is_json: bool) -> tuple[Tensor, Tensor]:
    """(mean, inverse deviation) float32 from sums over the training frames.

    Raises:
        CheckpointError: damaged, or of the other form.
    """
    total, squares, count = _json_sums(path) if is_json else _kaldi_sums(path)
    if total.shape != squares.shape or total.ndim != 1 or not math.isfinite(count) or count <= 0:
        raise CheckpointError(
            f"{path} holds {total.shape} sums, {squares.shape} squares and {count} frames; compute it again"
        )
    mean = total / count
    variance = np.maximum(squares / count - mean * mean, _MIN_VARIANCE)
    return torch.from_numpy(mean).float(), torch.from_numpy(1.0 / np.sqrt(variance)).float()


_Sums = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]


def _json_sums(path: Path) -> _Sums:
    stats = load_json(path, path.name)
    try:
        total, squares = (np.asarray(stats[key], np.float64) for key in ("mean_stat", "var_stat"))
        return total, squares, float(stats["frame_num"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} needs mean_stat, var_stat and frame_num as numbers ({error}); compute it again"
        ) from error


def _kaldi_sums(path: Path) -> _Sums:
    content = read_file(path, limit=MAX_BYTES, what="the CMVN statistics")
    words = content.decode("utf-8", "replace").split()
    # [ sums count, then squares 0 ]
    if len(words) < 6 or words[0] != "[" or words[-2:] != ["0", "]"] or len(words) % 2:
        raise CheckpointError(
            f"{path} is no CMVN in Kaldi's text form '[ sums count squares 0 ]'; write it with "
            "compute-cmvn-stats --binary=false"
        )
    n_bands = (len(words) - 4) // 2
    try:
        numbers = np.array([float(word) for word in words[1:-2]], np.float64)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); compute it again") from error
    return numbers[:n_bands], numbers[n_bands + 1 :], float(numbers[n_bands])
