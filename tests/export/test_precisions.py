"""An export in all precisions at once: every file, every section of the report; or nothing at its place."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration import Budget, Int8Options, sensitivity
from edge_asr.calibration.measure import time_graphs
from edge_asr.errors import BundleError, GateError
from edge_asr.export import ExportReport, export_bundle
from edge_asr.export.fp16 import proof as fp16_proof
from edge_asr.proof.int8_report import int8_summary_lines
from edge_asr.runtime.recognizer import Recognizer

pytestmark = pytest.mark.slow  # exports or trains

Arguments = Callable[..., dict[str, Any]]
# Random weights: what is lost means nothing, so anything may be.
ANYTHING = Int8Options(minutes=1.0, range_method="minmax", budget=Budget(max_wer_loss=1.0, min_agreement=0.0))


@pytest.fixture(autouse=True)
def suited_to_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn of timing in place of fifteen; and frames nearly tied, where rounding to half may decide."""
    monkeypatch.setattr(sensitivity, "time_graphs", functools.partial(time_graphs, repeats=1))
    lenient = functools.partial(fp16_proof.prove_fp16, min_agreement=0.9)
    monkeypatch.setattr(fp16_proof, "prove_fp16", lenient)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def export(
    export_arguments: Arguments, folder: Path, int8: Int8Options = ANYTHING, **changes: Any
) -> ExportReport:
    return export_bundle(
        **export_arguments(folder, precisions=("fp32", "fp16", "int8"), int8=int8, **changes)
    )


@pytest.fixture
def bundle(quick_export: None, tmp_path: Path, export_arguments: Arguments) -> Bundle:
    """Made in all precisions."""
    report = export(export_arguments, tmp_path / "bundle")
    assert report.int8 is not None
    assert int8_summary_lines(report.int8)[0].startswith("INT8: calibrated on the embedded, synthetic speech")
    return Bundle.load(tmp_path / "bundle")


def test_all_precisions_are_there_proven_and_run(bundle: Bundle, clip_path: Path) -> None:
    assert [artifact.precision for artifact in bundle.info.artifacts] == ["fp32", "fp16", "int8"]
    sizes = {artifact.precision: artifact.size_bytes for artifact in bundle.info.artifacts}
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]
    for precision in sizes:
        with Recognizer.load(bundle.path, precision=precision, backend="cpu") as recognizer:
            assert recognizer.transcribe_file(clip_path).text
    report = json.loads((bundle.path / "report.json").read_text())
    assert report["steps"][-1]["candidate"] == "ONNX INT8"
    assert report["fp16"]["passed"] is True
    assert report["int8"]["calibration"]["is_synthetic"] is True
    # Both looked at the same speech: all of the set, silence and noise too.
    assert report["fp16"]["n_calibration_clips"] == len(report["int8"]["calibration"]["clips"]) > 10
    text = (bundle.path / "report.md").read_text()
    assert f"speech ({report['fp16']['n_calibration_clips']} clips of the calibration set)" in text
    assert text.index("## FP16: passed") < text.index("\n# INT8\n")
    assert (bundle.path / "int8.png").is_file()


def test_int8_over_the_budget_leaves_the_old_bundle_and_is_kept_elsewhere(
    bundle: Bundle, export_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights hardly change their mind; a budget that really fails is in tests/calibration."""
    before = contents(bundle.path)
    monkeypatch.setattr(Budget, "exceeded_by", lambda *args, **kwargs: "too much is lost")
    with pytest.raises(GateError, match=r"^INT8 of .* is over the budget: too much.*; nothing was written$"):
        export(export_arguments, bundle.path, force=True)
    assert contents(tmp_path) == {f"bundle/{name}": data for name, data in before.items()}
    failed = tmp_path / "failed"
    with pytest.raises(GateError, match=r"^INT8 of .*; kept in .*failed$"):
        export(export_arguments, bundle.path, force=True, keep_failed=failed)
    assert contents(bundle.path) == before
    with pytest.raises(BundleError, match="failed its proof"):
        Bundle.load(failed)
    assert Bundle.load(failed, allow_unverified=True).artifact("int8")
    assert not (failed / "model.int8.cpu.onnx").exists()  # nothing runs a graph that failed
    text = (failed / "report.md").read_text()
    assert "**Failed: INT8 of " in text
    assert "## Each group alone in INT8" in text


def test_fp16_that_fails_is_kept_with_its_magnitudes_and_int8_is_not_begun(
    quick_export: None, export_arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp16_proof, "PEAK_LIMIT", 1e-3)
    with pytest.raises(GateError, match=r"^FP16 value .* reaches .*; kept in .*failed$"):
        export(export_arguments, tmp_path / "bundle", keep_failed=tmp_path / "failed")
    assert [path.name for path in tmp_path.iterdir()] == ["failed"]
    kept = Bundle.load(tmp_path / "failed", allow_unverified=True)
    assert [artifact.precision for artifact in kept.info.artifacts] == ["fp32", "fp16"]
    assert "## FP16: FAILED" in (tmp_path / "failed" / "report.md").read_text()
