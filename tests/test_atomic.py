"""A folder is replaced whole or not at all: on errors, on Ctrl-C, on SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

import edge_asr.atomic as atomic
from edge_asr.atomic import check_target, replacing_folder, write_file, writing_file
from edge_asr.bundle.folder import BUNDLE_FOLDER
from edge_asr.errors import BundleError


def write_bundle(folder: Path, content: str) -> None:
    (folder / "bundle.json").write_text(content)
    (folder / "engines").mkdir()
    (folder / "engines" / "plan").write_text(content)


def write_and_raise(folder: Path, error: type[BaseException]) -> None:
    write_bundle(folder, "new")
    raise error


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """An existing bundle."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, "old")
    return folder


def content_of(folder: Path) -> set[str]:
    return {(folder / "bundle.json").read_text(), (folder / "engines" / "plan").read_text()}


def test_new_folder_appears_complete_with_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "bundle"
    with replacing_folder(target, BUNDLE_FOLDER, force=False) as folder:
        write_bundle(folder, "new")
        assert not target.exists()
    assert content_of(target) == {"new"}
    assert os.listdir(target.parent) == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o777 & ~atomic.umask()


def test_existing_folder_needs_force(target: Path) -> None:
    with (
        pytest.raises(BundleError, match="exists; add --force"),
        replacing_folder(target, BUNDLE_FOLDER, force=False),
    ):
        raise AssertionError("must not be entered")
    assert content_of(target) == {"old"}


def test_force_replaces_after_success_only(target: Path) -> None:
    with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
        write_bundle(folder, "new")
        assert content_of(target) == {"old"}
    assert content_of(target) == {"new"}
    assert os.listdir(target.parent) == ["bundle"]


def test_without_renameat2_two_renames_do(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *args, **kwargs: object())
    with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
        write_bundle(folder, "new")
    assert content_of(target) == {"new"}
    assert os.listdir(target.parent) == ["bundle"]


def test_failing_second_rename_is_undone(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *args, **kwargs: object())
    rename, calls = os.rename, []

    def failing(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk gone")
        rename(source, destination)

    monkeypatch.setattr(atomic.os, "rename", failing)
    with (
        pytest.raises(OSError, match="disk gone"),
        replacing_folder(target, BUNDLE_FOLDER, force=True) as folder,
    ):
        write_bundle(folder, "new")
    assert content_of(target) == {"old"}
    assert os.listdir(target.parent) == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_leaves_the_old_folder_and_no_litter(target: Path, error: type[BaseException]) -> None:
    with (
        pytest.raises(error),
        replacing_folder(target, BUNDLE_FOLDER, force=True) as folder,
    ):
        write_and_raise(folder, error)
    assert content_of(target) == {"old"}
    assert os.listdir(target.parent) == ["bundle"]


def test_force_never_deletes_what_is_not_a_bundle(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match=r"not a bundle .* will not delete it"):
        check_target(home, BUNDLE_FOLDER, force=True)
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(BundleError, match="not a bundle"):
        check_target(file, BUNDLE_FOLDER, force=True)
    link = tmp_path / "link"
    link.symlink_to(home)
    with pytest.raises(BundleError, match="is a link"):
        check_target(link, BUNDLE_FOLDER, force=True)
    with pytest.raises(BundleError, match="which is a file"):
        check_target(file / "bundle", BUNDLE_FOLDER, force=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_parent_is_refused_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BundleError, match="no write permission"):
            check_target(tmp_path / "bundle", BUNDLE_FOLDER, force=False)
    finally:
        tmp_path.chmod(0o700)


CHILD = """
import sys, time
from pathlib import Path
from typing import BinaryIO
from edge_asr.atomic import replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER
with replacing_folder(Path(sys.argv[1]), BUNDLE_FOLDER, force=True) as folder:
    (folder / "bundle.json").write_text("new")
    print("half way", flush=True)
    time.sleep(60)
"""


def test_kill_leaves_the_old_folder_and_the_next_export_cleans_up(target: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(target)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "half way\n"
    with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
        write_bundle(folder, "mine")
        # The child's folder is locked, so it is not taken for an abandoned one.
        assert len(list(target.parent.glob(".bundle.partial-*"))) == 2
    child.send_signal(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
    child.stdout.close()
    assert content_of(target) == {"mine"}
    assert len(list(target.parent.glob(".bundle.partial-*"))) == 1
    with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
        write_bundle(folder, "new")
    assert content_of(target) == {"new"}
    assert os.listdir(target.parent) == ["bundle"]


def test_a_reader_never_finds_the_folder_missing_or_mixed(target: Path) -> None:
    reader = (
        "import sys, time; from pathlib import Path; folder = Path(sys.argv[1]); print('go', flush=True)\n"
        "end = time.time() + float(sys.argv[2])\n"
        "while time.time() < end: (folder / 'bundle.json').read_text()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", reader, str(target), "1.0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    child.stdout.readline()
    end = time.time() + 0.8
    while time.time() < end:
        with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
            write_bundle(folder, "new")
    _, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (0, "")


def test_a_kill_between_two_renames_is_undone_by_the_next_writer(target: Path) -> None:
    """Without renameat2 there is a moment without the folder; the one that was put aside is put back."""
    aside = target.with_name(f".{target.name}.replaced-x1")
    target.rename(aside)
    with replacing_folder(target, BUNDLE_FOLDER, force=True) as folder:
        assert content_of(target) == {"old"}
        write_bundle(folder, "new")
    assert content_of(target) == {"new"}
    assert [entry.name for entry in target.parent.iterdir()] == [target.name]


def write_half(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half")
    raise error


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "new" / "file.txt"
    write_file(path, "one ▁")
    assert path.read_text(encoding="utf-8") == "one ▁"
    assert path.stat().st_mode & 0o777 == 0o666 & ~atomic.umask()
    with pytest.raises(error), writing_file(path) as file:
        write_half(file, error)
    write_file(path, path.read_bytes() + b"two")
    assert path.read_text(encoding="utf-8") == "one ▁two"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "語" * 85])
def test_names_may_have_all_the_bytes_that_the_system_takes(tmp_path: Path, name: str) -> None:
    write_file(tmp_path / name, "text")
    assert (tmp_path / name).read_text() == "text"
