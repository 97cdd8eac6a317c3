"""The proof of an INT8 graph."""

from __future__ import annotations

from edge_asr.proof.compare import Tolerance

#: What INT8 may lose is its budget's affair; a case fails only on an error, NaN or a wrong shape.
INT8_TOLERANCE = Tolerance(max_error=None, text_families=())
