"""Reads the training YAML into `TrainConfig`, and prints a commented default YAML.

An unknown key, or a value of the wrong type, is a `ConfigError` that names the key's full path.
Relative paths in the file are relative to the file. This file knows only the keys of paths by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

from edge_asr.errors import ConfigError, require
from edge_asr.training.config import SourceConfig, TrainConfig


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read one YAML file.

    Args:
        path: the YAML file.
        overrides: dotted key -> value, applied on top, e.g. {"optim.lr": 5e-4}.

    Raises:
        ConfigError: the file is not readable or not YAML, or holds an unknown key, a wrong type or a value
            out of range.
    """
    yaml = require("yaml", extra="train")
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the training config {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(data).__name__}")
    for dotted, value in (overrides or {}).items():
        _set_dotted(data, dotted, value)
    return resolve_paths(config_from_dict(data), path.resolve().parent)


def config_from_dict(data: dict[str, Any]) -> TrainConfig:
    """Build and validate a `TrainConfig`.

    Raises:
        ConfigError: a key is unknown, or a value has a wrong type or is out of range.
    """
    config = _build(TrainConfig, data, "")
    assert isinstance(config, TrainConfig)
    return config


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a dict ready for JSON and YAML; tuples become lists."""
    plain = _plain(dataclasses.asdict(config))
    assert isinstance(plain, dict)
    return plain


def dump_config(config: TrainConfig) -> str:
    """Format the configuration as YAML, without comments."""
    yaml = require("yaml", extra="train")
    return str(yaml.safe_dump(config_to_dict(config), sort_keys=False))


def format_default_config() -> str:
    """Format the default configuration as YAML, every key with its docstring line as a comment."""
    example = TrainConfig()
    lines = [f"# {_summary(TrainConfig)}"]
    lines += _format_section(example, indent=0)
    return "\n".join(lines) + "\n"


def resolve_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """Make every path of `config` absolute, relative ones against `folder`."""

    def absolute(path: str) -> str:
        return str((folder / Path(path).expanduser()).resolve())

    def sources(items: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        return tuple(dataclasses.replace(item, path=absolute(item.path)) for item in items)

    data = dataclasses.replace(
        config.data,
        train=sources(config.data.train),
        dev=sources(config.data.dev),
        cache_dir=None if config.data.cache_dir is None else absolute(config.data.cache_dir),
    )
    augment = config.augment
    if augment.noise_manifest is not None:
        augment = dataclasses.replace(augment, noise_manifest=absolute(augment.noise_manifest))
    optim = config.optim
    if optim.flat_start_alignments is not None:
        optim = dataclasses.replace(optim, flat_start_alignments=absolute(optim.flat_start_alignments))
    distillation = config.distillation
    if distillation.posteriors is not None:
        distillation = dataclasses.replace(distillation, posteriors=absolute(distillation.posteriors))
    tokenizer = config.tokenizer
    if tokenizer.extra_text is not None:
        tokenizer = dataclasses.replace(tokenizer, extra_text=absolute(tokenizer.extra_text))
    init_from = config.init_from
    # A bare name such as tiny-en means an embedded checkpoint, unless such a path exists.
    if init_from is not None and ("/" in init_from or (folder / init_from).exists()):
        init_from = absolute(init_from)
    return dataclasses.replace(
        config,
        run_dir=absolute(config.run_dir),
        data=data,
        augment=augment,
        tokenizer=tokenizer,
        optim=optim,
        distillation=distillation,
        init_from=init_from,
    )


def _set_dotted(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for parent in parents:
        child = data.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"cannot set {dotted}: {parent} is not a section")
        data = child
    data[last] = value


def _build(cls: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ConfigError(f"{path or 'the config'} must be a mapping of keys, got {data!r}")
    hints = typing.get_type_hints(cls)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1, cutoff=0.0)
            raise ConfigError(
                f"unknown key {_join(path, str(key))}; the nearest known key is {_join(path, near[0])}"
            )
    values = {key: _coerce(hints[key], value, _join(path, key)) for key, value in data.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise ConfigError(f"{path or 'the config'}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def _coerce(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _coerce(next(arg for arg in args if arg is not types.NoneType), value, path)
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} must be a list, got {value!r}")
        return tuple(_coerce(args[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{path} must be a mapping of keys, got {value!r}")
        return dict(value)
    return _coerce_scalar(hint, value, path)


def _coerce_scalar(hint: type, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string.
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{path} must be {hint.__name__}, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def describe_keys(cls: type) -> dict[str, str]:
    """Map keys to their meaning, read from `key: meaning` lines of a docstring (may be continued)."""
    names = {item.name for item in dataclasses.fields(cls)}
    found: dict[str, str] = {}
    current = None
    for line in (inspect.getdoc(cls) or "").splitlines()[1:]:
        match = re.match(r"(\w+): (.*)", line)
        if match and match[1] in names:
            current = match[1]
            found[current] = match[2]
        elif current and line.startswith(" "):
            found[current] += " " + line.strip()
    return found


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").splitlines()[0]


def _format_section(section: Any, indent: int) -> list[str]:
    yaml = require("yaml", extra="train")
    pad, lines = "  " * indent, []
    docs = describe_keys(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            lines += ["", f"{pad}# {_summary(type(value))}", f"{pad}{item.name}:"]
            lines += _format_section(value, indent + 1)
            continue
        lines.append(f"{pad}# {docs[item.name]}")
        if item.name in ("train", "dev"):
            lines.append(f"{pad}{item.name}:")
            example = SourceConfig(path=f"data/{item.name}.jsonl", name=item.name)
            body = _format_section(example, indent + 2)
            first_key = next(index for index, line in enumerate(body) if not line.lstrip().startswith("#"))
            body[first_key] = f"{pad}  - {body[first_key].lstrip()}"
            lines += body
            continue
        plain = _plain(value)
        text = yaml.safe_dump([plain], default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{pad}{item.name}: {text}")
    return lines
