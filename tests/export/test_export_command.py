"""`edge-asr export`: exit codes, one-line errors, JSON alone on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edge_asr.bundle.folder import Bundle
from edge_asr.cli.main import cli
from edge_asr.export import pipeline
from edge_asr.proof.compare import RoundingBar

pytestmark = pytest.mark.slow  # exports or trains


@pytest.fixture
def invoke(
    quick_export: None, monkeypatch: pytest.MonkeyPatch, checkpoint_path: Path, clip_path: Path
) -> Callable[..., Result]:
    """Run the command on the small checkpoint, with a short proof."""
    build_cases = pipeline.build_cases
    plan = pipeline.CasePlan(random_lengths=1, max_random_s=1.0, max_batch=2)
    monkeypatch.setattr(pipeline, "build_cases", lambda *args: build_cases(*args[:3], plan))

    def run(*arguments: Any, clips: Path = clip_path) -> Result:
        return CliRunner().invoke(
            cli, ["export", str(checkpoint_path), "--clips", str(clips), *map(str, arguments)]
        )

    return run


def test_summary_and_bundle(invoke: Callable[..., Result], tmp_path: Path) -> None:
    result = invoke("-o", tmp_path / "b", "--weights", "fp16", "--name", "mine")
    assert result.exit_code == 0, result.output
    assert "mine: verified" in result.stdout
    assert "details in report.md" in result.stdout
    assert "edge-asr: prove: PyTorch ..." in result.stderr
    assert Bundle.load(tmp_path / "b").info.name == "mine"


def test_json_is_one_document_on_stdout(invoke: Callable[..., Result], tmp_path: Path) -> None:
    result = invoke("-o", tmp_path / "b", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["verified"] is True
    assert len(result.stdout.strip().splitlines()) == 1
    assert data["steps"][0]["results"][0]["family"] == "real"


def test_json_with_an_engine_is_one_document_still(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the engine cannot be built: the bundle is written."""
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    result = invoke("-o", tmp_path / "b", "--json", "--engine", "--flavor", "tensorrt-rtx")
    assert result.exit_code == 1
    assert "tensorrt_rtx is needed here and is not installed" in result.stderr.splitlines()[-1]
    (line,) = result.stdout.splitlines()
    data = json.loads(line)
    assert (data["verified"], data["engines"]) == (True, [])
    assert Bundle.load(tmp_path / "b").info.verified


def test_existing_output_is_exit_1_in_one_line(invoke: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    result = invoke("-o", tmp_path / "b")
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.endswith("exists; add --force to replace it, or name another folder with -o")


def test_failed_proof_is_exit_3(
    invoke: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = RoundingBar(max_factor=1e-6, floor=0.0)
    monkeypatch.setattr("edge_asr.proof.truth.RoundingBar", lambda: strict)
    result = invoke("-o", tmp_path / "b", "--keep-failed", tmp_path / "kept")
    assert result.exit_code == 3
    assert "cases failed" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "b").exists()
    assert (tmp_path / "kept" / "report.md").is_file()


@pytest.mark.parametrize("arguments", [[], ["-o", "x", "--opset", "17"], ["-o", "x", "--weights", "int8"]])
def test_wrong_usage_is_exit_2(arguments: list[str], invoke: Callable[..., Result]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_unknown_checkpoint_is_exit_1(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["export", str(tmp_path / "none"), "-o", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert "none does not exist" in result.stderr
