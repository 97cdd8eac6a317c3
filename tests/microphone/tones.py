"""A fake recognizer for tests of everything around recognition: each word is a tone of its own.

A word is 0.25 s of a sine; `speak` builds the waveform of a sentence, `ToneRecognizer` (a fake, no
model) reads it back from any cut of the audio. A tone cut in two is heard twice, or not at all
when too little is left, so words lost or doubled at a cut show up. It does not imitate speech.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge_asr.errors import BackendError
from edge_asr.runtime.transcript import Token, Transcript, Word, split_segments

RATE = 16_000
WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel")
FRAME_S = 0.04
WORD_S = 0.25


def frequency(word: str) -> float:
    """Tone of a word in Hz; multiples of 1 / FRAME_S, so a frame holds whole periods."""
    return 400.0 + 200.0 * WORDS.index(word)


def tone(word: str, *, rate: int = RATE, level: float = 0.2) -> npt.NDArray[np.float32]:
    """The sound of a word, with 10 ms ramps."""
    t = np.arange(round(WORD_S * rate)) / rate
    ramp = np.minimum(1.0, np.minimum(t, t[::-1]) / 0.01)
    return (level * ramp * np.sin(2 * np.pi * frequency(word) * t)).astype(np.float32)


def silence(duration_s: float, *, rate: int = RATE) -> npt.NDArray[np.float32]:
    """Digital silence."""
    return np.zeros(round(duration_s * rate), np.float32)


def speak(
    words: Sequence[str], *, gap_s: float = 0.12, rate: int = RATE, level: float = 0.2
) -> npt.NDArray[np.float32]:
    """A sentence: words with `gap_s` of silence after each."""
    pieces = [
        piece for word in words for piece in (tone(word, rate=rate, level=level), silence(gap_s, rate=rate))
    ]
    return np.concatenate(pieces) if pieces else silence(0)


class ToneRecognizer:
    """A fake: reads words back from tones. `slowness` sleeps that many seconds per audio second."""

    def __init__(self, *, slowness: float = 0.0, fail_after: int | None = None) -> None:
        self.slowness = slowness
        self.fail_after = fail_after
        self.lens_s: list[float] = []

    def transcribe(self, waveform: npt.NDArray[np.float32], sample_rate: int) -> Transcript:
        """Tokens of the tones in a waveform f32 [S] at 16 kHz."""
        assert sample_rate == RATE
        self.lens_s.append(len(waveform) / RATE)
        if self.fail_after is not None and len(self.lens_s) > self.fail_after:
            raise BackendError("the fake backend failed as it was told to; tell it otherwise")
        time.sleep(self.slowness * len(waveform) / RATE)
        size = round(FRAME_S * RATE)
        n_frames = len(waveform) // size
        spectra = np.abs(np.fft.rfft(waveform[: n_frames * size].reshape(n_frames, size), axis=1)) * 2 / size
        labels = [self._label(spectrum) for spectrum in spectra]
        tokens: list[Token] = []
        start = 0
        for index in range(1, n_frames + 1):
            if index < n_frames and labels[index] == labels[start]:
                continue
            label = labels[start]
            if label is not None and index - start >= 2:
                times = {"start_s": start * FRAME_S, "end_s": index * FRAME_S}
                tokens.append(Token(text=" " + label, id=WORDS.index(label), confidence=1.0, **times))
            start = index
        words = tuple(
            Word(text=t.text.strip(), start_s=t.start_s, end_s=t.end_s, confidence=t.confidence)
            for t in tokens
        )
        return Transcript(
            text=" ".join(word.text for word in words),
            tokens=tuple(tokens),
            words=words,
            segments=split_segments(words),
            duration_s=len(waveform) / RATE,
        )

    @staticmethod
    def _label(spectrum: npt.NDArray[np.float64]) -> str | None:
        peaks = [spectrum[round(frequency(word) * FRAME_S)] for word in WORDS]
        best = int(np.argmax(peaks))
        others = float(np.sqrt(np.sum(spectrum**2) - peaks[best] ** 2))
        return WORDS[best] if peaks[best] > 0.02 and peaks[best] > 2 * others else None
