"""Sources of the 16 kHz stream, and a recorder that keeps a copy of it.

`AudioSource` is the seam between hearing and recognizing: a microphone, a file played in real time, a robot's
own audio bus. A source delivers mono float32 at 16 kHz and reports what it lost.
What this file does not do: talk to a sound card (microphone.py), recognize (recognizer.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.audio import (
    STREAM_SAMPLE_RATE,
    AudioFile,
    ResampleStream,
    check_sample_rate,
    mono_from_waveform,
)
from edge_asr.errors import AudioError, ConfigError
from edge_asr.runtime.live.events import DeviceState, GapReason

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Audio that is missing before a block: how long, why, and whether the length is an estimate."""

    lost_s: float
    reason: GapReason
    estimated: bool


@dataclass(frozen=True, slots=True)
class SourceChange:
    """What has become of the device of a source, in a word and in a sentence; see `DeviceChange`."""

    state: DeviceState
    device: str
    message: str


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """The next piece of the stream: losses and changes before it, and samples f32 [n] at 16 kHz, n >= 0."""

    samples: Waveform
    losses: tuple[Loss, ...] = field(default=())
    changes: tuple[SourceChange, ...] = field(default=())


class AudioSource(Protocol):
    """A stream of mono float32 audio at 16 kHz, read by one thread."""

    def __enter__(self) -> AudioSource:
        """Open the source; audio begins to flow.

        Raises:
            DeviceError, AudioError: the source cannot be opened; the message says why and how to fix it.
        """
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the source."""
        ...

    def read(self) -> AudioBlock | None:
        """Wait for the next block; None when the stream has ended.

        Raises:
            DeviceError: the device went away or went silent.
        """
        ...

    def stop(self) -> None:
        """End the stream soon, from any thread; `read` returns what was already heard, then None."""
        ...


class FileSource:
    """Plays a sound file, or a waveform, as if it were spoken now.

    Args:
        audio: path of a file that libsndfile reads, or a waveform [S] or [S, channels].
        sample_rate: rate of a waveform in Hz; None for a file, which knows its own.
        pace: 1.0 is real time, 2.0 is twice as fast, 0 is as fast as it is read.
        block_s: length of a block in seconds.

    Several channels are averaged. Nothing is ever lost, because a slow reader delays the file.
    """

    def __init__(
        self,
        audio: Path | str | npt.NDArray[Any],
        *,
        sample_rate: int | None = None,
        pace: float = 1.0,
        block_s: float = 0.02,
    ) -> None:
        if pace < 0 or block_s <= 0:
            raise ConfigError(f"pace is {pace} and block_s {block_s}; pace must be >= 0 and block_s > 0")
        if isinstance(audio, np.ndarray) and sample_rate is None:
            raise ConfigError("sample_rate is missing; a waveform needs its rate in Hz")
        self._audio = audio
        self._sample_rate = sample_rate
        self._pace = pace
        self._block_s = block_s
        self._stopping = Flag()
        self._file: AudioFile | None = None
        self._blocks: Iterator[Waveform] = iter(())

    def __enter__(self) -> FileSource:
        if isinstance(self._audio, np.ndarray):
            rate = check_sample_rate(self._sample_rate or STREAM_SAMPLE_RATE)
            self._blocks = self._paced(_split(mono_from_waveform(self._audio), rate, self._block_s), rate)
        else:
            self._file = AudioFile(self._audio)
            self._blocks = self._paced(self._file.blocks(self._block_s), self._file.sample_rate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._blocks = iter(())
        if self._file is not None:
            self._file.close()

    def read(self) -> AudioBlock | None:
        """Wait until the next block is due; None at the end of the file or after `stop`."""
        samples = next(self._blocks, None)
        return None if samples is None else AudioBlock(samples)

    def stop(self) -> None:
        """End after the current block."""
        self._stopping.set()

    def _paced(self, blocks: Iterator[Waveform], rate: int) -> Iterator[Waveform]:
        resampler = ResampleStream(rate, STREAM_SAMPLE_RATE)
        began, frames = time.monotonic(), 0
        for block in blocks:
            frames += len(block)
            if self._pace:
                due = began + frames / rate / self._pace
                self._stopping.wait(max(0.0, due - time.monotonic()))
            if self._stopping.is_set():
                break
            yield resampler.push(block)
        yield resampler.flush()


def _split(waveform: Waveform, rate: int, block_s: float) -> Iterator[Waveform]:
    step = max(1, int(rate * block_s))
    for start in range(0, len(waveform), step):
        yield waveform[start : start + step]


def check_recording_path(path: Path | str, *, overwrite: bool = False) -> None:
    """Refuse a recording that `Recorder` would refuse, before anything costly is done.

    Raises:
        AudioError: the name does not end in .wav, or the file exists and `overwrite` is false.
    """
    if Path(path).suffix.lower() != ".wav":
        raise AudioError(
            f"{path} does not end in .wav; the recording is a WAV file of 32-bit floats, so name it .wav"
        )
    if Path(path).exists() and not overwrite:
        raise AudioError(f"{path} exists already; name another file, or allow overwriting (--force)")


class Recorder:
    """Keeps the 16 kHz stream in a WAV file of 32-bit floats: bit for bit what the recognizer heard.

    One hour takes 230 MB; a WAV file ends at 4 GB, which is 18 hours.

    Args:
        path: a name that ends in .wav.
        overwrite: replace an existing file.

    Raises:
        AudioError: the suffix is not .wav, the file exists and `overwrite` is false, or the folder cannot be
            written.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        check_recording_path(path, overwrite=overwrite)
        self.path = Path(path)
        try:
            self._file = soundfile.SoundFile(
                str(self.path), "w", STREAM_SAMPLE_RATE, 1, subtype="FLOAT", format="WAV"
            )
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(
                f"{self.path} cannot be written ({error}); check the folder and its permissions"
            ) from error

    def write(self, samples: Waveform) -> None:
        """Append samples f32 [n].

        Raises:
            AudioError: the disk is full or the file too long.
        """
        try:
            self._file.write(samples)
        except (soundfile.SoundFileError, OSError) as error:
            raise AudioError(f"{self.path} cannot be written any further ({error})") from error

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
