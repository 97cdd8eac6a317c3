"""Grammars on the command line: `edge-asr grammar`, and --grammar of the commands that recognize."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import edge_asr
from edge_asr.bundle.folder import Bundle, resolve_bundle_path
from edge_asr.bundle.manifest import GrammarThresholds
from edge_asr.errors import BundleError
from edge_asr.runtime.decoding.grammar.read import grammar_decoder, load_graph

SAMPLE = Path(edge_asr.__file__).parent / "models/samples/robot_commands.flac"
SAID = "enter seven two five start recording go three meters and stop"


@pytest.fixture
def grammar(tmp_path: Path) -> Path:
    path = tmp_path / "robot.txt"
    path.write_text(
        "{thing} = recording | mapping\n"
        "enter seven two five start {thing} go {n 0..20} meters and stop\n"
        "stop [now]\n",
        encoding="utf-8",
    )
    return path


def test_transcribe_gives_the_phrase_or_nothing(run, grammar: Path, tmp_path: Path) -> None:
    result = run("transcribe", SAMPLE, "--grammar", grammar, "--json")
    (entry,) = json.loads(result.stdout)["transcripts"]
    assert (entry["text"], entry["matched"], entry["phrase"]) == (SAID, True, SAID)
    slots = [(s["name"], s["value"], s["number"]) for s in entry["slots"]]
    assert slots == [("thing", "recording", None), ("n", "three", 3)]
    assert 0 < entry["slots"][0]["start_s"] < entry["slots"][0]["end_s"] < entry["slots"][1]["start_s"]
    assert 0.7 < entry["confidence"] <= 1
    other = tmp_path / "other.txt"
    other.write_text("raise the arm")
    result = run("transcribe", SAMPLE, "--grammar", other, "--json")
    (entry,) = json.loads(result.stdout)["transcripts"]
    assert (entry["text"], entry["matched"], entry["words"], entry["slots"]) == ("", False, [], [])
    assert entry["heard"].startswith("enter seven")
    spotted = tmp_path / "spotted.txt"
    spotted.write_text("start recording")
    assert run("transcribe", SAMPLE, "--grammar", spotted).stdout == "\n"
    result = run("transcribe", SAMPLE, "--grammar", spotted, "--grammar-mode", "spot")
    assert result.stdout == "start recording\n"


def test_what_is_wrong_with_a_grammar_is_one_line(run, grammar: Path) -> None:
    grammar.write_text("stop\ngo to {place}\n")
    result = run("transcribe", SAMPLE, "--grammar", grammar)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        "edge-asr: robot.txt, line 2: {place} is not defined; add a line {place} = ...\n"
    )
    result = run("transcribe", SAMPLE, "--grammar", grammar, "--beam-size", "4")
    assert result.exit_code == 2
    assert "a grammar has a search of its own" in result.stderr
    assert run("transcribe", SAMPLE, "--grammar-threshold", "0.5").exit_code == 2


def test_check_shows_size_and_what_sounds_alike(run, grammar: Path) -> None:
    result = run("grammar", "check", grammar, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["n_compared"], report["is_complete"]) == (0, 2 * 21 + 2, True)
    nearest = report["alike"][0]
    assert nearest["distance"] == min(pair["distance"] for pair in report["alike"]) > 0
    text = run("grammar", "check", grammar).stdout
    assert text.startswith("robot.txt: 44 phrases of ")
    assert f"{nearest['distance']:4d}  {nearest['first']} / {nearest['second']}\n" in text


def test_check_names_every_word_that_cannot_be_spelled(run, grammar: Path) -> None:
    grammar.write_text("go to caf\u00e9\nstop 24\n", encoding="utf-8")
    result = run("grammar", "check", grammar)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "edge-asr: robot.txt, line 1: the model cannot spell 'caf\u00e9': no token has '\u00e9'",
        "edge-asr: robot.txt, line 2: the model cannot spell '24': no token has '24'",
    ]


def test_a_compiled_grammar_is_a_grammar(run, grammar: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "robot.npz"
    assert run("grammar", "compile", grammar, "-o", compiled).exit_code == 0
    assert run("transcribe", SAMPLE, "--grammar", compiled).stdout == SAID + "\n"
    again = run("grammar", "compile", grammar, "-o", compiled)
    assert again.exit_code == 1
    assert "exists already; add --force" in again.stderr


def test_tune_finds_a_threshold(run, grammar: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    soundfile.write(tmp_path / "noise.wav", rng.normal(0, 0.05, 32_000), 16_000)
    commands, other = tmp_path / "commands.jsonl", tmp_path / "other.jsonl"
    commands.write_text(json.dumps({"audio_filepath": str(SAMPLE), "text": SAID}))
    other.write_text(json.dumps({"audio_filepath": "noise.wav", "text": ""}))
    result = run("grammar", "tune", grammar, "--commands", commands, "--other", other, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["threshold"]) == (0, found["thresholds"][0]["threshold"])
    assert [row["n_right"] for row in found["thresholds"]] == [1] * len(found["thresholds"])
    text = run("grammar", "tune", grammar, "--commands", commands, "--other", other).stdout
    assert "1 of 1 commands right, 0 rejected" in text
    assert found["held_out"] is None  # one recording of each kind leaves none to judge by
    swapped = run("grammar", "tune", grammar, "--commands", other, "--other", commands)
    assert swapped.exit_code == 1
    assert "a threshold takes recordings of both kinds" in swapped.stderr


def test_tune_saves_into_the_bundle_or_the_compiled_grammar(run, grammar: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(resolve_bundle_path("tiny-en"), bundle)
    rows = [{"audio_filepath": str(SAMPLE), "text": SAID, "speaker": f"{i % 4}"} for i in range(6)]
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(1).normal(0, 0.05, 16_000), 16_000)
    noise = [{"audio_filepath": "noise.wav", "text": "", "speaker": f"{i}"} for i in range(5)]
    for name, manifest in (("commands", rows), ("other", noise)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, manifest)))
    recordings = (
        "--commands",
        tmp_path / "commands.jsonl",
        "--other",
        tmp_path / "other.jsonl",
        "-m",
        bundle,
    )
    result = run("grammar", "tune", grammar, *recordings, "--save", "--json")
    found = json.loads(result.stdout)
    assert (found["held_out"]["n_right"], found["held_out"]["n_false_accepts"]) == (6, 0)
    assert "has this threshold now" in result.stderr
    loaded = Bundle.load(bundle)
    before = Bundle.load("tiny-en").info.grammar or GrammarThresholds()
    assert loaded.info.grammar == replace(before, whole=found["threshold"])
    factory = grammar_decoder(grammar).for_bundle(loaded)
    assert factory(loaded.vocabulary).threshold == found["threshold"]
    assert grammar_decoder(grammar, threshold=2.0).for_bundle(loaded)(loaded.vocabulary).threshold == 2.0

    compiled = tmp_path / "robot.npz"
    assert run("grammar", "compile", grammar, "-o", compiled, "-m", bundle).exit_code == 0
    assert run("grammar", "tune", compiled, *recordings, "--save", "--spot").exit_code == 0
    graph = load_graph(compiled, loaded.vocabulary)
    assert set(graph.thresholds) == {"spot"}


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf")])
def test_a_threshold_of_a_bundle_is_a_positive_number(value: float) -> None:
    with pytest.raises(BundleError, match="it must be a positive number"):
        GrammarThresholds(spot=value)
