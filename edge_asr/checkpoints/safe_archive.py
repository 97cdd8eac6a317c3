"""Opening other people's archives and folders: tar members in memory, paths that cannot leave their folder.

It reads named members of a tar or gzipped tar, with limits on count and size. Nothing is written to disk, and
no header is trusted: the bytes read are counted.
What this file does not do: unpack, follow links.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from edge_asr.errors import CheckpointError

MAX_MEMBERS = 10_000
MAX_MEMBER_BYTES = 20 << 30
"""Largest member; no published Conformer comes near (a model of 2 G parameters has 8 GB)."""

MAX_RATIO = 200
"""Uncompressed bytes per byte of the archive; weights compress by less than 2, text by less than 20."""


#: RecursionError: tarfile reads extended headers one inside the other.
_DAMAGE = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, RecursionError)


class _BoundedFile(io.RawIOBase):
    """A file, decompressed if it is gzipped, of which no read gives more than `limit` bytes.

    tarfile reads an extended header whole before its member is shown to anybody, and believes its size.
    """

    def __init__(self, path: Path, limit: int) -> None:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        self._path, self._limit = path, limit
        self._file: IO[bytes] = cast("IO[bytes]", gzip.open(path)) if zipped else path.open("rb")  # noqa: SIM115

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._limit:
            raise CheckpointError(
                f"{self._path} would unpack to more than {self._limit} bytes; it is not opened"
            )
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()


def read_members(path: Path, limit_of: Callable[[str], int]) -> dict[str, bytes]:
    """The wanted members of a tar archive, plain or gzipped, by base name.

    Args:
        path: the archive.
        limit_of: the most bytes that the member of a base name may have; 0 does not read it.

    Raises:
        CheckpointError: not a tar archive, damaged, or hostile: a member that leaves the folder, a link or
            device among the wanted ones, two of one name, or sizes that no checkpoint has.
    """
    found: dict[str, bytes] = {}
    limit = min(max(path.stat().st_size * MAX_RATIO, 1 << 24), MAX_MEMBER_BYTES)
    total = 0
    try:
        with _BoundedFile(path, limit) as handle, tarfile.open(fileobj=handle, mode="r:") as archive:
            for number, member in enumerate(archive, start=1):
                if number > MAX_MEMBERS:
                    raise CheckpointError(f"{path} has more than {MAX_MEMBERS} members; no checkpoint has")
                parts = PurePosixPath(member.name).parts
                if member.name.startswith("/") or ".." in parts or "\\" in member.name:
                    raise CheckpointError(
                        f"{path} holds {member.name!r}, which leaves its folder; it is not opened"
                    )
                total += max(member.size, 0)
                if total > limit:
                    raise CheckpointError(f"{path} would unpack to more than {limit} bytes; it is not opened")
                most = limit_of(parts[-1]) if parts else 0
                if member.isdir() or not most:
                    continue
                if member.size > most:
                    raise CheckpointError(
                        f"{path} holds {member.name!r} with {member.size} bytes, more than {most}; it is not "
                        "opened"
                    )
                if not member.isreg():
                    raise CheckpointError(
                        f"{path} holds {member.name!r} as a link or device; it is not opened"
                    )
                if parts[-1] in found:
                    raise CheckpointError(f"{path} holds {parts[-1]!r} twice; which one counts is unknown")
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                found[parts[-1]] = _read_exactly(content, member.size, path, member.name)
    except (*_DAMAGE, ValueError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or no tar archive ({error}); copy it again") from error
    return found


def is_tar(path: Path) -> bool:
    """Tell whether the first bytes are those of a tar or gzip file; never raises."""
    try:
        with path.open("rb") as handle:
            head = handle.read(263)
    except OSError:
        return False
    return head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar"


def inside(folder: Path, name: str) -> Path:
    """The file `name` (a relative path) of `folder`, which it may not leave, links included.

    Raises:
        CheckpointError: an absolute path, "..", or a link that leads elsewhere.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not relative.parts:
        raise CheckpointError(f"{folder} names the file {name!r}, which leaves the folder; it is not opened")
    path = folder / relative
    root = folder.resolve()
    if not path.resolve().is_relative_to(root):
        raise CheckpointError(f"{path} is a link that leaves {folder}; copy the file itself into the folder")
    return path


def read_file(path: Path, *, limit: int, what: str) -> bytes:
    """Content of a regular file of at most `limit` bytes.

    Raises:
        CheckpointError: missing, not a regular file, or larger.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {what} is needed")
    with path.open("rb") as handle:
        content = handle.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{path} has more than {limit} bytes, too many for {what}")
    return content


def _read_exactly(handle: IO[bytes], size: int, path: Path, name: str) -> bytes:
    content = handle.read(size)
    if len(content) != size:
        raise CheckpointError(f"{path}: {name} ends after {len(content)} of {size} bytes; copy it again")
    return content
