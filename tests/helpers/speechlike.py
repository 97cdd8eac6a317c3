"""A sound for tests that is a little like speech; `speechlike` in conftest.py hands it to tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]


def make_speechlike(duration_s: float, seed: int = 0) -> F32Array:
    """Harmonics of a gliding pitch in syllables of 0.2 s, over faint noise; [S] float32 at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(int(duration_s * 16_000)) / 16_000
    syllable = (time / 0.2).astype(int)
    pitch = generator.uniform(90, 220, syllable[-1] + 1)[syllable]
    tilt = generator.uniform(0.3, 2.0, syllable[-1] + 1)[syllable]
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voiced = sum(np.sin(k * phase) / k**tilt for k in range(1, 16))
    waveform = 0.1 * voiced * np.abs(np.sin(np.pi * time / 0.2)) + 0.003 * generator.standard_normal(
        len(time)
    )
    return waveform.astype(np.float32)
