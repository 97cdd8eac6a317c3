"""`edge-asr transcribe`: what it finds, prints and writes, and how it fails.

The model has random weights: what it hears means nothing, so its text is taken from the library
call on the same file, and compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import soundfile
from rich.progress import Progress

from edge_asr.cli import transcribe
from edge_asr.runtime.recognizer import Recognizer

#: All that one clip takes; what is imported besides counts in the time from the start to the text.
MODULES = {
    "edge_asr",
    "edge_asr.atomic",
    "edge_asr.audio",
    "edge_asr.bundle",
    "edge_asr.bundle.confidence",
    "edge_asr.bundle.folder",
    "edge_asr.bundle.manifest",
    "edge_asr.bundle.names",
    "edge_asr.cli",
    "edge_asr.cli.cluster",
    "edge_asr.cli.main",
    "edge_asr.cli.options",
    "edge_asr.cli.terminal",
    "edge_asr.cli.transcribe",
    "edge_asr.errors",
    "edge_asr.feature_config",
    "edge_asr.frames",
    "edge_asr.lazy",
    "edge_asr.printable",
    "edge_asr.records",
    "edge_asr.runtime",
    "edge_asr.runtime.acoustic_model",
    "edge_asr.runtime.backends",
    "edge_asr.runtime.bulk",
    "edge_asr.runtime.decoding",
    "edge_asr.runtime.decoding.decoder",
    "edge_asr.runtime.decoding.greedy",
    "edge_asr.runtime.features",
    "edge_asr.runtime.features.extractor",
    "edge_asr.runtime.features.fft",
    "edge_asr.runtime.features.float32_tables",
    "edge_asr.runtime.features.mel",
    "edge_asr.runtime.features.normalization",
    "edge_asr.runtime.onnxruntime_backend",
    "edge_asr.runtime.recognizer",
    "edge_asr.runtime.stages",
    "edge_asr.runtime.tested",
    "edge_asr.runtime.transcript",
    "edge_asr.runtime.windows",
    "edge_asr.transcript_formats",
    "edge_asr.vocabulary",
}
ABSENT = ("scipy", "rich", "sounddevice", "torch", "onnx", "tensorrt", "cuda", "importlib.metadata")


@pytest.fixture
def texts(random_bundle: Path, sounds: Path) -> dict[str, str]:
    with Recognizer.load(random_bundle) as recognizer:
        found = {name: recognizer.transcribe_file(sounds / name).text for name in ("a.wav", "sub/b.flac")}
    assert all(found.values())
    return found


def test_one_file_prints_its_text_alone(run, random_bundle, sounds, texts) -> None:
    result = run("transcribe", "-m", random_bundle, sounds / "a.wav")
    assert (result.exit_code, result.stdout, result.stderr) == (0, texts["a.wav"] + "\n", "")


def test_one_clip_imports_nothing_that_it_does_not_use(random_bundle, sounds) -> None:
    code = (
        "import json, sys; from edge_asr.cli.main import cli\n"
        "try: cli.main(['transcribe', '-m', *sys.argv[1:]])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "ours = [m for m in sys.modules if m.partition('.')[0] == 'edge_asr']\n"
        f"print(json.dumps([ours, [m for m in {ABSENT!r} if m in sys.modules]]))"
    )
    command = [sys.executable, "-c", code, str(random_bundle), str(sounds / "a.wav")]
    subprocess.run(command, capture_output=True, check=True)  # the first start runs the self-test
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    ours, others = json.loads(done.stdout.splitlines()[-1])
    assert set(ours) == MODULES
    assert others == []


def test_hotwords_and_their_errors(run, random_bundle, sounds, texts, tmp_path) -> None:
    words = tmp_path / "words.txt"
    command = ("transcribe", "-m", random_bundle, sounds / "a.wav")
    words.write_text("zoo:0.001\n")
    result = run(*command, "--hotwords", words, "--beam-size", "4")
    assert (result.exit_code, result.stderr) == (0, "")
    words.write_text("zoo\nco2\n")
    result = run(*command, "--hotwords", words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the vocabulary cannot spell the hotword 'co2'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    words.write_text("zoo:much\n")
    assert "line 1: the boost 'much' is no number" in run(*command, "--hotwords", words).stderr
    result = run(*command, "--hotwords", words, "--decoder", "greedy")
    assert result.exit_code == 2
    assert "greedy search has no use for hotwords" in result.stderr
    assert run(*command, "--hotwords", tmp_path / "none.txt").exit_code == 2


def test_a_folder_is_searched_for_sounds_in_order(run, random_bundle, sounds, texts) -> None:
    result = run("transcribe", "-m", random_bundle, sounds)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"{sounds}/{name}: {text}" for name, text in texts.items()]


def test_stdin(run, random_bundle, sounds, texts) -> None:
    result = run("transcribe", "-m", random_bundle, "-", stdin=(sounds / "a.wav").read_bytes())
    assert (result.exit_code, result.stdout) == (0, texts["a.wav"] + "\n")
    assert run("transcribe", "-m", random_bundle, "-", "-").exit_code == 2


def test_stdin_through_a_real_pipe(random_bundle, sounds, texts) -> None:
    command = [sys.executable, "-m", "edge_asr", "transcribe", "-m", str(random_bundle), "-"]
    sound = (sounds / "sub" / "b.flac").read_bytes()
    done = subprocess.run(command, input=sound, capture_output=True, check=True)
    assert done.stdout.decode() == texts["sub/b.flac"] + "\n"


def test_json_is_one_document(run, random_bundle, sounds, texts) -> None:
    result = run("transcribe", "-m", random_bundle, sounds, "--json")
    document = json.loads(result.stdout)
    assert [entry["file"] for entry in document["transcripts"]] == [f"{sounds}/{name}" for name in texts]
    assert [entry["text"] for entry in document["transcripts"]] == list(texts.values())
    assert document["errors"] == []
    assert document["audio_s"] == pytest.approx(3.5, abs=0.01)
    assert document["rtfx"] > 0
    first = document["transcripts"][0]
    assert first["words"][0]["start_s"] >= 0
    assert first["tokens"][0]["confidence"] <= 1


def test_format_json_is_one_line_a_file(run, random_bundle, sounds, texts) -> None:
    lines = run("transcribe", "-m", random_bundle, sounds, "--format", "json").stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(texts.values())


def test_output_folder_keeps_the_tree_and_overwrites_only_by_force(
    run, random_bundle, sounds, texts, tmp_path
) -> None:
    arguments = ("transcribe", "-m", random_bundle, sounds, "-o", tmp_path / "out")
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (0, "")
    written = tmp_path / "out" / "sub" / "b.txt"
    assert written.read_text() == texts["sub/b.flac"] + "\n"
    written.write_text("mine")
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert "and 1 more exist already; add --force" in refused.stderr
    assert written.read_text() == "mine"
    assert run(*arguments, "--force").exit_code == 0
    assert written.read_text() == texts["sub/b.flac"] + "\n"
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == ["a.txt", "b.txt", "sub"]


@pytest.mark.parametrize("output_format", ["srt", "vtt"])
def test_subtitles(run, random_bundle, sounds, texts, tmp_path, output_format: str) -> None:
    arguments = ("transcribe", "-m", random_bundle, "--format", output_format)
    on_stdout = run(*arguments, sounds / "a.wav").stdout
    assert "-->" in on_stdout
    assert run(*arguments, sounds).exit_code == 2  # two files do not fit one stdout
    assert run(*arguments, sounds, "--json").exit_code == 2
    result = run(*arguments, sounds, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    outputs = [entry["output"] for entry in json.loads(result.stdout)["transcripts"]]
    assert outputs == [f"{tmp_path}/out/a.{output_format}", f"{tmp_path}/out/sub/b.{output_format}"]
    assert Path(outputs[0]).read_text() == on_stdout


def test_two_sounds_with_one_output_are_refused_before_any_work(run, random_bundle, sounds, tmp_path) -> None:
    soundfile.write(sounds / "a.flac", [0.0] * 1600, 16_000)
    result = run("transcribe", "-m", random_bundle, sounds, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "would both be written to" in result.stderr
    assert not (tmp_path / "out").exists()


def test_bad_files_are_reported_and_the_rest_go_on(run, random_bundle, sounds, texts, tmp_path) -> None:
    bad = sounds / "0_bad.wav"
    bad.write_bytes(b"RIFF and then nothing")
    (tmp_path / "empty").mkdir()
    result = run("transcribe", "-m", random_bundle, sounds, sounds / "none.wav", tmp_path / "empty", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert [entry["text"] for entry in document["transcripts"]] == list(texts.values())
    assert {entry["file"] for entry in document["errors"]} == {
        str(bad),
        f"{sounds}/none.wav",
        f"{tmp_path}/empty",
    }
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("edge-asr: ") for line in lines)


def test_silence_is_an_empty_line(run, random_bundle, tmp_path) -> None:
    soundfile.write(tmp_path / "short.wav", [0.0] * 10, 16_000)
    result = run("transcribe", "-m", random_bundle, tmp_path / "short.wav")
    assert (result.exit_code, result.stdout) == (0, "\n")


def test_no_such_bundle_is_one_line(run, sounds) -> None:
    result = run("transcribe", "-m", "no-such-model", sounds / "a.wav")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "no bundle at 'no-such-model'" in result.stderr


def test_a_closed_stdout_ends_quietly(random_bundle, sounds) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "edge_asr", "transcribe", "-m", str(random_bundle), str(sounds)]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_the_bar_estimates_what_is_not_open_yet_and_comes_only_when_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Progress] = []

    def silent_bar() -> Progress:
        drawn.append(Progress(disable=True))
        return drawn[-1]

    monkeypatch.setattr(transcribe, "progress_bar", silent_bar)
    with ExitStack() as stack:
        short = transcribe._Bar(["a.wav", "b.wav"], stack)
        short.show(0, 0.0, 4.0)
        short.show(0, 4.0, 4.0)
        assert drawn == []
        bar = transcribe._Bar(["[a].wav", "b.wav", "c.wav", "d.wav"], stack)
        bar.show(0, 0.0, 10.0)  # 40 s, if the others are like this one
        (progress,) = drawn
        bar.show(1, 0.0, 20.0)
        bar.show(0, 5.0, 10.0)
        (task,) = progress.tasks
        assert (task.completed, task.total, task.description) == (5.0, 60.0, "\\[a].wav")
