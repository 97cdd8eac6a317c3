"""edge_asr.export: a PyTorch checkpoint becomes a proven bundle.

Needs the extra `export` (torch, onnx, onnxscript, onnxsim) and onnxruntime; importing this package
needs none of them.
"""

from edge_asr.export.pipeline import export_bundle
from edge_asr.export.proof import ProofStep, Tolerance, compare_outputs, run_cases
from edge_asr.export.proof_cases import CasePlan, ProofCase, build_cases
from edge_asr.export.report import ExportReport
from edge_asr.export.streaming_plan import StreamingOptions

__all__ = [
    "CasePlan",
    "ExportReport",
    "ProofCase",
    "ProofStep",
    "StreamingOptions",
    "Tolerance",
    "build_cases",
    "compare_outputs",
    "export_bundle",
    "run_cases",
]
