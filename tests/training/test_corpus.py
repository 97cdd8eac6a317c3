"""Bad rows are found before the first step, by reason; audio is decoded once and cached."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from edge_asr.cli.main import cli
from edge_asr.errors import ManifestError
from edge_asr.training.config import DataConfig, SourceConfig
from edge_asr.training.config_io import dump_config
from edge_asr.training.corpus import check_targets, load_corpus, load_recordings
from edge_asr.training.run import train
from edge_asr.training.tokenizer import CharTokenizer
from edge_asr.vocabulary import Vocabulary

RATE = 16_000


def write_clip(path: Path, seconds: float, rate: int = RATE, channels: int = 1) -> None:
    t = np.arange(int(seconds * rate)) / rate
    tone = 0.25 * np.sin(2 * np.pi * 440 * t).astype(np.float32)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)


@pytest.fixture
def bad_manifest(tmp_path: Path) -> Path:
    """One good row and one of every kind of bad one."""
    write_clip(tmp_path / "good.wav", 1.0)
    write_clip(tmp_path / "long.wav", 3.5)
    write_clip(tmp_path / "short.wav", 0.05)
    (tmp_path / "noise.wav").write_bytes(b"this is no sound file")
    (tmp_path / "cut.flac").write_bytes(b"fLaC\x00\x00\x00\x22" + bytes(20))
    rows = [
        {"audio_filepath": "good.wav", "text": "Good clip!"},
        {"audio_filepath": "none.wav", "text": "missing"},
        {"audio_filepath": "noise.wav", "text": "undecodable"},
        {"audio_filepath": "cut.flac", "text": "undecodable too"},
        {"audio_filepath": "good.wav", "text": " ... "},
        {"audio_filepath": "good.wav", "text": "caf\u00e9"},
        {"audio_filepath": "good.wav", "text": "far too much text for one second " * 3},
        {"audio_filepath": "long.wav", "text": "long"},
        {"audio_filepath": "short.wav", "text": "short"},
    ]
    lines = [json.dumps(row) for row in rows] + ["{broken", json.dumps({"text": "no path"})]
    manifest = tmp_path / "mixed.jsonl"
    manifest.write_text("\n".join(lines))
    return manifest


EXPECTED = {
    2: "missing audio file",
    3: "undecodable audio",
    4: "undecodable audio",
    5: "empty text",
    6: "characters outside the vocabulary",
    7: "text longer than CTC allows",
    8: "clip too long",
    9: "clip too short",
    10: "not valid JSON",
    11: "missing or wrong key",
}


@pytest.mark.parametrize("cache_audio", [True, False])
def test_every_bad_row_has_its_reason(bad_manifest: Path, tmp_path: Path, cache_audio: bool) -> None:
    data = DataConfig(max_clip_s=3.0, min_clip_s=0.2, cache_audio=cache_audio)
    source = SourceConfig(path=str(bad_manifest))
    corpus = load_corpus([source], data, sample_rate=RATE, cache_dir=tmp_path / "cache")
    tokenizer = CharTokenizer(Vocabulary.from_characters("abcdefghijklmnopqrstuvwxyz' "))
    corpus, targets = check_targets(corpus, tokenizer, n_output_frames=lambda n: n // 640, fastest_speed=1.1)
    assert {bad.row: bad.reason for bad in corpus.bad_rows} == EXPECTED
    assert [clip.text for clip in corpus.clips] == ["good clip"]
    assert [len(ids) for ids in targets] == [9]
    assert corpus.clips[0].load(RATE).shape == (RATE,)
    assert corpus.count_reasons()["undecodable audio"] == 2
    assert (tmp_path / "cache").exists() == cache_audio


def test_training_goes_on_without_bad_rows_or_refuses(
    bad_manifest: Path, make_config: Callable, tone_manifests: tuple[Path, Path], tmp_path: Path
) -> None:
    config = make_config(
        data={"train": [{"path": str(tone_manifests[0])}, {"path": str(bad_manifest)}], "max_clip_s": 3.0},
        tokenizer={"kind": "char", "characters": "abcdefghijklmnopqrstuvwxyz '"},
        optim={"max_steps": 1},
    )
    yaml_path = tmp_path / "train.yaml"
    yaml_path.write_text(dump_config(config))
    refused = CliRunner().invoke(cli, ["train", str(yaml_path), "--strict"])
    assert refused.exit_code == 1
    assert "10 bad rows" in refused.stderr.splitlines()[-1]
    lines = (Path(config.run_dir) / "bad_rows.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [json.loads(line) for line in lines]
    assert {row["row"]: row["reason"] for row in listed} == EXPECTED
    assert "text longer than CTC allows" in refused.stderr
    assert train(config, quiet=True)["step"] == 1


def test_repeats_need_blanks_between() -> None:
    corpus = load_corpus_of_texts(["aab", "aba"])
    tokenizer = CharTokenizer(Vocabulary.from_characters("ab"))
    kept, _ = check_targets(corpus, tokenizer, n_output_frames=lambda n: 3)
    assert [clip.text for clip in kept.clips] == ["aba"]
    assert "4 frames needed, 3 exist" in kept.bad_rows[0].detail


def load_corpus_of_texts(texts: list[str]):  # type: ignore[no-untyped-def]
    from edge_asr.training.corpus import Clip, Corpus

    clips = [Clip(text, "s", row, text, RATE, 1.0, Path("x"), None) for row, text in enumerate(texts, 1)]
    return Corpus(tuple(clips), (), RATE)


def test_cache_is_reused_and_renewed(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav", 1.0, rate=8000, channels=2)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "a.wav", "text": "a"}))
    cache, seen = tmp_path / "cache", []

    def load() -> np.ndarray:
        def progress(rows, label):  # type: ignore[no-untyped-def]
            seen.append(label)
            return rows

        data, source = DataConfig(), SourceConfig(path=str(manifest))
        corpus = load_corpus([source], data, sample_rate=RATE, cache_dir=cache, progress=progress)
        return corpus.clips[0].load(RATE)

    first = load()
    assert first.dtype == np.float32
    assert len(first) == RATE  # 8 kHz stereo became 16 kHz mono
    assert np.max(np.abs(first)) == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(load(), first)
    assert seen == ["decoding m"]
    write_clip(tmp_path / "a.wav", 0.5)
    assert len(load()) == RATE // 2
    assert seen == ["decoding m"] * 2
    pool = sorted(cache.glob("*.i16"), key=lambda path: path.stat().st_mtime)[-1]
    pool.write_bytes(pool.read_bytes()[:-2])
    with pytest.raises(ManifestError, match="damaged; delete it"):
        load()


def test_source_names_must_differ(tmp_path: Path) -> None:
    sources = [SourceConfig(path="a/x.jsonl"), SourceConfig(path="b/x.jsonl")]
    with pytest.raises(ManifestError, match="'x'"):
        load_corpus(sources, DataConfig(), sample_rate=RATE, cache_dir=tmp_path)


@pytest.mark.parametrize("cache_audio", [True, False])
def test_recordings_need_no_text_but_must_all_be_usable(tmp_path: Path, cache_audio: bool) -> None:
    for number, seconds in enumerate((0.5, 1.0)):
        write_clip(tmp_path / f"{number}.wav", seconds)
    rows = [json.dumps({"audio_filepath": f"{number}.wav", "text": ""}) for number in range(2)]
    manifest = tmp_path / "noise.jsonl"
    manifest.write_text("\n".join(rows))
    data = DataConfig(cache_audio=cache_audio)
    noises = load_recordings(manifest, data, sample_rate=RATE, cache_dir=tmp_path / "cache")
    assert [len(noise) for noise in noises] == [RATE // 2, RATE]
    assert all(noise.dtype == np.int16 for noise in noises)
    manifest.write_text("\n".join([*rows, json.dumps({"audio_filepath": "gone.wav", "text": ""})]))
    with pytest.raises(ManifestError, match=r"1 rows that cannot be used.*gone\.wav"):
        load_recordings(manifest, data, sample_rate=RATE, cache_dir=tmp_path / "cache")
