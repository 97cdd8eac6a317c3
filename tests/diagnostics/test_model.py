"""The model lines: an altered bundle, and a runtime that cannot be imported."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from edge_asr.diagnostics import model


def test_a_missing_runtime_module_is_a_line_not_a_traceback(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "edge_asr.runtime.recognizer", None)
    (check,) = model.check_sample()
    assert check.status == "broken"


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
    assert "copy the bundle again" in check.mend
