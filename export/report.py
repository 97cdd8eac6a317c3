"""The record of an export, which `export_bundle` returns and which becomes report.json.

What this file does not do: measure anything, render report.md (edge_asr.proof.report).
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_asr.proof.compare import ProofStep
from edge_asr.proof.report import dump_report, render_report, step_to_dict, write_report
from edge_asr.stream_geometry import StreamingGeometry

if TYPE_CHECKING:
    from edge_asr.export.fp16.proof import Fp16Proof

_VERSIONED = ("torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """The result of an export.

    Attributes:
        name: short name of the model.
        output: the folder that was written.
        verified: whether every comparison passed.
        source: path and provenance of the checkpoint.
        n_parameters: trained parameters.
        weights: how they are stored, "fp32" or "fp16".
        opset, ir_version: those of the ONNX file.
        sizes_bytes: size of each file of the bundle, except the reports.
        operators: node counts of the exported and of the shipped graph.
        clips: names of the real clips of the proof.
        steps: the comparisons, in order.
        timings_s: seconds by stage, in order, and `total`; the final flush to disk is not in it.
        versions: those of the packages and the platform.
        fp16, int8, int8_stream, int8_decoder: what was found about these precisions, where they were asked
            for; INT8 as JSON, `int8_stream` that of stream.int8.onnx, `int8_decoder` of decoder.int8.onnx.
        streaming: geometry of stream.onnx, for a bundle that has one.
        not_streaming: why a model of limited context has no stream.onnx.
    """

    name: str
    output: Path
    verified: bool
    source: Mapping[str, Any]
    n_parameters: int
    weights: str
    opset: int
    ir_version: int
    sizes_bytes: Mapping[str, int]
    operators: Mapping[str, Mapping[str, int]]
    clips: tuple[str, ...]
    steps: tuple[ProofStep, ...]
    timings_s: Mapping[str, float]
    versions: Mapping[str, str]
    fp16: Fp16Proof | None = None
    int8: Mapping[str, Any] | None = None
    int8_stream: Mapping[str, Any] | None = None
    int8_decoder: Mapping[str, Any] | None = None
    streaming: StreamingGeometry | None = None
    not_streaming: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; every case is one row of its step."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["output"] = str(self.output)
        data["source"] = dict(self.source)
        data["clips"] = list(self.clips)
        data["steps"] = [step_to_dict(step) for step in self.steps]
        data["fp16"] = None if self.fp16 is None else self.fp16.to_dict()
        for name in ("int8", "int8_stream", "int8_decoder"):
            data[name] = None if data[name] is None else dict(data[name])
        if self.int8_decoder is None:
            del data["int8_decoder"]
        data["streaming"] = None if self.streaming is None else self.streaming.to_dict()
        data["timings_s"] = {stage: round(seconds, 3) for stage, seconds in self.timings_s.items()}
        return data

    def to_json(self) -> str:
        """Format report.json: `to_dict` without the path of this machine."""
        return dump_report({**self.to_dict(), "output": self.output.name})

    def to_markdown(self) -> str:
        """report.md."""
        return render_report(json.loads(self.to_json()))

    def write(self, folder: Path) -> None:
        """Write both files into `folder`."""
        write_report(folder, json.loads(self.to_json()))


def collect_versions() -> dict[str, str]:
    """Collect the versions of what an export depends on, and the platform."""
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
