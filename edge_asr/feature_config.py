"""The configuration of a feature front end: `FeatureConfig`, and presets named after other projects.

A config is plain data, which checkpoints and bundles store as JSON.
What this file does not do: compute features (edge_asr.runtime.features).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from edge_asr.errors import ConfigError
from edge_asr.records import check_fields, json_from_record, record_from_json

Kind = Literal["log_mel", "waveform"]
Window = Literal[
    "hann",
    "hann_periodic",
    "hamming",
    "hamming_periodic",
    "blackman",
    "blackman_periodic",
    "bartlett",
    "bartlett_periodic",
    "rectangular",
    "povey",
]
WINDOWS: tuple[Window, ...] = get_args(Window)
Framing = Literal["center_zero", "center_zero_end", "center_reflect", "snip_edges"]
PreemphasisScope = Literal["signal", "frame"]
MelScale = Literal["slaney", "htk", "kaldi"]
MelNorm = Literal["slaney", "none"]
LogGuard = Literal["add", "clamp"]
Normalize = Literal["none", "per_feature", "all_features", "mean", "std", "mean_std", "waveform"]

# A front end's tables have n_mels times n_fft values: a file that asks for more means to fill the memory.
_LARGEST = {
    "sample_rate": 1 << 20,
    "n_mels": 4096,
    "n_fft": 1 << 16,
    "win_length": 1 << 16,
    "hop_length": 1 << 16,
}

# Each preset is the difference from the field defaults, which are NeMo's of 2.5 and later.
# Sources: nemo/collections/asr/parts/preprocessing/features.py (FilterbankFeatures; 2.5 changed
# padding and length, PR 13827), kaldi/src/feat/feature-{fbank,window}.cc with dither 0, ESPnet's
# espnet2/asr/frontend/default.py and espnet2/layers/{stft,log_mel}.py, torchaudio's MelSpectrogram with its
# defaults, and transformers' feature_extraction_wav2vec2.py.
_PRESETS: dict[str, dict[str, Any]] = {
    "nemo": {},
    "nemo-2.4": {"framing": "center_reflect"},
    "kaldi": {
        "framing": "snip_edges",
        "window": "povey",
        "input_scale": 32768.0,
        "remove_dc": True,
        "preemphasis_scope": "frame",
        "mel_scale": "kaldi",
        "mel_norm": "none",
        "f_min": 20.0,
        "log_guard": "clamp",
        "log_guard_value": 2.0**-23,  # std::numeric_limits<float>::epsilon()
        "double_precision": True,
    },
    "espnet": {
        "framing": "center_reflect",
        "window": "hann_periodic",
        "win_length": 512,
        "preemphasis": 0.0,
        "log_guard": "clamp",
        "log_guard_value": 1e-10,
        "double_precision": True,
    },
    "torchaudio": {
        "framing": "center_reflect",
        "window": "hann_periodic",
        "n_fft": 400,
        "preemphasis": 0.0,
        "mel_scale": "htk",
        "mel_norm": "none",
        "float32_tables": True,
        "log_guard_value": 1e-6,
        "double_precision": True,
    },
    # Samples as they are: a frame is a sample.
    "waveform": {
        "kind": "waveform",
        "framing": "snip_edges",
        "n_mels": 1,
        "n_fft": 1,
        "win_length": 1,
        "hop_length": 1,
        "preemphasis": 0.0,
        "normalize": "waveform",
    },
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConfig:
    """A log-mel front end. Immutable; validated on creation; unit suffixes as everywhere.

    Attributes:
        preset: name of the preset this came from.
        sample_rate: Hz.
        n_mels: mel bands a frame.
        n_fft, win_length, hop_length: samples. The window is centered in the FFT.
        kind: "log_mel", or "waveform": the samples themselves, one a frame (n_mels and hop_length 1).
        window: one of `WINDOWS`; symmetric but for the `_periodic` ones; "povey" is hann ** 0.85.
        framing: "center_zero": frame k is centered on sample k * hop, zeros outside, S // hop
            frames; "center_zero_end": the same, S // hop + 1 frames; "center_reflect": mirrored
            outside, S // hop + 1 frames (none for a clip of at most half a window, which cannot be
            mirrored); "snip_edges": only whole windows, (S - win) // hop + 1 frames.
        input_scale: the waveform (full scale 1.0) is multiplied by this first.
        remove_dc: subtract the mean of each frame.
        preemphasis: y[t] = x[t] - preemphasis * x[t - 1]; 0 turns it off.
        preemphasis_scope: "signal" (x[-1] = 0) or "frame" (x[-1] = x[0] in each frame, after DC
            removal).
        power: 2.0 for mel bands of the power spectrum, 1.0 of the magnitude.
        mel_scale, mel_norm, f_min, f_max: see `mel.build_mel_filters`; Hz.
        float32_tables: window and filters have torchaudio's roundings
            (edge_asr/runtime/features/float32_tables.py), and so has everything that is done to a frame
            before the FFT.
        log_guard, log_guard_value: log(x + value) for "add", log(max(x, value)) for "clamp".
        normalize: "none", or a normalization over the clip, which then cannot stream: see
            `edge_asr.runtime.features.normalization`.
        double_precision: transform in float64, and frames too but for `float32_tables`. Without an offset in
            the logarithm, a band far below the loudest of its frame carries float32's rounding noise (up to
            4e-3 in log-mel in Kaldi itself); this removes it for half as much time again.

    Raises:
        ConfigError: a value out of range; the message names it.
    """

    preset: str = "nemo"
    kind: Kind = "log_mel"
    sample_rate: int = 16000
    n_mels: int = 80
    n_fft: int = 512
    win_length: int = 400
    hop_length: int = 160
    window: Window = "hann"
    framing: Framing = "center_zero"
    input_scale: float = 1.0
    remove_dc: bool = False
    preemphasis: float = 0.97
    preemphasis_scope: PreemphasisScope = "signal"
    power: float = 2.0
    mel_scale: MelScale = "slaney"
    mel_norm: MelNorm = "slaney"
    float32_tables: bool = False
    f_min: float = 0.0
    f_max: float = 8000.0
    log_guard: LogGuard = "add"
    log_guard_value: float = 2.0**-24
    normalize: Normalize = "none"
    double_precision: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "features")
        if self.preset not in _PRESETS:
            raise ConfigError(f"feature preset {self.preset!r} is unknown; use one of {', '.join(_PRESETS)}")
        for name in ("sample_rate", "n_mels", "n_fft", "win_length", "hop_length"):
            value = getattr(self, name)
            if not 1 <= value <= _LARGEST[name]:
                raise ConfigError(f"features.{name} is {value}; give a number from 1 to {_LARGEST[name]}")
        if self.power not in (1.0, 2.0):
            raise ConfigError(f"features.power is {self.power!r}; use 2.0 (power) or 1.0 (magnitude)")
        if self.kind == "waveform" and (self.n_mels, self.hop_length, self.win_length) != (1, 1, 1):
            raise ConfigError(
                "features of kind waveform need n_mels, hop_length and win_length 1, got "
                f"{self.n_mels}, {self.hop_length}, {self.win_length}"
            )
        if (self.normalize == "waveform") and self.kind != "waveform":
            raise ConfigError("features.normalize is 'waveform', which goes with kind 'waveform' only")
        if self.kind == "log_mel" and 1000 * self.hop_length < self.sample_rate:
            raise ConfigError(
                f"features.hop_length is {self.hop_length} at {self.sample_rate} Hz, more than 1000 frames a "
                "second, which would fill the memory; published front ends have 50 to 200"
            )
        if self.float32_tables and (
            self.mel_norm != "none"
            if self.mel_scale == "kaldi"
            else bool(self.n_fft % 2 or self.sample_rate % 2)
        ):
            raise ConfigError(
                "features.float32_tables needs mel_norm none with mel_scale kaldi, and else an even n_fft "
                f"and sample_rate, got {self.mel_norm}, {self.mel_scale}, {self.n_fft}, {self.sample_rate}"
            )
        if not self.hop_length <= self.win_length <= self.n_fft:
            raise ConfigError(
                f"features need hop_length <= win_length <= n_fft, got {self.hop_length}, "
                f"{self.win_length}, {self.n_fft}"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise ConfigError(
                f"features need 0 <= f_min < f_max <= sample_rate / 2, got {self.f_min}, {self.f_max} "
                f"at {self.sample_rate} Hz"
            )
        if not (self.log_guard_value > 0 and self.input_scale > 0 and 0 <= self.preemphasis < 1):
            raise ConfigError(
                "features need log_guard_value > 0, input_scale > 0 and 0 <= preemphasis < 1, got "
                f"{self.log_guard_value}, {self.input_scale}, {self.preemphasis}"
            )

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> FeatureConfig:
        """The preset `name` ("nemo", "nemo-2.4", "kaldi", "espnet", ...) with some fields changed.

        Raises:
            ConfigError: an unknown preset or field, or a value out of range.
        """
        return cls.from_dict({"preset": name, **_PRESETS.get(name, {}), **overrides})

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        data: dict[str, Any] = json_from_record(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FeatureConfig:
        """The inverse of `to_dict`; absent keys take the field defaults (NeMo's).

        Raises:
            ConfigError: an unknown key, a wrong type, or a value out of range.
        """
        return record_from_json(cls, data, "features")
