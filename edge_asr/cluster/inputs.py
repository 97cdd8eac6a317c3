"""Lists what is to be transcribed: the rows of a manifest, or the sound files below a folder, anywhere.

Places are paths or what fsspec understands (s3://..., gs://..., memory://...). Rows come one at a time, so a
list of any length needs no memory. A row that cannot be used is an input that has failed already.
What this file does not do: open sound.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.audio import has_sound_suffix
from edge_asr.errors import ManifestError, require
from edge_asr.manifest import BadRow, parse_row
from edge_asr.printable import printable
from edge_asr.records import is_unicode

_BYTES_PER_S = {".wav": 32_000, ".flac": 18_000}
"""To guess a length by the size of a file: 16 kHz and 16 bits, and what is lossy at 64 kbit/s."""
_LOSSY_BYTES_PER_S = 8_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A recording to transcribe.

    Attributes:
        id: names its row; no two inputs have the same.
        place: path or URL of the sound.
        duration_s: its length, or a guess; 0 if nothing is known.
        problem: why it cannot be transcribed; "" if nothing is known against it.
    """

    id: str
    place: str
    duration_s: float = 0.0
    problem: str = ""


def file_system(place: str) -> tuple[Any, str]:
    """Return the file system (of fsspec) of a path or URL, and the path there.

    Raises:
        MissingDependencyError: fsspec, or the package that it needs for this kind of URL, is not installed.
        ManifestError: there is no such kind of URL.
    """
    core = require("fsspec.core", extra="ray")
    try:
        found: tuple[Any, str] = core.url_to_fs(place)
    except (ValueError, ImportError) as error:
        raise ManifestError(
            f"{place} cannot be reached: {error}; give a path, or a URL whose fsspec package is installed"
        ) from error
    return found


def is_local(fs: Any) -> bool:
    """Tell whether a file system is that of the machine."""
    protocol = fs.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def list_inputs(source: str) -> Iterator[Input]:
    """List the rows of a JSON Lines manifest, or the sound files below a folder.

    A row needs `audio_filepath`, which may be a URL or relative to the manifest; `duration` (s) helps to
    share out the work, and `id` is otherwise the path as written.

    Raises:
        ManifestError: there is nothing at `source`, or it cannot be read.
        OSError: a folder cannot be listed.
    """
    fs, path = file_system(source)
    if fs.isdir(path):
        yield from _list_folder(fs, path)
    elif fs.isfile(path):
        yield from _read_rows(fs, path)
    else:
        raise ManifestError(f"no manifest at {source}; give a JSON Lines file, or a folder of sound files")


def _list_folder(fs: Any, root: str) -> Iterator[Input]:
    for _, _, files in fs.walk(root, detail=True, on_error="raise"):
        for file in files.values():
            path = str(file["name"])
            if not has_sound_suffix(Path(path)):
                continue
            suffix = posixpath.splitext(path)[1].lower()
            seconds = (file.get("size") or 0) / _BYTES_PER_S.get(suffix, _LOSSY_BYTES_PER_S)
            name, problem = posixpath.relpath(path, root), ""
            if not is_unicode(path):
                name, path, problem = printable(name), "", "its name is not Unicode text; rename the file"
            yield Input(id=name, place=_place(fs, path), duration_s=seconds, problem=problem)


def _read_rows(fs: Any, path: str) -> Iterator[Input]:
    folder = posixpath.dirname(path)
    try:
        with fs.open(path, "r", encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = parse_row(line.rstrip("\n"), number, posixpath.basename(path), needs_text=False)
                if isinstance(row, BadRow):
                    problem = f"row {number} of the manifest: {row.reason}: {row.detail}"
                    yield Input(id=f"row {number}", place="", problem=problem)
                    continue
                audio = row.audio
                if "://" not in audio:
                    audio = _place(fs, posixpath.join(folder, audio))
                yield Input(id=row.id, place=audio, duration_s=row.duration_s or 0.0)
    except UnicodeDecodeError as error:
        raise ManifestError(f"cannot read {path} as UTF-8 text: {error}; save it as UTF-8") from error


def _place(fs: Any, path: str) -> str:
    return path if is_local(fs) or not path else str(fs.unstrip_protocol(path))
