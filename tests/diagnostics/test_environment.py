"""Packages and extras: what is missing is named, with the pip line; and when a report is healthy."""

from __future__ import annotations

from edge_asr.diagnostics import environment
from edge_asr.diagnostics.check import Check, is_healthy


def test_missing_packages_and_extras_name_the_pip_line(installed) -> None:
    installed(numpy="2.0", torch="2.13.0")
    python, packages = environment.check_python()
    assert (python.status, packages.status) == ("ok", "missing")
    assert "scipy" in packages.detail
    assert "numpy" not in packages.detail
    export = next(c for c in environment.check_extras() if c.name == "extra export")
    assert (export.status, export.fix) == ("missing", "pip install 'edge-asr[export]'")
    assert "onnxsim" in export.detail
    assert "torch" not in export.detail


def test_healthy_means_nothing_broken_and_nothing_required_missing() -> None:
    ok = Check(name="a", status="ok", detail="")
    missing = Check(name="b", status="missing", detail="", fix="x")
    assert is_healthy([ok, missing])
    assert not is_healthy([ok, Check(name="c", status="missing", detail="", fix="x", required=True)])
    assert not is_healthy([ok, Check(name="d", status="broken", detail="", fix="x")])
