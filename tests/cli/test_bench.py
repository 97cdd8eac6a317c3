"""`edge-asr bench` from end to end on a tiny model of random weights; no assertion is on a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_asr.benchmark import fresh_process
from edge_asr.benchmark.schema import STAGES, BenchReport
from edge_asr.benchmark.statistics import summarize
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend

QUICK = ("--min-duration", "0", "--warmup", "0", "--threads", "1")


@pytest.fixture(scope="module")
def results(random_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small benchmark, made by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("bench") / "result"
    arguments = ["bench", "-m", str(random_bundle), "--seconds", "0.5,1", "--batch", "1,2", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "edge_asr", *arguments, "--json", "-o", str(folder)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document == json.loads((folder / "bench.json").read_text())
    return folder


def test_the_file_holds_what_was_asked_for(results: Path, random_bundle: Path) -> None:
    report = BenchReport.read(results)
    (configuration,) = report.configurations
    assert (configuration.precision, configuration.backend, configuration.threads) == ("fp32", "cpu", 1)
    assert [(c.seconds, c.batch, c.mode) for c in configuration.cells] == [
        (0.5, 1, "transcribe"),
        (0.5, 2, "transcribe_batch"),
        (1.0, 1, "transcribe"),
        (1.0, 2, "transcribe_batch"),
    ]
    for cell in configuration.cells:
        assert cell.n_runs >= 10
        assert tuple(cell.stages) == STAGES
        total = cell.stages["total"]
        assert sum(total.sessions) == len(total.samples_ms) == cell.n_runs
        assert len(total.sessions) == 5
        assert total.summary == summarize(total.samples_ms)
        parts = np.sum([cell.stages[name].samples_ms for name in ("features", "encode", "decode")], axis=0)
        assert parts == pytest.approx(total.samples_ms, rel=1e-3)
        assert cell.rtfx == pytest.approx(cell.audio_s / (total.summary.p50 / 1e3), rel=1e-3)
        assert cell.rtfx_without_features > cell.rtfx
        assert cell.passes == ((cell.batch, round(cell.seconds * 100)),)
        assert not cell.text_is_empty
    assert configuration.cold.n_runs == 5
    assert configuration.streams == ()
    assert configuration.streams_reason is not None
    assert configuration.accuracy_reason is not None
    assert (
        configuration.sha256
        == json.loads((random_bundle / "bundle.json").read_text())["artifacts"][0]["sha256"]
    )
    assert report.settings.seconds == (0.5, 1.0)


def test_the_folder_is_whole_and_not_overwritten(run: Any, results: Path, random_bundle: Path) -> None:
    assert sorted(p.name for p in results.iterdir()) == [
        "batches.png",
        "bench.json",
        "bench.md",
        "latency.png",
        "length.png",
    ]
    refused = run("bench", "-m", random_bundle, *QUICK, "-o", results)
    assert refused.exit_code == 1
    assert "add --force" in refused.stderr


def test_comparing_with_itself_is_within_noise(run: Any, results: Path) -> None:
    plain = run("bench", "--compare", results, results / "bench.json")
    assert plain.exit_code == 0
    assert "within noise" in plain.stdout
    found = json.loads(run("bench", "--compare", results, results, "--json").stdout)
    assert {r["verdict"] for r in found["ratios"]} == {"within noise"}


def test_comparing_needs_benchmarks(run: Any, results: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema_version": 99}')
    result = run("bench", "--compare", results, tmp_path / "other.json")
    assert result.exit_code == 1
    assert "schema_version 99" in result.stderr
    assert run("bench", "--compare", results, tmp_path / "none.json").exit_code == 2


def test_a_backend_that_returns_something_else_is_refused(
    run: Any, random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured process lies, the reference of its own process does not."""
    real = OnnxRuntimeBackend.log_probs

    def lie(self: OnnxRuntimeBackend, features: Any, feature_lens: Any) -> Any:
        return np.roll(real(self, features, feature_lens), 1, axis=2)

    monkeypatch.setattr(OnnxRuntimeBackend, "log_probs", lie)
    result = run(
        "bench", "-m", random_bundle, "--seconds", "1", "--batch", "1", *QUICK, "-o", tmp_path / "out"
    )
    assert result.exit_code == 3
    assert "no number is reported" in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_reference_that_fails_is_an_error_in_one_line(
    run: Any, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_process, "_CHILD", "raise SystemExit('out of memory')")
    result = run("bench", "-m", random_bundle, "--seconds", "1", "--batch", "1", *QUICK)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "edge-asr: a fresh process ended with exit code 1: out of memory"


def test_error_rates_and_streams_beside_the_speed(run: Any, sample_path: Path, tmp_path: Path) -> None:
    row = {"audio_filepath": str(sample_path), "text": sample_path.with_suffix(".txt").read_text().strip()}
    manifest = tmp_path / "dev.jsonl"
    manifest.write_text(json.dumps(row) + "\n")
    result = run(
        "bench", "--seconds", "1", "--batch", "1", *QUICK, "--manifest", manifest,
        "--streams", "2", "--utterances", "1", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = BenchReport.from_dict(json.loads(result.stdout.splitlines()[-1]))
    (configuration,) = report.configurations
    assert configuration.accuracy is not None
    assert configuration.accuracy.n_utterances == 1
    assert configuration.accuracy.wer < 0.2  # of eleven words
    assert [s.n_streams for s in configuration.streams] == [1, 2]
    for streams in configuration.streams:
        assert (streams.mode, streams.n_gaps, streams.n_finals) == ("streaming", 0, streams.n_streams)
        assert streams.end_to_final.summary is not None


def test_a_streaming_bundle_is_heard_through_its_streaming_graph(run: Any, streaming_bundle: Path) -> None:
    short = ("--seconds", "1", "--batch", "1", "--utterances", "1")
    result = run("bench", "-m", streaming_bundle, *short, *QUICK, "--json")
    assert result.exit_code == 0, result.stderr
    report = BenchReport.from_dict(json.loads(result.stdout.splitlines()[-1]))
    (streams,) = report.configurations[0].streams
    assert (streams.mode, streams.n_streams, streams.n_gaps) == ("streaming", 1, 0)
    assert streams.first_partial.summary is not None


@pytest.mark.parametrize(
    ("row", "words"),
    [('{"audio_filepath": "none.wav", "text": "x"}', "none.wav"), ("{not json", "not valid JSON")],
)
def test_manifest_with_a_bad_row_is_refused_before_any_work(
    run: Any, sounds: Path, row: str, words: str
) -> None:
    manifest = sounds / "dev.jsonl"
    manifest.write_text('{"audio_filepath": "a.wav", "text": "x"}\n' + row + "\n")
    result = run("bench", "--manifest", manifest)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--precision", "fp64"], 2, "'fp64' is not one of"),
        (["--seconds", "1,x"], 2, "not a comma-separated list of numbers"),
        (["--seconds", "0"], 1, "from 0.1 to 3600"),
        (["--batch", "0"], 1, "1 is the least"),
        (["--streams", "0"], 2, "nor max"),
        (["--random", "gigantic"], 1, "no random model 'gigantic'"),
        (["--random", "small", "-m", "tiny-en"], 2, "leave -m out"),
        (["--audio", "none.wav"], 1, "none.wav"),
        (["-m", "none"], 1, "no bundle at 'none'"),
    ],
)
def test_wrong_usage_is_told_in_a_line(run: Any, arguments: list[str], code: int, words: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == code, result.stderr
    assert words in result.stderr


def test_random_without_torch_is_one_sentence(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("bench", "--random", "tiny")
    assert result.exit_code == 1
    assert "pip install 'edge-asr[export]'" in result.stderr


THIN = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript", "matplotlib", "jiwer", "pynvml", "jtop"}:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
from edge_asr.cli.main import cli
cli.main(sys.argv[1:])
"""


def test_it_runs_where_only_the_runtime_is_installed(random_bundle: Path, tmp_path: Path) -> None:
    arguments = ["bench", "-m", str(random_bundle), "--seconds", "0.5", "--batch", "1", *QUICK]
    done = subprocess.run(
        [sys.executable, "-c", THIN, *arguments, "-o", str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Overview" in done.stdout
    assert "edge-asr: no plots: matplotlib is needed here" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bench.json", "bench.md"]
