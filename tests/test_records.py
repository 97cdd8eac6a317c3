"""The codec of every file we read: round trips, exact refusals with key, value and file, and limits."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.errors import BundleError, ConfigError
from edge_asr.records import (
    MAX_DEPTH,
    MAX_DIGITS,
    check_fields,
    decode_json,
    json_from_record,
    read_json,
    record_from_json,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    count: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "inner")
        if self.count < 0:
            raise ConfigError(f"count is {self.count}; it must be at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    width: int
    height: int

    def derived_values(self) -> dict[str, Any]:
        return {"area": self.width * self.height, "sides": [self.width, self.height]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    flag: bool
    kind: Literal["a", "b"]
    inner: Inner
    pair: tuple[int, float]
    many: tuple[Inner, ...] = ()
    maybe: int | None = None
    context: Literal["causal"] | tuple[int, int] = "causal"
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    free: Mapping[str, Any] = field(default_factory=dict)
    area: Area | None = None


GOOD: dict[str, Any] = {"name": "x", "flag": True, "kind": "a", "inner": {"count": 1}, "pair": [1, 2]}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
inners = st.builds(Inner, count=st.integers(0, 10**9), ratio=st.floats(allow_nan=False, allow_infinity=False))
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        Outer,
        name=texts,
        flag=st.booleans(),
        kind=st.sampled_from(["a", "b"]),
        inner=inners,
        pair=st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
        many=st.lists(inners, max_size=3).map(tuple),
        maybe=st.none() | st.integers(),
        context=st.just("causal") | st.tuples(st.integers(), st.integers()),
        by_name=st.dictionaries(texts, inners, max_size=3),
        area=st.none() | st.builds(Area, width=st.integers(), height=st.integers()),
    )
)
def test_records_survive_json(record: Outer) -> None:
    assert record_from_json(Outer, json.loads(json.dumps(json_from_record(record)))) == record


@given(st.sampled_from([*GOOD, "many", "maybe", "context", "by_name", "free", "area"]), json_values)
def test_any_value_anywhere_is_a_record_or_our_error(key: str, value: Any) -> None:
    try:
        record = record_from_json(Outer, {**GOOD, key: value}, "file.json")
    except ConfigError as error:
        told = str(error)
    else:
        json.dumps(json_from_record(record), allow_nan=False, ensure_ascii=False).encode()
        return
    assert told.startswith("file.json: ")
    assert key in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nmae": 1}, "f.json has the unknown key 'nmae' (value 1; the nearest known key is 'name'); go"),
        ({"name": None}, "f.json: name is None; it must be text; go"),
        ({"name": "\ud800"}, "f.json: name is '\\ud800'; it must be text; go"),
        ({"flag": "false"}, "f.json: flag is 'false'; it must be true or false; go"),
        ({"flag": 0}, "f.json: flag is 0; it must be true or false; go"),
        ({"kind": "c"}, "f.json: kind is 'c'; it must be one of a, b; go"),
        ({"inner": []}, "f.json: inner is []; it must be an object; go"),
        ({"inner": {}}, "f.json: inner lacks 'count'; go"),
        ({"inner": {"count": True}}, "f.json: inner.count is True; it must be a whole number; go"),
        ({"inner": {"count": 1.0}}, "f.json: inner.count is 1.0; it must be a whole number; go"),
        ({"inner": {"count": -1}}, "f.json: inner: count is -1; it must be at least 0"),
        ({"inner": {"count": 1, "ratio": 10**400}}, "f.json: inner.ratio is 1000"),
        ({"many": [{"count": 1}, 2]}, "f.json: many[1] is 2; it must be an object; go"),
        ({"many": {}}, "f.json: many is {}; it must be a list; go"),
        ({"pair": [1]}, "f.json: pair is [1]; it must be a list of 2 values: a whole number, a number; go"),
        ({"context": [1, "x"]}, "f.json: context is [1, 'x']; it must be 'causal' or [a whole number, a"),
        ({"by_name": {"a": 1}}, "f.json: by_name.a is 1; it must be an object; go"),
        ({"free": {"a": float("nan")}}, "f.json: free.a is nan; it must be a number; go"),
        ({"free": {"a": {1: 2}}}, "f.json: a key of free.a is 1; it must be text; go"),
        ({"area": {"width": 2, "height": 3, "area": 6}}, "f.json: area lacks 'sides'; go"),
        (
            {"area": {"width": 2, "height": 3, "area": 5, "sides": [2, 3]}},
            "f.json: area.area is 5; the other numbers say 6; go",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_key_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError) as caught:
        record_from_json(Outer, {**GOOD, **changes}, "f.json", error=BundleError, remedy="go")
    assert str(caught.value).startswith(message)


def test_yaml_has_numbers_that_look_like_text() -> None:
    assert record_from_json(Inner, {"count": 1, "ratio": "1e-3"}, yaml=True).ratio == 1e-3
    with pytest.raises(ConfigError, match="ratio is '1e-3'; it must be a number"):
        record_from_json(Inner, {"count": 1, "ratio": "1e-3"})


def test_created_records_are_checked_and_made_uniform() -> None:
    assert type(Inner(count=1, ratio=2).ratio) is float
    with pytest.raises(ConfigError, match="inner: ratio is 'x'; it must be a number"):
        Inner(count=1, ratio="x")  # type: ignore[arg-type]


def test_free_form_values_have_a_depth() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(ConfigError, match=f"nested more than {MAX_DEPTH} levels deep"):
        record_from_json(Outer, {**GOOD, "free": {"a": deep}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "is nested too deeply"),
        (b"9" * 5000, f"a whole number of 5000 digits; at most {MAX_DIGITS}"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        (b"[" + b"0," * 1_000_001 + b"0]", "more than 1000000 values"),
    ],
)
def test_hostile_json_is_one_sentence(content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        decode_json(content, "f.json", remedy="go")
    assert str(caught.value).startswith("f.json ")
    assert str(caught.value).endswith("; go")


def test_reading_never_waits_nor_fills_the_memory(tmp_path: Path) -> None:
    pipe, huge = tmp_path / "pipe.json", tmp_path / "huge.json"
    os.mkfifo(pipe)
    with huge.open("wb") as file:
        file.truncate(1 << 30)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="is a pipe or device, not a file"):
        read_json(pipe)
    with pytest.raises(ConfigError, match=f"has {1 << 30} bytes; at most 1000 are read"):
        read_json(huge, max_bytes=1000)
    with pytest.raises(ConfigError, match="is a folder, not a file"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    assert time.monotonic() - begun < 5


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=r"f\.json cannot be read \(Permission denied\); go"):
        read_json(tmp_path / "f.json", remedy="go")
