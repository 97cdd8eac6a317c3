"""The folder of results: whole shards, an index that may be missing, one driver at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from cluster_fakes import read_rows

from edge_asr.cluster.store import Row, Store
from edge_asr.errors import ConfigError

ASKED = {"digits": False}


def rows(*ids: str) -> list[Row]:
    word = {"text": "go", "start_s": 0.1, "end_s": 0.3, "confidence": 0.5}
    return [
        {
            "id": name, "audio_filepath": f"/{name}", "text": "go", "words": [word],
            "confidence": 0.5, "duration": 1.5, "error": None,
        }
        for name in ids
    ] + [
        {
            "id": f"bad-{ids[0]}", "audio_filepath": "", "text": None, "words": None,
            "confidence": None, "duration": None, "error": "no sound",
        }
    ]  # fmt: skip


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "out")
    fs = fsspec.filesystem("memory")
    if fs.exists("/store"):
        fs.rm("/store", recursive=True)
    return "memory://store/out"


def add(store: Store, number: int, *ids: str) -> str:
    name = store.name_shard(number)
    store.write(name, rows(*ids))
    store.take(name)
    return name


@pytest.mark.parametrize("shard_format", ["parquet", "jsonl"])
def test_rows_come_back_and_ids_without_an_index(place: str, shard_format: str) -> None:
    store = Store(place, shard_format)  # type: ignore[arg-type]
    assert not store.begin(ASKED)
    first = add(store, 0, "a", "b")
    store.note([(first, ["a", "b", "bad-a"])])
    second = add(store, 1, "c")
    store.write(store.name_shard(2), rows("lost"))  # and the driver dies
    assert read_rows(store) == [*rows("a", "b"), *rows("c")]

    other = Store(place, shard_format)  # type: ignore[arg-type]
    assert other.begin(ASKED)
    found = [(first, ["a", "b", "bad-a"]), (second, ["c", "bad-c"])]
    assert list(other.finished()) == found
    assert sorted(other.finished()) == found  # the second time, all from the index
    fs, root = fsspec.core.url_to_fs(place)
    assert fs.ls(f"{root}/pending", detail=False) == []
    assert len(fs.ls(f"{root}/index", detail=False)) == 2


def test_a_shard_that_was_deleted_is_not_finished(place: str) -> None:
    store = Store(place, "jsonl")
    store.begin(ASKED)
    name = add(store, 0, "a")
    store.note([(name, ["a", "bad-a"])])
    fs, root = fsspec.core.url_to_fs(place)
    fs.rm(f"{root}/shards/{name}")
    assert list(store.finished()) == []


def test_other_settings_are_refused_unless_forced(place: str) -> None:
    store = Store(place, "jsonl")
    store.begin(ASKED)
    add(store, 0, "a")
    for settings, shard_format, says in (
        (
            {"digits": True},
            "jsonl",
            "digits was False and is True now; name another folder with -o, or add",
        ),
        ({**ASKED, "lm": "x"}, "jsonl", "lm was None and is 'x' now"),
        (ASKED, "parquet", "format was 'jsonl' and is 'parquet' now"),
    ):
        with pytest.raises(ConfigError, match=says):
            Store(place, shard_format).begin(settings)  # type: ignore[arg-type]
    assert len(read_rows(store)) == 2
    other = Store(place, "parquet")
    assert not other.begin({"digits": True}, force=True)
    assert list(other.finished()) == read_rows(other) == []


def test_a_driver_that_was_replaced_takes_nothing(place: str) -> None:
    old, new = Store(place, "jsonl"), Store(place, "jsonl")
    old.begin(ASKED)
    new.begin(ASKED)
    old.write(old.name_shard(0), rows("a"))
    with pytest.raises(ConfigError, match=r"another run writes to .* now, so this one has stopped"):
        old.take(old.name_shard(0))
    assert read_rows(new) == []
    assert old.name_shard(0) != new.name_shard(0)


def make_full(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("keep me")


def make_damaged(folder: Path) -> None:
    folder.mkdir()
    (folder / "run.json").write_text("{")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_full, "is not a folder of results .it has no run.json.; name another with -o"),
        (lambda folder: folder.write_text("x"), "is not a folder of results"),
        (make_damaged, "run.json is damaged; name another folder with -o"),
    ],
)
def test_other_things_are_never_touched(
    make: Callable[[Path], object], says: str, force: bool, tmp_path: Path
) -> None:
    make(tmp_path / "out")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=says):
        Store(str(tmp_path / "out"), "jsonl").begin(ASKED, force=force)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
