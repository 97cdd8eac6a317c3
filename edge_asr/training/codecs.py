"""Applies codecs to speech: telephone (mu-law, GSM, both at 8 kHz) and lossy files (MP3, Vorbis, Opus).

Each takes a waveform through the codec and back, with the same length and without delay. MP3 needs
libsndfile 1.1 or newer, which soundfile's wheels contain.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

Waveform = npt.NDArray[np.float32]

TELEPHONE_RATE = 8000
# name -> libsndfile's container and subtype, and whether it runs at the telephone's rate.
_FORMATS: dict[str, tuple[str, str, bool]] = {
    "mu_law": ("WAV", "ULAW", True),
    "gsm": ("WAV", "GSM610", True),
    "mp3": ("MP3", "MPEG_LAYER_III", False),
    "vorbis": ("OGG", "VORBIS", False),
    "opus": ("OGG", "OPUS", False),
}
CODECS = tuple(_FORMATS)


def apply_codec(waveform: Waveform, codec: str, sample_rate: int, rng: np.random.Generator) -> Waveform:
    """`waveform` [S] through one of `CODECS` and back, f32 [S]; lossy files at a compression level drawn."""
    container, subtype, telephone = _FORMATS[codec]
    if len(waveform) < sample_rate // 50:
        return waveform  # less than one frame of these codecs
    sent, rate = waveform, sample_rate
    if telephone and sample_rate != TELEPHONE_RATE:
        sent, rate = _resample(waveform, sample_rate, TELEPHONE_RATE), TELEPHONE_RATE
    file = io.BytesIO()
    options = {} if telephone else {"compression_level": float(rng.uniform(0.5, 0.99))}
    soundfile.write(file, np.clip(sent, -1.0, 1.0), rate, format=container, subtype=subtype, **options)
    file.seek(0)
    received = soundfile.read(file, dtype="float32")[0]
    if rate != sample_rate:
        received = _resample(received, rate, sample_rate)
    fitted = np.zeros(len(waveform), np.float32)
    n_samples = min(len(received), len(waveform))
    fitted[:n_samples] = received[:n_samples]
    return fitted


def _resample(waveform: Waveform, from_rate: int, to_rate: int) -> Waveform:
    resampled: Waveform = soxr.resample(waveform, from_rate, to_rate, quality="HQ")
    return resampled
