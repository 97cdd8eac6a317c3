"""scripts/gpu_acceptance.py: refusal without a GPU, the CPU rehearsal end to end, and what a failure does.

The rehearsal runs the real sections with onnxruntime's CPU provider in CUDA's place; fake runners show that
a wrong one fails its gate.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
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
    assert done.stdout.startswith("rehearsal on a CPU: passed, no TensorRT, ")
    result = json.loads((tmp_path / "gpu_acceptance.json").read_text())
    assert (result["rehearsal"], result["verdict"]) == (True, "passed, no TensorRT")
    found = {section["name"]: section for section in result["sections"]}
    assert found["onnxruntime"]["runners"][0] == "onnxruntime fp32"
    assert found["torch"]["runners"] == ["torch eager fp32"]
    assert found["torch"]["rows"][0]["max_log_prob_error"] <= 1e-4  # the bar of the export's own proof
    assert found["tensorrt fp32"]["status"] == "not run"
    assert "has no GPU" in found["tensorrt fp32"]["why"]
    for precision in ("fp32", "fp16"):  # FP16 is made from model.onnx
        rtx = found[f"tensorrt-rtx {precision}"]
        if importlib.util.find_spec("tensorrt_rtx") is None:
            assert rtx["status"] == "not run"
        else:
            assert (rtx["status"], rtx["runners"]) == ("ran", [])
            assert (rtx["build"][0]["profiles"], rtx["build"][0]["proof"]) == (3, "none")
            assert f"build {precision} engine at " in rtx["build"][0]["stages"]
    measured = {(row["runner"], row["audio_s"], row["batch"]) for row in found["speed"]["rows"]}
    assert {(f"{name} fp32", 1.0, n) for name in ("onnxruntime", "torch eager") for n in (1, 2)} <= measured
    assert [check["passed"] for check in found["cuda"]["gates"]] == [True] * 12
    assert "=== cuda\n" in (tmp_path / "gpu_acceptance.log").read_text()
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

    def make(device: str = "cpu", max_batch: int = 2, engines=("fp32",), streams=()):
        return Settings(
            bundle="tiny-en",
            checkpoint=None,
            device=device,
            precisions=("fp32",),
            engines=engines,
            streams=streams,
            buckets_s=(1.0,),
            max_batch=max_batch,
            batch_s=1.0,
            rounds=2,
            warm_up=1,
            compile=False,
            manifest=None,
        )

    return make


@pytest.fixture
def few_cases(acceptance, monkeypatch: pytest.MonkeyPatch) -> None:
    from acceptance import measure

    cases = measure.proof_cases(Bundle.load("tiny-en"), 2)[:6]
    monkeypatch.setattr(measure, "proof_cases", lambda bundle, max_batch, clips: cases)


@pytest.mark.parametrize(("shift", "right"), [(0.0, True), (100.0, False), (float("nan"), False)])
def test_a_fake_runner_that_is_wrong_fails_its_gate(
    acceptance, settings, few_cases, monkeypatch, shift: float, right: bool
) -> None:
    from acceptance import sections

    monkeypatch.setattr(sections, "open_runner", lambda name, settings, bundle: Shifted(bundle, shift))
    answer = sections.run_section("onnxruntime", settings(), [], lambda answer: None)
    assert [check["passed"] for check in answer["gates"]] == [right]
    assert answer["runners"] == (["onnxruntime fp32"] if right else [])
    found = acceptance.judge([{**answer, "name": "onnxruntime"}])
    assert found == ("passed, none of our code for GPUs ran" if right else "failed")


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


def test_every_engine_of_the_embedded_model_has_a_section(acceptance, settings) -> None:
    """FP16 is made from model.onnx; the stream is there in INT8 alone; float32 engines come last."""
    from acceptance.sections import section_names

    from edge_asr.runtime.engine.lookup import engine_precisions

    embedded = Bundle.load("tiny-en")
    engines, streams = engine_precisions(embedded), engine_precisions(embedded, "stream")
    assert (engines, streams) == (["fp32", "fp16", "int8"], ["int8"])
    names = section_names(settings(engines=tuple(engines), streams=("fp32", "fp16", "int8")))
    assert names[:3] == ["cuda", "torch", "onnxruntime"]
    graphs = ["fp16", "int8", "stream fp16", "stream int8", "fp32", "stream fp32"]
    assert names[3:9] == [f"tensorrt {graph}" for graph in graphs]
    assert names[9:] == [*(f"tensorrt-rtx {graph}" for graph in graphs), "speed"]


@pytest.fixture
def stream_engine(acceptance, monkeypatch: pytest.MonkeyPatch, repository: Path, tmp_path: Path):
    """A fake GPU, and a bundle with a fake engine for 1 and 3 streams."""
    monkeypatch.syspath_prepend(str(repository / "tests" / "runtime"))
    import engine_bundles
    from fake_tensorrt import FakeGpu

    gpu = FakeGpu().install(monkeypatch)
    bundle = Bundle.load(shutil.copytree(Bundle.load("tiny-en").path, tmp_path / "bundle"))
    engine_bundles.add_stream_engine(bundle, gpu, "int8")
    return gpu, bundle


@pytest.mark.parametrize("records", [True, False])
def test_fake_tensorrt_steps_of_streams_are_timed_and_must_be_launches(
    stream_engine, settings, monkeypatch, records: bool
) -> None:
    from acceptance import sections

    from edge_asr.export.engine import streams as stream_builder

    gpu, bundle = stream_engine
    sidecar = SimpleNamespace(
        tensorrt_version="10.13.3.9", build_time_s=9.0, plan_size_bytes=9_000_000, profiles=(1, 3),
        flags=("STRONGLY_TYPED",), proof={"passed": True},
    )  # fmt: skip
    built = SimpleNamespace(sidecar=sidecar, proven=True, notes=())
    monkeypatch.setattr(stream_builder, "build_stream_engine", lambda *arguments, **options: built)
    monkeypatch.setattr(sections.Bundle, "load", lambda path: bundle)
    if not records:
        gpu.fail("cuStreamBeginCapture")
    answer = sections.run_section("tensorrt stream int8", settings("cuda"), [], lambda answer: None)
    assert [(row["n_streams"], row["runner"]) for row in answer["rows"]] == [
        (n, way) for n in (1, 3) for way in ("with CUDA graphs", "without CUDA graphs")
    ]
    assert [check["passed"] for check in answer["gates"]] == [True, records]
    assert answer["gates"][1]["value"] == ("all" if records else "0 of 6 steps were replayed")
    assert answer["build"][0]["build_s"] == 9.0
    gpu.assert_all_released()


def test_a_bundle_says_in_which_precisions_it_has_no_engine(script: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(Bundle.load("tiny-en").path, tmp_path / "bundle")
    data = json.loads((bundle / "bundle.json").read_text())
    data["artifacts"] = [entry for entry in data["artifacts"] if entry["precision"] == "fp32"]
    (bundle / "bundle.json").write_text(json.dumps({**data, "streaming": None}))
    done = run_script(script, bundle, "--rehearse", "--precisions", "int8", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "has no int8; --precisions may name fp32, fp16" in done.stderr


def test_batches_double_up_to_the_largest(settings) -> None:
    assert [settings(max_batch=n).batches for n in (1, 3, 8)] == [(1,), (1, 2, 3), (1, 2, 4, 8)]


def test_a_section_that_crashes_or_hangs_is_an_answer(acceptance, settings, tmp_path: Path) -> None:
    crashed = acceptance.run_child("no such section", settings(), [], 60.0, tmp_path, tmp_path)
    assert crashed["status"] == "crashed"
    assert "no such section" in crashed["why"]
    hung = acceptance.run_child("onnxruntime", settings(), [], 0.01, tmp_path, tmp_path)
    assert "did not end within 0.01 s" in hung["why"]
    assert acceptance.judge([crashed]) == acceptance.judge([hung]) == "failed"


def test_the_verdict_names_less_than_passed_where_no_engine_ran(acceptance) -> None:
    def ran(*names: str) -> list[dict[str, object]]:
        return [{"name": name, "status": "ran", "gates": []} for name in names]

    assert acceptance.judge([{"name": "cuda", "status": "not run", "gates": []}]) == "nothing ran"
    assert acceptance.judge(ran("cuda", "tensorrt fp16")) == "passed"
    assert acceptance.judge(ran("cuda", "torch")) == "passed, no TensorRT"
    assert acceptance.judge(ran("torch", "onnxruntime")) == "passed, none of our code for GPUs ran"


class FakeRun:
    """Runs sections that are functions, in the place of processes."""

    def __init__(self, acceptance, settings, monkeypatch, output: Path, former=()) -> None:
        self.asked: list[tuple[str, list[str], float]] = []
        self.act = lambda name: {
            "status": "ran",
            "why": "",
            "gates": [],
            "rows": [],
            "runners": [f"of {name}"],
        }

        def run_child(name, settings, runners, timeout_s, folder, output, started):
            self.asked.append((name, runners, timeout_s))
            return self.act(name)

        monkeypatch.setattr(acceptance, "run_child", run_child)
        self.run = acceptance.Run(settings(), output, {
            "name": "x", "date": "", "doctor": [], "gpu_before": "", "versions": {}, "cpu": "",
        }, Bundle.load("tiny-en"), "tiny-en", list(former))  # fmt: skip
        self.output = output

    def __call__(self, *, only=None, deadline=1e12) -> dict[str, dict]:
        self.run.sections(only, 900.0, deadline, self.output)
        result = json.loads((self.output / "gpu_acceptance.json").read_text())
        return {section["name"]: section for section in result["sections"]}


def test_the_result_is_on_disk_after_every_section(acceptance, settings, monkeypatch, tmp_path: Path) -> None:
    fake = FakeRun(acceptance, settings, monkeypatch, tmp_path)
    act, on_disk = fake.act, []

    def looking(name: str):
        path = tmp_path / "gpu_acceptance.json"
        on_disk.append(len(json.loads(path.read_text())["sections"]) if path.exists() else 0)
        return act(name)

    fake.act = looking
    found = fake()
    assert on_disk == list(range(len(found)))
    assert fake.asked[-1][0] == "speed"
    assert "of onnxruntime" in fake.asked[-1][1]


def test_what_no_time_is_left_for_is_not_run(acceptance, settings, monkeypatch, tmp_path: Path) -> None:
    fake = FakeRun(acceptance, settings, monkeypatch, tmp_path)
    now = [1000.0]
    monkeypatch.setattr(acceptance.time, "monotonic", lambda: now[0])
    act = fake.act

    def slow(name: str):
        now[0] += 30
        return act(name)

    fake.act = slow
    found = fake(deadline=1060.0)
    assert [timeout for _, _, timeout in fake.asked] == [50.0, 20.0]  # 10 s are kept for the end
    assert [s["status"] for s in found.values()] == ["ran", "ran"] + ["not run"] * (len(found) - 2)
    assert "no time was left before --deadline" in found["speed"]["why"]


def test_a_stopped_run_keeps_what_it_has(acceptance, settings, monkeypatch, tmp_path: Path) -> None:
    fake = FakeRun(acceptance, settings, monkeypatch, tmp_path)
    act = fake.act

    def stopped(name: str):
        if name == "torch":
            fake.run.stop(15, None)
        return act(name)

    fake.act = stopped
    found = fake()
    assert [name for name, section in found.items() if section["status"] == "ran"] == ["cuda", "torch"]
    assert found["speed"]["why"] == "the run was stopped before it"
    assert "then it was stopped" in (tmp_path / "gpu_acceptance.md").read_text()


def test_a_former_result_is_taken_up(acceptance, settings, monkeypatch, tmp_path: Path) -> None:
    former = {
        "name": "torch",
        "status": "ran",
        "why": "",
        "gates": [],
        "rows": [],
        "runners": ["torch eager fp32"],
    }
    fake = FakeRun(acceptance, settings, monkeypatch, tmp_path, [former])
    found = fake(only=["speed"])
    assert [name for name, _, _ in fake.asked] == ["speed"]
    assert fake.asked[0][1] == ["torch eager fp32"]
    assert (found["torch"]["status"], found["cuda"]["why"]) == ("ran", "left out by --only")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--resume", "no.json"], "--resume no.json is no result of this script"),
        (["--clips", "no.npy"], "there is no no.npy; --clips takes sound files"),
    ],
)
def test_bad_options(script: Path, tmp_path: Path, options: list[str], told: str) -> None:
    done = run_script(script, "--rehearse", "-o", tmp_path / "out", *options)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]


def test_a_real_sigterm_leaves_the_result(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(script), "--rehearse", "--only", "cuda", "-o", str(tmp_path)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert child.stderr.readline() == "cuda ...\n"
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 3
    assert "then it was stopped" in out
    (section, *rest) = json.loads((tmp_path / "gpu_acceptance.json").read_text())["sections"]
    assert (section["name"], section["status"]) == ("cuda", "crashed")
    assert {other["why"] for other in rest} == {"left out by --only"}


def test_clips_without_soundfile(acceptance, tmp_path: Path) -> None:
    from acceptance import inputs

    samples = Bundle.load("tiny-en").path.parents[1] / "samples" / "robot_commands.flac"
    inputs.save_clips(str(samples), str(tmp_path))
    (saved,) = tmp_path.glob("*.npy")
    assert saved.read_bytes() == inputs.SAMPLE.read_bytes()
    (ours,) = inputs.read_waveforms([str(saved)], 16_000).values()
    (theirs,) = inputs.read_waveforms([str(samples)], 16_000).values()
    np.testing.assert_array_equal(ours, theirs)
    np.save(tmp_path / "two.npy", np.zeros((2, 9)))
    with pytest.raises(ValueError, match=r"two.npy holds float64 \[2, 9\]; a clip is one row"):
        inputs.read_waveforms([str(tmp_path / "two.npy")], 16_000)


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
