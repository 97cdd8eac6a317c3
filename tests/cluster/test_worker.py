"""What a worker writes: for each input the text that `transcribe` gives, or why there is none."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
from cluster_fakes import FakePool, read_rows, run_all

from edge_asr.cluster import worker as worker_module
from edge_asr.cluster.inputs import Input, list_inputs
from edge_asr.cluster.ledger import Shard
from edge_asr.cluster.store import Row, Store
from edge_asr.cluster.worker import ShardWorker, WorkerSettings, bundle_sha256
from edge_asr.errors import BundleError
from edge_asr.runtime.recognizer import Recognizer

RECOGNIZER = {"path_or_name": "tiny-en", "backend": "cpu"}


def settings(store: Store, **others: Any) -> WorkerSettings:
    given = {"recognizer": RECOGNIZER, "bundle_sha256": bundle_sha256("tiny-en"), "self_test": False}
    return WorkerSettings(**{**given, "store": store, **others})


def begin(place: str, shard_format: Any = "parquet") -> Store:
    store = Store(place, shard_format)
    store.begin({})
    return store


@pytest.fixture(scope="module")
def rows(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    store = begin(str(tmp_path_factory.mktemp("out")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "LOOK_AHEAD", 3)  # several groups
        pool = FakePool(ShardWorker(settings(store, threads=2)))
        progress = run_all(pool, store, list_inputs(str(sounds)))
    assert (progress.n_done, progress.n_errors) == (8, 2)
    assert progress.audio_s == pytest.approx(0.4 + 4.0 + 1.2 + 2.5 + 3.1 + 1.5 + 1.55, abs=0.05)
    return {row["id"]: row for row in read_rows(store)}


def test_rows_are_what_transcribe_gives(rows: dict[str, Row], sounds: Path) -> None:
    with Recognizer.load("tiny-en", backend="cpu", num_threads=1) as recognizer:
        for name in ("0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "sub/5.flac"):
            row, alone = rows[name], recognizer.transcribe_file(sounds / name)
            assert row["text"] == alone.text
            assert row["duration"] == pytest.approx(alone.duration_s)
            assert [(w["text"], w["start_s"], w["end_s"]) for w in row["words"]] == [
                (w.text, w.start_s, w.end_s) for w in alone.words
            ]
            if alone.words:
                mean = sum(w.confidence for w in alone.words) / len(alone.words)
                assert row["confidence"] == pytest.approx(mean, abs=1e-3)  # padding rounds otherwise
            assert row["error"] is None
            assert row["audio_filepath"] == str(sounds / name)
        assert rows["1.wav"]["text"]


def test_a_file_that_is_no_sound_says_so(rows: dict[str, Row], sounds: Path) -> None:
    row = rows["bad.wav"]
    assert row["error"].startswith(f"{sounds}/bad.wav cannot be read as sound")
    assert (row["text"], row["words"], row["confidence"], row["duration"]) == (None,) * 4


def test_a_file_that_is_cut_off_has_its_text_and_says_so(rows: dict[str, Row], sounds: Path) -> None:
    row = rows["cut.wav"]
    assert row["error"].startswith(f"{sounds}/cut.wav is cut off: it holds 50% of the sound")
    assert row["duration"] == pytest.approx(1.55, abs=0.01)
    assert row["text"]


def test_sounds_are_fetched_from_elsewhere_and_removed(
    rows: dict[str, Row], sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fs = fsspec.filesystem("memory")
    for path in sounds.rglob("*.*"):
        fs.pipe_file(f"/worker/in/{path.relative_to(sounds)}", path.read_bytes())
    store = begin("memory://worker/out", "jsonl")
    inputs = [*list_inputs("memory://worker/in"), Input(id="gone", place="memory://worker/in/gone.wav")]
    run_all(FakePool(ShardWorker(settings(store))), store, inputs)
    found = {row["id"]: row for row in read_rows(store)}
    assert found.pop("gone")["error"] == "memory://worker/in/gone.wav cannot be fetched: /worker/in/gone.wav"
    assert set(found) == set(rows)
    for name, row in found.items():
        assert row["text"] == rows[name]["text"]
        assert row["error"] == (
            rows[name]["error"] and rows[name]["error"].replace(str(sounds), "memory:///worker/in")
        )
    assert list(tmp_path.iterdir()) == []


def test_digits(speech: Any, tmp_path: Path, sounds: Path) -> None:
    store = begin(str(tmp_path / "out"), "jsonl")
    worker = ShardWorker(settings(store, digits=True))
    inputs = (Input(id="a", place=str(sounds / "1.wav")), Input(id="b", place="", problem="row 2 is bad"))
    result = worker.run(Shard(inputs), store.name_shard(0))
    assert (result.n_rows, result.n_errors) == (2, 1)
    store.take(result.name)
    b, a = sorted(read_rows(store), key=lambda row: row["id"], reverse=True)
    assert b["error"] == "row 2 is bad"
    with Recognizer.load("tiny-en", backend="cpu", num_threads=1) as recognizer:
        from edge_asr.runtime.digits import write_transcript_digits

        alone = recognizer.transcribe_file(sounds / "1.wav")
        assert a["text"] == write_transcript_digits(alone).text
        assert a["text"] != alone.text


def test_another_bundle_on_this_machine_is_refused(tmp_path: Path) -> None:
    store = begin(str(tmp_path / "out"))
    with pytest.raises(
        BundleError, match=r"tiny-en on .* is not the bundle that the run began with; give every"
    ):
        ShardWorker(settings(store, bundle_sha256="0" * 64))
    with pytest.raises(BundleError, match="no bundle at 'nowhere'"):
        ShardWorker(settings(store, recognizer={"path_or_name": "nowhere"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no bundle.json; give a folder that `edge-asr export` wrote"):
        bundle_sha256(tmp_path / "empty")


def test_it_says_what_runs_the_model_and_leaves_no_handler(tmp_path: Path) -> None:
    worker = ShardWorker(settings(begin(str(tmp_path / "out"))))
    assert "onnxruntime" in worker.ready()
    assert logging.getLogger("edge_asr.audio").handlers == []
