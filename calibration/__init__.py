"""INT8: the calibration set, activation ranges, the choice of what to quantize, and the gate.

`quantize_bundle` adds INT8 to a bundle that exists; `edge_asr.export.export_bundle` makes it with the bundle.
Names are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_asr.calibration.int8 import Int8Options, Int8Result
    from edge_asr.calibration.pipeline import quantize_bundle
    from edge_asr.calibration.sensitivity import Budget

_HOMES = {"Budget": "sensitivity", "Int8Options": "int8", "Int8Result": "int8", "quantize_bundle": "pipeline"}

__all__ = ["Budget", "Int8Options", "Int8Result", "quantize_bundle"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
