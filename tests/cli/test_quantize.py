"""`edge-asr quantize`: its JSON, its summary, exit codes, and where it may write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration import Budget


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight sounds of 4 s: gliding harmonics in syllables of 0.2 s, over faint noise."""
    folder = tmp_path_factory.mktemp("calibration")
    time = np.arange(64_000) / 16_000
    syllable = (time / 0.2).astype(int)
    rows = []
    for number in range(8):
        generator = np.random.default_rng(number)
        pitch, tilt = generator.uniform(90, 220, 21)[syllable], generator.uniform(0.3, 2.0, 21)[syllable]
        phase = 2 * np.pi * np.cumsum(pitch) / 16_000
        voiced = sum(np.sin(k * phase) / k**tilt for k in range(1, 16))
        sound = 0.1 * voiced * np.abs(np.sin(np.pi * time / 0.2)) + generator.normal(0, 0.003, len(time))
        soundfile.write(folder / f"{number}.wav", sound, 16_000)
        rows.append(json.dumps({"audio_filepath": f"{number}.wav", "text": "some words"}))
    path = folder / "train.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def common(manifest: Path) -> list[str | Path]:
    # Random weights: what is lost means nothing, so anything may be.
    return [
        "--calibration",
        manifest,
        "--calibration-minutes",
        "1",
        "--range-method",
        "minmax",
        "--max-wer-loss",
        "1",
    ]


def test_json_then_force_then_over_the_budget(run, random_bundle, manifest, tmp_path, monkeypatch) -> None:
    before, output = contents(random_bundle), tmp_path / "int8"
    arguments = ["quantize", random_bundle, "-o", output, *common(manifest), "--min-agreement", "0"]
    evaluated = manifest.with_name("dev.jsonl")
    evaluated.write_text(manifest.read_text())
    result = run(*arguments, "--evaluate", evaluated, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    data = json.loads(result.stdout)
    assert data["int8_groups"] == list(data["sensitivity"]["alone"])
    assert list(data["evaluation"]) == ["dev", "pooled"]
    assert "edge-asr: int8: choose groups ..." in result.stderr
    assert Bundle.load(output).artifact("int8").precision == "int8"
    assert contents(random_bundle) == before

    written = contents(output)
    refused = run(*arguments)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "--force" in refused.stderr
    assert contents(output) == written

    forced = run(*arguments, "--force", "--no-smoothing")
    assert forced.exit_code == 0, forced.stderr
    assert forced.stdout.startswith("INT8: ")
    assert "of the frames keep their most likely token; encoder time" in forced.stdout
    assert forced.stdout.splitlines()[-1].endswith("MB, details in report.md")
    assert json.loads((output / "report.json").read_text())["int8"]["smoothing"] is None

    written = contents(output)
    # Random weights hardly change their mind; a gate that really fails is in tests/calibration.
    monkeypatch.setattr(Budget, "exceeded_by", lambda *args, **kwargs: "too much is lost")
    over = run("quantize", output, *common(manifest), "--min-agreement", "1.0")
    assert (over.exit_code, over.stdout) == (3, "")
    assert "is over the budget: too much is lost" in over.stderr.splitlines()[-1]
    assert contents(output) == written
    assert [p.name for p in tmp_path.iterdir()] == ["int8"]
    kept = run("quantize", output, *common(manifest), "--keep-failed", tmp_path / "failed")
    assert (kept.exit_code, kept.stdout) == (3, "")
    assert kept.stderr.splitlines()[-1].endswith(f"; kept in {tmp_path / 'failed'}")
    assert contents(output) == written
    assert not Bundle.load(tmp_path / "failed", allow_unverified=True).info.verified


def test_embedded_model_needs_an_output(run) -> None:
    result = run("quantize", "tiny-en")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "tiny-en ships inside the package; name a folder for the result with -o" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--calibration", "nowhere.jsonl"],
        ["--calibration-minutes", "0.5"],
        ["--range-method", "best"],
        ["--percentile", "0"],
        ["--smoothing", "1.5"],
        ["--max-wer-loss", "-1"],
        ["--min-agreement", "98.5"],
    ],
    ids=lambda a: a[0],
)
def test_values_out_of_range_are_usage(run, random_bundle, arguments: list[str]) -> None:
    result = run("quantize", random_bundle, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_speech_that_cannot_be_used_is_one_line(run, random_bundle, tmp_path) -> None:
    before = contents(random_bundle)
    manifest = tmp_path / "bad.jsonl"
    manifest.write_text('{"audio_filepath": "none.wav", "text": "x"}\n')
    result = run("quantize", random_bundle, "--calibration", manifest)
    assert result.exit_code == 1
    assert "no usable row" in result.stderr.splitlines()[-1]
    assert contents(random_bundle) == before
