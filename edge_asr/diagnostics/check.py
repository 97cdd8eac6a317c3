"""One line of the doctor's report, and the helpers that fill it in all areas.

What this file does not do: look at the machine, print.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

Status = Literal["ok", "missing", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was checked.
        status: "missing" is absent, and only some commands need it; "broken" is present but does not
            work.
        detail: what was found.
        fix: the command or advice for what is not ok; empty if it is.
        required: whether no sound file can be transcribed here without it.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""
    required: bool = False


def is_healthy(checks: Iterable[Check]) -> bool:
    """Tell whether nothing is broken and nothing required is missing."""
    return not any(c.status == "broken" or (c.required and c.status == "missing") for c in checks)


def first_line(text: str) -> str:
    """Return the first line that is not empty, or an empty string."""
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


def list_requirements(extra: str | None) -> list[str]:
    """List the distributions that edge-asr's metadata requires: always (None), or for an extra."""
    try:
        listed = metadata.requires("edge-asr") or []
    except metadata.PackageNotFoundError:
        return ["edge-asr"]
    names = []
    for requirement in listed:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and (marker.group(1) if marker else None) == extra:
            names.append(name.group())
    return names


def split_installed(distributions: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split distributions into "name version" of the installed ones, and names of the others."""
    installed, absent = [], []
    for name in distributions:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    return installed, absent
