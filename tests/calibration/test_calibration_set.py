"""The calibration set: strata, length, identity, added sound, bad rows, and the embedded speech.

Corpora are made of sine tones whose duration and level are known in closed form.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_asr.audio import read_audio
from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.calibration.calibration_set import (
    CalibrationSet,
    embedded_calibration_set,
    select_calibration_set,
)
from edge_asr.calibration.clips import CalibrationClip, Color, hash_file, make_noise, measure_rms_dbfs
from edge_asr.errors import AudioError, ConfigError, ManifestError
from edge_asr.feature_config import FeatureConfig
from edge_asr.manifest import read_manifest
from edge_asr.runtime.features.extractor import FeatureExtractor

RATE = 16_000
PINNED = ["0.5_40_0", "3_30_1", "2_20_0", "8_40_1", "5_40_0", "1_10_1", "1_40_1", "0.5_10_1", "0.5_20_0"]
DURATIONS_S = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0)
PEAKS_DB = (-40.0, -30.0, -20.0, -10.0)


def write_tone(path: Path, duration_s: float, peak_db: float, rate: int = RATE) -> None:
    """Whole periods of 200 Hz: its RMS is 3.01 dB below its peak."""
    time_s = np.arange(round(duration_s * rate)) / rate
    soundfile.write(path, 10 ** (peak_db / 20) * np.sin(2 * np.pi * 200 * time_s), rate, subtype="PCM_16")


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 tones, 8 durations by 4 levels, twice: 6.3 minutes; the manifest claims no durations."""
    folder = tmp_path_factory.mktemp("corpus")
    rows: list[dict[str, object]] = []
    for duration_s in DURATIONS_S:
        for peak_db in PEAKS_DB:
            for copy in range(2):
                name = f"tone_{duration_s:g}_{-peak_db:g}_{copy}.wav"
                write_tone(folder / name, duration_s, peak_db - 0.1 * copy)
                rows.append({"audio_filepath": name, "text": f"tone {len(rows)}"})
    return write_manifest(folder / "tones.jsonl", rows)


def plain_speech(chosen: CalibrationSet) -> list[CalibrationClip]:
    return [clip for clip in chosen.clips if clip.kind == "speech" and clip.gain_db == 0.0]


def test_every_duration_and_level_stratum_gives_about_the_same_seconds(corpus: Path) -> None:
    chosen = select_calibration_set(corpus, minutes=4.0)
    seconds: dict[str, float] = defaultdict(float)
    for clip in plain_speech(chosen):
        seconds[clip.stratum] += clip.duration_s
    assert len(seconds) == 12, sorted(seconds)
    # About 165 s over 12 strata, 14 s each; a stratum gets ahead of another by its longest clip at most.
    assert min(seconds.values()) >= 5.0
    assert max(seconds.values()) <= min(seconds.values()) + 16.0 + 1e-6


def test_measured_duration_and_level_are_the_tones(corpus: Path) -> None:
    for clip in plain_speech(select_calibration_set(corpus, minutes=4.0)):
        duration_s, peak_db, copy = (float(part) for part in clip.parts[0].path.stem.split("_")[1:])
        assert clip.duration_s == duration_s
        # 16-bit rounding of a -40 dB tone is 0.01 dB.
        assert clip.rms_dbfs == pytest.approx(-peak_db - 0.1 * copy - 10 * math.log10(2), abs=0.02)


@pytest.mark.parametrize("minutes", [1.0, 2.5, 4.0])
def test_minutes_are_met_and_never_exceeded(corpus: Path, minutes: float) -> None:
    chosen = select_calibration_set(corpus, minutes=minutes)
    n_samples = sum(len(waveform) for _, waveform in chosen.waveforms())
    assert chosen.minutes == pytest.approx(n_samples / RATE / 60)
    assert 0.95 * minutes <= chosen.minutes
    assert n_samples <= minutes * 60 * RATE
    assert chosen.shortfall is None


def test_same_choice_twice_and_in_another_folder_and_another_with_another_seed(
    corpus: Path, tmp_path: Path
) -> None:
    chosen = select_calibration_set(corpus, minutes=3.0)
    assert select_calibration_set(corpus, minutes=3.0) == chosen
    moved = shutil.copytree(corpus.parent, tmp_path / "elsewhere") / corpus.name
    elsewhere = select_calibration_set(moved, minutes=3.0)
    assert elsewhere.sha256 == chosen.sha256
    assert elsewhere.to_dict() == chosen.to_dict()
    other = select_calibration_set(corpus, minutes=3.0, seed=1)
    assert other.sha256 != chosen.sha256
    assert [clip.name for clip in other.clips] != [clip.name for clip in chosen.clips]


def test_identity_changes_with_the_sound_of_a_file_and_with_the_rate(corpus: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(corpus.parent, tmp_path / "changed") / corpus.name
    before = select_calibration_set(moved, minutes=3.0)
    path = before.clips[0].parts[0].path
    samples, _ = soundfile.read(path, dtype="int16")
    samples[100] += 1
    soundfile.write(path, samples, RATE)
    after = select_calibration_set(moved, minutes=3.0)
    assert [clip.name for clip in after.clips] == [clip.name for clip in before.clips]
    assert after.sha256 != before.sha256
    assert select_calibration_set(moved, minutes=3.0, sample_rate=8000).sha256 != after.sha256


def test_the_choice_is_pinned(corpus: Path) -> None:
    """Guards the dealing against change without notice (recorded with seed 0 on x86-64, Python 3.11)."""
    chosen = select_calibration_set(corpus, minutes=1.0)
    names = [clip.name.removeprefix("tones/tone_").removesuffix(".wav") for clip in plain_speech(chosen)]
    assert names == PINNED


def test_silence_noise_and_altered_speech_are_added(corpus: Path) -> None:
    chosen = select_calibration_set(corpus, minutes=2.0)
    waveforms = dict(chosen.waveforms())
    assert not waveforms["digital silence"].any()
    assert measure_rms_dbfs(waveforms["digital silence"]) == -math.inf
    for clip in chosen.clips:
        waveform = waveforms[clip.name]
        assert waveform.dtype == np.float32
        assert waveform.ndim == 1
        assert np.abs(waveform).max(initial=0.0) <= 1.0
        if clip.kind != "silence":
            level = 20 * math.log10(np.sqrt(np.mean(waveform.astype(np.float64) ** 2)))
            assert level == pytest.approx(clip.rms_dbfs, abs=0.1), clip.name
    assert np.abs(waveforms["full-scale noise"]).max() > 0.999
    assert measure_rms_dbfs(waveforms["quiet speech"]) == pytest.approx(-50.0, abs=0.1)
    # A tone has no peaks to clip; speech has (below, with the embedded set).
    assert measure_rms_dbfs(waveforms["clipped speech"]) == pytest.approx(-6.0, abs=0.1)
    assert {clip.kind for clip in chosen.clips} == {"speech", "joined", "silence", "noise"}


def test_noise_has_its_color() -> None:
    def share_below_1khz(color: Color) -> float:
        power = np.abs(np.fft.rfft(make_noise(color, -20.0, 1 << 15, seed=3))) ** 2
        return float(power[: len(power) // 8].sum() / power.sum())

    assert share_below_1khz("white") == pytest.approx(1 / 8, abs=0.01)
    # A one-pole low pass at 130 Hz: 2/pi * atan(1000 / 130) = 0.92 of the power, less what aliases.
    assert share_below_1khz("low-passed") > 0.85


@pytest.mark.parametrize("minutes", [1.0, 3.0, 6.0])
def test_joined_clips_represent_long_inputs(corpus: Path, minutes: float) -> None:
    chosen = select_calibration_set(corpus, minutes=minutes)
    joined = [clip for clip in chosen.clips if clip.kind == "joined"]
    assert len(joined) == max(1, round(0.2 * minutes * 60 / 27.5))
    for clip in joined:
        assert 25.0 <= clip.duration_s <= 30.0
        whole = all(part.n_samples == soundfile.info(part.path).frames for part in clip.parts)
        assert (clip.text is not None) == whole


def test_joined_waveform_is_its_recordings_one_after_the_other(corpus: Path) -> None:
    chosen = select_calibration_set(corpus, minutes=3.0)
    waveforms = dict(chosen.waveforms())
    clip = next(clip for clip in chosen.clips if clip.kind == "joined" and len(clip.parts) > 1)
    begin = 0
    for part in clip.parts:
        expected = soundfile.read(part.path, dtype="float32")[0][: part.n_samples]
        np.testing.assert_array_equal(waveforms[clip.name][begin : begin + part.n_samples], expected)
        gap = waveforms[clip.name][begin + part.n_samples :][: round(0.2 * RATE)]
        assert np.abs(gap).max(initial=0.0) < 1e-2
        begin += part.n_samples + round(0.2 * RATE)
    assert begin - round(0.2 * RATE) == len(waveforms[clip.name])


def test_features_are_the_runtimes(corpus: Path) -> None:
    chosen = select_calibration_set(corpus, minutes=1.0)
    config = FeatureConfig.from_preset("nemo")
    features = list(chosen.features(config))
    assert len(features) == len(chosen.clips)
    np.testing.assert_array_equal(
        features[0], FeatureExtractor(config)(read_audio(chosen.clips[0].parts[0].path))
    )
    assert all(f.dtype == np.float32 and f.shape[1] == 80 and np.isfinite(f).all() for f in features)
    other = select_calibration_set(corpus, minutes=1.0, sample_rate=8000)
    with pytest.raises(ConfigError, match="8000 Hz"):
        next(other.features(config))


def test_less_speech_than_asked_for_is_all_used_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[dict[str, object]] = []
    for index in range(5):
        write_tone(tmp_path / f"{index}.wav", 1.0 + index, -20.0)
        rows.append({"audio_filepath": f"{index}.wav", "text": "tone", "duration": 1.0 + index})
    chosen = select_calibration_set(write_manifest(tmp_path / "few.jsonl", rows), minutes=10.0)
    assert {clip.parts[0].path.name for clip in plain_speech(chosen)} == {f"{i}.wav" for i in range(5)}
    assert sum(clip.kind == "joined" for clip in chosen.clips) == 1
    assert chosen.shortfall is not None
    assert "10 minutes requested" in chosen.shortfall
    assert "all the usable speech" in chosen.shortfall
    assert chosen.shortfall in caplog.text


def test_bad_rows_are_skipped_and_counted(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = shutil.copytree(corpus.parent, tmp_path / "bad")
    (tree / "not_sound.wav").write_text("no sound at all")
    for name in ("click.wav", "click_again.wav"):
        soundfile.write(tree / name, np.zeros(100, np.float32), RATE)
    lines = [
        "{broken",
        json.dumps({"audio_filepath": 3, "text": "x"}),
        json.dumps({"audio_filepath": "gone.wav", "text": "x"}),
        json.dumps({"audio_filepath": "gone_too.wav", "text": "x", "duration": 2.0}),
        json.dumps({"audio_filepath": "not_sound.wav", "text": "x", "duration": 2.0}),
        json.dumps({"audio_filepath": "click.wav", "text": "x"}),
        json.dumps({"audio_filepath": "click_again.wav", "text": "x", "duration": 2.0}),
    ]
    manifest = tree / corpus.name
    manifest.write_text("\n".join(lines) + "\n" + manifest.read_text())
    chosen = select_calibration_set(manifest, minutes=6.0)
    assert {row.row: row.reason for row in chosen.bad_rows} == {
        1: "not valid JSON",
        2: "missing or wrong key",
        3: "missing audio file",
        4: "missing audio file",
        5: "undecodable audio",
        6: "clip too short",
        7: "clip too short",
    }
    assert chosen.to_dict()["bad_rows"]["missing audio file"] == 2
    assert "7 rows skipped" in caplog.text
    assert chosen.manifests[0].n_rows == 64 + 7


def test_no_usable_row_and_wrong_settings_are_clear_errors(corpus: Path, tmp_path: Path) -> None:
    gone = write_manifest(tmp_path / "gone.jsonl", [{"audio_filepath": "gone.wav", "text": "x"}])
    with pytest.raises(ManifestError, match=r"no usable row .* row 1: missing audio file .*gone\.wav"):
        select_calibration_set(gone)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), RATE)
    nothing = write_manifest(tmp_path / "nothing.jsonl", [{"audio_filepath": "nothing.wav", "text": "x"}])
    with pytest.raises(ManifestError, match=r"no usable row .* clip too short \(0\.000 s"):
        select_calibration_set(nothing)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ManifestError, match="holds no utterances"):
        select_calibration_set(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match=r"minutes are 0\.5"):
        select_calibration_set(corpus, minutes=0.5)
    with pytest.raises(ConfigError, match="minutes are nan"):
        select_calibration_set(corpus, minutes=math.nan)
    with pytest.raises(ConfigError, match="no calibration manifest"):
        select_calibration_set([])


def test_a_file_that_shrank_after_the_choice_is_refused(corpus: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(corpus.parent, tmp_path / "shrinking") / corpus.name
    chosen = select_calibration_set(moved, minutes=1.0)
    write_tone(chosen.clips[0].parts[0].path, 0.2, -20.0)
    with pytest.raises(AudioError, match="has changed: choose the calibration set again"):
        list(chosen.waveforms())


def test_long_files_are_cut_and_lose_their_text(tmp_path: Path) -> None:
    write_tone(tmp_path / "long.wav", 70.0, -20.0, rate=48_000)
    manifest = write_manifest(tmp_path / "long.jsonl", [{"audio_filepath": "long.wav", "text": "tone"}])
    chosen = select_calibration_set(manifest, minutes=2.0)
    (clip,) = plain_speech(chosen)
    assert (clip.duration_s, clip.text) == (30.0, None)
    assert len(dict(chosen.waveforms())[clip.name]) == 30 * RATE


def test_several_manifests_are_one_corpus_and_no_recording_counts_twice(corpus: Path, tmp_path: Path) -> None:
    write_tone(tmp_path / "extra.wav", 6.0, -5.0)
    rows: list[dict[str, object]] = [{"audio_filepath": "extra.wav", "text": "extra"}]
    rows += [{"audio_filepath": str(corpus.parent / "tone_1_10_0.wav"), "text": "again"}]
    extra = write_manifest(tmp_path / "extra.jsonl", rows)
    chosen = select_calibration_set([corpus, extra], minutes=10.0)
    paths = [clip.parts[0].path for clip in plain_speech(chosen)]
    assert len(paths) == len(set(paths)) == 65
    assert [(m.name, m.n_rows) for m in chosen.manifests] == [("tones", 64), ("extra", 2)]
    assert [m.sha256 for m in chosen.manifests] == [hash_file(corpus), hash_file(extra)]


def test_equal_ids_keep_names_apart(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    for index in range(3):
        write_tone(tmp_path / f"{index}.wav", 2.0, -20.0 - index)
        rows.append({"audio_filepath": f"{index}.wav", "text": "tone", "id": "same"})
    chosen = select_calibration_set(write_manifest(tmp_path / "m.jsonl", rows))
    names = [name for name, _ in chosen.waveforms()]
    assert len(names) == len(set(names))


def test_description_is_json_without_paths(corpus: Path) -> None:
    description = select_calibration_set(corpus, minutes=1.0).to_dict()
    text = json.dumps(description, allow_nan=False)
    assert str(corpus.parent) not in text
    assert description["counts"]["silence"] == 1
    assert description["is_synthetic"] is False
    assert len(description["clips"]) == sum(description["counts"].values())


def test_embedded_set_loads_and_says_that_it_is_synthetic() -> None:
    chosen = embedded_calibration_set()
    assert chosen.is_synthetic
    assert chosen.to_dict()["is_synthetic"] is True
    assert 0.95 * 3.5 <= chosen.minutes <= 3.5 + 1e-9
    assert not chosen.bad_rows
    assert chosen.shortfall is None
    assert len({clip.stratum for clip in plain_speech(chosen)}) == 12
    levels = [clip.rms_dbfs for clip in plain_speech(chosen)]
    assert max(levels) - min(levels) > 15.0
    clipped = dict(chosen.waveforms())["clipped speech"]
    assert np.abs(clipped).max() == 1.0
    assert 0.001 < np.mean(np.abs(clipped) == 1.0) < 0.3
    assert embedded_calibration_set() == chosen


def test_embedded_manifest_and_files_match() -> None:
    folder = EMBEDDED_MODELS / "calibration"
    manifest = read_manifest(folder / "manifest.jsonl")
    assert not manifest.bad_rows
    listed = {utterance.audio_path for utterance in manifest.utterances}
    assert listed == set((folder / "audio").iterdir())
    for utterance in manifest.utterances:
        info = soundfile.info(utterance.audio_path)
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "OPUS")
        assert utterance.duration_s == pytest.approx(info.duration, abs=1e-3)
        assert utterance.text == utterance.text.lower().strip() != ""
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 700_000


def test_embedded_speech_is_what_the_recipe_lists(repository: Path) -> None:
    lines = (repository / "scripts" / "recipes" / "calibration_en" / "synthetic.jsonl").read_text("utf-8")
    planned = {row["id"]: row["text"] for row in map(json.loads, lines.splitlines())}
    manifest = read_manifest(EMBEDDED_MODELS / "calibration" / "manifest.jsonl")
    assert {u.audio_path.stem: u.text for u in manifest.utterances} == planned


def test_chosen_train_speech_shares_no_recording_with_the_dev_sets(shared_dir: Path) -> None:
    data = shared_dir / "data"
    chosen = select_calibration_set([data / "an4_train.jsonl", data / "librispeech_train.jsonl"])
    assert 4.75 <= chosen.minutes <= 5.0 + 1e-9
    assert not chosen.bad_rows
    assert len({clip.stratum for clip in plain_speech(chosen)}) == 12
    assert {clip.name.partition("/")[0] for clip in plain_speech(chosen)} == {
        "an4_train",
        "librispeech_train",
    }
    held_out = {
        hash_file(utterance.audio_path)
        for name in ("an4_dev", "librispeech_dev")
        for utterance in read_manifest(data / f"{name}.jsonl").utterances
    }
    assert held_out.isdisjoint(part.sha256 for clip in chosen.clips for part in clip.parts)
