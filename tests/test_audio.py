"""Sound in: dtypes, ranks, rates, damaged files, and resampling that does not depend on cutting."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import (
    SOUND_SUFFIXES,
    AudioFile,
    ResampleStream,
    check_sample_rate,
    mono_from_waveform,
    read_audio,
    resample,
)
from edge_asr.errors import AudioError


def noise(n_samples: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, n_samples).astype(np.float32)


def test_every_dtype_means_the_same_sound() -> None:
    int16 = np.array([0, 1, -32768, 32767, 16384], np.int16)
    expected = int16.astype(np.float32) / 32768
    for waveform in (int16, int16.astype(np.int32) << 16, expected, expected.astype(np.float64)):
        result = mono_from_waveform(waveform)
        assert result.dtype == np.float32
        assert np.array_equal(result, expected)


@pytest.mark.parametrize("level", [32768.0, 2.0**31])
def test_samples_that_nobody_scaled_are_let_through(level: float) -> None:
    waveform = np.array([0.0, level, -level], np.float32)
    assert np.array_equal(mono_from_waveform(waveform), waveform)


def test_channels_are_averaged() -> None:
    stereo = np.stack([noise(100), noise(100, 1)], axis=1)
    np.testing.assert_allclose(mono_from_waveform(stereo), stereo.mean(axis=1), atol=1e-7)
    assert np.array_equal(mono_from_waveform(stereo[:, :1]), stereo[:, 0])


@pytest.mark.parametrize("empty", [[], np.zeros(0, np.float32), np.zeros(0, np.int16), np.zeros((0, 2))])
def test_empty_stays_empty(empty: Any) -> None:
    assert mono_from_waveform(empty).shape == (0,)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.array([0.0, np.nan, 0.0], np.float32), "nan at sample 1"),
        (np.array([0.0, 0.0, np.inf], np.float64), "inf at sample 2"),
        (np.array([0.0, -np.inf, np.inf], np.float32), "-inf at sample 1"),
        (np.float32(0.5), r"shape \[\]"),
        (np.zeros((2, 16000), np.float32), "transpose"),
        (np.zeros((4, 2, 2), np.float32), r"\[4, 2, 2\]"),
        (np.zeros((10, 0), np.float32), r"\[10, 0\]"),
        (np.zeros(10, np.uint8), "uint8"),
        (np.zeros(10, np.int64), "int64"),
        (np.zeros(10, np.complex64), "complex64"),
        (np.array(["a"]), "dtype"),
        (np.zeros(0, np.uint8), "uint8"),
        (np.array([0.0, 1e30], np.float32), r"1e\+30 at sample 1; full scale is 1\.0: divide"),
        (np.array([0.0, -1e30], np.float64), r"-1e\+30 at sample 1"),
        (np.array([0.0, 1e300]), r"1e\+300 at sample 1"),
        (np.array([[0.0, 0.0], [0.5, 1e300]]), r"1e\+300 at sample 1"),
        (np.array([[0.0, np.nan]]), "nan at sample 0"),
        ([[0.0, 0.1], [0.2]], "a list, is no array"),
        (None, "shape"),
        ([None, 0.1], "dtype object"),
    ],
)
def test_a_bad_waveform_is_one_clear_error(waveform: Any, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        mono_from_waveform(waveform)


@pytest.mark.parametrize(
    "rate", [0, -16000, 999, 768_001, 16000.5, True, "fast", None, float("nan"), float("inf")]
)
def test_an_impossible_sample_rate_is_named(rate: Any) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        check_sample_rate(rate)


@settings(max_examples=40, deadline=None)
@given(
    rate=st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000, 96000]),
    n_samples=st.integers(0, 60000),
    cuts=st.lists(st.floats(0, 1), max_size=20),
)
def test_resampling_does_not_depend_on_cutting(rate: int, n_samples: int, cuts: list[float]) -> None:
    waveform = noise(n_samples, n_samples)
    stream = ResampleStream(rate, 16000)
    pieces = np.split(waveform, sorted(int(cut * n_samples) for cut in cuts))
    streamed = np.concatenate([*[stream.push(piece) for piece in pieces], stream.flush()])
    assert np.array_equal(streamed, resample(waveform, rate, 16000))
    assert abs(len(streamed) - n_samples * 16000 / rate) <= 1


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(resample(tone, rate, 16000)[500:-500], expected[500:-500], atol=2e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_files_are_read_in_blocks(tmp_path: Path, suffix: str) -> None:
    stereo = np.stack([noise(50000), noise(50000, 1)], axis=1)
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, stereo, 44100)
    with AudioFile(path) as file:
        assert file.sample_rate == 44100
        assert file.duration_s == pytest.approx(50000 / 44100)
        blocks = list(file.blocks(block_s=0.1))
    assert max(map(len, blocks)) == 4410
    whole, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_allclose(np.concatenate(blocks), whole.mean(axis=1), atol=1e-6)


def test_read_audio_resamples() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(48000), 48000, format="WAV", subtype="FLOAT")
    buffer.seek(0)
    assert np.array_equal(read_audio(buffer), resample(noise(48000), 48000, 16000))


class Pipe(io.RawIOBase):
    """Bytes that can only be read once, in order, as from a pipe."""

    def __init__(self, data: bytes) -> None:
        self._buffer = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, target: Any) -> int:
        return self._buffer.readinto(target)


def test_a_pipe_can_be_read() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(20000), 16000, format="WAV", subtype="FLOAT")
    pipe: Any = Pipe(buffer.getvalue())
    assert np.array_equal(read_audio(pipe), noise(20000))


def test_files_that_are_no_sound(tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("not sound")
    with pytest.raises(AudioError, match=r"notes\.wav cannot be read as sound"):
        AudioFile(text)
    with pytest.raises(AudioError, match="is not a file"):
        AudioFile(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="is not a file"):
        AudioFile(tmp_path)
    with pytest.raises(AudioError, match="cannot be read"):
        AudioFile(io.BytesIO(b""))


def test_nan_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.0, np.nan], np.float32), 16000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav.*nan at sample 1"):
        read_audio(path)


def test_a_truncated_flac_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(100000), 16000)
    path.write_bytes(path.read_bytes()[:50000])
    with pytest.raises(AudioError, match=r"cut\.flac is damaged"):
        read_audio(path)


@pytest.mark.parametrize("suffix", [*SOUND_SUFFIXES, ".WAV"])
def test_whatever_searches_a_folder_finds_the_same_sound_files(tmp_path: Path, suffix: str) -> None:
    """`transcribe DIR`, `export --clips DIR` and a LibriSpeech folder; other files are left alone."""
    from edge_asr.cli.transcribe import _find_sources
    from edge_asr.manifest import read_manifest
    from edge_asr.proof.clips import find_clips

    sound = tmp_path / f"1-2-3{suffix}"
    sound.touch()
    (tmp_path / "1-2.trans.txt").write_text("1-2-3 some words\n")
    (tmp_path / "folder.wav").mkdir()
    assert [source.path for source in _find_sources([str(tmp_path)])[0]] == [str(sound)]
    assert find_clips([tmp_path]) == [sound]
    if suffix.islower():  # LibriSpeech's names are known in full
        assert [u.audio_path for u in read_manifest(tmp_path).utterances] == [sound]


def test_a_file_that_may_not_be_read_is_not_called_damaged(
    sample_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user who is not root; root may read everything."""

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(AudioError, match=r"robot_commands\.flac cannot be opened: Permission denied$"):
        AudioFile(sample_path)


def test_a_tensor_of_a_dtype_that_numpy_lacks_is_named() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(AudioError, match="the waveform, a Tensor, is no array"):
        mono_from_waveform(torch.zeros(10, dtype=torch.bfloat16))


def header_changed(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the file's first 100."""
    data = path.read_bytes()
    path.write_bytes(data[:100].replace(old, new, 1) + data[100:])


@pytest.mark.parametrize(
    ("suffix", "share", "message"),
    [
        (
            "wav",
            0.5,
            r"cut\.wav is cut off: it holds 50% of the sound its header names; the rest is",
        ),
        ("wav", 0.99, r"cut\.wav is cut off: it holds 99%"),
        ("aiff", 0.5, r"cut\.aiff is cut off: it holds 50%"),
        ("mp3", 0.5, r"cut\.mp3 is damaged: 3\.93 s of its 8\.00 s could be read; the rest"),
    ],
)
def test_a_sound_that_ends_early_is_read_as_far_as_it_goes_with_a_warning(
    suffix: str, share: float, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, noise(8 * 16000), 16000)
    whole = read_audio(path)
    assert caplog.messages == []
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])
    got = read_audio(path)
    assert 0.45 * len(whole) < len(got) < len(whole)
    (warning,) = caplog.messages
    assert re.match(rf".*{message}", warning)


def test_a_recording_whose_header_was_never_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "killed.wav"
    soundfile.write(path, noise(16000), 16000)
    header_changed(path, b"data" + struct.pack("<I", 32000), b"data" + struct.pack("<I", 0))
    assert len(read_audio(path)) == 0
    (warning,) = caplog.messages
    assert "killed.wav holds 32044 bytes, but its header says that none of them are sound" in warning


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x80000000, 0x7FFFFFFF])
def test_a_header_that_could_not_know_the_length_is_no_damage(
    size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As programs write it that record into a pipe."""
    path = tmp_path / "piped.wav"
    soundfile.write(path, noise(16000), 16000)
    header_changed(path, b"data" + struct.pack("<I", 32000), b"data" + struct.pack("<I", size))
    assert len(read_audio(path)) == 16000
    assert caplog.messages == []
