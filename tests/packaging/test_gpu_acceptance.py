"""scripts/gpu_acceptance.py: refusal without a GPU, the CPU rehearsal end to end, and what a failure does.

The rehearsal runs the real sections with onnxruntime's CPU provider in CUDA's place; fake runners show that
a wrong one fails its gate.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_asr.bundle.folder import Bundle


@pytest.fixture(scope="module")
def script(repository: Path) -> Path:
    return repository / "scripts" / "gpu_acceptance.py"


@pytest.fixture
def acceptance(repository: Path, monkeypatch: pytest.MonkeyPatch):
    """The script as a module, with its folder on the path."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import gpu_acceptance

    return gpu_acceptance


def run_script(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The script in a process that sees no GPU, also where there is one."""
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


QUICK = ("--no-compile", "--seconds", "1", "--batch-seconds", "1", "--max-batch", "2")
QUICK += ("--rounds", "2", "--warm-up", "1")


def test_without_a_gpu_it_says_so_in_one_sentence_and_exits_1(script: Path, tmp_path: Path) -> None:
    done = run_script(script, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "no NVIDIA GPU" in line
    assert "nothing was run" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_rehearsal_with_the_rtx_builder_on_cpu_execution_not_tested(
    script: Path, random_bundle: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    done = run_script(
        script, random_bundle, "--checkpoint", random_checkpoint, "--rehearse", "-o", tmp_path, *QUICK
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rehearsal on a CPU: passed")
    result = json.loads((tmp_path / "gpu_acceptance.json").read_text())
    assert (result["rehearsal"], result["verdict"]) == (True, "passed")
    found = {section["name"]: section for section in result["sections"]}
    assert found["onnxruntime"]["runners"][0] == "onnxruntime fp32"
    assert found["torch"]["runners"] == ["torch eager fp32"]
    assert found["torch"]["rows"][0]["max_log_prob_error"] <= 1e-4  # the bar of the export's own proof
    assert found["tensorrt fp32"]["status"] == "not run"
    assert "has no GPU" in found["tensorrt fp32"]["why"]
    rtx = found["tensorrt-rtx fp32"]
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert rtx["status"] == "not run"
    else:
        assert (rtx["status"], rtx["runners"]) == ("ran", [])
        assert (rtx["build"][0]["profiles"], rtx["build"][0]["proof"]) == (3, "none")
    measured = {(row["runner"], row["audio_s"]) for row in found["latency"]["rows"]}
    assert {("onnxruntime fp32", 1.0), ("torch eager fp32", 1.0)} <= measured
    assert {row["batch"] for row in found["batch scaling"]["rows"]} == {1, 2}
    text = (tmp_path / "gpu_acceptance.md").read_text()
    assert "A REHEARSAL ON A CPU" in text
    for section in found:
        assert f"\n## {section}: " in text
    again = run_script(script, "--rehearse", "-o", tmp_path)
    assert (again.returncode, "--force" in again.stderr) == (1, True)
    assert not (random_bundle / "engines").exists()  # built into a copy


class Shifted:
    """The reference, with `shift` added to the log-prob of class 0, so that it becomes likeliest."""

    def __init__(self, bundle: Bundle, shift: float) -> None:
        from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

        self.inner = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32")
        self.shift = shift

    def log_probs(self, features, feature_lens):
        log_probs = self.inner.log_probs(features, feature_lens)
        log_probs[..., 0] += self.shift
        return log_probs


@pytest.fixture
def settings(acceptance):
    """`settings(device=...)`: of a run on the embedded model."""
    from acceptance.settings import Settings

    def make(device: str = "cpu", max_batch: int = 2):
        return Settings(
            bundle="tiny-en",
            checkpoint=None,
            device=device,
            precisions=("fp32",),
            buckets_s=(1.0,),
            max_batch=max_batch,
            batch_s=1.0,
            rounds=1,
            warm_up=0,
            compile=False,
            manifest=None,
        )

    return make


@pytest.fixture
def few_cases(acceptance, monkeypatch: pytest.MonkeyPatch) -> None:
    from acceptance import measure

    cases = measure.proof_cases(Bundle.load("tiny-en"), 2)[:6]
    monkeypatch.setattr(measure, "proof_cases", lambda bundle, max_batch: cases)


@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (100.0, False), (float("nan"), False)])
def test_a_fake_runner_that_is_wrong_fails_its_gate(
    acceptance, settings, few_cases, monkeypatch, shift: float, right: bool
) -> None:
    from acceptance import sections

    monkeypatch.setattr(sections, "open_runner", lambda name, settings, bundle: Shifted(bundle, shift))
    answer = sections.run_section("onnxruntime", settings(), [], lambda answer: None)
    assert [check["passed"] for check in answer["gates"]] == [right]
    assert answer["runners"] == (["onnxruntime fp32"] if right else [])
    assert acceptance.judge([answer]) == ("passed" if right else "failed")


@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (100.0, False)])
def test_fake_tensorrt_engine_is_measured_with_and_without_cuda_graphs(
    settings, few_cases, monkeypatch, shift: float, right: bool
) -> None:
    from acceptance import sections

    from edge_asr.export.engine import builder as engine_builder

    sidecar = SimpleNamespace(
        tensorrt_version="10.13.3.9", build_time_s=61.0, plan_size_bytes=9_000_000, profiles=(1, 2, 3),
        flags=("STRONGLY_TYPED",), proof={"passed": True},
    )  # fmt: skip
    asked = {}

    def fake_build(bundle, precision, **options):
        asked.update(options, precision=precision)
        return SimpleNamespace(sidecar=sidecar, proven=True, notes=())

    monkeypatch.setattr(engine_builder, "build_engine", fake_build)
    monkeypatch.setattr(sections, "open_runner", lambda name, settings, bundle: Shifted(bundle, shift))
    answer = sections.run_section("tensorrt fp32", settings("cuda", 4), [], lambda answer: None)
    assert (asked["precision"], asked["flavor"], asked["batch"]) == ("fp32", "tensorrt", (1, 1, 4))
    names = ["tensorrt fp32", "tensorrt fp32 without CUDA graphs"]
    assert [row["runner"] for row in answer["rows"]] == names
    assert answer["runners"] == (names if right else [])
    assert [check["passed"] for check in answer["gates"]] == [True, right, right]
    assert answer["build"][0]["build_s"] == 61.0


@pytest.mark.parametrize(
    ("flavor", "capability", "status"),
    [("tensorrt-rtx", "9.0", "not run"), ("tensorrt-rtx", "12.0", "ran"), ("tensorrt", "9.0", "ran")],
)
def test_fake_tensorrt_refusal_is_kept_and_fails_unless_rtx_does_not_serve_the_gpu(
    settings, monkeypatch, flavor: str, capability: str, status: str
) -> None:
    from acceptance import sections

    from edge_asr.errors import EngineError
    from edge_asr.export.engine import builder as engine_builder

    def refuse(bundle, precision, **options):
        raise EngineError("Target GPU SM 90 is not supported by this TensorRT release")

    monkeypatch.setattr(engine_builder, "build_engine", refuse)
    device = SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(sections, "DeviceIdentity", SimpleNamespace(detect=lambda: device))
    answer = sections.run_section(f"{flavor} fp32", settings("cuda"), [], lambda answer: None)
    assert answer["status"] == status
    said = answer["why"] if status == "not run" else answer["gates"][0]["value"]
    assert "Target GPU SM 90 is not supported" in said
    assert [check["passed"] for check in answer["gates"]] == ([] if status == "not run" else [False])


def test_batches_double_up_to_the_largest(settings) -> None:
    assert [settings(max_batch=n).batches for n in (1, 3, 8)] == [(1,), (1, 2, 3), (1, 2, 4, 8)]


def test_a_section_that_crashes_or_hangs_is_an_answer(acceptance, settings, tmp_path: Path) -> None:
    crashed = acceptance.run_child("no such section", settings(), [], 60.0, tmp_path)
    assert crashed["status"] == "crashed"
    assert "no such section" in crashed["why"]
    hung = acceptance.run_child("onnxruntime", settings(), [], 0.01, tmp_path)
    assert "did not end within 0.01 s" in hung["why"]
    assert acceptance.judge([crashed]) == acceptance.judge([hung]) == "failed"
    assert acceptance.judge([{"status": "not run", "gates": []}]) == "nothing ran"


def test_times_are_taken_in_turns_and_a_fake_runner_that_fails_is_left_out(acceptance) -> None:
    from acceptance.measure import latency_rows, time_runners

    calls: list[str] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def log_probs(self, features, feature_lens):
            calls.append(self.name)
            if self.name == "bad" and len(calls) > 4:
                raise RuntimeError("out of memory")
            return features

    errors = []
    runners = {name: Fake(name) for name in ("torch eager fp32", "b", "bad")}
    features, lengths = np.zeros((1, 8, 80), np.float32), np.array([8])
    times = time_runners(
        runners,
        features,
        lengths,
        n_rounds=3,
        warm_up=1,
        on_error=lambda name, why: errors.append((name, why)),
    )
    assert errors == [("bad", "RuntimeError: out of memory")]
    assert {name: len(seconds) for name, seconds in times.items()} == {"torch eager fp32": 3, "b": 3}
    assert calls[:3] == ["torch eager fp32", "b", "bad"]
    assert calls[3] == "b"  # the second round begins with the second
    rows = latency_rows({"torch eager fp32": [0.4, 0.2, 0.2], "b": [0.1, 0.1, 0.2]}, 2.0, "torch eager fp32")
    assert (rows[1]["median_ms"], rows[1]["rtfx"], rows[1]["times_faster"]) == (100.0, 20.0, 2.0)
