"""A fake model whose answer is known: it hears tones, so a test can say what was played."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.windows import WindowGeometry
from edge_asr.vocabulary import Vocabulary

# So that the tests here can import the helpers beside them.
sys.path.insert(0, str(Path(__file__).parent))

SAMPLE_RATE = 16000
FACTOR = 8
FEATURES = FeatureConfig.from_preset("nemo")
# A word boundary and letters, each a tone; the tones lie in mel bands that are far apart.
VOCABULARY = Vocabulary.from_characters(" abcdefg")
TONE_HZ = [300.0 * 1.4**index for index in range(len(VOCABULARY) - 1)]


def _band_of(frequency: float) -> int:
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    from edge_asr.runtime.features.extractor import FeatureExtractor

    log_mel = FeatureExtractor(FEATURES)(np.sin(2 * np.pi * frequency * time).astype(np.float32))
    return int(np.argmax(log_mel[len(log_mel) // 2]))


TONE_BANDS = [_band_of(frequency) for frequency in TONE_HZ]


class FakeToneBackend:
    """Fake: the token of an output frame is that of the loudest tone band, blank when it is quiet.

    Not a model; it looks at FACTOR feature frames and nothing else. With `n_blind` > 0 the first
    and last frames of whatever it is given are garbage, as a real model's are without context.
    """

    name = "fake-tones"
    precision = "fp32"
    num_threads = None
    max_frames = None

    def __init__(self, n_blind: int = 0) -> None:
        self.n_blind = n_blind
        self.batch_shapes: list[tuple[int, int]] = []
        self.closed = False

    def log_probs(
        self, features: npt.NDArray[np.float32], feature_lens: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        self.batch_shapes.append(features.shape[:2])
        n_out = -(-features.shape[1] // FACTOR)
        result = np.full((len(features), n_out, len(VOCABULARY)), -20.0, np.float32)
        for row, length, out in zip(features, feature_lens, result, strict=True):
            for index in range(-(-int(length) // FACTOR)):
                frames = row[index * FACTOR : min((index + 1) * FACTOR, int(length))]
                levels = frames[:, TONE_BANDS].mean(axis=0)
                best = int(np.argmax(levels)) if levels.max() > -2.0 else VOCABULARY.blank_id
                edge = min(index, -(-int(length) // FACTOR) - 1 - index)
                out[index, 0 if edge < self.n_blind else best] = -0.01
        return result

    def close(self) -> None:
        self.closed = True


@dataclasses.dataclass(frozen=True)
class Tones:
    """What tests need of the fake world."""

    sample_rate: int = SAMPLE_RATE
    factor: int = FACTOR
    vocabulary: Vocabulary = VOCABULARY
    features: FeatureConfig = FEATURES

    def play(
        self, text: str, *, sample_rate: int = SAMPLE_RATE, tone_s: float = 0.24, gap_s: float = 0.24
    ) -> npt.NDArray[np.float32]:
        """A tone a character, silence between, [S] float32."""
        time = np.arange(round(tone_s * sample_rate)) / sample_rate
        gap = np.zeros(round(gap_s * sample_rate), np.float32)
        parts: list[npt.NDArray[np.float32]] = [gap]
        for character in text:
            index = VOCABULARY.tokens.index("\u2581" if character == " " else character)
            parts += [(0.3 * np.sin(2 * np.pi * TONE_HZ[index] * time)).astype(np.float32), gap]
        return np.concatenate(parts)

    def recognizer(
        self, *, n_blind: int = 0, windows: WindowGeometry | None = None, **overrides: Any
    ) -> Recognizer:
        return Recognizer(
            FakeToneBackend(n_blind),
            features=dataclasses.replace(FEATURES, **overrides),
            vocabulary=VOCABULARY,
            subsampling_factor=FACTOR,
            windows=windows,
        )

    def text(self, rng: np.random.Generator, n_characters: int) -> str:
        """Random characters of the vocabulary, in words."""
        letters: Sequence[str] = "abcdefg"
        text = "".join(rng.choice([*letters, " "], p=[0.12] * 7 + [0.16]) for _ in range(n_characters))
        return " ".join(text.split())


@pytest.fixture(scope="session")
def tones() -> Tones:
    return Tones()
