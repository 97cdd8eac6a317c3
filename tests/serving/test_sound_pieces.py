"""Sound that comes in pieces is what it is as a whole, however it is cut, and no thread is left behind."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import soundfile
from serving_clients import run, until

from edge_asr.errors import AudioError, RefusedError
from edge_asr.serving.sound_pieces import RawSound, decode_pieces

RATE = 16_000
PCM = RawSound(subtype="PCM_16", sample_rate=RATE, channels=1)


def make_file(form: str, subtype: str, channels: int = 1, rate: int = RATE) -> tuple[bytes, Any]:
    """Two seconds of noise as a file, and what a reader of the whole file finds."""
    rng = np.random.default_rng(7)
    samples = (rng.standard_normal((2 * rate, channels)) * 2000).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    file.seek(0)
    return file.getvalue(), soundfile.read(file, dtype="float32")[0]


async def cut(data: bytes, n: int, wait_s: float = 0.0) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), n):
        await asyncio.sleep(wait_s)
        yield data[begin : begin + n]


async def decode(pieces: AsyncIterator[bytes], raw: RawSound | None = None) -> tuple[set[int], Any]:
    found = [sound async for sound in decode_pieces(pieces, raw)]
    blocks = [block.astype(np.float32) / (32768 if block.dtype == np.int16 else 1) for _, block in found]
    return {rate for rate, _ in found}, np.concatenate(blocks)


@pytest.mark.parametrize("n", [333, 4096, 1 << 20])
@pytest.mark.parametrize(
    ("form", "subtype", "channels", "rate"),
    [
        ("WAV", "PCM_16", 2, 44_100),
        ("WAV", "FLOAT", 1, RATE),
        ("WAVEX", "ALAW", 1, 8000),
        ("FLAC", "PCM_16", 1, RATE),
        ("FLAC", "PCM_24", 2, 48_000),
        ("OGG", "VORBIS", 1, RATE),
    ],
)
def test_files(form: str, subtype: str, channels: int, rate: int, n: int) -> None:
    data, whole = make_file(form, subtype, channels, rate)
    rates, found = run(decode(cut(data, n)))
    assert rates == {rate}
    np.testing.assert_array_equal(found, whole)


def test_opus() -> None:
    data, whole = make_file("OGG", "OPUS")
    _, found = run(decode(cut(data, 500)))
    # Nobody knows the end of a stream that is still coming, so the rest of its last packet (20 ms) is heard.
    assert 0 <= len(found) - len(whole) < 0.02 * RATE
    np.testing.assert_array_equal(found[: len(whole)], whole)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ULAW", "ALAW"])
@pytest.mark.parametrize("n", [3, 1000])
def test_raw_samples_cut_anywhere(subtype: str, n: int) -> None:
    data = make_file("WAV", subtype)[0][-4000:]
    whole = soundfile.read(
        io.BytesIO(data), dtype="float32", format="RAW", subtype=subtype, samplerate=RATE, channels=1
    )[0]
    raw = RawSound(subtype=subtype, sample_rate=RATE, channels=1)
    _, found = run(decode(cut(data, n), raw))
    np.testing.assert_array_equal(found, whole)
    assert soundfile.info(raw.wav(data)).frames == len(whole)


def test_what_is_said_is_there_before_the_file_ends() -> None:
    async def first_of(data: bytes, n: int) -> int:
        arrived = 0

        async def pieces() -> AsyncIterator[bytes]:
            nonlocal arrived
            async for piece in cut(data, n):
                arrived += len(piece)
                yield piece
                await asyncio.sleep(0.05)

        async with aclosing(decode_pieces(pieces(), None)) as sound:
            await anext(sound)
        return arrived

    for form, subtype in (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("WAV", "PCM_16")):
        data, _ = make_file(form, subtype)
        assert run(first_of(data, len(data) // 20)) < 0.6 * len(data)


def test_files_that_stop_coming_block_nobody_and_leave_no_thread() -> None:
    """While soundfile waited inside the opening of one file, no other could be opened in the process."""

    async def stalled(data: bytes) -> AsyncIterator[bytes]:
        yield data
        await asyncio.sleep(60)

    async def work() -> None:
        flac, whole = make_file("FLAC", "PCM_16")
        ogg, _ = make_file("OGG", "VORBIS")
        waiting = [
            asyncio.ensure_future(decode(stalled(data[:n])))
            for data in (flac, ogg)
            for n in (30, 200, len(data) // 2)
        ]
        await asyncio.sleep(0.3)
        np.testing.assert_array_equal((await decode(cut(flac, 1000)))[1], whole)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("edge-asr-decode")])

    run(work())


@pytest.mark.parametrize(
    ("data", "raw", "sentence"),
    [
        (b"fLaC" + bytes(5000), PCM, "the sound cannot be decoded"),
        (b"OggS" + bytes(5000), PCM, "the sound cannot be decoded"),
        (b"fLa", None, "the sound begins with b'fLa'"),
        (b"RIFF" + bytes(70_000), PCM, "the header of the WAV file cannot be read"),
        (make_file("WAV", "PCM_24")[0], PCM, "the samples of the WAV file are PCM_24; send one of PCM_16"),
        (make_file("FLAC", "PCM_16")[0][:-2000] + bytes(2000), PCM, "the sound cannot be decoded"),
    ],
)
def test_what_is_no_sound(data: bytes, raw: RawSound | None, sentence: str) -> None:
    with pytest.raises(AudioError, match=sentence):
        run(decode(cut(data, 2000), raw))


def test_too_many_channels() -> None:
    data, _ = make_file("WAV", "PCM_16", channels=9)
    with pytest.raises(RefusedError, match="the sound has 9 channels at 16000 Hz; at most 8"):
        run(decode(cut(data, 2000)))


def test_errors_of_the_pieces_come_after_what_was_heard() -> None:
    data, _ = make_file("FLAC", "PCM_16")

    async def broken() -> AsyncIterator[bytes]:
        yield data
        raise RefusedError("bad_request", "no more of this")

    heard = 0

    async def work() -> None:
        nonlocal heard
        async for _, samples in decode_pieces(broken(), None):
            heard += len(samples)

    with pytest.raises(RefusedError, match="no more of this"):
        run(work())
    assert heard == 2 * RATE
