"""One input of the calibration, and the sound it stands for: recordings, joined recordings, noise.

A clip is a recipe: which files, how much of each, what gain, which noise. `make_waveform` follows it.
What this file does not do: choose clips (calibration_set.py).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edge_asr.audio import AudioFile, ResampleStream
from edge_asr.errors import AudioError

F32Array = npt.NDArray[np.float32]
ClipKind = Literal["speech", "joined", "silence", "noise"]
Color = Literal["none", "white", "low-passed"]

MAX_CLIP_S = 30.0
"""Longest part of a file that is used, which bounds memory."""
JOINED_GAP_S = 0.2
GAP_DBFS = -70.0
"""Level of the noise between joined recordings; no room is digitally silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPart:
    """The first `n_samples` (at the set's rate) of a file; `sha256` is that of the file's bytes."""

    path: Path
    sha256: str
    n_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationClip:
    """One input of the calibration.

    Attributes:
        name: unique in its set.
        kind: kind of clip; "speech" includes the quiet and the overdriven clip.
        stratum: the duration and level group that it represents, or why it was added.
        duration_s: length, seconds.
        rms_dbfs: 20 log10 of the root mean square, full scale 1.0; -inf for digital silence.
        text: what is said; None if nothing is said, or it is unknown or cut short.
        parts: the recordings that it is made of; none for synthetic sound.
        gain_db: gain applied to the recordings; samples beyond full scale are clipped.
        color: spectrum of synthetic noise.
    """

    name: str
    kind: ClipKind
    stratum: str
    duration_s: float
    rms_dbfs: float
    text: str | None = None
    parts: tuple[ClipPart, ...] = ()
    gain_db: float = 0.0
    color: Color = "none"

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, without paths; `rms_dbfs` is None for -inf, hashes are in playing order."""
        return {
            "name": self.name,
            "kind": self.kind,
            "stratum": self.stratum,
            "duration_s": round(self.duration_s, 3),
            "rms_dbfs": round(self.rms_dbfs, 1) if math.isfinite(self.rms_dbfs) else None,
            "text": self.text,
            "files_sha256": [part.sha256 for part in self.parts],
        }


def make_waveform(clip: CalibrationClip, sample_rate: int, seed: int) -> F32Array:
    """Make the sound of a clip, [S] float32 at `sample_rate`.

    Raises:
        AudioError: a file is gone, damaged, or shorter than before.
    """
    if not clip.parts:
        n_samples = round(clip.duration_s * sample_rate)
        if clip.kind == "silence":
            return np.zeros(n_samples, np.float32)
        return make_noise(clip.color, clip.rms_dbfs, n_samples, seed)
    pieces: list[F32Array] = []
    for part in clip.parts:
        if pieces:
            pieces.append(make_noise("low-passed", GAP_DBFS, round(JOINED_GAP_S * sample_rate), seed))
        samples = read_beginning(part.path, sample_rate, part.n_samples)
        if len(samples) != part.n_samples:
            raise AudioError(
                f"{part.path} now holds {len(samples)} samples where {part.n_samples} were chosen; "
                "it has changed: choose the calibration set again"
            )
        pieces.append(samples)
    waveform = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if clip.gain_db:
        waveform = np.clip(waveform * np.float32(10.0 ** (clip.gain_db / 20.0)), -1.0, 1.0)
    return waveform


def make_noise(color: Color, rms_dbfs: float, n_samples: int, seed: int) -> F32Array:
    """Make noise of a level, [n_samples] float32. "white" is uniform; "low-passed" falls off as in a room.

    Only the bits of PCG64 are used, which NumPy guarantees for all versions, unlike its distributions.
    """
    bits = np.random.PCG64(seed).random_raw(n_samples)
    noise = np.asarray(bits, np.uint64).astype(np.float64) / 2.0**63 - 1.0
    if color == "low-passed":
        from scipy.signal import lfilter  # a slow import, and only INT8 and FP16 need it

        noise = lfilter([1.0], [1.0, -0.95], noise)  # -3 dB at 130 Hz for 16 kHz
    level = math.sqrt(float(np.mean(np.square(noise)))) if n_samples else 1.0
    scaled: F32Array = np.clip(noise * (10.0 ** (rms_dbfs / 20.0) / level), -1.0, 1.0).astype(np.float32)
    return scaled


def read_beginning(path: Path, sample_rate: int, max_samples: int) -> F32Array:
    """Read the first samples of a sound file, [S <= max_samples] float32 at `sample_rate`.

    Raises:
        AudioError: see `edge_asr.audio.AudioFile`.
    """
    with AudioFile(path) as file:
        stream = ResampleStream(file.sample_rate, sample_rate)
        pieces: list[F32Array] = []
        n_read = 0
        for block in file.blocks():
            pieces.append(stream.push(block))
            n_read += len(pieces[-1])
            if n_read >= max_samples:
                break
        else:
            pieces.append(stream.flush())
    return np.concatenate([*pieces, np.zeros(0, np.float32)])[:max_samples]


def measure_rms_dbfs(waveform: F32Array) -> float:
    """Compute 20 log10 of the root mean square of [S] samples, full scale 1.0; -inf for zeros or nothing."""
    power = float(np.mean(np.square(waveform, dtype=np.float64))) if len(waveform) else 0.0
    return 10.0 * math.log10(power) if power else -math.inf


def hash_file(path: Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
