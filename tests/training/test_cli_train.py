"""`edge-asr train` on the command line: errors in one line, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.cli.main import cli
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import dump_config


def run(*arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(cli, ["train", *arguments])


def test_print_config_is_yaml_on_stdout() -> None:
    result = run("--print-config")
    assert result.exit_code == 0
    assert yaml.safe_load(result.stdout)["optim"]["lr"] == 1e-3


def test_usage_and_expected_errors(tmp_path: Path) -> None:
    assert run().exit_code == 2
    assert run("x.yaml", "--average", "2").exit_code == 2
    file = tmp_path / "train.yaml"
    file.write_text("optim:\n  lern: 1\n")
    result = run(str(file))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "optim has the unknown key 'lern'" in result.stderr
    assert run(str(file), "--set", "nonsense").exit_code == 1
    for value in ("a={[", "a=!!python/object:os.system x", "a=" + "9" * 5000, "a=" + "[" * 5000):
        result = run(str(file), "--set", value)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.exception
        assert "cannot be read as plain YAML" in result.stderr
    file.write_text("run_dir: x\n")
    assert "data.train is empty" in run(str(file)).stderr


@pytest.mark.slow
def test_train_and_average(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config(run={"checkpoint_every_steps": 1})
    file = tmp_path / "train.yaml"
    file.write_text(dump_config(config))
    result = run(str(file), "--set", "optim.max_steps=2", "--json")
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout.splitlines()[-1])
    assert summary["step"] == 2
    assert {"wer", "cer", "jaccard", "loss"} <= set(summary["dev"]["tones_dev"])
    output = tmp_path / "mean"
    averaged = run(config.run_dir, "--average", "2", "-o", str(output))
    assert averaged.exit_code == 0
    assert load_checkpoint(output).provenance["averaged"] == [1, 2]
    assert run(config.run_dir, "--average", "2", "-o", str(output)).exit_code == 1
    assert run(config.run_dir, "--average", "2", "-o", str(output), "--force").exit_code == 0
