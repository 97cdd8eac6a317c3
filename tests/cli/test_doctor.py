"""`edge-asr doctor`: the whole report, for programs and for people; its areas are in tests/diagnostics."""

from __future__ import annotations

import json
import platform
from pathlib import Path

from edge_asr.bundle import folder as bundle_module
from edge_asr.diagnostics import environment
from edge_asr.diagnostics.machine import Machine


def test_report_is_healthy_here(run) -> None:
    result = run("doctor", "--json")
    report = json.loads(result.stdout)
    found = {check["name"]: check for check in report["checks"]}
    assert result.exit_code == 0, result.stdout
    assert report["healthy"] is True
    for name in (
        "python",
        "packages",
        "onnxruntime",
        "CPUExecutionProvider",
        "embedded model",
        "transcription",
    ):
        assert found[name]["status"] == "ok", found[name]
    assert "sha256" in found["embedded model"]["detail"]
    assert "s of audio in" in found["transcription"]["detail"]
    assert found["extra export"]["status"] == "ok"
    for check in report["checks"]:
        assert (check["fix"] == "") == (check["status"] == "ok"), check


def test_what_does_not_belong_here_is_not_shown(run) -> None:
    machine = Machine()
    names = {check["name"] for check in json.loads(run("doctor", "--json").stdout)["checks"]}
    assert machine.is_jetson == (platform.release().endswith("-tegra"))
    assert names.isdisjoint({"JetPack", "power mode"}) or machine.is_jetson
    if not machine.has_nvidia_gpu:
        assert "GPU" in names
        assert names.isdisjoint({"CUDA driver"})


def test_lines_for_people(run, monkeypatch) -> None:
    monkeypatch.setattr(environment, "EXTRAS", ("no-such-extra",))
    lines = run("doctor").stdout.splitlines()
    assert lines[0].split()[:3] == ["ok", "python", "CPython"]
    assert lines[-1].split()[:3] == ["ok", "extra", "no-such-extra"]  # an extra that needs nothing


def test_a_package_without_its_model_is_broken_and_exits_1(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle_module, "EMBEDDED_MODELS", tmp_path)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert (found["embedded model"], found["transcription"]) == ("broken", "broken")
    assert report["healthy"] is False


def test_a_named_bundle_is_looked_at_instead(run) -> None:
    report = json.loads(run("doctor", "--json", "-m", "tiny-en").stdout)
    assert "model" in {check["name"] for check in report["checks"]}
    result = run("doctor", "--json", "-m", "no-such-bundle")
    assert result.exit_code == 1
    (check,) = (c for c in json.loads(result.stdout)["checks"] if c["name"] == "model")
    assert check["status"] == "broken"
