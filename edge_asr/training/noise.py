"""Noise to add to speech: white and pink from a generator, and recordings named by a manifest.

The caller's generator draws the places at which noise is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float32]
Sample = TypeVar("Sample", np.int16, np.float32)

_POOL_S = 60.0


class NoisePool:
    """A minute of white and of pink noise of unit power, and recorded noises, cut at random places.

    Args:
        sample_rate: Hz.
        seed: seed of the white and pink noise.
        recorded: int16 [S_i] recordings, at `sample_rate`.
    """

    def __init__(
        self, sample_rate: int, seed: int = 0, recorded: Sequence[npt.NDArray[np.int16]] = ()
    ) -> None:
        rng = np.random.default_rng([seed, 2])
        n = int(_POOL_S * sample_rate)
        white = rng.standard_normal(n, dtype=np.float32)
        spectrum = np.fft.rfft(white)
        # Power falls as 1/f; it is flat below 20 Hz, so that no huge drift appears.
        frequency = np.maximum(np.fft.rfftfreq(n, 1 / sample_rate), 20.0)
        pink = np.fft.irfft(spectrum / np.sqrt(frequency), n).astype(np.float32)
        self._noises = {"white": white, "pink": pink / np.float32(pink.std())}
        self._recorded = [noise for noise in recorded if len(noise)]

    def cut(self, kind: str, n_samples: int, rng: np.random.Generator) -> Waveform:
        """Cut f32 [n_samples] of "white" or "pink" (power 1), or of one of the recordings ("recorded")."""
        if kind == "recorded":
            chosen = self._recorded[int(rng.integers(len(self._recorded)))]
            recorded: Waveform = fit_length(chosen, n_samples, rng).astype(np.float32) * np.float32(1 / 32768)
            return recorded
        noise = self._noises[kind]
        start = int(rng.integers(len(noise)))
        return (
            np.take(noise, range(start, start + n_samples), mode="wrap")
            if (start + n_samples > len(noise))
            else noise[start : start + n_samples].copy()
        )


def fit_length(
    waveform: npt.NDArray[Sample], n_samples: int, rng: np.random.Generator
) -> npt.NDArray[Sample]:
    """Cut at a random place, or repeat, to exactly n_samples; the same type."""
    if len(waveform) == 0:
        return np.zeros(n_samples, waveform.dtype)
    start = int(rng.integers(len(waveform)))
    return np.resize(np.roll(waveform, -start), n_samples)
