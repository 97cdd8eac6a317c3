"""A machine that hears other words than the exporter did is caught: here by breaking what runs the model."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from edge_asr.bundle.folder import Bundle, resolve_bundle_path
from edge_asr.bundle.manifest import BundleInfo
from edge_asr.bundle.writer import write_manifest
from edge_asr.cli.main import cli
from edge_asr.diagnostics import model as diagnostics
from edge_asr.errors import BackendError, BundleError
from edge_asr.metrics import compute_error_rates
from edge_asr.proof.self_test import add_self_test
from edge_asr.runtime import self_test, tested
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.runtime.self_test import SelfTestResult, run_self_test
from edge_asr.runtime.stream_steps import HostSteps
from edge_asr.runtime.tested import choose_partials, load_tested

BREAK_STREAM = """
import numpy as np
from edge_asr.runtime.stream_steps import HostSteps
whole = HostSteps.run
def run(self, inputs):
    log_probs, *rest = whole(self, inputs)
    return (np.roll(log_probs, 1, axis=2) if self.precision == "int8" else log_probs, *rest)
HostSteps.run = run
"""
BREAK = """
import numpy as np
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
whole = OnnxRuntimeBackend.log_probs
OnnxRuntimeBackend.log_probs = lambda self, *given: (
    np.roll(whole(self, *given), 1, axis=2) if self.precision == "int8" else whole(self, *given))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-asr" / "self-test"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Precisions whose execution is perturbed, as the test wants them: every token becomes its neighbor."""
    precisions: set[str] = set()
    whole = OnnxRuntimeBackend.log_probs

    def log_probs(self: OnnxRuntimeBackend, *given: Any) -> Any:
        result = whole(self, *given)
        return np.roll(result, 1, axis=2) if self.precision in precisions else result

    monkeypatch.setattr(OnnxRuntimeBackend, "log_probs", log_probs)
    return precisions


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The precisions that were tested."""
    ran: list[str] = []

    def run(recognizer: Recognizer, *, stream: bool = False) -> SelfTestResult:
        ran.append("stream" if stream else recognizer.backend.precision)
        return run_self_test(recognizer, stream=stream)

    monkeypatch.setattr(self_test, "run_self_test", run)
    return ran


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_embedded_bundle_is_right_here(precision: str, sample_path: Path) -> None:
    with Recognizer.load(precision=precision, num_threads=1, self_test=True) as recognizer:
        result = run_self_test(recognizer)
    assert result.passed
    # Other weights may miss a letter; a model that cannot be trusted with its own sample may not ship.
    said = sample_path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    assert compute_error_rates([said], [result.text]).cer <= 0.2, result.text
    assert result.frame_agreement > 0.97
    assert str(result).startswith(f"{precision} on cpu (onnxruntime ")


def test_it_runs_once(runs: list[str], cache: Path) -> None:
    for _ in range(3):
        load_tested(num_threads=1).close()
    assert runs == ["int8"]
    load_tested(precision="fp32", num_threads=1).close()
    assert runs == ["int8", "fp32"]
    assert [file.read_text() for file in cache.iterdir()] == ["", ""]


def test_int8_that_is_broken_is_replaced_with_one_sentence(
    broken: set[str], runs: list[str], caplog: pytest.LogCaptureFixture, sample_texts: Mapping[str, str]
) -> None:
    broken.add("int8")
    for _ in range(2):
        caplog.clear()
        with load_tested(num_threads=1) as recognizer:
            assert recognizer.backend.precision == "fp32"
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warning.startswith("int8 on cpu (onnxruntime ")
        assert f"the exporter heard {sample_texts['int8']!r}; " in warning
        assert "log-probs differ by up to" in warning
        assert "; fp32 on cpu (onnxruntime" in warning
        assert warning.endswith(" is used instead")
    assert runs == ["int8", "fp32"]  # that it is broken is remembered too


@pytest.mark.parametrize(("precisions", "asked"), [({"int8", "fp32"}, "auto"), ({"int8"}, "int8")])
def test_where_nothing_is_right_it_refuses(broken: set[str], precisions: set[str], asked: str) -> None:
    broken |= precisions
    with pytest.raises(
        BackendError, match=r"int8 on cpu .* hears .*; choose another --precision or --backend"
    ):
        load_tested(precision=asked, num_threads=1)


def test_load_refuses_when_asked(broken: set[str]) -> None:
    broken.add("int8")
    with pytest.raises(BackendError, match=r"int8 on cpu .* of frames agree, log-probs differ by up to \d"):
        Recognizer.load(num_threads=1, self_test=True)
    Recognizer.load(num_threads=1).close()


def test_a_model_that_fails_on_the_clip_is_a_failed_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: OnnxRuntimeBackend, *given: Any) -> Any:
        if self.precision == "int8":
            raise BackendError("out of memory")
        return whole(self, *given)

    whole = OnnxRuntimeBackend.log_probs
    monkeypatch.setattr(OnnxRuntimeBackend, "log_probs", fail)
    with load_tested(num_threads=1) as recognizer:
        assert recognizer.backend.precision == "fp32"


def test_where_nothing_can_be_remembered_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: list[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_tested(num_threads=1).close()
    assert runs == []


def test_another_runtime_or_processor_is_tested_again(
    runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_tested(num_threads=1).close()
    monkeypatch.setattr(tested, "_machine", lambda: "another processor")
    load_tested(num_threads=1).close()
    monkeypatch.setattr(Recognizer, "execution", "int8 on cpu (onnxruntime 9.9)")
    load_tested(num_threads=1).close()
    assert runs == ["int8"] * 3


def test_what_changes_from_second_to_second_is_no_part_of_the_machine() -> None:
    assert tested._machine()
    assert "MHz" not in tested._machine()


@pytest.mark.parametrize(
    ("text", "deviation", "passed"), [("go", 9.0, True), ("goo", 0.4, True), ("goo", 0.6, False)]
)
def test_rounding_is_no_fault(text: str, deviation: float, passed: bool) -> None:
    """Two tokens that are equally probable may swap; a log-prob that is off may not."""
    assert SelfTestResult("int8", text, "go", 0.99, deviation).passed == passed


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(resolve_bundle_path("tiny-en"), tmp_path / "bundle")
    return tmp_path / "bundle"


def rewrite(folder: Path, **changes: Any) -> None:
    write_manifest(folder, dataclasses.replace(Bundle.load(folder).info, **changes))


def test_a_bundle_without_one_is_loaded_and_says_so_when_asked(copy: Path, runs: list[str]) -> None:
    rewrite(copy, self_test=None)
    load_tested(copy, num_threads=1).close()
    assert runs == []
    with pytest.raises(BundleError, match="carries no self-test of this precision; export the model again"):
        Recognizer.load(copy, num_threads=1, self_test=True)
    (check,) = diagnostics.check_self_test(str(copy))
    assert (check.status, check.required) == ("missing", False)
    add_self_test(copy)
    Recognizer.load(copy, num_threads=1, self_test=True).close()


def test_an_altered_clip_is_refused(copy: Path) -> None:
    (copy / "self_test.flac").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"self_test\.flac is not the file that bundle\.json describes"):
        Recognizer.load(copy, num_threads=1, self_test=True)
    load_tested(copy, num_threads=1).close()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"clip": "../x.flac", "sha256": "", "references": {}}, "must be a plain name"),
        ({"clip": "x.flac", "sha256": "", "references": {"int8": {"text": "a"}}}, "needs text, argmax and"),
        ({"clip": "x.flac", "sha256": "", "references": {"int8": 3}}, "int8"),
        ({"clip": "x.flac"}, "sha256"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(copy: Path, entry: Any, words: str) -> None:
    data = {**Bundle.load(copy).info.to_dict(), "self_test": entry}
    with pytest.raises(BundleError, match=words):
        BundleInfo.from_dict(data)


@pytest.mark.parametrize("values", ["", "1 2", "x"])
def test_a_digest_that_is_no_digest_of_the_clip_is_refused(copy: Path, values: str) -> None:
    entry = Bundle.load(copy).info.self_test
    assert entry is not None
    reference = {"text": "", "argmax": values, "values": values}
    rewrite(copy, self_test=dataclasses.replace(entry, references={"int8": reference}))
    with pytest.raises(BundleError, match="the self-test of"):
        Recognizer.load(copy, num_threads=1, self_test=True)


def test_transcribe_says_one_sentence_and_goes_on(
    broken: set[str], sample_path: Path, sample_texts: Mapping[str, str]
) -> None:
    broken.add("int8")
    arguments = ["transcribe", "--threads", "1", str(sample_path)]
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout) == (0, sample_texts["fp32"] + "\n")
    result = CliRunner().invoke(cli, [*arguments, "--precision", "int8"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "int8 on cpu" in result.stderr
    result = CliRunner().invoke(cli, [*arguments, "--precision", "int8", "--no-self-test"])
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.strip() not in sample_texts.values()


def test_doctor_says_which_one_is_broken(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(diagnostics, "SELF_TEST_PROBE", BREAK + diagnostics.SELF_TEST_PROBE)
    every = diagnostics.check_self_test(None)
    checks = [check for check in every if "stream" not in check.name]
    assert {(check.detail.split(" (")[0], check.status) for check in checks} == {
        ("fp32 on cpu", "ok"),
        ("int8 on cpu", "broken"),
    }
    assert all("log-probs differ by up to" in check.detail for check in checks)
    kept = sorted(bool(file.read_text()) for file in cache.iterdir())
    assert kept == [False] * (len(every) - 1) + [True]


@pytest.fixture
def broken_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The INT8 stream gives other tokens, and the offline graph does not."""
    whole = HostSteps.run

    def run(self: HostSteps, inputs: Any) -> Any:
        log_probs, *rest = whole(self, inputs)
        return (np.roll(log_probs, 1, axis=2) if self.precision == "int8" else log_probs, *rest)

    monkeypatch.setattr(HostSteps, "run", run)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_stream_of_a_bundle_is_right_here(streaming_int8_bundle: Path, precision: str) -> None:
    with Recognizer.load(streaming_int8_bundle, precision=precision, num_threads=1) as recognizer:
        result = run_self_test(recognizer, stream=True)
        assert choose_partials(recognizer, "auto") == "auto"
    assert result.passed
    assert result.frame_agreement == 1.0
    assert str(result).startswith(f"{precision} stream on cpu (onnxruntime ")


def test_a_broken_stream_is_left_out_of_partials(
    streaming_int8_bundle: Path, broken_stream: None, runs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with load_tested(streaming_int8_bundle, precision="int8", num_threads=1) as recognizer:
        for _ in range(2):
            caplog.clear()
            assert choose_partials(recognizer, "auto") == "windowed"
            (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
            assert warning.startswith("int8 stream on cpu (onnxruntime ")
            assert "in the bundle's clip, and the exporter heard" in warning
            assert warning.endswith("; partials are made without it, --partials windowed")
        with pytest.raises(BackendError, match=r"int8 stream on cpu .*; choose --partials windowed"):
            choose_partials(recognizer, "streaming")
        assert choose_partials(recognizer, "off") == "off"
    assert runs == ["int8", "stream"]  # that it is broken is remembered
    with Recognizer.load(streaming_int8_bundle, precision="fp32", num_threads=1) as recognizer:
        assert choose_partials(recognizer, "streaming") == "streaming"


def test_load_refuses_a_broken_stream_when_asked(streaming_int8_bundle: Path, broken_stream: None) -> None:
    with pytest.raises(BackendError, match=r"int8 stream on cpu .* of frames agree"):
        Recognizer.load(streaming_int8_bundle, precision="int8", num_threads=1, self_test=True)


def test_listen_says_that_the_stream_is_broken_and_goes_on(
    streaming_int8_bundle: Path, broken_stream: None, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(4000, np.float32), 16_000)
    arguments = ["listen", "--threads", "1", "--precision", "int8", "-m", str(streaming_int8_bundle)]
    arguments += ["--simulate", str(tmp_path / "short.wav")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert result.stderr.count("int8 stream on cpu") == 1
    result = CliRunner().invoke(cli, [*arguments, "--no-self-test"])
    assert result.exit_code == 0
    assert "int8 stream on cpu" not in result.stderr


def test_doctor_says_which_stream_is_broken(
    streaming_int8_bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(diagnostics, "SELF_TEST_PROBE", BREAK_STREAM + diagnostics.SELF_TEST_PROBE)
    checks = diagnostics.check_self_test(str(streaming_int8_bundle))
    assert {(check.name, check.status) for check in checks} == {
        ("self-test fp32 on cpu", "ok"),
        ("self-test fp32 stream on cpu", "ok"),
        ("self-test int8 on cpu", "ok"),
        ("self-test int8 stream on cpu", "broken"),
    }
    assert sorted(bool(file.read_text()) for file in cache.iterdir()) == [False, False, False, True]
