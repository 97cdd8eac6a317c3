"""The speech to measure with: clips of exact lengths, and a signal whose true ends of speech are known.

Everything is made of one recording: the embedded sample, or a file that the user names. Clips are cut from
it, repeated end to end where it is too short. For streams, its phrases are cut out where its own level falls,
and laid between pauses of known place, so that the end of speech is not what a detector says but where we
cut. What this file does not do: play anything at real time (`paced_source.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.audio import read_audio
from edge_asr.benchmark.schema import Audio
from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.errors import AudioError

F32Array = npt.NDArray[np.float32]

SAMPLE = EMBEDDED_MODELS / "samples" / "robot_commands.flac"
SPEECH_DB = 40.0
"""Level below the loudest 10 ms, in dB, down to which sound counts as speech."""
MIN_PHRASE_PAUSE_S = 0.5
MAX_PHRASE_S = 15.0
LEAD_S = 1.0
PAUSE_S = 2.0
FADE_S = 0.005
NOISE_DBFS = -75.0
ROW_SHIFT_S = 0.37
"""How much later in the recording each row of a batch begins, so that rows differ as in real use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The recording, from its first speech on: waveform f32 [S] at `sample_rate`, and where it came from."""

    waveform: F32Array
    sample_rate: int
    source: str

    @classmethod
    def load(cls, path: Path | None, sample_rate: int) -> Recording:
        """Read the sample (None) or a file.

        Raises:
            AudioError: not a sound file, or one without sound.
        """
        source = path or SAMPLE
        waveform = read_audio(source, sample_rate)
        spans = find_phrases(waveform, sample_rate)
        if not spans:
            raise AudioError(f"{source} is silent; a benchmark needs speech: give another --audio")
        name = "embedded sample robot_commands.flac" if path is None else str(source)
        return cls(waveform=waveform[spans[0][0] :], sample_rate=sample_rate, source=name)

    def describe(self) -> Audio:
        """Describe the audio for the report."""
        return Audio(
            source=self.source,
            sha256=hashlib.sha256(self.waveform.tobytes()).hexdigest(),
            sample_rate=self.sample_rate,
            duration_s=round(len(self.waveform) / self.sample_rate, 4),
        )

    def clips(self, seconds: float, batch: int) -> list[F32Array]:
        """Cut `batch` clips of `seconds`, each f32 [S]; row r begins r * `ROW_SHIFT_S` later."""
        n_samples = round(seconds * self.sample_rate)
        shift = round(ROW_SHIFT_S * self.sample_rate)
        return [np.resize(np.roll(self.waveform, -row * shift), n_samples) for row in range(batch)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenSignal:
    """Phrases between pauses.

    Attributes:
        waveform: f32 [S], phrases over faint noise that never stops.
        sample_rate: Hz.
        utterances: (first, one past last) sample of the speech in each.
    """

    waveform: F32Array
    sample_rate: int
    utterances: tuple[tuple[int, int], ...]


def spoken_signal(recording: F32Array, sample_rate: int, n_utterances: int) -> SpokenSignal:
    """Lay out `n_utterances` phrases of a recording in turn, a second of silence before, two after each.

    Each phrase ends with a fade of 5 ms; behind it there is noise of -75 dBFS (seed 0), 15 dB below what
    counts as sound, and nothing of the recording.

    Raises:
        AudioError: no phrase of at most 15 s in the recording.
    """
    spans = [
        (begin, end)
        for begin, end in find_phrases(recording, sample_rate)
        if end - begin <= MAX_PHRASE_S * sample_rate
    ]
    if not spans:
        raise AudioError(
            f"the recording has no phrase of at most {MAX_PHRASE_S:g} s between pauses of "
            f"{MIN_PHRASE_PAUSE_S:g} s; give another --audio for --streams"
        )
    fade = np.linspace(1.0, 0.0, round(FADE_S * sample_rate), dtype=np.float32)
    pause = np.zeros(round(PAUSE_S * sample_rate), np.float32)
    pieces = [np.zeros(round(LEAD_S * sample_rate), np.float32)]
    position, utterances = len(pieces[0]), []
    for index in range(n_utterances):
        begin, end = spans[index % len(spans)]
        phrase = recording[begin:end].copy()
        phrase[-len(fade) :] *= fade
        utterances.append((position, position + len(phrase)))
        pieces += [phrase, pause]
        position += len(phrase) + len(pause)
    waveform = np.concatenate(pieces)
    noise = np.random.default_rng(0).standard_normal(len(waveform), np.float32)
    return SpokenSignal(
        waveform=waveform + np.float32(10 ** (NOISE_DBFS / 20)) * noise,
        sample_rate=sample_rate,
        utterances=tuple(utterances),
    )


def find_phrases(waveform: F32Array, sample_rate: int) -> list[tuple[int, int]]:
    """Find stretches [begin, end) of speech between pauses of at least `MIN_PHRASE_PAUSE_S`, in samples.

    A frame of 10 ms is speech when it is less than `SPEECH_DB` below the loudest one.
    """
    hop = sample_rate // 100
    frames = waveform[: len(waveform) // hop * hop].reshape(-1, hop)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    if len(power) == 0 or power.max() == 0.0:
        return []
    loud = np.flatnonzero(power > power.max() * 10 ** (-SPEECH_DB / 10))
    breaks = np.flatnonzero(np.diff(loud) > MIN_PHRASE_PAUSE_S * 100)
    begins = [loud[0], *loud[breaks + 1]]
    ends = [*loud[breaks], loud[-1]]
    return [(int(b) * hop, (int(e) + 1) * hop) for b, e in zip(begins, ends, strict=True)]
