"""Formats an acceptance run as Markdown.

What this file does not do: measure or judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_asr.markdown import markdown_table

_HEADINGS = {
    "audio_s": "audio s",
    "median_ms": "median ms",
    "p90_ms": "p90 ms",
    "min_ms": "min ms",
    "rtfx": "RTFx",
    "times_faster": "× torch eager fp32",
    "max_log_prob_error": "max log-prob error",
    "first_failure": "first failure",
    "build_s": "build s",
    "cpu_s": "processor s",
    "n_streams": "streams",
    "at_once": "streams in real time",
    "plan_mb": "plan MB",
}


def markdown(result: Mapping[str, Any]) -> str:
    """Format the whole run: machine, verdict, then each section."""
    machine = result["machine"]
    lines = [f"# GPU acceptance: {machine['name']}", ""]
    if result["rehearsal"]:
        lines += [
            "**A REHEARSAL ON A CPU. Nothing here says anything about a GPU: onnxruntime's CPU provider "
            "stands for CUDA, PyTorch ran on the CPU, engines were built and not run.**",
            "",
        ]
    verdict = f"Verdict: **{result['verdict']}**, {result['sections_ran']}."
    lines += [f"{verdict} {machine['date']}, {result['seconds']:.0f} s.", ""]
    lines += ["## Machine", ""]
    lines += [f"- {check['name']}: {check['detail']} ({check['status']})" for check in machine["doctor"]]
    lines += [f"- clocks and power, before: {machine['gpu_before'] or 'nvidia-smi does not tell'}"]
    lines += [f"- clocks and power, after: {machine['gpu_after'] or 'nvidia-smi does not tell'}"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines += [f"- versions: {versions}", f"- processor: {machine['cpu']}", ""]
    lines += [
        f"Bundle {result['bundle']}; {result['settings']['warm_up']} calls to warm up, then the median of "
        f"{result['settings']['rounds']}, from features in host memory to log-probs in host memory; runners "
        "of a table take turns. RTFx is seconds of audio a second. onnxruntime's CUDA provider and PyTorch's "
        "convolutions may use TF32 for fp32; the fp32 engine does not.",
        "",
    ]
    for section in result["sections"]:
        lines += _section(section)
    return "\n".join(lines) + "\n"


def _section(section: Mapping[str, Any]) -> list[str]:
    lines = [f"## {section['name']}: {section['status']}", ""]
    if section["why"]:
        lines += [section["why"], ""]
    for check in section["gates"]:
        verdict = "passed" if check["passed"] else "**FAILED**"
        lines.append(f"- {verdict}: {check['what']} ({_cell(check['value'])}; bar {_cell(check['limit'])})")
    if section["gates"]:
        lines.append("")
    for key in ("build", "rows"):
        lines += _table(section.get(key) or [])
    return lines


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    columns = [_HEADINGS.get(name, name) for name in rows[0]]
    cells = [[_cell(row[name]) for name in rows[0]] for row in rows]
    return [*markdown_table(columns, cells, "l" * len(columns)), ""]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
