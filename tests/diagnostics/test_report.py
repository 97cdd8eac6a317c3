"""The whole report on a fake Jetson: JetPack's lines are there, and pip's TensorRT is never advised."""

from __future__ import annotations

import importlib
import json
import re

from edge_asr.diagnostics import audio, cuda, inference, tensorrt
from edge_asr.diagnostics.report import run_checks


def test_report_of_a_fake_jetson(fake_jetson, monkeypatch) -> None:
    gpu = {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 * 2**30}
    driver = {"library": True, "version": "12.6", "code": 0, "error": "", "gpus": [gpu]}
    monkeypatch.setattr(cuda, "DRIVER_PROBE", f"print({json.dumps(json.dumps(driver))})")
    checks = list(run_checks(machine=fake_jetson()))
    names = [check.name for check in checks]
    assert names[:2] == ["python", "packages"]
    order = ["JetPack", "power mode", "CUDA driver", "GPU 0"]
    assert [name for name in names if name in order] == order
    assert len(names) == len(set(names))
    found = {check.name: check for check in checks}
    assert found["GPU 0"].detail == "Orin, compute capability 8.7, 8.0 GiB shared with the CPU"
    for check in checks:
        assert (check.fix == "") == (check.status == "ok"), check
        assert "pip install tensorrt" not in check.fix
        assert "[tensorrt" not in check.fix
        assert "[gpu]" not in check.fix


def test_what_the_probes_import_of_ours_is_there() -> None:
    """A probe is text: nothing else notices when a module that it names has moved."""
    found = []
    for area in (audio, cuda, inference, tensorrt):
        for code in (value for name, value in vars(area).items() if name.endswith("PROBE")):
            found += re.findall(r"^from (edge_asr\S*) import (\w+)$", code, re.MULTILINE)
    assert found
    for module, name in found:
        assert hasattr(importlib.import_module(module), name)
