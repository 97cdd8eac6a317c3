"""Decodes sound that comes in pieces: raw samples, or a WAV, FLAC or Ogg file while it is being received.

Raw samples and those of WAV are decoded piece by piece. FLAC and Ogg are read by libsndfile in a thread, from
a file that grows (`_GrowingFile`), so what is said is heard when its bytes are there.
What this file does not do: recordings that are complete (uploads.py), receive bytes.
"""

from __future__ import annotations

import asyncio
import io
import struct
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import soundfile

from edge_asr.errors import AudioError, RefusedError
from edge_asr.serving.uploads import check_size

Sound = tuple[int, npt.NDArray[Any]]
"""The sample rate, and samples [n] or [n, channels]."""
_DTYPES = {"PCM_16": "<i2", "FLOAT": "<f4", "ULAW": "u1", "ALAW": "u1"}
_MAX_HEADER_BYTES = 64 << 10
_OPEN_STEP_BYTES = 512
_BLOCK_S = 0.1
_AHEAD_BYTES = 1 << 20
_POLL_S = 0.02
_ERRORS = (soundfile.SoundFileError, RuntimeError, OSError)
_Result = TypeVar("_Result")


@cache
def _companded(subtype: str) -> npt.NDArray[np.int16]:
    """Return the 256 values of ULAW or ALAW (ITU-T G.711)."""
    codes = io.BytesIO(bytes(range(256)))
    values: npt.NDArray[np.int16] = soundfile.read(
        codes, dtype="int16", format="RAW", subtype=subtype, samplerate=8000, channels=1
    )[0]
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSound:
    """What samples without a header are.

    Attributes:
        subtype: PCM_16, FLOAT, ULAW or ALAW, as libsndfile calls them; little-endian.
        sample_rate: Hz.
        channels: how many are interleaved.
    """

    subtype: str
    sample_rate: int
    channels: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of a sample of all channels."""
        return np.dtype(_DTYPES[self.subtype]).itemsize * self.channels

    def samples(self, data: bytes) -> npt.NDArray[Any]:
        """Decode whole frames, a rest of one is left out: int16 or float32, [n] or [n, channels]."""
        dtype = np.dtype(_DTYPES[self.subtype])
        samples = np.frombuffer(data, dtype, count=len(data) // self.frame_bytes * self.channels)
        if dtype.itemsize == 1:
            samples = _companded(self.subtype)[samples]
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        return samples if self.channels == 1 else samples.reshape(-1, self.channels)

    def wav(self, data: bytes) -> io.BytesIO:
        """Return a recording as a WAV file."""
        file = io.BytesIO()
        soundfile.write(file, self.samples(data), self.sample_rate, format="WAV", subtype="PCM_16")
        file.seek(0)
        return file


async def decode_pieces(pieces: AsyncIterator[bytes], raw: RawSound | None) -> AsyncGenerator[Sound, None]:
    """Yield the samples of what comes; close the iterator if it is left early.

    Args:
        pieces: of the file or of the raw samples, of any length.
        raw: what it is if it does not begin like a WAV, FLAC or Ogg file; None: it has to be one.

    Raises:
        AudioError: it is no sound, or damaged.
        RefusedError: "too_large": more channels or a higher rate than speech needs.
    """
    head = b""
    async for piece in pieces:
        head += piece
        is_wav = head[:4] == b"RIFF"
        if len(head) >= 4 and not (is_wav and len(head) < _MAX_HEADER_BYTES and b"data" not in head[:-4]):
            break
    if not head:
        return
    if head[:4] in (b"fLaC", b"OggS"):
        async for sound in _decode_file(head, pieces):
            yield sound
        return
    if head[:4] == b"RIFF":
        raw, head = _read_wav_header(head)
    if raw is None:
        raise AudioError(
            f"the sound begins with {head[:4]!r}; send a WAV, FLAC or Ogg stream, or say what it is"
        )
    while True:
        n_whole = len(head) - len(head) % raw.frame_bytes
        if n_whole:
            yield raw.sample_rate, raw.samples(head)
        if (piece := await anext(pieces, b"")) == b"":
            return
        head = head[n_whole:] + piece


async def first_sound(sound: AsyncGenerator[Sound, None], wait_s: float) -> Sound | None:
    """Return the first of `decode_pieces`, which says the rate; None if there is no sound.

    Raises:
        RefusedError: "idle": none came for so long.
        AudioError: as `decode_pieces`.
    """
    try:
        return await asyncio.wait_for(anext(sound), wait_s)
    except asyncio.TimeoutError:
        raise RefusedError("idle", f"no sound came for {wait_s:g} s") from None
    except StopAsyncIteration:
        return None


def _read_wav_header(head: bytes) -> tuple[RawSound, bytes]:
    """Return what the samples are, and those that are there already."""
    begin = head.find(b"data") + 8
    try:
        with soundfile.SoundFile(io.BytesIO(head[:begin])) as file:
            raw = RawSound(subtype=file.subtype, sample_rate=file.samplerate, channels=file.channels)
    except _ERRORS as error:
        raise AudioError(f"the header of the WAV file cannot be read ({error}); send 16-bit PCM") from error
    check_size("the sound", raw.channels, raw.sample_rate)
    if raw.subtype not in _DTYPES:
        raise AudioError(f"the samples of the WAV file are {raw.subtype}; send one of {', '.join(_DTYPES)}")
    return raw, head[begin:]


async def _decode_file(head: bytes, pieces: AsyncIterator[bytes]) -> AsyncGenerator[Sound, None]:
    """Yield the samples of a FLAC or Ogg file."""
    growing, loop = _GrowingFile(), asyncio.get_running_loop()

    async def feed() -> None:
        try:
            growing.feed(head)
            async for piece in pieces:
                growing.feed(piece)
                while growing.n_ahead > _AHEAD_BYTES:
                    await asyncio.sleep(_POLL_S)
        finally:
            growing.end()

    thread = ThreadPoolExecutor(1, thread_name_prefix="edge-asr-decode")

    async def run(work: Callable[[], _Result]) -> _Result:
        try:
            return await loop.run_in_executor(thread, work)
        except _ERRORS as error:
            raise AudioError(f"the sound cannot be decoded ({error}); send FLAC or Ogg") from error

    feeding = asyncio.ensure_future(feed())
    try:
        while (file := await run(growing.open)) is None:
            n_tried = growing.n_bytes
            while growing.n_bytes < n_tried + _OPEN_STEP_BYTES and not feeding.done():
                await asyncio.sleep(_POLL_S)
        check_size("the sound", file.channels, file.samplerate)
        n_block = round(_BLOCK_S * file.samplerate)
        n_read = n_block
        while n_read == n_block:
            samples = await run(lambda: file.read(n_block, dtype="float32"))
            n_read = len(samples)
            yield file.samplerate, samples
        await feeding
    finally:
        feeding.cancel()
        growing.end()  # so that the thread does not wait for more
        thread.submit(growing.close)
        thread.shutdown(wait=False)
        with suppress(BaseException):
            await asyncio.gather(feeding, return_exceptions=True)


class _GrowingFile:
    """What libsndfile reads while it is being received: `readinto` waits for bytes, once it is open.

    While one file is being opened, soundfile opens no other in the whole process. So `open` does not wait: it
    is tried again when more is there. libsndfile looks at the end of an Ogg file before it reads it; this one
    pretends to be very long, with nothing but an Ogg page at its far end that says so.
    """

    _END = 1 << 40
    _KEPT = 1 << 20  # FLAC steps back by a few frames

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._bytes = bytearray()
        self._begin = 0  # of the bytes that are kept
        self._position = 0
        self._is_complete = False
        self._may_wait = False
        self._has_run_out = False
        self._last_page = b""
        self._file: soundfile.SoundFile | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that have come."""
        return self._begin + len(self._bytes)

    @property
    def n_ahead(self) -> int:
        """Bytes that have come and were not read."""
        return self.n_bytes - self._position

    def open(self) -> soundfile.SoundFile | None:
        """Return the opened file; None if there is too little of it.

        Raises:
            soundfile.SoundFileError: it is none.
        """
        is_all_there = self._is_complete
        self._position, self._has_run_out = 0, False
        try:
            self._file = soundfile.SoundFile(self)
        except _ERRORS:
            if self._has_run_out and not is_all_there:
                return None
            raise
        if self._has_run_out and not is_all_there:
            self.close()
            return None
        self._may_wait = True
        return self._file

    def close(self) -> None:
        """Close what was opened."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def feed(self, data: bytes) -> None:
        """Append bytes, from any thread."""
        with self._news:
            self._bytes += data
            if not self._last_page and self._bytes[:4] == b"OggS" and len(self._bytes) >= 18:
                self._last_page = _ogg_page(serial=bytes(self._bytes[14:18]), granule=self._END)
            n_old = min(self._position, self.n_bytes) - self._begin - self._KEPT
            if n_old > self._KEPT:
                del self._bytes[:n_old]
                self._begin += n_old
            self._news.notify_all()

    def end(self) -> None:
        """Say that nothing more comes."""
        with self._news:
            self._is_complete = True
            self._news.notify_all()

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what is there, at least one byte; 0 at the end."""
        with self._news:
            if self._position >= self._END >> 1:
                data = self._read_far_end(len(buffer))
            else:
                if self._may_wait:
                    self._news.wait_for(lambda: self._is_complete or self.n_ahead > 0)
                self._has_run_out |= self.n_ahead <= 0
                at = self._position - self._begin
                data = bytes(self._bytes[at : at + len(buffer)]) if at >= 0 else b""
            buffer[: len(data)] = data
            self._position += len(data)
            return len(data)

    def _read_far_end(self, n_bytes: int) -> bytes:
        at, n_empty = self._position, self._END - len(self._last_page)
        until = min(at + n_bytes, self._END)
        empty = bytes(max(0, min(until, n_empty) - at))
        return empty + self._last_page[max(0, at - n_empty) : max(0, until - n_empty)]

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move, as `io.IOBase.seek`."""
        self._position = offset + (0, self._position, self._END)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def _ogg_page(*, serial: bytes, granule: int) -> bytes:
    """Return the last page of a logical stream, without a packet (RFC 3533, section 6)."""
    page = bytearray(
        b"OggS\0\x04" + struct.pack("<q", granule) + serial + b"\xff\xff\xff\x7f" + bytes(4) + b"\1\0"
    )
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ (0x04C11DB7 if checksum & 1 << 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", checksum)
    return bytes(page)
