"""Manifests of three layouts; every row is either an utterance or a bad row with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_asr.errors import ManifestError
from edge_asr.manifest import read_manifest


def test_jsonl_rows_and_bad_rows(tmp_path: Path) -> None:
    rows = [
        json.dumps(
            {"audio_filepath": "a/x.wav", "text": "hello", "duration": 1.5, "speaker": "s", "kind": "k"}
        ),
        "",
        "{not json",
        "[1]",
        json.dumps({"text": "no path"}),
        json.dumps({"audio_filepath": "y.wav", "text": 3}),
        json.dumps({"audio_filepath": "z.wav", "text": "t", "duration": -1}),
        '{"audio_filepath": "n.wav", "text": "t", "duration": NaN}',
        json.dumps({"audio_filepath": str(tmp_path / "abs.wav"), "text": "", "id": "seven"}),
    ]
    file = tmp_path / "m.jsonl"
    file.write_text("\n".join(rows))
    manifest = read_manifest(file)
    first, last = manifest.utterances
    assert (first.audio_path, first.text, first.duration_s, first.speaker, first.row) == (
        tmp_path / "a/x.wav",
        "hello",
        1.5,
        "s",
        1,
    )
    # Empty text is for the caller to judge, after its own normalization.
    assert (last.audio_path, last.text, last.id, last.row) == (tmp_path / "abs.wav", "", "seven", 9)
    reasons = [(bad.row, bad.reason) for bad in manifest.bad_rows]
    wrong = "missing or wrong key"
    assert reasons == [
        (3, "not valid JSON"),
        (4, "not valid JSON"),
        (5, wrong),
        (6, wrong),
        (7, wrong),
        (8, "not valid JSON"),
    ]
    assert manifest.name == "m"


def test_ljspeech(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text('LJ001-0001|Mr. "A" 5|mister "A" five\nLJ001-0002|plain\nbroken\n')
    manifest = read_manifest(tmp_path)
    assert [(u.id, u.text) for u in manifest.utterances] == [
        ("LJ001-0001", 'mister "A" five'),
        ("LJ001-0002", "plain"),
    ]
    assert manifest.utterances[0].audio_path == tmp_path / "wavs" / "LJ001-0001.wav"
    assert [(bad.row, bad.reason) for bad in manifest.bad_rows] == [(3, "missing or wrong key")]
    assert read_manifest(tmp_path / "metadata.csv").utterances == manifest.utterances


def test_librispeech(tmp_path: Path) -> None:
    chapter = tmp_path / "84" / "121123"
    chapter.mkdir(parents=True)
    (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\n")
    (chapter / "84-121123-0001.opus").touch()
    manifest = read_manifest(tmp_path, name="libri")
    first, second = manifest.utterances
    assert (first.text, first.speaker, first.audio_path.name) == (
        "GO DO YOU HEAR",
        "84",
        "84-121123-0000.flac",
    )
    assert second.audio_path.name == "84-121123-0001.opus"
    assert manifest.name == "libri"


def test_unusable_sources(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no manifest at"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"metadata\.csv"):
        read_manifest(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ManifestError, match="no utterances"):
        read_manifest(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(tmp_path / "binary.jsonl")
    with pytest.raises(ManifestError, match="kind"):
        read_manifest(tmp_path / "empty.jsonl", kind="kaldi")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ('{"audio_filepath": "a\\u0000b.wav", "text": "x"}', "missing or wrong key", "without NUL"),
        ("[" * 100_000 + "]" * 100_000, "not valid JSON", "nested too deeply"),
        (
            '{"audio_filepath": "a.wav", "text": "x", "duration": ' + "9" * 5000 + "}",
            "not valid JSON",
            "digits",
        ),
        ('{"audio_filepath": "a.wav", "text": "\\ud800"}', "missing or wrong key", "text must be a string"),
        ('{"audio_filepath": "\\ud800.wav", "text": "x"}', "missing or wrong key", "audio_filepath must be"),
        ('{"audio_filepath": "a.wav", "text": "x", "id": "\\udfff"}', "missing or wrong key", "id must be"),
        ('{"audio_filepath": "a.wav", "text": "x", "speaker": "\\udfff"}', "missing or wrong key", "speaker"),
        ('{"audio_filepath": "a.wav", "text": "x", "duration": 1e999}', "missing or wrong key", "duration"),
        ('{"audio_filepath": [[[1]]], "text": "x"}', "missing or wrong key", "audio_filepath must be"),
    ],
)
def test_a_hostile_row_is_a_bad_row_and_the_others_count(
    tmp_path: Path, row: str, reason: str, detail: str
) -> None:
    good = '{"audio_filepath": "good.wav", "text": "good"}'
    (tmp_path / "m.jsonl").write_text(f"{good}\n{row}\n{good}\n")
    manifest = read_manifest(tmp_path / "m.jsonl")
    assert [utterance.row for utterance in manifest.utterances] == [1, 3]
    (bad,) = manifest.bad_rows
    assert (bad.row, bad.reason) == (2, reason)
    assert detail in bad.detail
    json.dumps(bad.to_dict(), ensure_ascii=False).encode()


def test_only_a_line_feed_ends_a_row_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """U+2028, U+0085 and the like are text; Windows' editors write a byte-order mark and CR LF."""
    text = "one\u2028two\u0085three\x0cfour"
    row = json.dumps({"audio_filepath": "a.wav", "text": text}, ensure_ascii=False)
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n{row}\r\n".encode())
    manifest = read_manifest(tmp_path / "m.jsonl")
    assert [(u.text, u.row) for u in manifest.utterances] == [(text, 1), (text, 2)]
    assert not manifest.bad_rows


def test_nul_characters_in_corpus_folders_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_bytes(b"a\0b|text\ngood|text\n" + b"x" * 200_000 + b"|long id\n")
    manifest = read_manifest(tmp_path)
    assert [u.row for u in manifest.utterances] == [2, 3]
    assert [bad.row for bad in manifest.bad_rows] == [1]
    libri = tmp_path / "libri"
    libri.mkdir()
    (libri / "1-2.trans.txt").write_bytes(b"1-2\0-0 A\n1-2-1 B\n")
    manifest = read_manifest(libri)
    assert [u.id for u in manifest.utterances] == ["1-2-1"]
    assert [bad.row for bad in manifest.bad_rows] == [1]
