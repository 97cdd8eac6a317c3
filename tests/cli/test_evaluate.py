"""`edge-asr evaluate`: its JSON keys, its numbers against jiwer called here, and bad rows."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import jiwer
import pytest

from edge_asr.bundle.folder import resolve_bundle_path
from edge_asr.runtime.recognizer import Recognizer

KEYS = [
    "wer",
    "cer",
    "mer",
    "damerau_levenshtein",
    "jaccard",
    "cosine",
    "n_utterances",
    "audio_s",
    "rtfx",
    "substitutions",
    "deletions",
    "insertions",
]


@pytest.fixture
def heard(random_bundle: Path, sounds: Path) -> str:
    with Recognizer.load(random_bundle) as recognizer:
        return recognizer.transcribe_file(sounds / "a.wav").text


def write_manifest(path: Path, rows: list[dict[str, object] | str]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_json_has_exactly_the_keys_and_jiwers_numbers(run, random_bundle, sounds, heard) -> None:
    references = [f"{heard} one two", f"x {heard}", "left"]
    rows = [{"audio_filepath": "a.wav", "text": text} for text in references]
    manifest = write_manifest(sounds / "dev.jsonl", rows)
    result = run("evaluate", "-m", random_bundle, manifest, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    values = json.loads(result.stdout)
    assert list(values) == KEYS
    expected = jiwer.process_words(references, [heard] * 3)
    assert values["wer"] == pytest.approx(expected.wer, abs=1e-6)
    assert values["mer"] == pytest.approx(expected.mer, abs=1e-6)
    assert values["cer"] == pytest.approx(jiwer.cer(references, [heard] * 3), abs=1e-6)
    assert values["n_utterances"] == 3
    assert values["audio_s"] == 6.0
    assert values["rtfx"] > 0
    for key in ("substitutions", "deletions", "insertions"):
        assert values[key] == getattr(expected, key)


def test_normalization_is_named_and_optional(run, random_bundle, sounds, heard) -> None:
    rows = [{"audio_filepath": "a.wav", "text": heard.upper() + "!"}]
    manifest = write_manifest(sounds / "dev.jsonl", rows)
    raw = run("evaluate", "-m", random_bundle, manifest)
    assert "text normalization none" in raw.stdout
    assert json.loads(run("evaluate", "-m", random_bundle, manifest, "--json").stdout)["wer"] > 0
    basic = run("evaluate", "-m", random_bundle, manifest, "--json", "--normalize", "basic")
    assert json.loads(basic.stdout)["wer"] == 0.0


def test_worst_are_aligned_on_stderr_beside_json_else_on_stdout(run, random_bundle, sounds, heard) -> None:
    rows = [
        {"audio_filepath": "a.wav", "text": heard, "id": "right"},
        {"audio_filepath": "a.wav", "text": f"{heard} and more", "id": "wrong"},
    ]
    manifest = write_manifest(sounds / "dev.jsonl", rows)
    result = run("evaluate", "-m", random_bundle, manifest, "--json", "--worst", "5")
    assert list(json.loads(result.stdout)) == KEYS
    assert "wrong" in result.stderr
    assert "right" not in result.stderr
    ref, hyp = (
        next(line for line in result.stderr.splitlines() if line.startswith(p)) for p in ("REF", "HYP")
    )
    assert ref.split() == ["REF:", *heard.split(), "and", "more"]
    assert hyp.split() == ["HYP:", *heard.split(), "***", "****"]
    plain = run("evaluate", "-m", random_bundle, manifest, "--worst", "1")
    assert ref in plain.stdout


def test_bad_rows_are_named_left_out_and_exit_1(run, random_bundle, sounds, heard) -> None:
    (sounds / "damaged.wav").write_bytes(b"no sound")
    rows: list[dict[str, object] | str] = [
        {"audio_filepath": "a.wav", "text": heard},
        "{not json",
        {"audio_filepath": "none.wav", "text": "x"},
        {"audio_filepath": "damaged.wav", "text": "x"},
    ]
    manifest = write_manifest(sounds / "dev.jsonl", rows)
    result = run("evaluate", "-m", random_bundle, manifest, "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert (values["n_utterances"], values["wer"]) == (1, 0.0)
    for expected in ("row 2: not valid JSON", "none.wav", "damaged.wav", "3 utterances were left out"):
        assert expected in result.stderr


def test_nothing_to_evaluate_is_an_error(run, random_bundle, sounds) -> None:
    manifest = write_manifest(sounds / "dev.jsonl", [{"audio_filepath": "none.wav", "text": "x"}])
    result = run("evaluate", "-m", random_bundle, manifest, "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing to evaluate" in result.stderr
    assert run("evaluate", "-m", random_bundle, sounds / "none.jsonl").exit_code == 1


def test_an4_dev_runs_whole(run, random_bundle, an4_dev, shared_dir) -> None:
    result = run("evaluate", "-m", random_bundle, shared_dir / "data" / "an4_dev.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    values = json.loads(result.stdout)
    assert values["n_utterances"] == len(an4_dev) == 92
    assert values["audio_s"] == pytest.approx(sum(u.duration_s for u in an4_dev), abs=5)


@pytest.fixture
def judged(tmp_path: Path, sample_path: Path) -> tuple[Path, Path]:
    """A copy of tiny-en without tables, and 60 clips of 11 words of which every second one is wrong."""
    bundle = tmp_path / "bundle"
    shutil.copytree(resolve_bundle_path("tiny-en"), bundle)
    (bundle / "confidence.json").unlink(missing_ok=True)
    said = sample_path.with_suffix(".txt").read_text().split()
    rows: list[dict[str, object] | str] = []
    for index in range(60):
        text = " ".join(w if (place + index) % 2 else "x" * len(w) for place, w in enumerate(said))
        rows.append({"audio_filepath": str(sample_path), "text": text, "speaker": f"s{index % 3}"})
    return bundle, write_manifest(tmp_path / "dev.jsonl", rows)


def test_confidences_are_judged_and_calibrated(run, judged: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, manifest = judged
    plot = tmp_path / "plot.png"
    first = json.loads(run("evaluate", "-m", bundle, manifest, "--json", "--confidence").stdout)
    assert list(first) == [*KEYS, "confidence"]
    assert first["confidence"]["calibrated"] is False
    assert first["confidence"]["n_words"] == sum(one["n_words"] for one in first["confidence"]["bins"])
    assert first["confidence"]["ece"] > 0.3
    result = run("evaluate", "-m", bundle, manifest, "--json", "--calibrate-confidence", "--plot", plot)
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)["confidence"]
    assert made["before"]["ece"] == pytest.approx(first["confidence"]["ece"])
    assert made["after"]["ece"] < made["before"]["ece"] / 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    (table,) = json.loads((bundle / "confidence.json").read_text())["tables"]
    assert f"{table['precision']} {table['decoder']}" == made["calibrated"]
    assert table["n_words"] == made["before"]["n_words"] >= 500
    again = run("evaluate", "-m", bundle, manifest, "--confidence")
    assert "confidence calibrated: " in again.stdout
    # A calibrated bundle is calibrated from what was decoded, so a second time gives the same table.
    assert run("evaluate", "-m", bundle, manifest, "--calibrate-confidence").exit_code == 0
    assert json.loads((bundle / "confidence.json").read_text())["tables"] == [table]
    shown = json.loads(run("inspect", bundle, "--json").stdout)
    assert [one["decoder"] for one in shown["confidence"]] == ["greedy"]


def test_several_manifests_are_one_set(run, random_bundle, sounds, heard) -> None:
    one, two = (
        write_manifest(sounds / name, [{"audio_filepath": "a.wav", "text": heard}])
        for name in ("one.jsonl", "two.jsonl")
    )
    values = json.loads(run("evaluate", "-m", random_bundle, one, two, "--json").stdout)
    assert (values["n_utterances"], values["wer"]) == (2, 0.0)


def test_what_cannot_be_calibrated_is_one_line(
    run, judged: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, manifest = judged
    rows = manifest.read_text().splitlines(keepends=True)
    (tmp_path / "small.jsonl").write_text("".join(rows[:3]))
    result = run("evaluate", "-m", bundle, tmp_path / "small.jsonl", "--calibrate-confidence")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(
        r"edge-asr: only 3\d words were recognized, and a calibration needs 500; give more speech\n",
        result.stderr,
    )
    result = run("evaluate", "-m", bundle, manifest, "--calibrate-confidence", "--precision", "fp16")
    assert result.exit_code == 1
    assert "has no fp16 model, it has: fp32, int8" in result.stderr
    (tmp_path / "g.txt").write_text("stop\n")
    result = run(
        "evaluate", "-m", bundle, manifest, "--calibrate-confidence", "--grammar", tmp_path / "g.txt"
    )
    assert result.exit_code == 1
    assert "confidences are calibrated for greedy and beam search; leave the grammar out" in result.stderr
    result = run("evaluate", "-m", bundle, manifest, "--plot", "a.png")
    assert result.exit_code == 2
    assert "--plot draws confidences; add --confidence or --calibrate-confidence" in result.stderr
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    result = run("evaluate", "-m", bundle, manifest, "--calibrate-confidence")
    assert result.exit_code == 1
    assert "cannot be written (no permission); calibrate a copy of it: cp -r" in result.stderr
    assert not (bundle / "confidence.json").exists()
