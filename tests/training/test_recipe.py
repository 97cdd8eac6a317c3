"""The recipe's command: stages in order, stopped and gone on with, skipped when finished, and its table."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import dump_config

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_stages_are_resumed_and_skipped(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    first = make_config(run_dir=str(tmp_path / "one"), optim={"max_steps": 3})
    second = dataclasses.replace(
        first, run_dir=str(tmp_path / "two"), init_from=str(tmp_path / "one" / "last"), model={}
    )
    for name, stage in (("one", first), ("two", second)):
        (tmp_path / f"{name}.yaml").write_text(dump_config(stage))

    def make() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, REPOSITORY / "scripts" / "recipes" / "tiny_en" / "make.py"]
        options = ["--processes", "1", "--table", tmp_path / "table.md"]
        return subprocess.run(
            [*command, *options, tmp_path / "one.yaml", tmp_path / "two.yaml"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )

    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "STOP").touch()
    stopped = make()
    assert stopped.returncode == 130, stopped.stderr
    assert "two.yaml is not finished; the same command goes on with it" in stopped.stderr
    assert "| one.yaml | 3 | 3 |" in (tmp_path / "table.md").read_text()
    (tmp_path / "two" / "STOP").unlink()
    done = make()
    assert done.returncode == 0, done.stderr
    header, rule, one, two = done.stdout.splitlines()[-4:]
    assert "tones_dev, WER" in header
    assert one.startswith("| one.yaml | 3 | 3 |")
    assert two.startswith("| two.yaml | 3 | 3 |")
    states = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/state/*")}
    assert make().stdout.splitlines()[-4:] == [header, rule, one, two]
    assert states == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/state/*")}
