"""The whole export: a bundle that loads, or a gate that leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile

from edge_asr.atomic import replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER, Bundle
from edge_asr.errors import AudioError, BundleError, ConfigError, GateError, MissingDependencyError
from edge_asr.export import ExportReport, export_bundle, float32, pipeline
from edge_asr.model import ConformerCTC
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.runtime.recognizer import Recognizer

pytestmark = pytest.mark.slow  # exports or trains

Arguments = Callable[..., dict[str, Any]]
FILES = {
    "bundle.json",
    "config.json",
    "model.onnx",
    "report.json",
    "report.md",
    "self_test.flac",
    "tokens.txt",
    "vocab.txt",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles") / "micro"


@pytest.fixture(scope="module")
def report(folder: Path, export_arguments: Arguments) -> ExportReport:
    """A complete export with nothing patched."""
    return export_bundle(**export_arguments(folder))


def spoil_export(monkeypatch: pytest.MonkeyPatch, exported: onnx.ModelProto) -> None:
    """Let torch's exporter be wrong: one bias is off by 0.5."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported)
    bias = next(i for i in wrong.graph.initializer if i.name.endswith("projection.bias"))
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] += 0.5
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    monkeypatch.setattr(float32, "export_onnx", lambda *args, **kwargs: wrong)


def test_bundle_is_complete_and_loads(report: ExportReport, folder: Path, model: ConformerCTC) -> None:
    assert set(os.listdir(folder)) == FILES
    assert os.listdir(folder.parent) == [folder.name]
    bundle = Bundle.load(folder)
    assert bundle.info.verified
    assert bundle.info.name == "micro"
    assert bundle.info.subsampling_factor == 8
    assert bundle.info.n_parameters == sum(p.numel() for p in model.parameters())
    assert bundle.artifact("fp32").opset == 18
    assert bundle.artifact("fp32").ir_version <= 10


def test_every_comparison_is_within_the_bar(report: ExportReport) -> None:
    (step,) = report.steps
    assert step.name == "PyTorch -> ONNX simplified"
    assert step.passed
    assert step.rounding is not None
    assert step.worst.max_error <= 4 * step.rounding.reference_max
    assert step.rounding.candidate_rms <= 1.5 * step.rounding.reference_rms
    assert all(row.same_text for row in step.results)


def test_the_text_of_the_proof_is_not_trivial(
    report: ExportReport, folder: Path, speechlike: Callable[..., Any]
) -> None:
    with Recognizer.load(folder) as recognizer:
        assert len(set(recognizer.transcribe(speechlike(3.0, seed=5), 16_000).text)) >= 4


def test_reports_on_disk_are_the_returned_one(report: ExportReport, folder: Path) -> None:
    assert json.loads((folder / "report.json").read_text()) == json.loads(report.to_json())
    assert (folder / "report.md").read_text() == report.to_markdown()
    stages = list(report.timings_s)
    assert stages[:3] == ["load", "rewrite", "export"]
    assert report.timings_s["total"] >= sum(report.timings_s[s] for s in stages[:4])


def test_metadata_and_files_for_other_runtimes(report: ExportReport, folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    metadata = {p.key: p.value for p in model.metadata_props}
    assert metadata["vocab_size"] == "27"
    assert metadata["subsampling_factor"] == "8"
    assert metadata["normalize_type"] == ""
    assert metadata["model_type"] == "EncDecCTCModelBPE"
    assert {"version", "model_author", "url", "comment"} <= metadata.keys()
    assert (folder / "tokens.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert (folder / "tokens.txt").read_text().splitlines()[-1] == "<blk> 27"
    config = json.loads((folder / "config.json").read_text())
    assert config == {"model_type": "nemo-conformer-ctc", "features_size": 80, "subsampling_factor": 8}


@pytest.mark.usefixtures("quick_export")
def test_fp16_weights_are_proven_against_the_float32_file(
    tmp_path: Path, export_arguments: Arguments, report: ExportReport
) -> None:
    stored = export_bundle(**export_arguments(tmp_path / "half", weights="fp16"))
    assert (stored.weights, report.weights) == ("fp16", "fp32")
    assert stored.sizes_bytes["model.onnx"] < 0.75 * report.sizes_bytes["model.onnx"]
    step = stored.steps[-1]
    assert step.name == "ONNX simplified -> ONNX with fp16 weights"
    assert step.tolerance.max_error is None
    assert 0 < step.worst.max_error < 0.1
    assert all(row.same_text for row in step.results if row.family == "real")
    artifact = Bundle.load(tmp_path / "half").artifact("fp32")
    assert (artifact.weights, artifact.precision) == ("fp16", "fp32")


def test_failed_proof_leaves_nothing(
    tmp_path: Path, export_arguments: Arguments, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_export(monkeypatch, exported)
    with pytest.raises(GateError, match=r"PyTorch -> ONNX simplified: \d+ of \d+ cases failed.*nothing was"):
        export_bundle(**export_arguments(tmp_path / "bundle"))
    assert os.listdir(tmp_path) == []


def test_failed_proof_keeps_the_old_bundle(
    report: ExportReport,
    folder: Path,
    export_arguments: Arguments,
    exported: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil_export(monkeypatch, exported)
    with pytest.raises(GateError):
        export_bundle(**export_arguments(folder, force=True))
    assert Bundle.load(folder).info.verified
    assert os.listdir(folder.parent) == [folder.name]


def test_keep_failed_writes_an_unverified_bundle_elsewhere(
    tmp_path: Path, export_arguments: Arguments, exported: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_export(monkeypatch, exported)
    with pytest.raises(GateError, match="kept in"):
        export_bundle(**export_arguments(tmp_path / "bundle", keep_failed=tmp_path / "failed"))
    assert os.listdir(tmp_path) == ["failed"]
    assert json.loads((tmp_path / "failed" / "bundle.json").read_text())["verified"] is False
    with pytest.raises(BundleError, match="failed its proof"):
        Bundle.load(tmp_path / "failed")
    assert not Bundle.load(tmp_path / "failed", allow_unverified=True).info.verified
    assert "NOT VERIFIED" in (tmp_path / "failed" / "report.md").read_text()


def test_existing_output_is_refused_before_any_work(
    report: ExportReport, folder: Path, export_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float32, "export_onnx", lambda model: pytest.fail("work began"))
    with pytest.raises(BundleError, match="exists; add --force"):
        export_bundle(**export_arguments(folder))


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stage", ["write_model", "write_token_files", "write_manifest", "collect_versions"])
def test_interrupted_write_keeps_the_old_bundle(
    stage: str,
    error: type[BaseException],
    tmp_path: Path,
    report: ExportReport,
    folder: Path,
    export_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, stage, interrupt)
    with pytest.raises(error):
        export_bundle(**export_arguments(folder, force=True))
    assert Bundle.load(folder).info.verified
    assert os.listdir(folder.parent) == [folder.name]


CHILD = """
import sys, time
from edge_asr.export import CasePlan, export_bundle, pipeline
def stop(*args):
    print("writing", flush=True)
    time.sleep(100)
pipeline.write_token_files = stop
plan = CasePlan(random_lengths=1, max_random_s=1.0, max_batch=1)
export_bundle(sys.argv[1], sys.argv[2], clips=[sys.argv[3]], plan=plan, force=True)
"""


@pytest.mark.slow
def test_sigkill_while_writing_keeps_the_old_bundle(
    report: ExportReport, folder: Path, checkpoint_path: Path, clip_path: Path
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(checkpoint_path), str(folder), str(clip_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert Bundle.load(folder).info.verified
    (left,) = folder.parent.glob(".micro.partial-*")
    with replacing_folder(folder.parent / "micro", BUNDLE_FOLDER, force=True) as new:
        assert not left.exists()
        for name in FILES:
            (new / name).write_bytes((folder / name).read_bytes())
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.usefixtures("quick_export")
def test_progress_names_every_timed_stage(tmp_path: Path, export_arguments: Arguments) -> None:
    seen: dict[str, tuple[int, int]] = {}
    report = export_bundle(
        **export_arguments(
            tmp_path / "b", progress=lambda stage, done, total: seen.update({stage: (done, total)})
        )
    )
    assert list(seen) == [*list(report.timings_s)[:-1], "write"]  # the report is written within "write"
    done, total = seen["prove: PyTorch"]
    assert done == total > len(report.steps[0].results)  # each in float64, some in float32 too
    assert seen["prove: ONNX simplified"] == (len(report.steps[0].results),) * 2


def test_unknown_weights_are_refused(tmp_path: Path, export_arguments: Arguments) -> None:
    with pytest.raises(ConfigError, match="weights is 'int4'; it must be one of fp32, fp16"):
        export_bundle(**export_arguments(tmp_path / "b", weights="int4"))


@pytest.mark.parametrize("module", ["torch", "onnx", "onnxscript", "onnxsim", "onnxruntime"])
def test_missing_module_is_named_with_its_extra(
    module: str, tmp_path: Path, export_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = export_arguments(tmp_path / "b")
    monkeypatch.setitem(sys.modules, module, None)
    extra = "cpu" if module == "onnxruntime" else "export"
    with pytest.raises(MissingDependencyError, match=rf"{module} is needed.*edge-asr\[{extra}\]"):
        export_bundle(**arguments)


def test_clips_come_from_files_folders_and_manifests(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/a.wav", "sub/b.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(800), 8_000)
    manifest = tmp_path / "dev.jsonl"
    manifest.write_text(json.dumps({"audio_filepath": "sub/b.flac", "text": "b", "duration": 0.1}) + "\n")
    found = find_clips([tmp_path / "a.wav", tmp_path / "sub", manifest])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == [
        "a.wav",
        "sub/a.wav",
        "sub/b.flac",
        "sub/b.flac",
    ]
    clips = load_clips(found[:3], 16_000)
    assert {name: len(w) for name, w in clips.items()} == {"a.wav": 1600, "sub/a.wav": 1600, "b.flac": 1600}


def test_clips_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"no sound file or manifest at .*nothing\.wav"):
        find_clips([tmp_path / "nothing.wav"])
    with pytest.raises(AudioError, match="needs real speech: give --clips"):
        find_clips([tmp_path])
    manifest = tmp_path / "dev.jsonl"
    manifest.write_text(json.dumps({"text": "x", "duration": 1.0}) + "\n")
    with pytest.raises(AudioError, match="1 unusable rows, the first is row 1"):
        find_clips([manifest])
    manifest.write_text(json.dumps({"audio_filepath": "gone.wav", "text": "x", "duration": 1.0}) + "\n")
    with pytest.raises(AudioError, match=r"gone\.wav"):
        load_clips(find_clips([manifest]), 16_000)
