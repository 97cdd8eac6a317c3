"""Writes a file or a folder all at once: builds it beside its place, flushes it, and swaps it in.

A reader sees the old folder or the new one, never a mixture, also when the writer is killed: the
swap is one `renameat2(RENAME_EXCHANGE)` where the kernel has it, else two renames with roll-back.
A killed writer can leave a hidden `.NAME.partial-*` folder; the next writer of NAME removes it
(a lock distinguishes it from one that is still being written). Only a folder that holds the marker file of
its kind is ever replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edge_asr.errors import EdgeAsrError

_log = logging.getLogger(__name__)
_AT_FDCWD = -100  # linux/fcntl.h
_RENAME_EXCHANGE = 2  # linux/fs.h


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder that may be replaced as a whole.

    Attributes:
        name: what a person calls it, such as "bundle".
        marker: the file that every folder of the kind has.
        error: what a target that may not be written raises.
    """

    name: str
    marker: str
    error: type[EdgeAsrError]


def write_file(path: Path, content: bytes | str) -> None:
    """Replace one file atomically, making its folder if missing; text becomes UTF-8.

    Raises:
        OSError: it cannot be written; an older file is as it was.
    """
    with writing_file(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextlib.contextmanager
def writing_file(path: Path) -> Iterator[BinaryIO]:
    """Make a file that becomes `path` if the block ends without an exception; else remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Part of the name only: a name as long as the file system takes has no room for more.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(name).chmod(0o666 & ~umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def check_target(target: Path, kind: FolderKind, *, force: bool) -> None:
    """Refuse a target that may not be written, before any work is done.

    Args:
        target: folder to be created or replaced.
        kind: what the target must be to be replaced.
        force: an existing folder of the kind may be replaced.

    Raises:
        EdgeAsrError: `kind.error`: the target exists and `force` is false, or it is of another kind, or
            its parent cannot be written.
    """
    if target.is_symlink():
        raise kind.error(f"{target} is a link; name the folder it points to, so that the swap is atomic")
    if target.exists():
        if not force:
            raise kind.error(f"{target} exists; add --force to replace it, or name another folder with -o")
        if not target.is_dir() or (any(target.iterdir()) and not (target / kind.marker).is_file()):
            raise kind.error(
                f"{target} is not a {kind.name} (it has no {kind.marker}), so --force will not delete it; "
                "name another folder with -o"
            )
    parent = target.absolute().parent
    existing = next(p for p in (parent, *parent.parents) if p.exists())
    if not existing.is_dir():
        raise kind.error(f"{target} lies under {existing}, which is a file; name another folder with -o")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise kind.error(
            f"{target} cannot be written: no write permission in {existing}; name another folder with -o"
        )


@contextlib.contextmanager
def replacing_folder(target: Path, kind: FolderKind, *, force: bool) -> Iterator[Path]:
    """Make an empty folder that becomes `target` if the block ends without an exception.

    On an exception (Ctrl-C too) the new folder is removed and `target` stays as it was.

    Args:
        target: folder to be created or replaced.
        kind: what the target must be to be replaced.
        force: an existing folder of the kind may be replaced.

    Raises:
        EdgeAsrError: as `check_target`.
    """
    check_target(target, kind, force=force)
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(target) as partial:
        yield partial
        check_target(target, kind, force=force)  # it may have appeared meanwhile
        put_in_place(partial, target)


@contextlib.contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside `target`, locked while it is written, and remove it at the end if left.

    Those of `target` that a killed process left are removed first; an old `target` that it had put aside is
    put back.
    """
    parent = target.absolute().parent
    prefix = f".{target.absolute().name}.partial-"
    _remove_abandoned(parent, prefix)
    _put_back(target)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def put_in_place(partial: Path, target: Path) -> None:
    """Flush a folder of `partial_folder` and swap it in; `partial` then is the old one, or gone.

    Raises:
        OSError: it cannot be flushed or moved; `target` is as it was.
    """
    partial.chmod(0o777 & ~umask())
    sync_tree(partial)
    if target.exists():
        exchange(partial, target)
    else:
        os.rename(partial, target)
    sync_folder(target.absolute().parent)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Delete the partial folders of these names that no living process holds a lock on."""
    for folder in parent.glob(prefix + "*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # another process is writing it
        else:
            _log.info("removing %s, left by an interrupted process", folder)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _put_back(target: Path) -> None:
    """Undo the first of two renames, after which a process was killed (see `exchange`)."""
    aside = sorted(target.absolute().parent.glob(f".{target.absolute().name}.replaced-*"))
    if aside and not target.exists():
        _log.warning("%s is put back: a process was killed while it replaced it", target)
        os.rename(aside[-1], target)


def exchange(new: Path, old: Path) -> None:
    """Swap two folders: atomically if the system can, else by renames that are undone on failure.

    Raises:
        OSError: they cannot be swapped; both are where they were.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        renameat2 = None
    if renameat2 is not None:
        result = renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise OSError(code, os.strerror(code), str(old))
    aside = Path(tempfile.mkdtemp(prefix=f".{old.absolute().name}.replaced-", dir=old.parent))
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    os.rename(aside, new)


def sync_tree(folder: Path) -> None:
    """Flush a folder and all that is in it to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flush the list of names in a folder to the disk; not the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Read the umask. Other threads see 0 for an instant, because no system call only reads it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
