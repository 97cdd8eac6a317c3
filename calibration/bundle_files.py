"""INT8 in a bundle folder: its model file, its plot, and its section of the reports."""

from __future__ import annotations

import json
from pathlib import Path

from edge_asr.bundle.manifest import Artifact
from edge_asr.bundle.names import PLOT_NAME, REPORT_JSON, REPORT_MARKDOWN
from edge_asr.bundle.writer import write_cpu_graph, write_model
from edge_asr.calibration.int8 import Int8Result
from edge_asr.calibration.report import (
    SECTION,
    Int8Section,
    int8_markdown_lines,
    int8_summary_lines,
    write_plot,
)


def write_int8(folder: Path, result: Int8Result, float32_bytes: int) -> Artifact:
    """Write model.int8.onnx, its copy for the CPU and the plot, and describe the model."""
    write_plot(result, float32_bytes, folder / PLOT_NAME)
    return write_model(
        folder,
        result.model,
        "int8",
        "int8",
        cpu_time_over_fp32=result.time_ratio,
        cpu_graph=None if result.cpu_graph is None else write_cpu_graph(folder, result.cpu_graph),
    )


def describe_int8(result: Int8Result, float32_bytes: int) -> Int8Section:
    """The section for a report that is being made."""
    return Int8Section(
        data=result.to_dict(),
        markdown=tuple(int8_markdown_lines(result, float32_bytes)),
        summary=tuple(int8_summary_lines(result)),
    )


def replace_section(folder: Path, section: Int8Section) -> None:
    """Put the section into the reports that a bundle folder has, in place of an earlier one."""
    path = folder / REPORT_JSON
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    data["int8"] = dict(section.data)
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
    path = folder / REPORT_MARKDOWN
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before = f"\n{text}".split(f"\n{SECTION}\n")[0].strip("\n")
    path.write_text("\n".join([before, "", *section.markdown]).lstrip("\n"), encoding="utf-8")
