"""The model lines: an altered bundle, and a runtime that cannot be imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_asr.diagnostics import model


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("import sys; sys.modules['edge_asr.runtime.recognizer'] = None", "ModuleNotFoundError"),
        # As where onnxruntime has instructions that the processor lacks, or an emulator does.
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11"),
        ("raise SystemExit(139)", "exit code 139"),
        ("print('no JSON'); raise SystemExit", "gave no answer: 'no JSON'"),
    ],
    ids=["missing", "crash", "crash under an emulator", "silence"],
)
def test_a_runtime_that_cannot_run_is_a_line(monkeypatch: pytest.MonkeyPatch, first: str, words: str) -> None:
    monkeypatch.setattr(model, "PROBE", f"{first}\n{model.PROBE}")
    (check,) = model.check_sample()
    assert check.status == "broken"
    assert words in check.detail


def test_the_process_that_reports_never_loads_onnxruntime() -> None:
    """Where importing it crashes, doctor still ends with its whole report."""
    code = (
        "import sys; from edge_asr.diagnostics.report import run_checks\n"
        "names = [check.name for check in run_checks()]\n"
        "assert 'transcription' in names and 'onnxruntime' not in sys.modules, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_named_bundle_that_was_altered_is_broken(tmp_path: Path) -> None:
    from edge_asr.bundle.folder import resolve_bundle_path

    copy = tmp_path / "bundle"
    shutil.copytree(resolve_bundle_path("tiny-en"), copy)
    (check,) = model.check_model(str(copy))
    assert (check.name, check.status) == ("model", "ok")
    with (copy / "model.onnx").open("r+b") as file:
        file.write(b"\xff")
    (check,) = model.check_model(str(copy))
    assert check.status == "broken"
    assert "model.onnx" in check.detail
    assert "copy the bundle again" in check.fix
