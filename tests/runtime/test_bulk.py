"""Many files at once: each as it is alone, in order, whatever the workers, and one that fails stops none."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edge_asr.audio import AudioFile
from edge_asr.errors import AudioError, BackendError, ConfigError
from edge_asr.runtime.acoustic_model import group_by_length
from edge_asr.runtime.bulk import BATCH_S, GPU_BATCH_S, GPU_WORKERS, LOOK_AHEAD, transcribe_files
from edge_asr.runtime.recognizer import Recognizer


@pytest.fixture(scope="module")
def recognizer(random_bundle: Path) -> Recognizer:
    return Recognizer.load(random_bundle, num_threads=1)


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Lengths from nothing to more than a window, two rates, in no order."""
    rng = np.random.default_rng(3)
    paths = []
    for number, seconds in enumerate((2.0, 0.5, 26.0, 1.0, 0.0, 3.3, 0.01, 2.1, 1.7, 9.0)):
        rate = 16_000 if number % 3 else 22_050
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, rng.normal(0, 0.1, round(seconds * rate)), rate)
        paths.append(path)
    return paths


@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_file_is_what_it_is_alone_and_in_its_place(
    num_workers: int, recognizer: Recognizer, sounds: list[Path]
) -> None:
    heard: dict[int, list[tuple[float, float]]] = {index: [] for index in range(len(sounds))}
    results = list(
        transcribe_files(
            recognizer,
            sounds,
            num_workers=num_workers,
            heard=lambda index, seconds, length_s: heard[index].append((seconds, length_s)),
        )
    )
    assert [result.index for result in results] == list(range(len(sounds)))
    for path, result in zip(sounds, results, strict=True):
        alone = recognizer.transcribe_file(path)
        assert result.error is None
        assert result.transcript is not None
        assert result.transcript.text == alone.text
        assert result.transcript.duration_s == alone.duration_s
        assert heard[result.index][0] == (0.0, pytest.approx(alone.duration_s))  # when it was opened
        if alone.duration_s:
            assert heard[result.index][-1] == pytest.approx((alone.duration_s, alone.duration_s))


def test_a_file_is_opened_once(
    recognizer: Recognizer, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []  # as the file system names them
    begin = soundfile.SoundFile.__init__

    def watch(self: soundfile.SoundFile, file: bytes, *arguments: object, **keywords: object) -> None:
        opened.append(file)
        begin(self, file, *arguments, **keywords)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", watch)
    assert all(result.transcript for result in transcribe_files(recognizer, sounds, num_workers=2))
    assert sorted(opened) == sorted(os.fsencode(path) for path in sounds)


def test_a_file_that_is_longer_than_its_header_says_runs_alone(
    recognizer: Recognizer, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AudioFile, "duration_s", 1.0)
    results = list(transcribe_files(recognizer, sounds[:3]))  # the last is longer than a window
    texts = [result.transcript.text for result in results if result.transcript]
    assert texts == [recognizer.transcribe_file(path).text for path in sounds[:3]]


def test_a_file_that_fails_is_an_error_in_its_place(recognizer: Recognizer, sounds: list[Path]) -> None:
    broken = sounds[0].with_name("broken.wav")
    broken.write_bytes(b"no sound")
    missing = sounds[0].with_name("missing.wav")
    results = list(transcribe_files(recognizer, [sounds[1], broken, sounds[3], missing]))
    assert [result.transcript is None for result in results] == [False, True, False, True]
    assert isinstance(results[1].error, AudioError)
    assert "broken.wav cannot be read as sound" in str(results[1].error)


def test_a_model_that_fails_is_an_error_of_each_file(
    recognizer: Recognizer, sounds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise BackendError("out of memory")

    monkeypatch.setattr(recognizer.backend, "log_probs", fail)
    results = list(transcribe_files(recognizer, [sounds[0], sounds[1], sounds[2]], num_workers=2))
    assert [str(result.error) for result in results] == ["out of memory"] * 3


def test_groups_are_of_like_length_and_bounded(recognizer: Recognizer, sounds: list[Path]) -> None:
    lengths_s = [soundfile.info(path).duration or math.inf for path in sounds]  # as where it cannot be told
    groups = group_by_length(lengths_s, recognizer.window_s, BATCH_S)
    assert groups == [[4], [2], [9, 5], [7, 0, 8, 3, 1, 6]]
    assert group_by_length([math.inf] * 3, recognizer.window_s, BATCH_S) == [[0], [1], [2]]
    assert all(len(group) * 9.0 <= BATCH_S for group in groups if 9 in group)


def test_results_come_before_the_last_file_is_read(recognizer: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1600), 16_000)
    results = transcribe_files(recognizer, [path] * (3 * LOOK_AHEAD))
    assert next(results).index == 0
    results.close()  # and the workers end with it
    assert not [t for t in threading.enumerate() if t.name.startswith("edge-asr-bulk")]


def test_larger_batches_share_runs_and_give_the_same(recognizer: Recognizer, sounds: list[Path]) -> None:
    """As on a GPU, whose backend takes turns with what the workers do besides."""
    alone = [result.transcript for result in transcribe_files(recognizer, sounds)]
    rows: list[int] = []
    log_probs = recognizer.backend.log_probs

    def counting(features: Any, lens: Any) -> Any:
        rows.append(len(features))
        return log_probs(features, lens)

    recognizer.backend.log_probs = counting  # type: ignore[method-assign]
    options = {"num_workers": GPU_WORKERS, "batch_s": GPU_BATCH_S}
    together = list(transcribe_files(recognizer, sounds, **options))  # type: ignore[arg-type]
    recognizer.backend.log_probs = log_probs  # type: ignore[method-assign]
    assert max(rows) > 1
    texts = [(result.transcript.text if result.transcript else None) for result in together]
    assert texts == [(transcript.text if transcript else None) for transcript in alone]


def test_no_workers_are_refused(recognizer: Recognizer) -> None:
    with pytest.raises(ConfigError, match="num_workers is 0; give 1 or more"):
        next(transcribe_files(recognizer, [], num_workers=0))
