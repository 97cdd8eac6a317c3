"""The fields of the ROS messages that the ROS 2 example uses, and classes of them.

The lists are facts that were read in the definitions of others, whose files are not copied here:
- hri_msgs: docs.ros.org/en/humble/p/hri_msgs/msg/LiveSpeech.html for 2.2.1 to 2.3.2, which have `locale`;
  github.com/ros4hri/hri_msgs at 5d52c81 for 2.0.0, which has `language`. 2.1.0 and 2.2.0 have both.
- audio_common_msgs: github.com/mgonzs13/audio_common at f0767f3 (4.0.10); and those that end in `Bytes` here,
  and not there, github.com/ros-drivers/audio_common at 06c280a (branch ros2).
- std_msgs, diagnostic_msgs: github.com/ros2/common_interfaces at 53761cb (humble).
- builtin_interfaces, rcl_interfaces: github.com/ros2/rcl_interfaces at 5e01a28 (humble).
"""

from __future__ import annotations

import array
from typing import Any

HEADER = ("std_msgs/Header", "header")
LIVE_SPEECH = "hri_msgs/msg/LiveSpeech"

FIELDS: dict[str, tuple[tuple[str, str], ...]] = {
    LIVE_SPEECH: (
        HEADER,
        ("string", "incremental"),
        ("string", "final"),
        ("float64", "confidence"),
        ("string", "locale"),
    ),
    "audio_common_msgs/msg/AudioStamped": (HEADER, ("audio_common_msgs/Audio", "audio")),
    "audio_common_msgs/msg/Audio": (
        ("audio_common_msgs/AudioData", "audio_data"),
        ("audio_common_msgs/AudioInfo", "info"),
    ),
    "audio_common_msgs/msg/AudioData": (
        ("float32[]", "float32_data"),
        ("int32[]", "int32_data"),
        ("int16[]", "int16_data"),
        ("int8[]", "int8_data"),
        ("uint8[]", "uint8_data"),
    ),
    "audio_common_msgs/msg/AudioInfo": (
        ("int32", "format"),
        ("int32", "channels"),
        ("int32", "rate"),
        ("int32", "chunk"),
    ),
    "audio_common_msgs/msg/AudioDataBytes": (("uint8[]", "data"),),
    "audio_common_msgs/msg/AudioDataStampedBytes": (HEADER, ("audio_common_msgs/AudioDataBytes", "audio")),
    "std_msgs/msg/Header": (("builtin_interfaces/Time", "stamp"), ("string", "frame_id")),
    "std_msgs/msg/String": (("string", "data"),),
    "builtin_interfaces/msg/Time": (("int32", "sec"), ("uint32", "nanosec")),
    "diagnostic_msgs/msg/DiagnosticArray": (HEADER, ("diagnostic_msgs/DiagnosticStatus[]", "status")),
    "diagnostic_msgs/msg/DiagnosticStatus": (
        ("byte", "level"),
        ("string", "name"),
        ("string", "message"),
        ("string", "hardware_id"),
        ("diagnostic_msgs/KeyValue[]", "values"),
    ),
    "diagnostic_msgs/msg/KeyValue": (("string", "key"), ("string", "value")),
    "rcl_interfaces/msg/ParameterDescriptor": (
        ("string", "name"),
        ("uint8", "type"),
        ("string", "description"),
        ("string", "additional_constraints"),
        ("bool", "read_only"),
        ("bool", "dynamic_typing"),
    ),
    "rcl_interfaces/msg/SetParametersResult": (("bool", "successful"), ("string", "reason")),
}

OLD_LIVE_SPEECH = (*FIELDS[LIVE_SPEECH][:-1], ("string", "language"))

_TYPES: dict[str, tuple[type, Any]] = {
    "string": (str, ""),
    "float64": (float, 0.0),
    "bool": (bool, False),
    "byte": (bytes, b"\0"),
    **dict.fromkeys(("int32", "uint32", "uint8"), (int, 0)),
}
_CODES = {"float32[]": "f", "int32[]": "i", "int16[]": "h", "int8[]": "b", "uint8[]": "B"}
_CONSTANTS = {"diagnostic_msgs/msg/DiagnosticStatus": {"OK": b"\0", "WARN": b"\1", "ERROR": b"\2"}}


def full_name(kind: str) -> str:
    """`std_msgs/Header`, as definitions write it, with the `msg` in its middle."""
    return kind.removesuffix("[]").replace("/", "/msg/")


def make_class(name: str, fields: tuple[tuple[str, str], ...] | None = None) -> type:
    """A class like those of rosidl: keywords, checked types, `array.array` for numbers."""
    kinds = {field: kind for kind, field in fields or FIELDS[name]}

    class Message:
        __slots__ = tuple(kinds)

        def __init__(self, **values: Any) -> None:
            assert set(values) <= set(kinds), f"{name} has no {set(values) - set(kinds)}"
            for field, kind in kinds.items():
                setattr(self, field, values.get(field, _default(kind)))

        def __setattr__(self, field: str, value: Any) -> None:
            kind = kinds[field]
            if kind in _CODES and isinstance(value, list):
                value = array.array(_CODES[kind], value)
            assert _fits(kind, value), f"{name}.{field} is a {kind}, and not {value!r}"
            object.__setattr__(self, field, value)

    Message.__name__ = Message.__qualname__ = name.rpartition("/")[2]
    Message.KIND = name  # type: ignore[attr-defined]
    for constant, value in _CONSTANTS.get(name, {}).items():
        setattr(Message, constant, value)
    return Message


def _default(kind: str) -> Any:
    if kind in _TYPES:
        return _TYPES[kind][1]
    if kind in _CODES:
        return array.array(_CODES[kind])
    return [] if kind.endswith("[]") else CLASSES[full_name(kind)]()


def _fits(kind: str, value: Any) -> bool:
    if kind in _TYPES:
        expected = _TYPES[kind][0]
        return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
    if kind in _CODES:
        return isinstance(value, array.array) and value.typecode == _CODES[kind]
    if kind.endswith("[]"):
        return isinstance(value, list) and all(_fits(kind[:-2], one) for one in value)
    return isinstance(value, CLASSES[full_name(kind)])


CLASSES: dict[str, Any] = {}
CLASSES.update({name: make_class(name) for name in FIELDS})


def plain(message: Any) -> Any:
    """A message as dictionaries, lists and numbers, whoever made it."""
    if isinstance(message, list):
        return [plain(one) for one in message]
    kind = getattr(message, "KIND", None) or getattr(message, "__msgtype__", None)
    if kind is None:
        return message.tolist() if hasattr(message, "tolist") else message
    return {field: plain(getattr(message, field)) for _, field in FIELDS[kind]}
