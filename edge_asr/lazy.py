"""Package faces whose names are imported when first used, so that importing a package costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package: the package's `__name__`.
        homes: each public name, and the module below `package` (or, with dots, anywhere) that defines it.
    """
    public = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = home if home.startswith("edge_asr.") else f"{package}.{home}"
        return getattr(importlib.import_module(module), name)

    return load, lambda: list(public), public
