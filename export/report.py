"""What an export did, as data, as report.json and as report.md.

One row a case goes into report.json; report.md groups them by family and names the worst. Nothing
is measured here.
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

from edge_asr.bundle.names import REPORT_JSON, REPORT_MARKDOWN
from edge_asr.calibration.report import Int8Section
from edge_asr.proof.cases import FAMILIES
from edge_asr.proof.compare import CaseResult, ProofStep, summarize_step
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
        verified: every comparison passed.
        source: the checkpoint: path and provenance.
        n_parameters: trained parameters.
        weights: how they are stored, "fp32" or "fp16".
        opset, ir_version: of the ONNX file.
        sizes_bytes: by file of the bundle, the reports left out.
        operators: node counts of the graph as exported and as shipped.
        clips: names of the real clips of the proof.
        steps: the comparisons, in order.
        timings_s: seconds by stage, in order, and `total`; the final flush to disk is not in it.
        versions: of the packages and the platform.
        fp16, int8: what was found about these precisions, for a bundle that has them.
        streaming: geometry of stream.onnx, for a bundle that has one.
        not_streaming: why a model of limited context has none.
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
    int8: Int8Section | None = None
    streaming: StreamingGeometry | None = None
    not_streaming: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; every case is one row of its step."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        data["output"] = str(self.output)
        data["source"] = dict(self.source)
        data["clips"] = list(self.clips)
        data["steps"] = [
            {
                **summarize_step(step),
                "tolerance": {
                    "max_error": step.tolerance.max_error,
                    "text_families": list(step.tolerance.text_families),
                },
                "results": [
                    {key: _round(value) for key, value in dataclasses.asdict(result).items()}
                    for result in step.results
                ],
            }
            for step in self.steps
        ]
        data["fp16"] = None if self.fp16 is None else self.fp16.to_dict()
        data["int8"] = None if self.int8 is None else dict(self.int8.data)
        data["streaming"] = None if self.streaming is None else self.streaming.to_dict()
        data["timings_s"] = {stage: round(seconds, 3) for stage, seconds in self.timings_s.items()}
        return data

    def to_json(self) -> str:
        """report.json: `to_dict` without the path of this machine."""
        data = {**self.to_dict(), "output": self.output.name}
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """report.md."""
        size = self.sizes_bytes.get("model.onnx", 0) / 1e6
        lines = [
            f"# Export of {self.name}",
            "",
            f"**{'Verified' if self.verified else 'NOT VERIFIED: a comparison failed'}.** "
            f"{self.n_parameters / 1e6:.2f} M parameters, weights stored as {self.weights}, "
            f"model.onnx {size:.2f} MB, opset {self.opset}, ir_version {self.ir_version}.",
            "",
            f"Checkpoint: `{self.source.get('checkpoint', '?')}`. Real clips: {_list_names(self.clips)}.",
            "",
            "Errors are absolute differences of log-probabilities (natural log) on valid frames.",
            "PyTorch runs every row alone and unpadded.",
        ]
        if self.streaming is not None:
            lines += ["", f"Streaming: {self.streaming.describe()}; stream.onnx."]
        for step in self.steps:
            lines += ["", *_step_lines(step)]
        if self.fp16 is not None:
            lines += ["", *self.fp16.markdown_lines()]
        lines += ["", "## Time", "", "| stage | s |", "|---|---:|"]
        lines += [f"| {stage} | {seconds:.1f} |" for stage, seconds in self.timings_s.items()]
        lines += ["", "## Graph", "", "| operator | exported | shipped |", "|---|---:|---:|"]
        exported, shipped = self.operators["exported"], self.operators["shipped"]
        for operator in {**shipped, **exported}:
            lines.append(f"| {operator} | {exported.get(operator, 0)} | {shipped.get(operator, 0)} |")
        lines += ["", "## Versions", "", ", ".join(f"{k} {v}" for k, v in self.versions.items()), ""]
        if self.int8 is not None:
            lines += self.int8.markdown
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Write both files into `folder`."""
        (folder / REPORT_JSON).write_text(self.to_json(), encoding="utf-8")
        (folder / REPORT_MARKDOWN).write_text(self.to_markdown(), encoding="utf-8")


def collect_versions() -> dict[str, str]:
    """Versions of what an export depends on, and the platform."""
    versions = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for package in _VERSIONED:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _step_lines(step: ProofStep) -> list[str]:
    bar = step.tolerance.max_error
    families = step.tolerance.text_families
    on = "all cases" if families == FAMILIES else ", ".join(families)
    asked = ["finite values"]
    if bar is not None:
        relative = step.tolerance.max_relative_error
        asked.append(f"log-prob error at most {bar:.0e} ({relative:.0e} of the value where that is more)")
    asked += [f"identical greedy text on {on}"] if families else []
    rest = "" if bar is not None and families == FAMILIES else " The rest is only reported."
    lines = [
        f"## {step.name}: {'passed' if step.passed else 'FAILED'}",
        "",
        f"Asked: {', '.join(asked)}.{rest}",
        "",
        "| family | cases | max error | mean error | same text | least frames agreeing | worst case |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for family in dict.fromkeys(r.family for r in step.results):
        lines.append(_family_line(family, [r for r in step.results if r.family == family]))
    worst = step.worst
    lines += ["", f"Worst case: {worst.family} / {worst.name}, max error {_error(worst.max_error)}."]
    if step.failures:
        lines += ["", "Failed:", ""]
        lines += [f"- {r.family} / {r.name}: {r.failure}" for r in step.failures]
    return lines


def _family_line(family: str, rows: list[CaseResult]) -> str:
    worst = max(rows, key=lambda r: float("inf") if r.max_error is None else r.max_error)
    means = [r.mean_error for r in rows if r.mean_error is not None]
    mean = _error(sum(means) / len(means) if means else None)
    same = sum(r.same_text for r in rows)
    agreement = min((r.frame_agreement or 0.0 for r in rows), default=0.0)
    return (
        f"| {family} | {len(rows)} | {_error(worst.max_error)} | {mean} | {same}/{len(rows)} "
        f"| {agreement:.4f} | {worst.name} |"
    )


def _list_names(names: tuple[str, ...], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _round(value: Any) -> Any:
    """Four significant digits of a float; anything else as it is."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"
