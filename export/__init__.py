"""edge_asr.export: a PyTorch checkpoint becomes a proven bundle.

It needs the extra `export` (torch, onnx, onnxscript, onnxsim) and onnxruntime. Names are imported when first
used, so importing this package needs none of these.
"""

from typing import TYPE_CHECKING

from edge_asr.lazy import lazy_names

if TYPE_CHECKING:
    from edge_asr.export.pipeline import export_bundle as export_bundle
    from edge_asr.export.report import ExportReport as ExportReport
    from edge_asr.export.streaming.plan import StreamingOptions as StreamingOptions
    from edge_asr.proof.cases import CasePlan as CasePlan
    from edge_asr.proof.cases import ProofCase as ProofCase
    from edge_asr.proof.cases import build_cases as build_cases
    from edge_asr.proof.compare import ProofStep as ProofStep
    from edge_asr.proof.compare import Tolerance as Tolerance
    from edge_asr.proof.compare import compare_outputs as compare_outputs
    from edge_asr.proof.compare import run_cases as run_cases

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CasePlan": "edge_asr.proof.cases",
        "ExportReport": "report",
        "ProofCase": "edge_asr.proof.cases",
        "ProofStep": "edge_asr.proof.compare",
        "StreamingOptions": "streaming.plan",
        "Tolerance": "edge_asr.proof.compare",
        "build_cases": "edge_asr.proof.cases",
        "compare_outputs": "edge_asr.proof.compare",
        "export_bundle": "pipeline",
        "run_cases": "edge_asr.proof.compare",
    },
)
