"""Groups of options: each value arrives once, under the name of the argument that it becomes."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from edge_asr.cli import options
from edge_asr.runtime.decoding import choice
from edge_asr.runtime.decoding.beam import BeamDecoder
from edge_asr.runtime.recognizer import Recognizer
from edge_asr.vocabulary import Vocabulary


def values_of(group: Any, *arguments: str) -> dict[str, Any]:
    """What a command with one group of options gets."""
    seen: dict[str, Any] = {}

    @click.command()
    @click.option("--other")
    @group
    def command(**values: Any) -> None:
        seen.update(values)

    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert seen.pop("other") is None
    ((_, values),) = seen.items()
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("group", [options.recognizer_options, options.bundle_options])
def test_what_loads_a_recognizer_are_its_arguments(group: Any) -> None:
    parameters = inspect.signature(Recognizer.load).parameters
    values = values_of(group, "-m", "mine", "--threads", "2")
    assert set(values) <= set(parameters)
    assert (values["path_or_name"], values["num_threads"]) == ("mine", 2)
    for name, value in values_of(group).items():
        assert value == parameters[name].default, name


@pytest.mark.parametrize(
    ("before", "asked", "left"),
    [(None, "1", "1"), ("", "0", "0"), ("2,3", "1", "3"), ("GPU-ab,GPU-cd", "0", "GPU-ab")],
)
def test_a_gpu_by_its_number(
    before: str | None, asked: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that uses CUDA sees that one alone; numbers are those of nvidia-smi."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "kept")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES") if before is None else monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", before
    )
    assert "gpu" not in values_of(options.bundle_options, "--gpu", asked)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left
    assert os.environ["CUDA_DEVICE_ORDER"] == "kept"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("2", "2 is not among the 2 GPUs that CUDA_VISIBLE_DEVICES=4,5 leaves; give 0 to 1"),
        ("-1", "-1 is not in the range x>=0"),
        ("one", "'one' is not a valid integer"),
    ],
)
def test_a_gpu_that_cannot_be(asked: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    command = click.command()(options.bundle_options(lambda bundle: None))
    result = CliRunner().invoke(command, ["--gpu", asked])
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


def test_the_decoders_are_those_of_the_library() -> None:
    assert options.DECODERS == choice.DECODERS


def test_options_of_the_beam_are_a_decoder(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("ab\n", encoding="utf-8")
    vocabulary = Vocabulary.from_characters("ab ")
    cases = (("--decoder", "beam"), ("--beam-size", "8"), ("--hotwords", str(words)))
    for arguments in cases:
        decoder = values_of(options.recognizer_options, *arguments)["decoder"](vocabulary)
        assert (type(decoder), decoder.beam_size) == (BeamDecoder, 8)
    assert values_of(options.recognizer_options, "--decoder", "greedy")["decoder"] is None


def test_options_of_the_beam_alone() -> None:
    assert options.make_decoder_options(values_of(options.decoder_options)) is None
    values = values_of(options.decoder_options, "--beam-size", "4")
    assert options.make_decoder_options(values) == choice.DecoderOptions(beam_size=4)


def test_int8_without_options_is_the_default_of_the_library() -> None:
    from edge_asr.calibration import Budget, Int8Options

    assert options.make_int8_options(values_of(options.int8_options)) == Int8Options()
    values = values_of(options.int8_options, "--no-smoothing", "--max-wer-loss", "0.01", "--percentile", "99")
    made = options.make_int8_options(values)
    assert made == Int8Options(smoothing=None, percentile=99.0, budget=Budget(max_wer_loss=0.01))


def test_streaming_without_options_is_the_default_of_the_library() -> None:
    from edge_asr.export import StreamingOptions

    assert StreamingOptions(**values_of(options.streaming_options)) == StreamingOptions()
    values = values_of(options.streaming_options, "--streaming", "--chunk-ms", "320")
    assert StreamingOptions(**values) == StreamingOptions(enabled=True, chunk_ms=320.0)


def test_two_groups_keep_apart() -> None:
    seen: dict[str, Any] = {}

    @click.command()
    @options.streaming_options
    @options.recognizer_options
    def command(streaming: dict[str, Any], recognizer: dict[str, Any]) -> None:
        seen.update(streaming=streaming, recognizer=recognizer)

    result = CliRunner().invoke(command, ["--chunk-ms", "80", "--backend", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0
    assert seen["streaming"]["chunk_ms"] == 80
    assert seen["recognizer"]["backend"] == "cpu"
    assert set(seen["streaming"]).isdisjoint(seen["recognizer"])
