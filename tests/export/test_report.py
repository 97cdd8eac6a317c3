"""report.json is strict JSON with a row a case; report.md names the worst case and the failures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.calibration.proof import INT8_TOLERANCE
from edge_asr.errors import BundleError
from edge_asr.export.float32 import FP16_WEIGHTS_TOLERANCE
from edge_asr.export.report import ExportReport, collect_versions
from edge_asr.proof.compare import CaseResult, ProofStep, Rounding, RoundingBar, Tolerance, summarize_step
from edge_asr.proof.report import read_report, render_report


def make_result(
    name: str, error: float | None, failure: str | None = None, family: str = "real"
) -> CaseResult:
    return CaseResult(
        family=family,
        name=name,
        batch=1,
        max_frames=10,
        max_error=error,
        mean_error=None if error is None else error / 4,
        rms_error=None if error is None else error / 2,
        frame_agreement=None if error is None else 1.0,
        same_text=failure is None,
        failure=failure,
    )


def make_report(*results: CaseResult) -> ExportReport:
    step = ProofStep(reference="PyTorch", candidate="ONNX", tolerance=RoundingBar(), results=results)
    return ExportReport(
        name="tiny",
        output=Path("out"),
        verified=step.passed,
        source={"checkpoint": "best", "provenance": {}},
        n_parameters=5_300_000,
        weights="fp32",
        opset=18,
        ir_version=10,
        sizes_bytes={"model.onnx": 21_200_000},
        operators={"exported": {"MatMul": 3, "Add": 2}, "shipped": {"MatMul": 3}},
        clips=tuple(f"clip{i}.wav" for i in range(12)),
        steps=(step,),
        timings_s={"export": 1.23456, "total": 2.0},
        versions=collect_versions(),
    )


def test_json_has_one_row_a_case_and_no_nan() -> None:
    report = make_report(make_result("a", 1e-6), make_result("b", None, "the output holds NaN or infinity"))
    data = json.loads(report.to_json(), parse_constant=lambda name: 1 / 0)
    (step,) = data["steps"]
    assert [row["name"] for row in step["results"]] == ["a", "b"]
    assert (step["n_cases"], step["n_failed"], step["passed"]) == (2, 1, False)
    assert data["timings_s"]["export"] == 1.235


def test_markdown_groups_families_and_names_the_worst() -> None:
    text = make_report(
        make_result("a", 1e-6),
        make_result("17 frames", 3e-5, family="subsampling_edge"),
        make_result("c", 2e-6),
    ).to_markdown()
    assert "**Verified.** 5.30 M parameters" in text
    assert "| real | 2 | 2.00e-06 |" in text
    assert "Worst case: subsampling_edge / 17 frames, max error 3.00e-05." in text
    assert "clip7.wav and 4 more" in text
    assert "| MatMul | 3 | 3 |" in text
    assert "| Add | 2 | 0 |" in text


@pytest.mark.parametrize(
    ("tolerance", "asked"),
    [
        (
            RoundingBar(),
            "Asked: log-prob error to the float64 model at most 4 times PyTorch float32's own, root mean "
            "square at most 2 times, never above 1e-03; identical greedy text but for ties within the "
            "rounding.",
        ),
        (
            Tolerance(max_error=1e-4),
            "Asked: finite values, log-prob error at most 1e-04, identical greedy text on all cases.",
        ),
        (
            FP16_WEIGHTS_TOLERANCE,
            "Asked: finite values, identical greedy text on real but for tokens that lead by at most 0.04. "
            "The rest is only reported.",
        ),
        (INT8_TOLERANCE, "Asked: finite values. The rest is only reported."),
    ],
)
def test_markdown_says_what_was_asked(tolerance: Tolerance | RoundingBar, asked: str) -> None:
    report = make_report(make_result("a", 1e-6))
    step = dataclasses.replace(report.steps[0], tolerance=tolerance)
    assert asked in dataclasses.replace(report, steps=(step,)).to_markdown().splitlines()


def test_the_three_numbers_of_a_float32_proof_are_shown() -> None:
    report = make_report(make_result("a", 1e-6))
    rounding = Rounding(
        reference_max=2e-5, reference_rms=3e-6, candidate_max=4e-5, candidate_rms=5e-6, difference_max=6e-5
    )
    step = dataclasses.replace(report.steps[0], rounding=rounding)
    report = dataclasses.replace(report, steps=(step,))
    lines = report.to_markdown().splitlines()
    assert "| PyTorch float32 to float64 | 2.00e-05 | 3.00e-06 |" in lines
    assert "| ONNX to PyTorch float64 | 4.00e-05 | 5.00e-06 |" in lines
    assert "| ONNX to PyTorch float32 | 6.00e-05 | - |" in lines
    assert json.loads(report.to_json())["steps"][0]["rounding"]["difference_max"] == 6e-5


def test_markdown_of_a_failed_proof_says_so_and_lists_failures() -> None:
    text = make_report(make_result("a", 1e-6), make_result("b", None, "BackendError: boom")).to_markdown()
    assert "**NOT VERIFIED" in text
    assert "- real / b: BackendError: boom" in text
    assert "Worst case: real / b, max error -." in text


def test_markdown_comes_from_the_json_alone(tmp_path: Path) -> None:
    report = make_report(make_result("a", 1e-6))
    report.write(tmp_path)
    data = read_report(tmp_path)
    assert data == json.loads(report.to_json())
    assert (tmp_path / "report.md").read_text() == render_report(data) == report.to_markdown()


def test_the_embedded_report_is_rendered_from_its_json() -> None:
    """Steps, FP16-stored weights and INT8 of a real bundle; whoever changes the words renders it again."""
    folder = EMBEDDED_MODELS / "tiny-en" / "bundle"
    assert (folder / "report.md").read_text(encoding="utf-8") == render_report(read_report(folder))


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    """A bundle of other tools has no report.json, and gets one when it is quantized."""
    assert read_report(tmp_path) == {}
    assert render_report({"name": "tiny", "verified": True}) == "# Export of tiny\n\n**Verified.**\n"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_report_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(BundleError, match=r"report\.json"):
        read_report(tmp_path)


def test_summary_counts_and_ranks() -> None:
    (step,) = make_report(make_result("a", 1e-6), make_result("b", 4e-6)).steps
    summary = summarize_step(step)
    assert (summary["max_log_prob_error"], summary["worst_case"]) == (4e-6, "real / b")
    assert summary["mean_log_prob_error"] == (0.25e-6 + 1e-6) / 2


def test_versions_name_what_numbers_depend_on() -> None:
    assert {"python", "torch", "onnx", "onnxsim", "onnxscript", "numpy"} <= collect_versions().keys()
