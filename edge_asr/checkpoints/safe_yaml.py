"""Settings of other people's checkpoints: YAML and JSON read as plain values, every key accounted for.

It loads with PyYAML's safe loader and limits on size and aliases. A loader takes what it knows from
`Settings`, which refuses what is left over.
What this file does not do: build Python objects from tags, resolve OmegaConf interpolations (`${...}` values
are refused where used).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from edge_asr.checkpoints.safe_archive import read_file
from edge_asr.errors import CheckpointError, require
from edge_asr.records import decode_json

MAX_BYTES = 32 << 20
"""A configuration with a vocabulary of 100 000 tokens has 3 MB."""

MAX_VALUES = 1_000_000
"""A YAML alias repeats what it names: a few lines can stand for billions of values."""

_MISSING = object()


def load_yaml(source: Path | bytes, where: str) -> dict[str, Any]:
    """A YAML mapping as plain values.

    Raises:
        CheckpointError: missing, too large, not YAML, tagged Python objects, aliases, or no mapping.
        MissingDependencyError: PyYAML is not installed.
    """
    return _mapping(parse_yaml(_read_text(source, where), where), where)


def parse_yaml(text: str, where: str) -> Any:
    """YAML text as plain values of any kind, None where it is empty.

    Raises:
        CheckpointError: not YAML, nested too deeply, tagged Python objects, or more values than
            `MAX_VALUES`, aliases counted.
        MissingDependencyError: PyYAML is not installed.
    """
    yaml = require("yaml", extra="export")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
        if node is not None and _count_values(node, where, {}) > MAX_VALUES:
            raise CheckpointError(f"{where} holds more than {MAX_VALUES} values, aliases counted")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where} cannot be read as plain YAML: {_first_line(error)}") from error


def load_json(source: Path | bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, too large, not JSON, or no object.
    """
    return _mapping(decode_json(_read_text(source, where), where, error=CheckpointError), where)


class Settings:
    """A mapping whose keys are taken one by one; `finish` refuses those that nobody took.

    Args:
        values: the mapping.
        where: what it is, for messages, such as "model_config.yaml: encoder".
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = dict(values)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def take(self, key: str, default: Any = _MISSING) -> Any:
        """The value of `key`, or the default.

        Raises:
            CheckpointError: absent without a default.
        """
        if key in self._values:
            return self._values.pop(key)
        if default is _MISSING:
            raise CheckpointError(f"{self.where} lacks {key!r}; the checkpoint is incomplete")
        return default

    def integer(self, key: str, default: Any = _MISSING) -> int:
        """A whole number (or the default as it is)."""
        value = self.take(key, default)
        if value is not default and (isinstance(value, bool) or not isinstance(value, int)):
            raise self.refusal(key, value, "a whole number")
        return cast(int, value)

    def number(self, key: str, default: Any = _MISSING) -> float:
        """A number (or the default as it is); YAML 1.1 reads 1e-5 as text, which is a number too."""
        value = self.take(key, default)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise self.refusal(key, value, "a number") from None
        if value is not default and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.refusal(key, value, "a number")
        return cast(float, value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; null is the default."""
        value = self.take(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.refusal(key, value, "true or false")
        return value

    def section(self, key: str, default: Any = _MISSING) -> Settings:
        """A nested mapping as `Settings`; null is an empty one where there is a default."""
        value = self.take(key, default)
        if value is None and default is not _MISSING:
            value = {}
        if not isinstance(value, Mapping):
            raise self.refusal(key, value, "a mapping")
        return Settings(value, f"{self.where}.{key}")

    def expect(self, key: str, allowed: Iterable[Any], default: Any = _MISSING) -> Any:
        """The value of `key`, which must be one of `allowed`.

        Raises:
            CheckpointError: another value; it says which are supported.
        """
        value = self.take(key, default)
        choices = list(allowed)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise self.refusal(key, value, " or ".join(repr(choice) for choice in choices))
        return value

    def ignore(self, *keys: str) -> None:
        """Keys that change nothing at inference; absent ones do not matter."""
        for key in keys:
            self._values.pop(key, None)

    def refusal(self, key: str, value: Any, supported: str) -> CheckpointError:
        """The error for a setting that is known but not supported."""
        return CheckpointError(f"{self.where}.{key} is {value!r}; edge-asr takes {supported}.")

    def finish(self) -> None:
        """All keys must have been taken.

        Raises:
            CheckpointError: some were not; it names them.
        """
        if self._values:
            left = ", ".join(repr(key) for key in sorted(map(str, self._values)))
            raise CheckpointError(
                f"{self.where} has the unknown setting {left}; a setting that edge-asr does not know may "
                "change the result, so this checkpoint is refused"
            )


def _read_text(source: Path | bytes, where: str) -> str:
    content = read_file(source, limit=MAX_BYTES, what=where) if isinstance(source, Path) else source
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{where} has {len(content)} bytes, more than {MAX_BYTES}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8 text ({error})") from error


def _count_values(node: Any, where: str, known: dict[int, int]) -> int:
    """Values below a YAML node, those behind aliases once for each alias; each node is walked once."""
    if not isinstance(node.value, list):
        return 1
    if id(node) not in known:
        known[id(node)] = -1
        children = [child for item in node.value for child in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_count_values(child, where, known) for child in children)
    if known[id(node)] < 0:
        raise CheckpointError(f"{where} has a value that contains itself (a YAML alias); no checkpoint has")
    return known[id(node)]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must hold a mapping, got {type(value).__name__}")
    return value


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
