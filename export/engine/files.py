"""Engines on disk: where one may be written, and how its files appear all at once.

The folder of a fingerprint holds the plans of several precisions. New files join it by a swap of folders
(edge_asr/atomic.py), and the other files are linked into the new folder. A reader sees the old engine or the
new one, and an interrupted build leaves the old one.
What this file does not do: look into the files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge_asr.atomic import partial_folder, put_in_place
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import EngineError
from edge_asr.runtime.engine.lookup import Graph, plan_path_of

TIMING_CACHE_NAME = "timing.cache"


def layers_name_of(precision: Precision, graph: Graph = "model") -> str:
    """Return the name of TensorRT's own JSON about the layers of a plan."""
    return f"layers.{'stream.' if graph == 'stream' else ''}{precision}.json"


def check_place(
    bundle: Bundle, folder: Path, precision: Precision, graph: Graph = "model", *, force: bool
) -> None:
    """Refuse a place where the engine may not be written, before any work is done.

    Args:
        bundle: the bundle that the engine is for.
        folder: folder of the fingerprint, `<bundle>/engines/<fingerprint>`.
        precision, graph: those of the engine.
        force: an existing engine may be replaced.

    Raises:
        EngineError: an engine exists and `force` is false, the bundle cannot be written, or a link or file is
            in the way.
    """
    for place in (folder.parent, folder):
        if place.is_symlink() or (place.exists() and not place.is_dir()):
            raise EngineError(
                f"{place} is a {'link' if place.is_symlink() else 'file'}; engines lie in folders inside "
                "their bundle: remove it"
            )
    existing = folder.parent if folder.parent.is_dir() else bundle.path
    if not os.access(existing, os.W_OK | os.X_OK):
        raise EngineError(
            f"engines lie inside their bundle, and {existing} cannot be written; copy the bundle to a folder "
            f"of yours and build there: cp -r {bundle.path} my-model && edge-asr build my-model"
        )
    plan = plan_path_of(folder, precision, graph)
    if plan.exists() and not force:
        raise EngineError(f"{plan} exists; add --force to replace it, once the new one is proven")


@contextlib.contextmanager
def adding_files(folder: Path) -> Iterator[Path]:
    """Make an empty folder whose files join (or replace) those of `folder` if the block ends without error.

    On an exception (Ctrl-C too) the new files are removed and `folder` stays as it was.

    Args:
        folder: `<bundle>/engines/<fingerprint>`; made if missing.

    Raises:
        OSError: the place cannot be written.
    """
    engines = folder.parent
    engines.mkdir(exist_ok=True)
    try:
        with partial_folder(folder) as partial:
            yield partial
            with _locked(engines):  # two builds of two precisions may end at the same time
                if folder.exists():
                    _link_others(folder, partial)
                put_in_place(partial, folder)
    finally:
        with contextlib.suppress(OSError):  # usually it is not empty
            engines.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _link_others(source: Path, target: Path) -> None:
    for path in source.iterdir():
        copy = target / path.name
        if copy.exists() or not path.is_file():
            continue
        try:
            os.link(path, copy)
        except OSError:  # a file system without hard links
            shutil.copy2(path, copy)
