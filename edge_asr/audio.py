"""Checks waveforms, reads sound files in blocks, resamples whole clips and streams.

Everything comes out as one float32 channel, full scale 1.0. Accepted waveforms: [samples] or
[samples, channels] (channels are averaged), float16/32/64, int16 or int32. Empty is allowed and
stays empty; NaN, infinity, samples above `MAX_LEVEL`, another
rank or another dtype is an `AudioError`.

soxr's streams give the same bits for every way of cutting the input (version 1.1; tested), so a
clip, a file and a microphone with the same samples are recognized alike. soxr and soundfile are imported on
use, which may be after the model is loaded.
What this file does not do: microphones (`edge_asr.runtime.live.microphone`), features.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge_asr.errors import AudioError

if TYPE_CHECKING:
    import soxr

F32Array = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)

SOUND_SUFFIXES = (
    ".flac",
    ".wav",
    ".opus",
    ".ogg",
    ".mp3",
    ".oga",
    ".aiff",
    ".aif",
    ".aifc",
    ".au",
    ".caf",
    ".w64",
    ".rf64",
)
"""What is taken for a sound file where a folder is searched, the usual ones first; a file that is named may
have any name."""
STREAM_SAMPLE_RATE = 16_000
"""Hz of everything live: what sources deliver, events count in and recordings hold."""
MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 768_000
MAX_CHANNELS = 64
BLOCK_S = 5.0
"""Seconds a file is read at a time: it bounds memory, not results."""
MAX_LEVEL = 2.0**31
"""Largest sample, that of int32 which nobody scaled. The power spectrum overflows float32 from 1e12 on."""

# Headers say how long a sound is; a missing tail within these is the codec's padding.
_MISSING_S = 0.2
_MISSING_SHARE = 0.01
# Programs that write to a pipe do not know the length yet and put in the largest number, or nearly so.
_UNKNOWN_BYTES = 0x7FFF0000


def has_sound_suffix(path: Path) -> bool:
    """Tell by the end of its name whether a file found in a folder counts as sound."""
    return path.suffix.lower() in SOUND_SUFFIXES


def mono_from_waveform(waveform: npt.ArrayLike) -> F32Array:
    """Check a waveform, and return it as one channel.

    Args:
        waveform: [S] or [S, C] with C <= 64, channels averaged; floats with full scale 1.0
            (larger values are kept), or int16 / int32, which are divided by 2^15 / 2^31.

    Returns:
        [S] float32; the input itself where nothing had to change.

    Raises:
        AudioError: no array, another rank or dtype, NaN, infinity or a sample above `MAX_LEVEL`.
    """
    try:
        array = np.asarray(waveform)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, tensors of a dtype numpy lacks
        raise AudioError(
            f"the waveform, a {type(waveform).__name__}, is no array ({error}); give float32, float64, int16 "
            "or int32 samples"
        ) from error
    if array.ndim == 2 and array.shape[1] > MAX_CHANNELS:
        raise AudioError(
            f"the waveform has shape {list(array.shape)}; two axes mean [samples, channels] with at most "
            f"{MAX_CHANNELS} channels: transpose it"
        )
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] == 0):
        raise AudioError(f"the waveform has shape {list(array.shape)}; give [samples] or [samples, channels]")
    if array.dtype in (np.int16, np.int32):
        scale = np.float32(1.0 / -float(np.iinfo(array.dtype).min))
        samples = array.astype(np.float32) * scale
    elif array.dtype in (np.float16, np.float32, np.float64):
        with np.errstate(over="ignore"):  # reported below, with the value as it was
            samples = array.astype(np.float32, copy=False)
    elif array.size == 0 and array.ndim == 1 and not isinstance(waveform, np.ndarray):
        samples = np.zeros(0, np.float32)  # an empty list has no dtype of its own
    else:
        raise AudioError(
            f"the waveform has dtype {array.dtype}; give float32, float64, int16 or int32 samples"
        )
    if samples.ndim == 2:
        with np.errstate(over="ignore", invalid="ignore"):
            samples = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    # NaN makes both comparisons false. Two reductions are half as fast as one, and faster than any mask.
    if len(samples) and not (samples.max() <= MAX_LEVEL and samples.min() >= -MAX_LEVEL):
        raise AudioError(_unusable_sample(array, samples))
    return np.ascontiguousarray(samples)


def _unusable_sample(array: npt.NDArray[Any], samples: F32Array) -> str:
    """Which sample cannot be used, with its value as it was given."""
    index = int(np.flatnonzero(~(np.abs(samples) <= MAX_LEVEL))[0])
    channels = np.atleast_1d(array[index])
    usable = np.abs(channels) <= MAX_LEVEL
    value = float(channels[~usable][0] if not usable.all() else samples[index])
    if not np.isfinite(value):
        return f"the waveform is {value} at sample {index}; replace what is not finite first"
    return f"the waveform is {value:g} at sample {index}; full scale is 1.0: divide it by its own full scale"


def check_sample_rate(sample_rate: int) -> int:
    """Check `sample_rate`, and return it in Hz as an int.

    Raises:
        AudioError: not a whole number from 1 kHz to 768 kHz.
    """
    try:
        rate = int(sample_rate)
        whole = rate == sample_rate and not isinstance(sample_rate, bool)
    except (TypeError, ValueError, OverflowError):
        rate, whole = 0, False
    if not whole or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise AudioError(
            f"the sample rate is {sample_rate!r}; give whole Hz from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE}"
        )
    return rate


class ResampleStream:
    """Resamples one channel from one rate to another, piece by piece, in one thread at a time.

    The pieces together have round(S * target / source) samples (+- 1) and do not depend on how
    the input was cut. Equal rates pass through without delay.

    Args:
        source_rate, target_rate: Hz.

    Raises:
        AudioError: a rate out of range.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        self.source_rate = check_sample_rate(source_rate)
        self.target_rate = check_sample_rate(target_rate)
        self._soxr: soxr.ResampleStream | None = None
        if self.source_rate != self.target_rate:
            import soxr

            self._soxr = soxr.ResampleStream(
                self.source_rate, self.target_rate, 1, dtype="float32", quality="HQ"
            )

    def push(self, samples: F32Array) -> F32Array:
        """Take [s] float32 samples, return those that are ready, [t] float32."""
        return samples if self._soxr is None else self._run(samples, last=False)

    def flush(self) -> F32Array:
        """End the input, return what the filter still holds, [t] float32."""
        empty = np.zeros(0, np.float32)
        return empty if self._soxr is None else self._run(empty, last=True)

    def _run(self, samples: F32Array, *, last: bool) -> F32Array:
        assert self._soxr is not None
        return np.asarray(self._soxr.resample_chunk(samples, last=last), dtype=np.float32)


def resample(samples: F32Array, source_rate: int, target_rate: int) -> F32Array:
    """Resample a whole channel [S] float32; gives the same bits as `ResampleStream`."""
    stream = ResampleStream(source_rate, target_rate)
    if source_rate == target_rate:
        return samples
    return np.concatenate([stream.push(samples), stream.flush()])


class AudioFile:
    """Reads a sound file as mono blocks: WAV, FLAC, Ogg, MP3 and everything else that libsndfile knows.

    Memory stays bounded whatever the length. A file that ends before its header says so is read as far as it
    goes, and a warning is logged. A stream that cannot seek (a pipe, stdin) is copied
    to a temporary file first, because file headers are read at both ends.

    Args:
        source: a path, or a binary file object.

    Raises:
        AudioError: no such file, or nothing libsndfile can read; the message names it.
    """

    def __init__(self, source: str | Path | BinaryIO) -> None:
        import soundfile

        self._spool: BinaryIO | None = None
        if isinstance(source, (str, Path)):
            self.name = str(source)
            if not Path(source).is_file():
                raise AudioError(f"{source} is not a file; give the path of a sound file")
            try:
                with open(source, "rb"):
                    pass
            except OSError as error:
                raise AudioError(f"{source} cannot be opened: {error.strerror}") from error
            handle: bytes | BinaryIO = os.fsencode(source)  # a name need not be UTF-8
        else:
            self.name = str(getattr(source, "name", "<stream>"))
            handle = source
            if not source.seekable():
                import shutil
                import tempfile

                self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
                shutil.copyfileobj(source, self._spool)
                self._spool.seek(0)
                handle = self._spool
        self._errors = (soundfile.SoundFileError, RuntimeError, OSError)
        try:
            self._file = soundfile.SoundFile(handle)
        except self._errors as error:
            self._close_spool()
            raise AudioError(
                f"{self.name} cannot be read as sound ({error}); convert it to WAV or FLAC first"
            ) from error
        try:
            self.sample_rate = check_sample_rate(self._file.samplerate)
        except AudioError as error:
            self.close()
            raise AudioError(f"{self.name}: {error}") from error

    @property
    def duration_s(self) -> float:
        """Length that the header claims, in seconds; for progress, not for decisions."""
        return float(self._file.frames) / self.sample_rate

    def blocks(self, block_s: float = BLOCK_S) -> Iterator[F32Array]:
        """The channel average from where reading stands to the end, [s] float32 a block.

        Raises:
            AudioError: damaged data, NaN or infinity.
        """
        n_samples = max(int(block_s * self.sample_rate), 1)
        n_read = 0
        while True:
            try:
                block = self._file.read(n_samples, dtype="float32", always_2d=True)
            except self._errors as error:
                raise AudioError(f"{self.name} is damaged ({error}); make a new copy of it") from error
            if len(block) == 0:
                if problem := self._find_missing(n_read):
                    logger.warning("%s", problem)
                return
            try:
                yield mono_from_waveform(block)
            except AudioError as error:
                begin_s = n_read / self.sample_rate
                raise AudioError(f"{self.name}, counted from {begin_s:.3f} s on: {error}") from error
            n_read += len(block)

    def _find_missing(self, n_read: int) -> str | None:
        """Describe what a header promised but the file does not hold; libsndfile reports no error."""
        name, read_s = self.name, n_read / self.sample_rate
        again = "the rest is missing from the result; make a new copy of the file"
        missing_s = self.duration_s - read_s
        if missing_s > max(_MISSING_S, _MISSING_SHARE * self.duration_s):
            return f"{name} is damaged: {read_s:.2f} s of its {self.duration_s:.2f} s could be read; {again}"
        log = self._file.extra_info
        for claimed, there in re.findall(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE):
            if int(there) < int(claimed) < _UNKNOWN_BYTES:
                share = int(there) / int(claimed)
                return f"{name} is cut off: it holds {share:.0%} of the sound its header names; {again}"
        length = re.search(r"^Length : (\d+)", log, re.MULTILINE)
        if n_read == 0 and re.search(r"^data : 0$", log, re.MULTILINE) and length and int(length[1]) > 1024:
            return (
                f"{name} holds {length[1]} bytes, but its header says that none of them are sound; was its "
                "recording stopped halfway? repair the header, with sox for example"
            )
        return None

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._file.close()
        self._close_spool()

    def _close_spool(self) -> None:
        if self._spool is not None:
            self._spool.close()

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_audio(source: str | Path | BinaryIO, sample_rate: int = 16000) -> F32Array:
    """Read a whole sound file as one channel at `sample_rate`, [S] float32.

    Raises:
        AudioError: as `AudioFile`.
    """
    with AudioFile(source) as file:
        stream = ResampleStream(file.sample_rate, sample_rate)
        pieces = [stream.push(block) for block in file.blocks()]
        return np.concatenate([*pieces, stream.flush()])
