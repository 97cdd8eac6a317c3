"""confidence.json: what is read, what is refused or passed over, and that writing loses nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.audio import read_audio
from edge_asr.bundle import confidence
from edge_asr.bundle.confidence import ConfidenceTable, check_writable, find_table, read_tables, write_table
from edge_asr.bundle.folder import Bundle, resolve_bundle_path
from edge_asr.errors import BundleError
from edge_asr.runtime import Recognizer, beam_decoder
from edge_asr.runtime.transcript import words_from_tokens


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """tiny-en without tables."""
    shutil.copytree(resolve_bundle_path("tiny-en"), tmp_path / "bundle")
    (tmp_path / "bundle" / "confidence.json").unlink(missing_ok=True)
    return Bundle.load(tmp_path / "bundle")


def table_of(bundle: Bundle, **changes: Any) -> ConfidenceTable:
    table = ConfidenceTable(
        precision="int8",
        model_sha256=bundle.artifact("int8").sha256,
        decoder="greedy",
        raw=(0.25, 0.5, 1.0),
        calibrated=(0.1, 0.125, 0.75),
        n_words=600,
        error_before=0.3,
        error_after=0.01,
    )
    return dataclasses.replace(table, **changes)


def test_tables_are_kept_side_by_side(bundle: Bundle) -> None:
    files = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    assert read_tables(bundle) == ()
    first, second = table_of(bundle), table_of(bundle, decoder="beam")
    write_table(bundle, first)
    write_table(bundle, second)
    assert read_tables(bundle) == (second, first)
    newer = table_of(bundle, n_words=900)
    write_table(bundle, newer)
    assert read_tables(bundle) == (second, newer)
    assert find_table(bundle, "int8", "greedy") == newer
    assert find_table(bundle, "fp32", "greedy") is None
    assert find_table(bundle, "int8", None) is None
    # Everything else is as it was: an edge-asr that knows no tables reads the bundle as before.
    assert {p.name: p.read_bytes() for p in bundle.path.iterdir() if p.name != "confidence.json"} == files


def test_a_table_of_another_model_is_not_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    write_table(bundle, table_of(bundle, model_sha256="0" * 64))
    assert find_table(bundle, "int8", "greedy") is None
    assert "was made for another int8 model: word confidences are as decoded; run" in caplog.text


def test_a_later_version_is_not_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    (bundle.path / "confidence.json").write_text('{"format_version": 2, "new": {}}')
    assert find_table(bundle, "int8", "greedy") is None
    assert "is of a later edge-asr (format 2)" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"raw": [0.5, 0.25, 1.0]}, "not monotone"),
        ({"calibrated": [0.5, 0.25, 1.0]}, "not monotone"),
        ({"calibrated": [0.5, 0.6, 1.5]}, "knots outside 0 to 1"),
        ({"raw": [0.5]}, "has 1 and 3 knots, which must be as many"),
        ({"raw": "0.5"}, "raw"),
        ({"decoder": "grammar"}, "decoder"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_damaged_table_is_refused(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    write_table(bundle, table_of(bundle))
    path = bundle.path / "confidence.json"
    data = json.loads(path.read_text())
    data["tables"][0] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=message) as caught:
        Recognizer.load(bundle.path)
    assert "delete it, or run edge-asr evaluate --calibrate-confidence again" in str(caught.value)


def test_a_bundle_that_cannot_be_written_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BundleError, match=r"cannot be written \(no permission\); calibrate a copy of it"):
        check_writable(bundle)


def test_a_write_that_fails_loses_nothing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(bundle, table_of(bundle))
    before = (bundle.path / "confidence.json").read_bytes()

    def fail(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(confidence, "write_file", fail)
    with pytest.raises(BundleError, match=r"\(No space left on device\); the bundle is as it was"):
        write_table(bundle, table_of(bundle, decoder="beam"))
    assert (bundle.path / "confidence.json").read_bytes() == before


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_words_get_the_confidence_of_the_table(bundle: Bundle, sample_path: Path, decoder: str) -> None:
    write_table(bundle, table_of(bundle, decoder=decoder))
    samples = read_audio(sample_path)
    factory = beam_decoder() if decoder == "beam" else None
    with Recognizer.load(bundle.path, precision="int8", decoder=factory) as recognizer:
        transcript = recognizer.transcribe(samples, 16000)
        raw = words_from_tokens(transcript.tokens, recognizer.vocabulary)
    expected = np.interp([w.confidence for w in raw], [0.25, 0.5, 1.0], [0.1, 0.125, 0.75])
    assert [w.confidence for w in transcript.words] == pytest.approx(expected)
    assert max(w.confidence for w in transcript.words) <= 0.75 < max(t.confidence for t in transcript.tokens)
    first = transcript.segments[0]
    assert first.confidence == pytest.approx(expected[: len(first.words)].mean())
    for other in (
        {"precision": "fp32", "decoder": factory},
        {"decoder": beam_decoder() if factory is None else None},
    ):
        with Recognizer.load(bundle.path, **other) as recognizer:
            assert recognizer.confidence_table is None
