"""The whole report on a fake Jetson: JetPack's lines are there, and pip's TensorRT is never advised."""

from __future__ import annotations

import json

from edge_asr.diagnostics import cuda
from edge_asr.diagnostics.report import run_checks


def test_report_of_a_fake_jetson(fake_jetson, monkeypatch) -> None:
    gpu = {"name": "Orin", "compute_capability": "8.7", "memory_bytes": 8 * 2**30}
    driver = {"library": True, "version": "12.6", "code": 0, "error": "", "gpus": [gpu]}
    monkeypatch.setattr(cuda, "DRIVER_PROBE", f"print({json.dumps(json.dumps(driver))})")
    monkeypatch.setattr(cuda, "BINDINGS_PROBE", "print('{\"installed\": false}')")
    checks = list(run_checks(machine=fake_jetson()))
    names = [check.name for check in checks]
    assert names[:2] == ["python", "packages"]
    order = ["JetPack", "power mode", "CUDA driver", "GPU 0", "cuda-bindings"]
    assert [name for name in names if name in order] == order
    assert len(names) == len(set(names))
    found = {check.name: check for check in checks}
    assert found["GPU 0"].detail == "Orin, compute capability 8.7, 8.0 GiB shared with the CPU"
    assert found["cuda-bindings"].mend == "pip install 'cuda-bindings>=12.6,<13'"
    for check in checks:
        assert (check.mend == "") == (check.status == "ok"), check
        assert "pip install tensorrt" not in check.mend
        assert "[tensorrt]" not in check.mend
        assert "[gpu]" not in check.mend
