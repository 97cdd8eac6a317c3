"""Reads the training YAML into `TrainConfig`, and prints a commented default YAML.

An unknown key, or a value of the wrong type, is a `ConfigError` that names the key's full path.
Relative paths in the file are relative to the file. This file knows only the keys of paths by name.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from edge_asr.checkpoints.safe_archive import read_file
from edge_asr.checkpoints.safe_yaml import MAX_BYTES, parse_yaml
from edge_asr.errors import CheckpointError, ConfigError, require
from edge_asr.records import json_from_record, record_from_json
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
    require("yaml", extra="train")
    path = Path(path)
    try:
        text = read_file(path, limit=MAX_BYTES, what="a training config").decode("utf-8")
    except (OSError, UnicodeDecodeError, CheckpointError) as error:
        raise ConfigError(f"cannot read the training config {path}: {error}") from error
    data = parse_value(text, str(path))
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, got {type(data).__name__}")
    for dotted, value in (overrides or {}).items():
        _set_dotted(data, dotted, value)
    return resolve_paths(config_from_dict(data, str(path)), path.resolve().parent)


def parse_value(text: str, where: str) -> Any:
    """Plain values of YAML text.

    Raises:
        ConfigError: not YAML, or beyond the limits of `edge_asr.checkpoints.safe_yaml`.
    """
    try:
        return parse_yaml(text, where)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def config_from_dict(data: Any, where: str = "the training config") -> TrainConfig:
    """Build and validate a `TrainConfig`.

    Args:
        data: decoded YAML or JSON.
        where: how the file is called in errors.

    Raises:
        ConfigError: a key is unknown, or a value has a wrong type or is out of range.
    """
    return record_from_json(TrainConfig, data, where, yaml=True)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a dict ready for JSON and YAML; tuples become lists."""
    plain: dict[str, Any] = json_from_record(config)
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
        test=sources(config.data.test),
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
        if item.name in ("train", "dev"):  # examples; `test` is left empty
            lines.append(f"{pad}{item.name}:")
            example = SourceConfig(path=f"data/{item.name}.jsonl", name=item.name)
            body = _format_section(example, indent + 2)
            first_key = next(index for index, line in enumerate(body) if not line.lstrip().startswith("#"))
            body[first_key] = f"{pad}  - {body[first_key].lstrip()}"
            lines += body
            continue
        plain = json_from_record(value)
        text = yaml.safe_dump([plain], default_flow_style=True, width=1000).strip()[1:-1]
        lines.append(f"{pad}{item.name}: {text}")
    return lines
