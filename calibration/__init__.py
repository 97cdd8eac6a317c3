"""INT8: the calibration set, activation ranges, the choice of what to quantize, and the gate.

`quantize_bundle` adds INT8 to an existing bundle; `edge_asr.export.export_bundle` makes it with the bundle.
Names are imported when first used.
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.calibration.int8 import Int8Options as Int8Options
    from edge_asr.calibration.int8 import Int8Result as Int8Result
    from edge_asr.calibration.pipeline import quantize_bundle as quantize_bundle
    from edge_asr.calibration.sensitivity import Budget as Budget

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {"Budget": "sensitivity", "Int8Options": "int8", "Int8Result": "int8", "quantize_bundle": "pipeline"},
)
