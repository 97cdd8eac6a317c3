"""Reads lists of utterances: JSON Lines manifests, LJSpeech and LibriSpeech folders.

A row that cannot be used becomes a `BadRow` with a named reason instead of an exception, so a
caller can count, list, skip or refuse them.
What this file does not do: open audio. Checks that need the sound or the vocabulary are in
`edge_asr.training.corpus`.

JSON Lines keys: `audio_filepath` (absolute, or relative to the manifest's folder), `text`, and
optionally `duration` (s), `speaker`, `id`. Other keys are ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_asr.audio import SOUND_SUFFIXES
from edge_asr.errors import ManifestError
from edge_asr.records import decode_json, is_unicode, short_repr

SourceKind = Literal["auto", "jsonl", "ljspeech", "librispeech"]

Reason = Literal[
    "not valid JSON",
    "missing or wrong key",
    "missing audio file",
    "undecodable audio",
    "empty text",
    "characters outside the vocabulary",
    "text longer than CTC allows",
    "clip too long",
    "clip too short",
]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One clip and its transcript. `duration_s` is what the manifest claims, or None."""

    id: str
    audio_path: Path
    text: str
    duration_s: float | None = None
    speaker: str = ""
    row: int = 0
    """1-based line of the manifest (or of the transcript file) the utterance came from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that cannot be used: where it is, the reason (one of `REASONS`) and the details."""

    source: str
    row: int
    id: str
    reason: Reason
    detail: str

    def to_dict(self) -> dict[str, str | int]:
        """Keys source, row, id, reason, detail; JSON-ready."""
        return {
            "source": self.source,
            "row": self.row,
            "id": self.id,
            "reason": self.reason,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The usable rows and the bad ones, both in file order."""

    name: str
    utterances: tuple[Utterance, ...]
    bad_rows: tuple[BadRow, ...]


def read_manifest(path: str | Path, *, kind: SourceKind = "auto", name: str | None = None) -> Manifest:
    """Read a manifest file or a corpus folder.

    Args:
        path: a JSON Lines file, an LJSpeech folder (or its metadata.csv), or a LibriSpeech folder.
        kind: "auto" looks: a folder with metadata.csv is LJSpeech, a folder with *.trans.txt
            somewhere below is LibriSpeech, a file is JSON Lines.
        name: used in reports; the file or folder name when None.

    Raises:
        ManifestError: the path does not exist, its kind is unclear, or it holds no rows.
    """
    path = Path(path)
    if kind not in get_args(SourceKind):
        raise ManifestError(f"unknown manifest kind {kind!r}; use one of {', '.join(get_args(SourceKind))}")
    if not path.exists():
        raise ManifestError(f"no manifest at {path}; give a JSON Lines file or a corpus folder")
    found = _detect_kind(path) if kind == "auto" else kind
    label = name or path.stem
    if found == "jsonl":
        manifest = _read_jsonl(path, label)
    elif found == "ljspeech":
        manifest = _read_ljspeech(path, label)
    else:
        manifest = _read_librispeech(path, label)
    if not manifest.utterances and not manifest.bad_rows:
        raise ManifestError(f"{path} holds no utterances; expected at least one row of kind {found}")
    return manifest


def _detect_kind(path: Path) -> SourceKind:
    if path.is_file():
        return "ljspeech" if path.name == "metadata.csv" else "jsonl"
    if (path / "metadata.csv").is_file():
        return "ljspeech"
    if next(path.rglob("*.trans.txt"), None) is not None:
        return "librispeech"
    raise ManifestError(
        f"{path} is a folder with neither metadata.csv (LJSpeech) nor *.trans.txt (LibriSpeech); "
        f"give a JSON Lines manifest instead"
    )


def _read_lines(path: Path) -> list[str]:
    """Lines without their ends; a byte-order mark is no text, and only a line feed ends a row."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read {path} as UTF-8 text: {error}") from error


def _read_jsonl(path: Path, name: str) -> Manifest:
    utterances: list[Utterance] = []
    bad: list[BadRow] = []
    for row, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        parsed = _parse_jsonl_row(line, row, path.parent, name)
        if isinstance(parsed, BadRow):
            bad.append(parsed)
        else:
            utterances.append(parsed)
    return Manifest(name=name, utterances=tuple(utterances), bad_rows=tuple(bad))


def _parse_jsonl_row(line: str, row: int, folder: Path, name: str) -> Utterance | BadRow:
    found = parse_row(line, row, name)
    if isinstance(found, BadRow):
        return found
    return Utterance(
        id=found.id,
        audio_path=folder / found.audio,
        text=found.text or "",
        duration_s=found.duration_s,
        speaker=found.speaker,
        row=row,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What a row of a JSON Lines manifest says; `audio` as it is written there, `text` None if it may be."""

    id: str
    audio: str
    text: str | None
    duration_s: float | None
    speaker: str


def parse_row(line: str, row: int, name: str, *, needs_text: bool = True) -> Row | BadRow:
    """Parse one row of a JSON Lines manifest.

    Args:
        line: the row.
        row: its 1-based number.
        name: of the manifest, for a bad row.
        needs_text: refuse a row without `text`, which only what is to be transcribed may lack.
    """
    try:
        data = decode_json(line, "the row", error=ManifestError)
    except ManifestError as error:
        return BadRow(source=name, row=row, id="", reason="not valid JSON", detail=str(error))
    if not isinstance(data, dict):
        return BadRow(
            source=name,
            row=row,
            id="",
            reason="not valid JSON",
            detail=f"expected an object, got {line[:60]}",
        )
    audio, text = data.get("audio_filepath"), data.get("text")
    label, speaker = _label(data.get("id", audio)), _label(data.get("speaker", ""))
    for key, value in (("audio_filepath", audio), ("text", text), ("id", label), ("speaker", speaker)):
        if key == "text" and value is None and not needs_text:
            continue
        if not isinstance(value, str) or not is_unicode(value):
            detail = f"{key} must be a string of Unicode text, got {short_repr(value)}"
            label = label if is_unicode(label) else ""
            return BadRow(source=name, row=row, id=label, reason="missing or wrong key", detail=detail)
    assert isinstance(audio, str)
    if "\0" in audio:
        detail = f"audio_filepath must be a path without NUL characters, got {audio[:60]!r}"
        return BadRow(source=name, row=row, id=label, reason="missing or wrong key", detail=detail)
    duration = data.get("duration")
    if duration is not None and (
        isinstance(duration, bool)
        or not isinstance(duration, (int, float))
        or not math.isfinite(duration)
        or duration < 0
    ):
        detail = f"duration must be seconds >= 0, got {duration!r}"
        return BadRow(source=name, row=row, id=label, reason="missing or wrong key", detail=detail)
    seconds = None if duration is None else float(duration)
    return Row(id=label, audio=audio, text=text, duration_s=seconds, speaker=speaker)


def _label(value: Any) -> str:
    """Text or a number as text; anything else as none."""
    return str(value) if isinstance(value, str | int | float) else ""


def _read_ljspeech(path: Path, name: str) -> Manifest:
    """LJSpeech 1.1: `metadata.csv` of `id|text|normalized text`, clips in `wavs/<id>.wav`."""
    table = path if path.is_file() else path / "metadata.csv"
    utterances: list[Utterance] = []
    bad: list[BadRow] = []
    for row, line in enumerate(_read_lines(table), start=1):
        if not line:
            continue
        cells = line.split("|")
        if len(cells) < 2 or "\0" in cells[0]:
            detail = f"expected id|text|normalized text, got {'|'.join(cells)[:60]!r}"
            bad.append(
                BadRow(source=name, row=row, id=cells[0], reason="missing or wrong key", detail=detail)
            )
            continue
        text = cells[2] if len(cells) > 2 and cells[2].strip() else cells[1]
        audio = table.parent / "wavs" / f"{cells[0]}.wav"
        utterances.append(Utterance(id=cells[0], audio_path=audio, text=text, speaker="LJ", row=row))
    return Manifest(name=name, utterances=tuple(utterances), bad_rows=tuple(bad))


def _read_librispeech(path: Path, name: str) -> Manifest:
    """LibriSpeech: `<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` of `<id> <TEXT>`, clips beside."""
    utterances: list[Utterance] = []
    bad: list[BadRow] = []
    for transcript in sorted(path.rglob("*.trans.txt")):
        for row, line in enumerate(_read_lines(transcript), start=1):
            if not line.strip():
                continue
            clip_id, _, text = line.partition(" ")
            if "\0" in clip_id:
                detail = f"expected id TEXT, got {line[:60]!r}"
                bad.append(BadRow(source=name, row=row, id="", reason="missing or wrong key", detail=detail))
                continue
            candidates = [transcript.parent / f"{clip_id}{suffix}" for suffix in SOUND_SUFFIXES]
            audio = next((file for file in candidates if file.is_file()), candidates[0])
            speaker = clip_id.split("-")[0]
            utterances.append(
                Utterance(id=clip_id, audio_path=audio, text=text.strip(), speaker=speaker, row=row)
            )
    return Manifest(name=name, utterances=tuple(utterances), bad_rows=tuple(bad))
