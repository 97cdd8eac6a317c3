"""Opens a recording that a client has sent, if it is one of a few kinds and of ordinary dimensions.

It is read from memory. What it is, is taken from its first bytes, never from its name. libsndfile reads many
more formats; code that nobody here needs is code that a stranger's bytes should not reach.
What this file does not do: receive bytes, recognize.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import soundfile

from edge_asr.audio import AudioFile
from edge_asr.errors import AudioError, RefusedError

MAX_CHANNELS = 8
MAX_SAMPLE_RATE = 192_000
_KINDS = "WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF, AU or CAF"
_BEGINNINGS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff")


def check_size(what: str, channels: int, rate: int) -> None:
    """Refuse sound of more than a client may send.

    Raises:
        RefusedError: "too_large": more channels or a higher rate than speech needs.
    """
    if channels > MAX_CHANNELS or rate > MAX_SAMPLE_RATE:
        raise RefusedError(
            "too_large",
            f"{what} has {channels} channels at {rate} Hz; at most {MAX_CHANNELS} channels at "
            f"{MAX_SAMPLE_RATE} Hz are taken",
        )


@contextmanager
def open_upload(file: BinaryIO) -> Iterator[AudioFile]:
    """Open the bytes of a sound file.

    Raises:
        AudioError: they are none.
        RefusedError: as `check_size`.
    """
    beginning = file.read(4)
    file.seek(0)
    is_mp3 = len(beginning) >= 2 and beginning[0] == 0xFF and beginning[1] & 0xE0 == 0xE0
    if not (beginning.startswith(_BEGINNINGS) or is_mp3):
        raise AudioError(f"the recording begins with {beginning!r}, which is no sound file; send {_KINDS}")
    file = io.BytesIO(file.read()) if not isinstance(file, io.BytesIO) else file
    try:
        with soundfile.SoundFile(file) as sound:
            channels, rate = sound.channels, sound.samplerate
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise AudioError(f"the recording cannot be read as sound ({error}); send {_KINDS}") from error
    check_size("the recording", channels, rate)
    file.seek(0)
    with AudioFile(file) as opened:
        opened.name = "the recording"
        yield opened
