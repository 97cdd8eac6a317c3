"""report.json, the truth about a bundle, and report.md, which is rendered from it and nothing else.

`edge-asr export` writes both; `edge-asr quantize` changes the JSON and renders it again.
What this file does not do: measure or judge anything.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_asr.bundle.names import REPORT_JSON, REPORT_MARKDOWN
from edge_asr.errors import BundleError
from edge_asr.markdown import markdown_document, markdown_table
from edge_asr.proof.cases import FAMILIES
from edge_asr.proof.compare import ProofStep, summarize_step
from edge_asr.proof.int8_report import int8_blocks, int8_decoder_line
from edge_asr.stream_geometry import StreamingGeometry

Record = Mapping[str, Any]
Block = str | list[str]
_LISTED_CLIPS = 8
_LISTED_PEAKS = 24


def read_report(folder: Path) -> dict[str, Any]:
    """Read report.json; an empty dict if there is none.

    Raises:
        BundleError: the file is not a JSON object.
    """
    path = folder / REPORT_JSON
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); export again, or delete the file") from error
    if not isinstance(report, dict):
        raise BundleError(f"{path} holds {type(report).__name__}, not an object; delete the file")
    return report


def write_report(folder: Path, report: Record) -> None:
    """Write report.json and report.md."""
    text = dump_report(report)
    (folder / REPORT_JSON).write_text(text, encoding="utf-8")
    # Rendered from the text, so that report.md can hold nothing that report.json lacks.
    (folder / REPORT_MARKDOWN).write_text(render_report(json.loads(text)), encoding="utf-8")


def dump_report(report: Record) -> str:
    """Format the text of report.json."""
    return json.dumps(report, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"


def file_sizes(folder: Path) -> dict[str, int]:
    """List the bytes of each file of a bundle, except the reports."""
    files = (p for p in sorted(folder.iterdir()) if p.is_file())
    return {p.name: p.stat().st_size for p in files if p.name not in (REPORT_JSON, REPORT_MARKDOWN)}


def step_to_dict(step: ProofStep) -> dict[str, Any]:
    """Convert a comparison to its form in report.json, a row per case, floats with four digits."""
    tolerance = dataclasses.asdict(step.tolerance)
    return {
        **summarize_step(step),
        "tolerance": {**tolerance, "text_families": list(step.tolerance.text_families)},
        "results": [
            {key: _round(value) for key, value in dataclasses.asdict(result).items()}
            for result in step.results
        ],
    }


def _round(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def render_report(report: Record) -> str:
    """Render report.md from the content of report.json; a section without data is left out."""
    return markdown_document(_blocks(report))


def _blocks(report: Record) -> Iterator[Block]:
    yield from _head(report)
    for step in report.get("steps", ()):
        yield from _step(step)
    if report.get("fp16"):
        yield from _fp16(report["fp16"])
    if report.get("timings_s"):
        yield "## Time"
        yield markdown_table(
            ("stage", "s"), [(stage, f"{seconds:.1f}") for stage, seconds in report["timings_s"].items()]
        )
    if report.get("operators"):
        exported, shipped = report["operators"]["exported"], report["operators"]["shipped"]
        names = {**shipped, **exported}
        yield "## Graph"
        yield markdown_table(
            ("operator", "exported", "shipped"),
            [(name, *(str(counts.get(name, 0)) for counts in (exported, shipped))) for name in names],
        )
    if report.get("versions"):
        yield "## Versions"
        yield ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    if report.get("int8"):
        yield from int8_blocks(report["int8"])
    if report.get("int8_stream"):
        yield from int8_blocks(report["int8_stream"], stream=True)
    if report.get("int8_decoder"):
        yield "# INT8, attention decoder"
        yield int8_decoder_line(report["int8_decoder"])


def _head(report: Record) -> Iterator[Block]:
    yield f"# Export of {report['name']}"
    verdict = "Verified" if report["verified"] else "NOT VERIFIED: a comparison failed"
    facts = []
    if "n_parameters" in report:
        facts.append(f"{report['n_parameters'] / 1e6:.2f} M parameters")
    if "weights" in report:
        size = report["sizes_bytes"].get("model.onnx", 0) / 1e6
        facts.append(
            f"weights stored as {report['weights']}, model.onnx {size:.2f} MB, opset {report['opset']}, "
            f"ir_version {report['ir_version']}"
        )
    yield " ".join([f"**{verdict}.**", *([", ".join(facts) + "."] if facts else [])])
    if "clips" in report:
        yield (
            f"Checkpoint: `{report['source'].get('checkpoint', '?')}`. Real clips: "
            f"{_list_names(report['clips'])}."
        )
    if report.get("steps"):
        yield [
            "Errors are absolute differences of log-probabilities (natural log) on valid frames.",
            "PyTorch runs every row alone and unpadded, in float64 where a float32 graph is judged.",
        ]
    if report.get("streaming"):
        yield f"Streaming: {StreamingGeometry.from_dict(report['streaming']).describe()}; stream.onnx."


def _list_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED_CLIPS} more" if len(names) > _LISTED_CLIPS else ""
    return ", ".join(names[:_LISTED_CLIPS]) + more


def _step(step: Record) -> Iterator[Block]:
    """Render one comparison, a row for each family of cases; report.json has a row for each case."""
    results = step["results"]
    yield f"## {step['reference']} -> {step['candidate']}: {'passed' if step['passed'] else 'FAILED'}"
    yield _asked(step["tolerance"])
    yield markdown_table(
        ("family", "cases", "max error", "mean error", "same text", "least frames agreeing", "worst case"),
        [
            _family_row(family, [row for row in results if row["family"] == family])
            for family in dict.fromkeys(row["family"] for row in results)
        ],
        "lrrrrrl",
    )
    worst = _worst(results)
    if step.get("rounding"):
        yield from _rounding(step["rounding"])
    yield f"Worst case: {worst['family']} / {worst['name']}, max error {_error(worst['max_error'])}."
    failed = [row for row in results if row["failure"] is not None]
    if failed:
        yield "Failed:"
        yield [f"- {row['family']} / {row['name']}: {row['failure']}" for row in failed]


def _rounding(rounding: Record) -> Iterator[Block]:
    """Render the three numbers of a proof against the float64 model."""
    own = (rounding["reference_max"], rounding["reference_rms"])
    given = (rounding["candidate_max"], rounding["candidate_rms"])
    yield markdown_table(
        ("log-prob error", "largest", "root mean square"),
        [
            (
                "PyTorch float32 to float64",
                *map(_error, own),
            ),
            ("ONNX to PyTorch float64", *map(_error, given)),
            ("ONNX to PyTorch float32", _error(rounding["difference_max"]), "-"),
        ],
        "lrr",
    )


def _asked(tolerance: Record) -> str:
    """Say in a sentence what a step had to pass."""
    families = tuple(tolerance["text_families"])
    if "max_factor" in tolerance:
        return (
            f"Asked: log-prob error to the float64 model at most {tolerance['max_factor']:g} times PyTorch "
            f"float32's own, root mean square at most {tolerance['rms_factor']:g} times, never above "
            f"{tolerance['ceiling']:.0e}; identical greedy text but for ties within the rounding."
        )
    bar = tolerance["max_error"]
    on = "all cases" if families == FAMILIES else ", ".join(families)
    asked = ["finite values"]
    if bar is not None:
        asked.append(f"log-prob error at most {bar:.0e}")
    if families:
        asked.append(f"identical greedy text on {on}")
    if margin := tolerance.get("text_margin"):
        asked[-1] += f" but for tokens that lead by at most {margin:g}"
    rest = "" if bar is not None and families == FAMILIES else " The rest is only reported."
    return f"Asked: {', '.join(asked)}.{rest}"


def _family_row(family: str, rows: Sequence[Record]) -> tuple[str, ...]:
    worst = _worst(rows)
    means = [row["mean_error"] for row in rows if row["mean_error"] is not None]
    return (
        family,
        str(len(rows)),
        _error(worst["max_error"]),
        _error(sum(means) / len(means) if means else None),
        f"{sum(row['same_text'] for row in rows)}/{len(rows)}",
        f"{min(row['frame_agreement'] or 0.0 for row in rows):.4f}",
        worst["name"],
    )


def _worst(rows: Sequence[Record]) -> Record:
    """Find the row with the largest error; one that could not be compared is worse than any."""
    return max(rows, key=lambda row: math.inf if row["max_error"] is None else row["max_error"])


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _fp16(proof: Record) -> Iterator[Block]:
    yield f"## FP16: {'passed' if proof['passed'] else 'FAILED'}"
    yield (
        "Made without a GPU. onnxruntime's CPU provider computes FP16 files in float32, so the first run "
        "below is that graph with every FP16 value rounded to half where it is computed (sums inside "
        "a node in float32); the proof on a GPU is the engine's."
    )
    yield markdown_table(
        ("run", "cases", "frames agreeing (pooled)", "asked", "max error", "mean error", "cases failed"),
        [
            (
                run["candidate"],
                str(run["n_cases"]),
                f"{run['pooled_agreement']:.5f}",
                f"{proof['min_agreement']:.3f}",
                _error(run["max_log_prob_error"]),
                _error(run["mean_log_prob_error"]),
                str(run["n_failed"]),
            )
            for run in (proof["rounded"], proof["shipped"])
        ],
    )
    yield (
        f"Largest magnitudes of {len(proof['peaks'])} FP16 values in a float32 run over {proof['n_clips']} "
        f"inputs: speech ({proof['n_calibration_clips']} clips of the calibration set), full-scale noise, "
        f"silence, padded batches. Asked: below {proof['peak_limit']:g}, a quarter of half's range. Masked "
        "attention scores lie near 1e4, the mask. The largest are listed; report.json has all."
    )
    yield markdown_table(
        ("value", "largest magnitude"),
        [
            (f"`{name}`", "not finite" if peak is None else f"{peak:.4g}")
            for name, peak in list(proof["peaks"].items())[:_LISTED_PEAKS]
        ],
    )
    if proof.get("failure"):
        yield f"Failed: {proof['failure']}."
