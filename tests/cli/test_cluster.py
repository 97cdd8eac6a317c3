"""`edge-asr transcribe --ray`: its options, and what is refused before Ray is started."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edge_asr.cli.cluster import _describe, _duration
from edge_asr.cluster.driver import Progress


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--manifest", "m"],
            "--manifest, --shards, --shard-minutes and --workers need --ray; add --ray local",
        ),
        (["--shards", "jsonl", "x.wav"], "need --ray"),
        (["x.wav", "--ray"], "--ray takes no files as arguments, and got 'x.wav'; list them in a manifest"),
        (["--ray"], "--ray needs the sounds as --manifest FILE|DIR; add it"),
        (["--manifest", "m", "--ray"], "--ray writes its results to a folder; add -o DIR"),
        (
            ["--manifest", "m", "-o", "out", "--format", "srt", "--ray"],
            "--ray writes rows, so --format has no meaning; choose --shards parquet or jsonl",
        ),
        (["--ray", "local", "--workers", "0"], "0 is not in the range x>=1"),
        (["--ray", "local", "--shard-minutes", "0"], "0.0 is not in the range x>0"),
        (["--ray", "local", "--shard-minutes", "inf"], "inf is not a finite number"),
        (["--ray", "local", "--shards", "csv"], "'csv' is not one of 'parquet', 'jsonl'"),
        ([], "Missing argument 'FILE|DIR...'"),
    ],
)
def test_options_that_make_no_sense(run, arguments: list[str], says: str) -> None:
    result = run("transcribe", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.fixture
def any_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is found, and nothing of it is there to be used."""
    monkeypatch.setitem(sys.modules, "ray", sys)


@pytest.mark.usefixtures("no_ray")
def test_without_ray(run, sounds: Path, tmp_path: Path) -> None:
    result = run("transcribe", "--manifest", sounds, "-o", tmp_path / "out", "--ray")
    assert result.exit_code == 1
    assert result.stderr.startswith("edge-asr: ray is needed here and could not be imported")
    assert "pip install 'edge-asr[ray]'" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("any_ray")
def test_what_is_wrong_is_said_before_ray_starts(run, sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    twice = tmp_path / "twice.jsonl"
    twice.write_text((json.dumps({"audio_filepath": "a.wav"}) + "\n") * 2)
    for manifest, output, model, says in (
        (tmp_path / "none", "out", "tiny-en", "no manifest at"),
        (tmp_path / "empty", "out", "tiny-en", "lists no sound; give a manifest with rows"),
        (twice, "out", "tiny-en", "two inputs have the id 'a.wav'"),
        (sounds, "full", "tiny-en", "is not a folder of results"),
        (sounds, "out", "nothing", "no bundle at 'nothing'"),
    ):
        result = run("transcribe", "--manifest", manifest, "-o", tmp_path / output, "-m", model, "--ray")
        assert result.exit_code == 1, result.stderr
        assert says in result.stderr
        assert len(result.stderr.splitlines()) == 1


@pytest.mark.usefixtures("any_ray")
def test_a_finished_run_needs_no_ray(run, sounds: Path, tmp_path: Path) -> None:
    from edge_asr.cluster.store import Store
    from edge_asr.cluster.worker import bundle_sha256

    store = Store(str(tmp_path / "out"), "jsonl")
    store.begin({"bundle_sha256": bundle_sha256("tiny-en"), "precision": "auto", "digits": False})
    name = store.name_shard(0)
    store.write(name, [{"id": "a.wav"}, {"id": "sub/b.flac"}])
    store.take(name)
    arguments = ["--manifest", sounds, "-o", tmp_path / "out", "--shards", "jsonl", "--ray"]
    result = run("transcribe", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "edge-asr: 2 of 2 files are finished already\n"
    assert json.loads(result.stdout)["n_done"] == 2
    result = run("transcribe", *arguments, "--beam-size", "4")
    assert "holds results of another run: beam_size was None and is '4' now" in result.stderr


def test_progress_for_people() -> None:
    progress = Progress(n_inputs=200, n_done=50, n_errors=2, audio_s=7200.0, seconds=100.0, n_deaths=1)
    assert _describe(progress) == (
        "50 of 200 files, 2 with an error; 2.00 h of audio in 1 min 40 s, 72.0 x real time, workers died: 1"
    )
    assert [_duration(seconds) for seconds in (9.4, 60, 7260)] == ["9 s", "1 min 0 s", "2 h 1 min"]
