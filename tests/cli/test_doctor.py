"""`edge-asr doctor`: the whole report here, and each ailment it must name, made by hand."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from edge_asr import bundle as bundle_module
from edge_asr.cli import doctor


def statuses(checks: list[doctor.Check]) -> dict[str, str]:
    return {check.name: check.status for check in checks}


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
        assert (check["mend"] == "") == (check["status"] == "ok"), check


def test_lines_for_people(run, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_EXTRAS_SHOWN", ("no-such-extra",))
    lines = run("doctor").stdout.splitlines()
    assert lines[0].split()[:3] == ["ok", "python", "CPython"]
    assert lines[-1].split()[:3] == ["ok", "extra", "no-such-extra"]  # an extra that needs nothing


@pytest.fixture
def installed(monkeypatch):
    """`installed(name=version)` replaces what is installed."""

    def install(**versions: str) -> None:
        known = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name: str) -> str:
            if name not in known:
                raise metadata.PackageNotFoundError(name)
            return known[name]

        monkeypatch.setattr(metadata, "version", version)

    return install


def test_missing_packages_and_extras_name_the_pip_line(installed) -> None:
    installed(numpy="2.0", torch="2.13.0")
    python, packages = doctor.check_python()
    assert (python.status, packages.status) == ("ok", "missing")
    assert "scipy" in packages.detail
    assert "numpy" not in packages.detail
    export = next(c for c in doctor.check_extras() if c.name == "extra export")
    assert (export.status, export.mend) == ("missing", "pip install 'edge-asr[export]'")
    assert "onnxsim" in export.detail
    assert "torch" not in export.detail


def test_no_onnxruntime_and_two_of_them(installed) -> None:
    installed()
    (check,) = doctor.check_onnxruntime()
    assert (check.status, check.required) == ("missing", True)
    installed(onnxruntime="1.32.0", onnxruntime_gpu="1.31.0")
    (check,) = doctor.check_onnxruntime()
    assert check.status == "broken"
    assert "same Python module" in check.detail


def test_a_provider_that_falls_back_or_crashes_is_broken(monkeypatch) -> None:
    answer = {
        "version": "1",
        "providers": {"CPUExecutionProvider": "", "CUDAExecutionProvider": "no libcudnn"},
    }
    monkeypatch.setattr(doctor, "_PROVIDERS_PROBE", f"print('''{json.dumps(answer)}''')")
    found = doctor.check_onnxruntime()
    assert statuses(found) == {
        "onnxruntime": "ok",
        "CPUExecutionProvider": "ok",
        "CUDAExecutionProvider": "broken",
    }
    monkeypatch.setattr(doctor, "_PROVIDERS_PROBE", "import os; os.kill(os.getpid(), 11)")
    (check,) = doctor.check_onnxruntime()
    assert (check.status, check.detail) == ("broken", "crashed with signal 11")


def test_a_probe_that_hangs_is_broken(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_PROBE_TIMEOUT_S", 0.2)
    assert doctor._probe("import time; time.sleep(60)") == (None, "did not answer within 0.2 s")


@pytest.mark.parametrize(
    ("code", "status", "mend"),
    [
        ("raise OSError('PortAudio library not found')", "missing", "sudo apt-get install libportaudio2"),
        ("raise ImportError('bad')", "broken", "pip install --force-reinstall sounddevice"),
        ('print(\'{"version": "V19", "inputs": []}\')', "missing", "arecord -l"),
        ('print(\'{"version": "V19", "inputs": ["USB mic"]}\')', "ok", ""),
    ],
)
def test_microphone(monkeypatch, code: str, status: str, mend: str) -> None:
    monkeypatch.setattr(doctor, "_AUDIO_PROBE", code)
    (check,) = doctor.check_microphone()
    assert check.status == status
    assert mend in check.mend
    assert check.required is False


def test_a_package_without_its_model_is_broken_and_exits_1(run, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundle_module, "EMBEDDED_MODELS", tmp_path)
    result = run("doctor", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert (found["embedded model"], found["transcription"]) == ("broken", "broken")
    assert report["healthy"] is False


def test_a_missing_runtime_module_is_a_line_not_a_traceback(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "edge_asr.runtime.recognizer", None)
    (check,) = doctor.check_sample()
    assert check.status == "broken"
