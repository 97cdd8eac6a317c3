"""onnxruntime: absent, twice, a provider that falls back, a library that crashes or hangs."""

from __future__ import annotations

import json

import onnxruntime

from edge_asr.diagnostics import inference, probe


def test_no_onnxruntime_and_two_of_them(installed, fake_machine, monkeypatch) -> None:
    installed()
    (check,) = inference.check_onnxruntime(fake_machine())
    assert (check.status, check.required) == ("missing", True)
    assert check.fix == "pip install 'edge-asr[cpu]' (or 'edge-asr[gpu]' for an NVIDIA GPU)"
    installed(onnxruntime="1.32.0", onnxruntime_gpu="1.31.0")
    check, *providers = inference.check_onnxruntime(fake_machine())
    assert check.status == "broken"
    assert "same Python module" in check.detail
    assert f"of {onnxruntime.__file__} is imported" in check.detail  # the one that works or not, below
    assert [(c.name, c.status) for c in providers] == [("CPUExecutionProvider", "ok")]
    assert "pip uninstall onnxruntime onnxruntime-gpu" in check.fix
    monkeypatch.setattr(inference, "PROBE", "raise ImportError('libcublas.so.13')")
    (check,) = inference.check_onnxruntime(fake_machine())
    assert check.detail.endswith("are the same Python module: ImportError: libcublas.so.13")


def test_a_fake_jetson_is_never_sent_to_the_gpu_wheel(installed, fake_jetson, monkeypatch) -> None:
    installed()
    (check,) = inference.check_onnxruntime(fake_jetson())
    assert check.fix == "pip install 'edge-asr[jetson]'"
    answer = {"version": "1", "providers": {"CUDAExecutionProvider": "no kernel image is available"}}
    monkeypatch.setattr(inference, "PROBE", f"print({json.dumps(answer)!r})")
    installed(onnxruntime_gpu="1.31.1")
    (_, check) = inference.check_onnxruntime(fake_jetson())
    assert check.fix.startswith("pip uninstall onnxruntime-gpu, then pip install 'edge-asr[jetson]'")
    assert "edge-asr[gpu]" not in check.fix


def test_a_provider_that_falls_back_or_crashes_is_broken(monkeypatch, fake_machine) -> None:
    answer = {
        "version": "1",
        "providers": {"CPUExecutionProvider": "", "CUDAExecutionProvider": "no libcudnn"},
    }
    monkeypatch.setattr(inference, "PROBE", f"print('''{json.dumps(answer)}''')")
    found = inference.check_onnxruntime(fake_machine())
    assert [(c.name, c.status) for c in found] == [
        ("onnxruntime", "ok"),
        ("CPUExecutionProvider", "ok"),
        ("CUDAExecutionProvider", "broken"),
    ]
    monkeypatch.setattr(inference, "PROBE", "import os; os.kill(os.getpid(), 11)")
    (check,) = inference.check_onnxruntime(fake_machine())
    assert (check.status, check.detail) == ("broken", "crashed with signal 11")


def test_a_probe_that_hangs_is_broken(monkeypatch) -> None:
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.2)
    assert probe.run_probe("import time; time.sleep(60)") == (None, "did not answer within 0.2 s")
