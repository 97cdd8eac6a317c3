"""The recognizer with a fake model that hears tones: what was played must come out, once.

Long recordings, any rate and channel count, batches, files, pipes and bad input; the real model is
in test_recognizer_bundle.py.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import AudioFile
from edge_asr.errors import AudioError, BackendError, ConfigError
from edge_asr.feature_config import FeatureConfig
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.stages import StageTime
from edge_asr.runtime.windows import WindowGeometry

SHORT_WINDOWS = WindowGeometry(window_frames=400, overlap_frames=160, margin_frames=4, subsampling_factor=8)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("form", ["float32", "float64", "int16", "int32", "stereo"])
def test_any_rate_and_form(tones: Any, sample_rate: int, form: str) -> None:
    waveform = tones.play("bad cafe", sample_rate=sample_rate)
    if form == "stereo":
        waveform = np.stack([waveform, waveform], axis=1)
    elif form.startswith("int"):
        waveform = (waveform * np.iinfo(form).max).astype(form)
    else:
        waveform = waveform.astype(form)
    transcript = tones.recognizer().transcribe(waveform, sample_rate)
    assert transcript.text == "bad cafe"
    assert [word.text for word in transcript.words] == ["bad", "cafe"]
    assert transcript.duration_s == pytest.approx(len(waveform) / sample_rate)


def test_times_are_where_the_tones_are(tones: Any) -> None:
    transcript = tones.recognizer().transcribe(tones.play("ab", tone_s=0.4, gap_s=1.0), 16000)
    for token, begin in zip(transcript.tokens, (1.0, 2.4), strict=True):
        assert token.start_s == pytest.approx(begin, abs=0.08)
        assert token.end_s == pytest.approx(begin + 0.4, abs=0.08)
        assert token.confidence == pytest.approx(np.exp(-0.01), abs=1e-6)


def test_segments_split_at_pauses(tones: Any) -> None:
    waveform = np.concatenate([tones.play("ab c"), np.zeros(16000, np.float32), tones.play(" de")])
    transcript = tones.recognizer().transcribe(waveform, 16000)
    assert [segment.text for segment in transcript.segments] == ["ab c", "de"]
    assert transcript.segments[0].words == transcript.words[:2]
    assert transcript.to_dict()["segments"][1]["text"] == "de"


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n_characters=st.integers(1, 60), offset=st.integers(0, 48000))
def test_nothing_is_lost_or_doubled_at_window_edges(
    tones: Any, seed: int, n_characters: int, offset: int
) -> None:
    """Windows of 4 s over recordings of up to 32 s; the fake model is blind at window edges."""
    text = tones.text(np.random.default_rng(seed), n_characters)
    waveform = np.concatenate([np.zeros(offset + 6400, np.float32), tones.play(text), np.zeros(9600)])
    one_pass = tones.recognizer().transcribe(waveform, 16000)
    assert one_pass.text == text
    long = tones.recognizer(n_blind=4, windows=SHORT_WINDOWS)
    transcript = long.transcribe(waveform, 16000)
    # The fake's blind frames at the very ends come out as its token 0, a garbage letter each.
    garbage = tones.vocabulary.tokens[0]
    tokens = [token.text for token in transcript.tokens]
    assert tokens[0] == tokens[-1] == garbage
    assert "".join(tokens[1:-1]).split() == text.split()


def test_default_windows_on_two_minutes(tones: Any) -> None:
    text = tones.text(np.random.default_rng(1), 250)
    recognizer = tones.recognizer()
    transcript = recognizer.transcribe(tones.play(text), 16000)
    assert transcript.duration_s > 110
    assert transcript.text == text
    shapes = recognizer.backend.batch_shapes
    windows = recognizer.windows
    assert set(shapes[:-1]) == {(1, windows.window_frames)}
    assert len(shapes) == -(-(transcript.duration_s * 100 - windows.overlap_frames) // windows.step_frames)


def test_how_a_file_is_blocked_changes_nothing(
    tones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tones.text(np.random.default_rng(2), 90)
    waveform = (tones.play(text, sample_rate=44100) * 32767).astype(np.int16)
    path = tmp_path / "long.wav"
    soundfile.write(path, waveform, 44100, subtype="PCM_16")
    recognizer = tones.recognizer(windows=SHORT_WINDOWS)
    expected = recognizer.transcribe(waveform, 44100)
    assert expected.text == text
    blocks = AudioFile.blocks
    for block_s in (0.013, 0.5, 3.7, 1000.0):
        monkeypatch.setattr(AudioFile, "blocks", lambda self, s=block_s: blocks(self, s))
        assert recognizer.transcribe_file(path) == expected


@pytest.mark.parametrize("preset", ["nemo", "nemo-2.4", "kaldi"])
@pytest.mark.parametrize("n_extra", [-480, -161, -160, -1, 0, 1, 159, 160, 161, 400, 800])
def test_one_pass_and_windows_meet(tones: Any, tmp_path: Path, preset: str, n_extra: int) -> None:
    """A waveform of about a window goes one road, a file the other, a batch a third."""
    waveform = np.random.default_rng(n_extra + 1000).normal(0, 0.3, 4 * 16000 + n_extra).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, waveform, 16000, subtype="FLOAT")
    recognizer = tones.recognizer(
        windows=SHORT_WINDOWS, **FeatureConfig.from_preset(preset, log_guard_value=1e-7).to_dict()
    )
    expected = recognizer.transcribe_file(path)
    assert recognizer.transcribe(waveform, 16000) == expected
    assert recognizer.transcribe_batch([(waveform, 16000)]) == [expected]


def test_a_batch_gives_what_singles_give(tones: Any) -> None:
    rng = np.random.default_rng(3)
    texts = [tones.text(rng, int(n)) for n in rng.integers(1, 40, 12)] + ["", tones.text(rng, 80)]
    rates = [int(rng.choice([8000, 16000, 44100])) for _ in texts]
    clips = [(tones.play(t, sample_rate=r), r) for t, r in zip(texts, rates, strict=True)]
    clips.append((np.zeros(0, np.float32), 16000))
    recognizer = tones.recognizer()
    results = recognizer.transcribe_batch(clips)
    assert [result.text for result in results] == [*texts, ""]
    shapes = recognizer.backend.batch_shapes
    assert max(rows for rows, _ in shapes) > 1
    assert all(rows * frames * 0.01 <= 120 for rows, frames in shapes)
    assert results == [recognizer.transcribe(*clip) for clip in clips]


def test_an_empty_batch(tones: Any) -> None:
    assert tones.recognizer().transcribe_batch([]) == []


def test_a_bad_clip_of_a_batch_is_named(tones: Any) -> None:
    with pytest.raises(AudioError, match=r"clip 1: .*nan"):
        tones.recognizer().transcribe_batch([(np.zeros(10), 16000), (np.array([np.nan]), 16000)])


@pytest.mark.parametrize("n_samples", [0, 1, 159, 160, 161, 1279, 1280, 1281])
@pytest.mark.parametrize("normalize", ["none", "per_feature"])
def test_too_short_is_empty_not_an_error(tones: Any, n_samples: int, normalize: str) -> None:
    transcript = tones.recognizer(normalize=normalize).transcribe(np.zeros(n_samples, np.float32), 16000)
    assert transcript.duration_s == n_samples / 16000
    if normalize == "none":
        assert transcript.text == ""
        assert transcript.words == transcript.tokens == transcript.segments == ()


def test_progress_reaches_the_duration(tones: Any) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16000 * 12), 16000, format="WAV")
    buffer.seek(0)
    seen: list[float] = []
    tones.recognizer().transcribe_file(buffer, progress=seen.append)
    assert seen == [5.0, 10.0, 12.0]


class OtherAnswer:
    """A fake backend whose log-probs are `change`d."""

    name, precision, num_threads, max_frames = "fake", "fp32", None, None

    def __init__(self, inner: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.inner, self.change = inner, change

    def log_probs(self, features: np.ndarray, feature_lens: np.ndarray) -> np.ndarray:
        return self.change(self.inner.log_probs(features, feature_lens))

    def close(self) -> None:
        pass


def set_nan(log_probs: np.ndarray) -> np.ndarray:
    log_probs[0, 2, 1] = np.nan
    return log_probs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p[:, :, :5], r"gave float32 \[1, \d+, 5\], its bundle describes float32 \[1, \d+, 9\]"),
        (lambda p: np.concatenate([p] * 4, axis=2), r"\[1, \d+, 36\]"),
        (lambda p: p[:, :3], r"\[1, 3, 9\]"),
        (lambda p: np.concatenate([p, p], axis=1), "its bundle describes"),
        (lambda p: p.astype(np.int64), "gave int64"),
        (lambda p: p.astype(np.float16), "gave float16"),
        (lambda p: p[0], "its bundle describes"),
        (lambda p: np.concatenate([p, p]), r"gave float32 \[2,"),
        (set_nan, "gave NaN instead of log-probs; use precision='fp32'"),
    ],
)
@pytest.mark.parametrize("seconds", [2.0, 30.0])
def test_an_answer_that_the_bundle_does_not_describe_is_no_text(
    tones: Any, change: Any, message: str, seconds: float
) -> None:
    recognizer = tones.recognizer()
    recognizer.backend = OtherAnswer(recognizer.backend, change)
    with pytest.raises(BackendError, match=message):
        recognizer.transcribe(np.zeros(round(seconds * 16000), np.float32), 16000)


def test_nan_behind_a_row_of_a_batch_is_nothing(tones: Any) -> None:
    def spoil(log_probs: np.ndarray) -> np.ndarray:
        log_probs[-1, -1] = np.nan  # the shorter clip comes last
        return log_probs

    recognizer = tones.recognizer()
    clips = [(tones.play("ab"), 16000), (tones.play("abcdef"), 16000)]
    recognizer.backend = OtherAnswer(recognizer.backend, spoil)
    assert [t.text for t in recognizer.transcribe_batch(clips)] == ["ab", "abcdef"]
    with pytest.raises(BackendError, match="NaN"):
        recognizer.transcribe(*clips[0])


def test_clips_that_are_grouped_already_run_together(tones: Any) -> None:
    recognizer = tones.recognizer(windows=SHORT_WINDOWS)
    clips = [(tones.play(text), 16000) for text in ("ab", "c", "defg")]
    assert [t.text for t in recognizer.transcribe_together(clips)] == ["ab", "c", "defg"]
    assert recognizer.backend.batch_shapes == [(3, 216)]
    assert recognizer.transcribe_together([]) == []
    long = np.zeros(round(recognizer.window_s * 16000) + 1, np.float32)
    with pytest.raises(AudioError, match=r"clip 1 is 3\.98 s long and one run .* at most 3\.98"):
        recognizer.transcribe_together([clips[0], (long, 16000)])
    with pytest.raises(AudioError, match=r"clip 0: .*nan"):
        recognizer.transcribe_together([(np.array([np.nan]), 16000)])


def test_windows_are_no_longer_than_the_backend_takes(tones: Any) -> None:
    backend = OtherAnswer(tones.recognizer().backend, lambda log_probs: log_probs)
    backend.max_frames = 1003  # type: ignore[assignment]
    recognizer = Recognizer(
        backend, features=tones.features, vocabulary=tones.vocabulary, subsampling_factor=tones.factor
    )
    assert recognizer.windows.window_frames == 1000
    text = tones.text(np.random.default_rng(4), 60)
    assert recognizer.transcribe(tones.play(text), 16000).text == text
    assert max(frames for _, frames in backend.inner.batch_shapes) == 1000


@pytest.mark.parametrize("n_windows", [1, 3])
def test_an_observer_is_told_each_stage_in_turn(tones: Any, n_windows: int) -> None:
    told: list[StageTime] = []
    recognizer = Recognizer(
        tones.recognizer().backend,
        features=tones.features,
        vocabulary=tones.vocabulary,
        subsampling_factor=tones.factor,
        windows=SHORT_WINDOWS,
        on_stage=told.append,
    )
    waveform = np.zeros(round(16000 * (2.0 if n_windows == 1 else 8.0)), np.float32)
    began = time.perf_counter()
    recognizer.transcribe(waveform, 16000)
    took_s = time.perf_counter() - began
    encodes = [stage for stage in told if stage.name == "encode"]
    assert [stage.batch for stage in encodes] == recognizer.backend.batch_shapes
    assert len(encodes) == n_windows
    assert all(stage.batch is None for stage in told if stage.name != "encode")
    assert (told[0].name, told[-1].name) == ("features", "decode")
    assert 0.5 * took_s < sum(stage.seconds for stage in told) <= took_s
    if n_windows == 1:
        assert [stage.name for stage in told] == ["features", "encode", "decode"]


def test_an_open_file_is_read_and_stays_open(tones: Any, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tones.play("bad"), 16000)
    with AudioFile(tmp_path / "a.wav") as file:
        assert tones.recognizer().transcribe_file(file).text == "bad"
        assert list(file.blocks()) == []


def test_close_closes_the_backend(tones: Any) -> None:
    with tones.recognizer() as recognizer:
        pass
    assert recognizer.backend.closed


def test_windows_must_fit_the_model(tones: Any) -> None:
    with pytest.raises(ConfigError, match="factor 4"):
        tones.recognizer(
            windows=WindowGeometry(
                window_frames=400, overlap_frames=160, margin_frames=4, subsampling_factor=4
            )
        )
