"""`quantize_bundle`: the bundle is complete with INT8, replaced whole, untouched when the gate says no."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edge_asr.bundle.folder import Bundle
from edge_asr.calibration import Budget, Int8Options, quantize_bundle, sensitivity
from edge_asr.calibration.cpu_graph import make_cpu_graph
from edge_asr.calibration.int8 import Int8Result
from edge_asr.calibration.measure import time_graphs
from edge_asr.errors import BundleError, GateError
from edge_asr.export import CasePlan
from edge_asr.export.optimize import count_operators
from edge_asr.graph.check import check_graph
from edge_asr.graph.session import open_graph
from edge_asr.proof.cases import build_cases
from edge_asr.proof.compare import run_cases
from edge_asr.proof.report import render_report
from edge_asr.runtime.backends import choose_precision
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer

PLAN = CasePlan(random_lengths=1, max_random_s=3.0, max_batch=2)
ANYTHING = Budget(max_wer_loss=1.0, min_agreement=0.0)


@pytest.fixture(scope="module", autouse=True)
def few_timings() -> Iterator[None]:
    """One turn in place of fifteen: no choice here depends on the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensitivity, "time_graphs", functools.partial(time_graphs, repeats=1))
        yield


def options(manifest: Path, **changes: Any) -> Int8Options:
    values: dict[str, Any] = {"calibration": (manifest,), "minutes": 1, "budget": ANYTHING}
    return Int8Options(**{**values, "range_method": "minmax", **changes})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(
    random_bundle: Path,
    calibration_manifest: Path,
    evaluation_manifest: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Bundle, Int8Result]:
    """The random bundle, quantized into a folder of its own."""
    before = contents(random_bundle)
    made = quantize_bundle(
        random_bundle,
        options(calibration_manifest, evaluation=(evaluation_manifest,)),
        output=tmp_path_factory.mktemp("int8") / "bundle",
        plan=PLAN,
    )
    assert contents(random_bundle) == before
    return made


def test_bundle_is_complete(made: tuple[Bundle, Int8Result], random_bundle: Path) -> None:
    bundle, result = made
    old, new = contents(random_bundle), contents(bundle.path)
    assert new.keys() == old.keys() | {"model.int8.onnx", "model.int8.cpu.onnx", "int8.png"}
    changed = {name for name in old if old[name] != new[name]}
    assert changed == {"bundle.json", "report.json", "report.md"}
    artifact = bundle.artifact("int8")
    assert artifact.sha256 == hashlib.sha256(new["model.int8.onnx"]).hexdigest()
    assert artifact.size_bytes == len(new["model.int8.onnx"])
    assert (artifact.precision, artifact.weights, artifact.opset) == ("int8", "int8", 18)
    assert artifact.cpu_time_over_fp32 == pytest.approx(result.time_ratio, abs=1e-3)
    assert [a.precision for a in bundle.info.artifacts] == ["fp32", "int8"]
    assert bundle.info.verified
    steps = [s["candidate"] for s in bundle.info.verification["steps"]]
    assert steps[-1] == "ONNX INT8"
    model = onnx.load(bundle.artifact_path("int8"))
    check_graph(model)
    old_metadata = {p.key: p.value for p in onnx.load(random_bundle / "model.onnx").metadata_props}
    assert {p.key: p.value for p in model.metadata_props} == old_metadata
    assert new["int8.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert len(new["int8.png"]) > 5000


def test_report_has_the_section_and_the_tables(made: tuple[Bundle, Int8Result]) -> None:
    bundle, result = made
    text = (bundle.path / "report.md").read_text()
    assert text.count("\n# INT8\n") == 1
    section = text.split("\n# INT8\n")[1]
    assert "## The choice" in section
    assert "## Each group alone in INT8" in section
    for group in result.sensitivity.alone:
        assert f"\n| {group} |" in section
    assert section.count("\n| **") == 1  # the row that is shipped
    assert "![Loss against time and size](int8.png)" in section
    assert "| dev |" in section
    assert "| pooled |" in section
    assert result.calibration.sha256[:12] in section
    data = json.loads((bundle.path / "report.json").read_text())
    assert text == render_report(data)
    assert data["sizes_bytes"]["model.int8.onnx"] == result.model.ByteSize()
    assert data["steps"][-1]["candidate"] == "ONNX INT8"
    assert data["name"] == bundle.info.name  # what the export wrote is there still
    assert data["int8"] == json.loads(json.dumps(result.to_dict()))


def test_recognizer_runs_the_copy_for_the_cpu(made: tuple[Bundle, Int8Result], sample_path: Path) -> None:
    bundle, _ = made
    with Recognizer.load(bundle.path, precision="int8", backend="cpu") as recognizer:
        assert isinstance(recognizer.backend, OnnxRuntimeBackend)
        assert recognizer.backend.path == bundle.path / "model.int8.cpu.onnx"
        assert isinstance(recognizer.transcribe_file(sample_path).text, str)


def test_the_copy_for_the_cpu_is_rewritten_and_gives_the_same_bits(made: tuple[Bundle, Int8Result]) -> None:
    bundle, _ = made
    copy = bundle.artifact("int8").cpu_graph
    assert copy is not None
    content = (bundle.path / copy.file).read_bytes()
    assert (copy.sha256, copy.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert copy.onnxruntime == onnxruntime.__version__
    graph = onnx.load_from_string(content)
    assert {entry.domain for entry in graph.opset_import} == {"", "com.microsoft"}
    before, after = count_operators(onnx.load(bundle.artifact_path("int8"))), count_operators(graph)
    assert after["MatMulIntegerToFloat"] > 10
    assert after.get("DequantizeLinear", 0) < before["DequantizeLinear"] / 4
    biases = [node.input[6] for node in graph.graph.node if len(node.input) == 7]
    assert len(biases) > 5
    assert all(name.endswith(".bias") for name in biases)
    features = np.random.default_rng(0).normal(-8, 3, (2, 131, 80)).astype(np.float32)
    lens = np.array([131, 60], np.int64)
    outputs = []
    for path, rewritten in ((bundle.artifact_path("int8"), False), (bundle.path / copy.file, True)):
        backend = OnnxRuntimeBackend(path, precision="int8", num_threads=1, rewritten=rewritten)
        outputs.append(backend.log_probs(features, lens))
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_copy_that_differs_is_not_kept(
    made: tuple[Bundle, Int8Result], caplog: pytest.LogCaptureFixture
) -> None:
    """The outputs it is held against have one bit more in one value."""
    bundle, result = made
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    cases = build_cases({"noise": noise}, bundle.info.features, bundle.info.output_frames, PLAN)[:2]
    with open_graph(result.model) as backend:
        outputs = run_cases(backend, cases, bundle.info.output_frames)
    assert make_cpu_graph(result.model, cases, outputs, bundle.info.output_frames) is not None
    row = outputs[1][0]
    assert isinstance(row, np.ndarray)
    row[-1, -1] = np.nextafter(row[-1, -1], np.float32(0))
    assert make_cpu_graph(result.model, cases, outputs, bundle.info.output_frames) is None
    assert f"it differs on {cases[1].name}" in caplog.text


def test_again_in_place_replaces_what_there_was_and_a_slow_one_is_passed_over(
    made: tuple[Bundle, Int8Result],
    calibration_manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fake times: half as fast as float32."""
    first, _ = made
    folder = tmp_path / "bundle"
    shutil.copytree(first.path, folder)
    (folder / "engines" / "some").mkdir(parents=True)
    for name in ("model.int8.plan", "model.int8.json", "model.fp32.plan", "timing.cache"):
        (folder / "engines" / "some" / name).write_bytes(b"x")
    monkeypatch.setattr(sensitivity, "time_graphs", lambda models, timed, form: [[1.0], [2.0]])
    clip = calibration_manifest.with_name("3.wav")
    bundle, result = quantize_bundle(
        folder, options(calibration_manifest, smoothing=None), clips=[clip], plan=PLAN
    )
    assert bundle.path == folder
    assert [a.precision for a in bundle.info.artifacts] == ["fp32", "int8"]
    assert [s["candidate"] for s in bundle.info.verification["steps"]].count("ONNX INT8") == 1
    text = (folder / "report.md").read_text()
    assert text.count("\n# INT8\n") == 1
    assert "Smoothing: off" in text
    assert "| pooled |" not in text  # the earlier section's
    step = "\n## ONNX simplified -> ONNX INT8: passed\n"
    assert text.count(step) == 1
    assert text.split(step)[0] == (first.path / "report.md").read_text().split(step)[0]
    data = json.loads((folder / "report.json").read_text())
    assert data["int8"]["smoothing"] is None
    real = [row["name"] for row in data["steps"][-1]["results"] if row["family"] == "real"]
    assert real == ["3.wav"]
    # An engine of the old INT8 model is another model's.
    kept = {path.name for path in (folder / "engines" / "some").iterdir()}
    assert kept == {"model.fp32.plan", "timing.cache"}
    assert result.time_ratio == 2.0
    assert "**Slower than float32 here: `--precision auto` passes it over.**" in text
    assert bundle.artifact("int8").cpu_time_over_fp32 == 2.0
    assert choose_precision(bundle, "auto", "cpu") == "fp32"


def test_auto_takes_a_faster_one(made: tuple[Bundle, Int8Result], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, _ = made
    artifact = bundle.artifact("int8")
    object.__setattr__(artifact, "cpu_time_over_fp32", 0.6)
    assert choose_precision(bundle, "auto", "cpu") == "int8"
    object.__setattr__(artifact, "cpu_time_over_fp32", 1.0)
    assert choose_precision(bundle, "auto", "cpu") == "fp32"


def test_over_the_budget_nothing_changes(
    made: tuple[Bundle, Int8Result], calibration_manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(made[0].path, folder)
    before = contents(tmp_path)
    strict = options(
        calibration_manifest,
        range_method="percentile",
        percentile=5.0,
        smoothing=None,
        budget=Budget(max_wer_loss=1.0, min_agreement=1.0),
    )
    with pytest.raises(GateError, match=r"is over the budget: .*; nothing was written$"):
        quantize_bundle(folder, strict, plan=PLAN)
    assert contents(tmp_path) == before
    kept = tmp_path / "failed"
    with pytest.raises(GateError, match=rf"is over the budget: .*; kept in {kept}$"):
        quantize_bundle(folder, strict, plan=PLAN, keep_failed=kept)
    assert {name: data for name, data in contents(tmp_path).items() if name.startswith("bundle/")} == before
    with pytest.raises(BundleError, match="failed its proof"):
        Bundle.load(kept)
    assert (kept / "model.int8.onnx").is_file()
    assert not (kept / "model.int8.cpu.onnx").exists()  # nothing runs a graph that failed
    section = (kept / "report.md").read_text().split("\n# INT8\n")[1]
    assert "**Failed: INT8 of " in section
    assert section.count("\n| **") == 1
    with pytest.raises(BundleError, match="failed exists; add --force"):
        quantize_bundle(folder, strict, plan=PLAN, keep_failed=kept)


def test_places_that_cannot_be_written_are_refused_before_any_work(
    random_bundle: Path, calibration_manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="tiny-en ships inside the package; name a folder"):
        quantize_bundle("tiny-en")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="occupied"):
        quantize_bundle(random_bundle, options(calibration_manifest), output=occupied)
    assert contents(occupied) == {"notes.txt": b"mine"}
    with pytest.raises(BundleError):
        quantize_bundle(tmp_path / "nowhere", options(calibration_manifest))
