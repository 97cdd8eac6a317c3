"""Where the 16 kHz stream comes from and where a copy of it goes: sources, resampling, recording.

`AudioSource` is the seam between hearing and recognising: a microphone, a file played at real
time, a robot's own audio bus. A source delivers mono float32 at 16 kHz and says what it lost.
What this file does not do: talk to a sound card (`microphone`) or recognise anything (`live`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from edge_asr.errors import AudioError, ConfigError
from edge_asr.runtime.events import STREAM_SAMPLE_RATE, GapReason

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Audio that is missing before a block: how long, why, and whether the length is an estimate."""

    lost_s: float
    reason: GapReason
    estimated: bool


@dataclass(frozen=True, slots=True)
class AudioBlock:
    """The next piece of the stream: what was lost before it, then samples f32 [n] at 16 kHz, n >= 0."""

    samples: Waveform
    losses: tuple[Loss, ...] = field(default=())


class AudioSource(Protocol):
    """A stream of mono float32 audio at 16 kHz, read by one thread."""

    def __enter__(self) -> AudioSource:
        """Open the source; audio begins to flow.

        Raises:
            DeviceError, AudioError: it cannot be opened; the message says why and how to mend it.
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
        """End the stream soon, from any thread: `read` gives what was already heard, then None."""
        ...


class StreamResampler:
    """Any rate to 16 kHz, chunk by chunk, by soxr at its high quality; 16 kHz passes untouched."""

    def __init__(self, sample_rate: int) -> None:
        if sample_rate <= 0:
            raise ConfigError(f"sample_rate is {sample_rate} Hz; it must be positive")
        self._rate = sample_rate
        self._stream = self._new_stream()

    def push(self, samples: Waveform) -> Waveform:
        """Samples f32 [n] at the source rate to samples f32 [m] at 16 kHz; some are held back."""
        if self._stream is None:
            return samples
        return np.asarray(self._stream.resample_chunk(samples), dtype=np.float32)

    def flush(self) -> Waveform:
        """The samples held back; afterwards a new, independent stream begins."""
        if self._stream is None:
            return np.zeros(0, np.float32)
        rest = self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
        self._stream = self._new_stream()
        return np.asarray(rest, dtype=np.float32)

    def _new_stream(self) -> soxr.ResampleStream | None:
        if self._rate == STREAM_SAMPLE_RATE:
            return None
        return soxr.ResampleStream(self._rate, STREAM_SAMPLE_RATE, 1, dtype="float32", quality="HQ")


class FileSource:
    """A sound file, or a waveform, as if it were spoken now.

    Args:
        audio: path of a file that libsndfile reads, or a waveform f32 [S] in [-1, 1].
        sample_rate: rate of a waveform in Hz; None for a file, which knows its own.
        pace: 1.0 is real time, 2.0 twice as fast, 0 as fast as it is read.
        block_s: length of a block in seconds.

    Several channels are averaged. Nothing is ever lost: a slow reader delays the file.
    """

    def __init__(
        self,
        audio: Path | str | Waveform,
        *,
        sample_rate: int | None = None,
        pace: float = 1.0,
        block_s: float = 0.02,
    ) -> None:
        if pace < 0 or block_s <= 0:
            raise ConfigError(f"pace is {pace} and block_s {block_s}; pace must be >= 0 and block_s > 0")
        if isinstance(audio, np.ndarray):
            if sample_rate is None:
                raise ConfigError("sample_rate is missing; a waveform needs its rate in Hz")
            if audio.ndim != 1:
                raise AudioError(f"waveform has shape {audio.shape}; it must be [samples], one channel")
        self._audio = audio
        self._sample_rate = sample_rate
        self._pace = pace
        self._block_s = block_s
        self._stopping = Flag()
        self._blocks: Iterator[Waveform] = iter(())

    def __enter__(self) -> FileSource:
        if isinstance(self._audio, np.ndarray):
            rate = self._sample_rate or STREAM_SAMPLE_RATE
            self._blocks = self._paced(self._array_blocks(self._audio, rate), rate)
            return self
        try:
            rate = soundfile.info(str(self._audio)).samplerate
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"{self._audio} cannot be read as sound ({error}); check the path") from error
        self._blocks = self._paced(self._file_blocks(str(self._audio), rate), rate)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._blocks = iter(())

    def read(self) -> AudioBlock | None:
        """Wait until the next block is due; None at the end of the file or after `stop`."""
        samples = next(self._blocks, None)
        return None if samples is None else AudioBlock(samples)

    def stop(self) -> None:
        """End after the block being read."""
        self._stopping.set()

    def _block_frames(self, rate: int) -> int:
        return max(1, round(rate * self._block_s))

    def _array_blocks(self, waveform: Waveform, rate: int) -> Iterator[Waveform]:
        step = self._block_frames(rate)
        for start in range(0, len(waveform), step):
            yield np.asarray(waveform[start : start + step], dtype=np.float32)

    def _file_blocks(self, path: str, rate: int) -> Iterator[Waveform]:
        for block in soundfile.blocks(path, self._block_frames(rate), dtype="float32", always_2d=True):
            yield np.ascontiguousarray(block.mean(axis=1, dtype=np.float32))

    def _paced(self, blocks: Iterator[Waveform], rate: int) -> Iterator[Waveform]:
        resampler = StreamResampler(rate)
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


class Recorder:
    """Keeps the 16 kHz stream in a WAV file of 32-bit floats: bit for bit what the recogniser heard.

    One hour is 230 MB; WAV ends at 4 GB, 18 hours.

    Args:
        path: a name that ends in .wav.
        overwrite: replace an existing file.

    Raises:
        AudioError: another suffix, an existing file without `overwrite`, or a folder that cannot be
            written.
    """

    def __init__(self, path: Path | str, *, overwrite: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".wav":
            raise AudioError(
                f"{self.path} does not end in .wav; the recording is a WAV file of 32-bit floats, name it so"
            )
        if self.path.exists() and not overwrite:
            raise AudioError(f"{self.path} exists already; name another file, or allow overwriting (--force)")
        try:
            self._file = soundfile.SoundFile(
                str(self.path), "w", STREAM_SAMPLE_RATE, 1, subtype="FLOAT", format="WAV"
            )
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"{self.path} cannot be written ({error}); check folder and rights") from error

    def write(self, samples: Waveform) -> None:
        """Append samples f32 [n].

        Raises:
            AudioError: the disk is full or the file too long.
        """
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(f"{self.path} cannot be written any further ({error})") from error

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
