"""Converts strictly between dataclasses and JSON (or YAML), for every file that edge-asr reads as data.

It decodes JSON within limits (size, depth, digits, text that is not Unicode), and builds dataclasses from it
by their annotations: scalars, `Literal`, dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`,
`X | None` and other unions, nested to any depth. An unknown key, a missing one or a wrong type is an error
that names the file, the key and the value. A field with a default may be absent. The file is above 400 lines
because decoding and building share their limits and their errors.
What this file does not do: know any record, read YAML (`edge_asr.training.config_io` does).

A dataclass may define `derived_values()`, a dict of values that follow from its fields. They are written too,
and compared when read.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import reprlib
import stat
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from edge_asr.errors import ConfigError, EdgeAsrError

MAX_BYTES = 32 << 20
"""Largest JSON file: a configuration with a vocabulary of 100 000 tokens has 3 MB."""

MAX_VALUES = 1_000_000
"""Most values in a file; each takes some 70 bytes of memory, however short it is in the file."""

MAX_DEPTH = 32
"""Deepest nesting of free-form values; Python's own limit depends on who calls."""

MAX_DIGITS = 100
"""Longest whole number: converting one takes time that grows with the square of its length."""

_Record = TypeVar("_Record")
_SCALARS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}
_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_YAML_FLOAT = r"[+-]?\d+(\.\d*)?[eE][+-]?\d+"


class _Reading:
    """What every step of one reading needs: how errors begin, end and are raised.

    It is no dataclass, because making one takes as long as the rest of this module.
    """

    __slots__ = ("error", "names", "remedy", "where", "yaml")

    def __init__(
        self,
        where: str,
        error: type[EdgeAsrError],
        remedy: str,
        yaml: bool = False,
        names: Mapping[str, type] | None = None,
    ) -> None:
        self.where, self.error, self.remedy, self.yaml = where, error, remedy, yaml
        self.names = names or {}

    def refuse(self, path: str, problem: str) -> NoReturn:
        place = ": ".join(part for part in (self.where, path) if part)
        raise self.error(f"{place} {problem}" + (f"; {self.remedy}" if self.remedy else ""))


def read_json(
    path: Path, *, error: type[EdgeAsrError] = ConfigError, remedy: str = "", max_bytes: int = MAX_BYTES
) -> Any:
    """Decode a JSON file.

    Args:
        path: the file.
        error: class of the error to raise.
        remedy: how to fix it; the end of every message.
        max_bytes: a larger file is refused unread.

    Raises:
        FileNotFoundError: there is no such file; the caller knows what was expected there.
        EdgeAsrError: of class `error`: it is not a regular file (a pipe would block forever), it cannot be
            read, or `decode_json` refuses it.
    """
    reading = _Reading(str(path), error, remedy)
    try:
        content = _read_regular(path, max_bytes, reading)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}){_end(remedy)}") from problem
    return decode_json(content, str(path), error=error, remedy=remedy)


def _read_regular(path: Path, max_bytes: int, reading: _Reading) -> bytes:
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # so that a FIFO opens without a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
            reading.refuse("", f"is {kind}, not a file")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        reading.refuse("", f"has {max(status.st_size, len(content))} bytes; at most {max_bytes} are read")
    return content


def decode_json(
    content: bytes | str, where: str, *, error: type[EdgeAsrError] = ConfigError, remedy: str = ""
) -> Any:
    """Decode JSON text within the limits of this file.

    Args:
        content: the text, UTF-8.
        where: its name in errors.
        error: class of the error to raise.
        remedy: how to fix it; the end of every message.

    Raises:
        EdgeAsrError: of class `error`: not UTF-8 or JSON, a key that stands twice, NaN or Infinity, or
            nesting, digits or values beyond the limits.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if text.count(",") + text.count("[") + text.count("{") > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        return _DECODER.decode(text)
    except RecursionError:
        raise error(f"{where} is nested too deeply to be read{_end(remedy)}") from None
    except ValueError as problem:
        raise error(f"{where} is not valid JSON ({problem}){_end(remedy)}") from problem


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits; at most {MAX_DIGITS}")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


_DECODER = json.JSONDecoder(
    parse_int=_whole_number, parse_constant=_no_constant, object_pairs_hook=_unique_keys
)


def json_from_record(record: Any) -> Any:
    """Convert a record to plain lists, dicts and scalars, ready for json.dumps."""
    if dataclasses.is_dataclass(record):
        data = {f.name: json_from_record(getattr(record, f.name)) for f in dataclasses.fields(record)}
        derived = getattr(record, "derived_values", None)
        return data if derived is None else {**data, **derived()}
    if isinstance(record, tuple | list):
        return [json_from_record(value) for value in record]
    if isinstance(record, Mapping):
        return {key: json_from_record(value) for key, value in record.items()}
    return record


def record_from_json(
    cls: type[_Record],
    data: Any,
    where: str | None = None,
    *,
    error: type[EdgeAsrError] = ConfigError,
    remedy: str = "",
    yaml: bool = False,
    names: Mapping[str, type] | None = None,
) -> _Record:
    """Build the record of class `cls` from which `json_from_record` made `data`.

    Args:
        cls: a dataclass.
        data: decoded JSON.
        where: name of the file or record in errors; None takes the class name.
        error: class of the error to raise.
        remedy: how to fix it; the end of messages about keys and types.
        yaml: accept text such as 1e-3 as a number, because PyYAML (YAML 1.1) reads it as text.
        names: types that annotations name but their module imports only for type checkers.

    Raises:
        EdgeAsrError: of class `error`: a key that is unknown or missing, a value of a wrong type, or one
            that the record itself refuses; the message has its path.
    """
    reading = _Reading(cls.__name__ if where is None else where, error, remedy, yaml, names)
    return typing.cast("_Record", _record(cls, data, "", reading))


def check_fields(record: Any, where: str, *, error: type[EdgeAsrError] = ConfigError) -> None:
    """Refuse fields of a wrong type; for `__post_init__`, where a caller may pass anything.

    Lists become tuples and whole numbers floats where the annotation says so.

    Raises:
        EdgeAsrError: of class `error`: it names `where`, the field and the value.
    """
    reading = _Reading(where, error, "")
    for name in _field_names(type(record)):
        value = getattr(record, name)
        checked = _value(_hint(type(record), name, {}), value, name, reading)
        if checked is not value:
            object.__setattr__(record, name, checked)


def _record(cls: type, data: Any, path: str, reading: _Reading) -> Any:
    if not isinstance(data, Mapping):
        reading.refuse(path, f"is {short_repr(data)}; it must be an object")
    derived = hasattr(cls, "derived_values")
    fields = _field_names(cls)
    missing = [name for name, required in fields.items() if required and name not in data]
    unknown = [] if derived else [key for key in data if key not in fields]
    if unknown or missing:
        reading.refuse(path, _wrong_keys(unknown, missing, list(fields), data))
    values = {
        name: _value(_hint(cls, name, reading.names), data[name], _join(path, name), reading)
        for name in fields
        if name in data
    }
    try:
        record = cls(**values)
    except EdgeAsrError as problem:
        message = str(problem)
        prefix = [] if not path or message.startswith(path) else [path]
        raise reading.error(
            ": ".join(part for part in (reading.where, *prefix, message) if part)
        ) from problem
    if derived:
        _check_derived(record, data, path, reading)
    return record


def _check_derived(record: Any, data: Mapping[str, Any], path: str, reading: _Reading) -> None:
    derived = record.derived_values()
    unknown = [key for key in data if key not in derived and key not in _field_names(type(record))]
    missing = [key for key in derived if key not in data]
    if unknown or missing:
        reading.refuse(path, _wrong_keys(unknown, missing, [*_field_names(type(record)), *derived], data))
    for key, value in derived.items():
        if data[key] != value:
            reading.refuse(
                _join(path, key), f"is {short_repr(data[key])}; the other numbers say {short_repr(value)}"
            )


def _wrong_keys(unknown: list[str], missing: list[str], known: list[str], data: Mapping[str, Any]) -> str:
    parts = []
    for key in unknown[:3]:
        import difflib  # 2 ms that only an error costs

        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
        parts.append(
            f"has the unknown key {short_repr(key)} (value {short_repr(data[key])}; the nearest known key is "
            f"{near[0]!r})"
        )
    if len(unknown) > 3:
        parts.append(f"has {len(unknown) - 3} more unknown keys")
    if missing:
        parts.append(f"lacks {', '.join(map(repr, missing))}")
    return " and ".join(parts)


def _value(hint: Any, data: Any, path: str, reading: _Reading) -> Any:
    if hint in _NAMES:
        return _scalar(hint, data, path, reading)
    if hint is Any:
        _check_plain(data, path, reading, MAX_DEPTH)
        return data
    if dataclasses.is_dataclass(hint):
        return data if type(data) is hint else _record(typing.cast(type, hint), data, path, reading)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if not any(type(data) is type(choice) and data == choice for choice in arguments):
            reading.refuse(path, f"is {short_repr(data)}; it must be one of {', '.join(map(str, arguments))}")
        return data
    if origin in (types.UnionType, typing.Union):
        return _union(arguments, data, path, reading)
    if origin is tuple:
        return _tuple(arguments, data, path, reading)
    if not isinstance(data, Mapping):  # dict[str, X] or Mapping[str, X]
        reading.refuse(path, f"is {short_repr(data)}; it must be an object")
    for key in data:
        _scalar(str, key, f"a key of {path}", reading)
    return {key: _value(arguments[1], value, _join(path, key), reading) for key, value in data.items()}


def _scalar(hint: Any, data: Any, path: str, reading: _Reading) -> Any:
    if type(data) is hint:
        if (hint is str and not is_unicode(data)) or (hint is float and not math.isfinite(data)):
            reading.refuse(path, f"is {short_repr(data)}; it must be {_NAMES[hint]}")
        return data
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return _float(data, path, reading)
    if hint is float and reading.yaml and isinstance(data, str) and re.fullmatch(_YAML_FLOAT, data):
        return _scalar(float, float(data), path, reading)
    if isinstance(data, hint) and not isinstance(
        data, bool
    ):  # an instance of a subclass, such as numpy.float64
        return _scalar(hint, hint(data), path, reading)
    return reading.refuse(path, f"is {short_repr(data)}; it must be {_NAMES[hint]}")


def _float(data: int, path: str, reading: _Reading) -> float:
    try:
        return float(data)
    except OverflowError:
        reading.refuse(path, f"is {short_repr(data)}; it must be a number below 1e308")


def _union(arguments: tuple[Any, ...], data: Any, path: str, reading: _Reading) -> Any:
    if data is None and types.NoneType in arguments:
        return None
    kinds = [argument for argument in arguments if argument is not types.NoneType]
    if len(kinds) == 1:
        return _value(kinds[0], data, path, reading)
    for kind in kinds:
        try:
            return _value(kind, data, path, reading)
        except reading.error:
            continue
    return reading.refuse(path, f"is {short_repr(data)}; it must be {' or '.join(map(_describe, kinds))}")


def _tuple(arguments: tuple[Any, ...], data: Any, path: str, reading: _Reading) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        reading.refuse(path, f"is {short_repr(data)}; it must be a list")
    if arguments[1:] == (...,):
        arguments = (arguments[0],) * len(data)
    if len(data) != len(arguments):
        kinds = ", ".join(map(_describe, arguments))
        reading.refuse(path, f"is {short_repr(data)}; it must be a list of {len(arguments)} values: {kinds}")
    return tuple(
        _value(argument, value, f"{path}[{index}]", reading)
        for index, (argument, value) in enumerate(zip(arguments, data, strict=True))
    )


def _check_plain(data: Any, path: str, reading: _Reading, depth: int) -> None:
    """Refuse free-form values that could not be written again."""
    if depth == 0:
        reading.refuse(path[:60], f"is nested more than {MAX_DEPTH} levels deep")
    if isinstance(data, str | bool | int | float):
        _scalar(type(data), data, path, reading)
        return
    for name, value in _children(data, path, reading):
        _check_plain(value, name, reading, depth - 1)


def _children(data: Any, path: str, reading: _Reading) -> Iterator[tuple[str, Any]]:
    if isinstance(data, list | tuple):
        yield from ((f"{path}[{index}]", value) for index, value in enumerate(data))
    elif isinstance(data, Mapping):
        for key, value in data.items():
            _scalar(str, key, f"a key of {path}", reading)
            yield _join(path, key), value
    elif data is not None:
        reading.refuse(path, f"is {short_repr(data)}; it must be plain JSON")


_FIELDS: dict[type, dict[str, bool]] = {}
_HINTS: dict[type, dict[str, Any]] = {}


def _field_names(cls: type) -> dict[str, bool]:
    """List the fields of a dataclass, and whether each is required."""
    if cls not in _FIELDS:
        none, fields = dataclasses.MISSING, dataclasses.fields(cls)
        _HINTS[cls] = {field.name: field.type for field in fields}
        _FIELDS[cls] = {
            field.name: field.default is none and field.default_factory is none for field in fields
        }
    return _FIELDS[cls]


def _hint(cls: type, name: str, names: Mapping[str, type]) -> Any:
    """Find the type of a field.

    One field at a time, simple names from tables: `typing.get_type_hints` would compile every annotation of
    the class, which is most of the time that reading a bundle.json takes.
    """
    hint = _HINTS[cls][name]
    if isinstance(hint, str):
        known = vars(sys.modules[cls.__module__])
        # Written in our own source, never read from a file.
        hint = _SCALARS.get(hint) or known.get(hint) or eval(hint, known, names)  # noqa: S307
        _HINTS[cls][name] = hint
    return hint


def _describe(hint: Any) -> str:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin is tuple:
        return f"[{', '.join('...' if a is ... else _describe(a) for a in arguments)}]"
    return "an object"


def is_unicode(text: str) -> bool:
    """Tell whether text can be written as UTF-8: JSON's "\\ud800" is half a character."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _end(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


_REPR = reprlib.Repr()  # never walks deep or long values to their end
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60


def short_repr(data: Any) -> str:
    """Format a value for a message: shortened, printable, and without ever failing."""
    try:
        return _REPR.repr(data).encode("utf-8", "backslashreplace").decode("utf-8")
    except ValueError:  # Python refuses to print whole numbers of thousands of digits
        return "a number of thousands of digits"
