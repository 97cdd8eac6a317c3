"""What is listed: rows of manifests and files of folders, on disk and elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

from edge_asr.cluster.inputs import Input, file_system, is_local, list_inputs
from edge_asr.errors import ManifestError


def test_rows_of_a_manifest(tmp_path: Path) -> None:
    rows: list[object] = [
        {"audio_filepath": "a.wav", "duration": 2.5},
        {"audio_filepath": "/b/c.wav", "id": "c", "text": "go"},
        {"audio_filepath": "s3://bucket/d.wav", "id": 7},
        {"audio_filepath": 5},
        [1],
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(["", *map(json.dumps, rows), "{"]) + "\n")
    first, second, third, *bad = list_inputs(str(manifest))
    assert first == Input(id="a.wav", place=f"{tmp_path}/a.wav", duration_s=2.5)
    assert second == Input(id="c", place="/b/c.wav")
    assert third == Input(id="7", place="s3://bucket/d.wav")
    assert [one.id for one in bad] == ["row 5", "row 6", "row 7"]
    assert "audio_filepath must be a string of Unicode text, got 5" in bad[0].problem
    assert all(one.problem.startswith(f"row {number} of the manifest: ") for number, one in enumerate(bad, 5))


def test_sounds_of_a_folder(sounds: Path) -> None:
    found = {one.id: one for one in list_inputs(str(sounds))}
    assert set(found) == {*(f"{n}.wav" for n in range(5)), "sub/5.flac", "bad.wav", "cut.wav"}
    assert found["1.wav"].place == str(sounds / "1.wav")
    assert found["1.wav"].duration_s == pytest.approx(4.0, abs=0.1)  # guessed by its size
    assert 0 < found["sub/5.flac"].duration_s < 10


def test_a_name_that_is_not_unicode_is_a_problem(tmp_path: Path) -> None:
    Path(tmp_path, "a\udcff.wav").write_bytes(b"")
    (one,) = list_inputs(str(tmp_path))
    assert one == Input(
        id="a\\xff.wav", place="", problem="its name is not Unicode text; rename the file", duration_s=0.0
    )


def test_urls() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe({"/urls/m.jsonl": b'{"audio_filepath": "a.wav"}\n', "/urls/x/a.wav": bytes(64_000)})
    assert list(list_inputs("memory://urls/m.jsonl")) == [Input(id="a.wav", place="memory:///urls/a.wav")]
    assert list(list_inputs("memory://urls/x")) == [
        Input(id="a.wav", place="memory:///urls/x/a.wav", duration_s=2.0)
    ]


def test_file_urls_are_local(sounds: Path) -> None:
    assert is_local(file_system(f"file://{sounds}")[0])
    assert not is_local(file_system("memory://x")[0])
    assert sorted(one.id for one in list_inputs(f"file://{sounds}"))[0] == "0.wav"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "/nowhere/m.jsonl",
            "no manifest at /nowhere/m.jsonl; give a JSON Lines file, or a folder of sound files",
        ),
        (
            "nonsense://x/y",
            "nonsense://x/y cannot be reached: .*; give a path, or a URL whose fsspec package",
        ),
    ],
)
def test_sources_that_are_none(source: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        list(list_inputs(source))


def test_a_manifest_that_is_not_text(tmp_path: Path) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match=r"as UTF-8 text: .*; save it as UTF-8"):
        list(list_inputs(str(manifest)))
