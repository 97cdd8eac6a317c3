"""Dataclasses to JSON and back, strictly: an unknown key, a missing one or a wrong type is an error.

It reads the annotations of the dataclasses in `schema.py`: numbers, text, booleans, dataclasses, `tuple[X,
...]`, `dict[str, X]` and `X | None`, nested as they like. What this file does not do: know any record.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from edge_asr.errors import ConfigError

_Record = TypeVar("_Record")


def json_from_record(record: Any) -> Any:
    """Plain lists, dicts and scalars of a record, ready for json.dumps."""
    if dataclasses.is_dataclass(record):
        return {f.name: json_from_record(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, tuple | list):
        return [json_from_record(value) for value in record]
    if isinstance(record, dict):
        return {key: json_from_record(value) for key, value in record.items()}
    return record


def record_from_json(cls: type[_Record], data: Any, where: str = "") -> _Record:
    """The record of class `cls` that `json_from_record` made `data` of.

    Args:
        cls: a dataclass.
        data: decoded JSON.
        where: how the place is called in errors.

    Raises:
        ConfigError: a key that is unknown or missing, or a value of a wrong type; the message has its path.
    """
    where = where or cls.__name__
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {_short(data)}; it must be an object")
    hints = _hints(cls)
    unknown, missing = sorted(set(data) - set(hints)), sorted(set(hints) - set(data))
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown keys {unknown}, missing keys {missing}; read it with the edge-asr that wrote "
            "it, or measure again"
        )
    return cls(**{name: _value(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _value(inner, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ConfigError(f"{where} is {_short(data)}; it must be a list")
        return tuple(_value(arguments[0], value, f"{where}[{index}]") for index, value in enumerate(data))
    if origin is dict:
        if not isinstance(data, dict):
            raise ConfigError(f"{where} is {_short(data)}; it must be an object")
        return {key: _value(arguments[1], value, f"{where}.{key}") for key, value in data.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return record_from_json(hint, data, where)
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, hint) or (isinstance(data, bool) and hint is not bool):
        raise ConfigError(f"{where} is {_short(data)}; it must be of type {hint.__name__}")
    return data


def _short(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
