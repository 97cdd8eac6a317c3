"""`edge-asr lm`, and --lm of the commands that recognize."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import edge_asr
from edge_asr.bundle.folder import EMBEDDED_MODELS, Bundle
from edge_asr.runtime.decoding.lm.model_file import LanguageModel

SAMPLE = Path(edge_asr.__file__).parent / "models/samples/robot_commands.flac"
SAID = "enter seven two five start recording go three meters and stop"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(f"{SAID}\nstop\nGo one meter!\nenter starch\nstarch starch starch\n", encoding="utf-8")
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "dev.jsonl"
    rows = [{"audio_filepath": str(SAMPLE), "text": SAID}, {"audio_filepath": str(SAMPLE), "text": ""}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_build_convert_tune_attach_and_transcribe(run, text: Path, manifest: Path, tmp_path: Path) -> None:
    lm, arpa, bundle = tmp_path / "lm.bin", tmp_path / "lm.arpa", tmp_path / "bundle"
    result = run("lm", "build", text, "-o", arpa, "--exclude", manifest, "--order", "2")
    assert result.stdout.endswith("lm.arpa: n-grams by length: 9 of 1, 11 of 2 words; 0.0 MB\n")
    assert "recording" not in arpa.read_text()
    result = run("lm", "convert", arpa, "-o", lm)
    assert result.exit_code == 0
    starch = run("transcribe", SAMPLE, "--lm", lm)
    assert starch.stdout != f"{SAID}\n"
    assert run("lm", "build", text, "-o", lm, "--force").exit_code == 0
    assert run("transcribe", SAMPLE, "--lm", lm).stdout == f"{SAID}\n"

    result = run("lm", "tune", manifest, "--lm", lm, "--alpha", "0.3,0", "--beta", "0.5", "--json")
    best = json.loads(result.stdout)
    rates = {row["alpha"]: row["wer"] for row in best["weights"]}
    assert rates.keys() == {0.0, 0.3}
    assert best["weights"][0]["wer"] == rates[best["alpha"]] == min(rates.values())
    weights = LanguageModel.load(lm).header.weights
    assert (weights.alpha, weights.beta) == (best["alpha"], best["beta"])
    assert best["beta"] == 0.5

    shutil.copytree(EMBEDDED_MODELS / "tiny-en/bundle", bundle)
    assert "language model of 14 words" in run("lm", "attach", lm, bundle).stdout
    assert Bundle.load(bundle).language_model_path == bundle / "lm.bin"
    table = run("lm", "tune", manifest, "-m", bundle, "--alpha", "0.4", "--beta", "1").stdout
    assert "0.00 %" in table
    entry = Bundle.load(bundle).info.language_model
    assert entry is not None
    assert entry.weights is not None
    assert (entry.weights["alpha"], entry.weights["beta"]) == (0.4, 1.0)
    assert (bundle / "lm.bin").read_bytes() == lm.read_bytes()
    assert run("transcribe", SAMPLE, "-m", bundle, "--decoder", "beam").stdout == f"{SAID}\n"
    (bundle / "lm.bin").write_bytes(b"x" * (bundle / "lm.bin").stat().st_size)
    for options in ((), ("--decoder", "beam")):
        assert "lm.bin" in run("transcribe", SAMPLE, "-m", bundle, *options).stderr


def test_evaluate_takes_it_or_leaves_it(run, text: Path, manifest: Path, tmp_path: Path) -> None:
    lm = tmp_path / "lm.bin"
    run("lm", "build", text, "-o", lm)
    for value in (lm, "none"):
        result = run("evaluate", manifest, "--decoder", "beam", "--lm", value, "--json")
        assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("build", "TEXT", "-o", "LM", "--order", "0"), 1, "order is 0; give 1 to 6"),
        (("build", "EMPTY", "-o", "LM"), 1, "the text has no words; give text with a sentence a line"),
        (("build", "NONE", "-o", "LM"), 1, "none.txt cannot be read: No such file"),
        (("build", "TEXT", "-o", "EMPTY"), 1, "empty.txt exists already; add --force"),
        (("build", "TEXT", "-o", "LM", "--cutoffs", "0,x"), 2, "'x' is not a valid integer"),
        (
            ("build", "TEXT", "-o", "LM", "--max-mb", "0.0001"),
            1,
            "words alone take 0.00 MB, more than 0.0001 MB",
        ),
        (("convert", "TEXT", "-o", "LM"), 1, "text.txt is no ARPA text"),
        (("tune", "MANIFEST", "--lm", "TEXT"), 1, "text.txt is no language model of edge-asr"),
        (("tune", "MANIFEST", "--lm", "TEXT", "--alpha", "much"), 2, "'much' is not a valid float"),
        (("tune", "MANIFEST", "--lm", "TEXT", "--alpha", "nan"), 2, "nan is not a finite number"),
        (
            ("tune", "SILENT", "--lm", "TEXT"),
            1,
            "has no speech with a text; give recordings and what was said",
        ),
        (("attach", "TEXT", "tiny-en"), 1, "text.txt is no language model of edge-asr"),
    ],
)
def test_what_is_wrong_is_one_line(
    run, text: Path, manifest: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    empty, silent = tmp_path / "empty.txt", tmp_path / "silent.jsonl"
    empty.write_text("\n ... \n")
    silent.write_text(json.dumps({"audio_filepath": str(SAMPLE), "text": " "}) + "\n")
    names = {
        "TEXT": text,
        "EMPTY": empty,
        "NONE": tmp_path / "none.txt",
        "LM": tmp_path / "lm.bin",
        "MANIFEST": manifest,
        "SILENT": silent,
    }
    result = run("lm", *(names.get(argument, argument) for argument in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert not (tmp_path / "lm.bin").exists()


def test_a_file_that_is_none_of_ours(run, text: Path) -> None:
    result = run("transcribe", SAMPLE, "--lm", text)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "text.txt is no language model of edge-asr; make one of ARPA text with edge-asr lm convert" in (
        result.stderr
    )
    assert run("transcribe", SAMPLE, "--lm", "missing.bin").exit_code == 2
    result = run("transcribe", SAMPLE, "--lm", text, "--decoder", "greedy")
    assert (result.exit_code, "no use for a language model" in result.stderr) == (2, True)
