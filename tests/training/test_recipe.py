"""The recipe: stages in order, stopped and continued, skipped when finished; and the ablations."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import dump_config
from edge_asr.training.corpus import Clip
from edge_asr.training.distillation import load_posteriors
from edge_asr.training.run import train

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
    done = make()
    assert done.returncode == 0, done.stderr
    header, rule, one, two = done.stdout.splitlines()[-4:]
    assert "tones_dev, WER" in header
    assert one.startswith("| one.yaml | 3 | 3 |")
    assert two.startswith("| two.yaml | 3 | 3 |")
    states = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/state/*")}
    assert make().stdout.splitlines()[-4:] == [header, rule, one, two]
    assert states == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/state/*")}


@pytest.mark.slow
def test_ablations_share_the_base_and_make_a_page(tone_manifests: tuple[Path, Path], tmp_path: Path) -> None:
    speech, dev = tone_manifests
    command = [sys.executable, REPOSITORY / "scripts" / "ablate.py", "--train", speech, "--dev", dev]
    command += ["--steps", "2"]
    command += ["--runs", tmp_path / "runs", "-o", tmp_path / "page.md", "--only", "head", "norm"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if "->" in line]) == 3  # the base is trained once
    result = json.loads(done.stdout.splitlines()[-1])
    variants = [(row["family"], row["variant"]) for row in result["rows"]]
    assert variants == [("head", "linear"), ("head", "LSTM"), ("norm", "BatchNorm"), ("norm", "LayerNorm")]
    page = (tmp_path / "page.md").read_text()
    for family in ("head", "norm"):
        assert f"(page/{family}.png)" in page
        assert (tmp_path / "page" / f"{family}.png").read_bytes().startswith(b"\x89PNG")


def test_a_head_on_states_writes_posteriors_that_training_reads(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(optim={"max_steps": 1})
    train(config, quiet=True)
    student = load_checkpoint(Path(config.run_dir) / "last")
    rng = np.random.default_rng(0)
    for name, n_rows in (("tones", 3), ("dev", 1)):
        (tmp_path / name).mkdir()
        rows = [{"audio_filepath": f"{number}.wav", "text": "a be cad"} for number in range(n_rows)]
        (tmp_path / name / "00000.jsonl").write_text("\n".join(map(json.dumps, rows)))
        states = {str(n): rng.standard_normal((40 + n, 8)).astype(np.float16) for n in range(n_rows)}
        np.savez(tmp_path / name / "00000.npz", **states)
    command = [sys.executable, REPOSITORY / "scripts" / "recipes" / "tiny_en" / "teach.py"]
    command += [Path(config.run_dir) / "last", "-o", tmp_path / "said", "--minutes", "0.0001"]
    command += ["--train", f"tones={tmp_path / 'tones'}", "--dev", tmp_path / "dev"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 3
    clips = [
        Clip(id="2.wav", source="tones", row=3, text="a", n_samples=1, weight=1.0, path=Path(), audio=None)
    ]
    (found,) = load_posteriors(tmp_path / "said", clips, student.vocabulary)
    assert found is not None
    assert found.tokens.shape[0] == 42
    assert found.frame_s == 0.04


@pytest.mark.slow
def test_shares_hear_equally_long_and_stages_make_one_curve(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config(run_dir=str(tmp_path / "start"), optim={"max_steps": 1})
    train(config, quiet=True)
    (tmp_path / "config.yaml").write_text(dump_config(dataclasses.replace(config, model={})))
    recipe = REPOSITORY / "scripts" / "recipes" / "tiny_en"

    def call(*command: object) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, *map(str, command)], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    runs = tmp_path / "runs"
    shares = [recipe / "shares.py", tmp_path / "config.yaml", "--init", tmp_path / "start" / "last"]
    shares += ["--runs", runs, "-o", tmp_path / "page.md", "--share", 0.5, "--share", 1]
    half, whole = json.loads(call(*shares).splitlines()[-1])["rows"]
    assert half["hours"] <= whole["hours"]
    assert half["steps"] == whole["steps"] == 1
    small, large = ((runs / name / "data" / "0.jsonl").read_text() for name in ("share_50", "share_100"))
    assert large.startswith(small)
    assert 0 < small.count("\n") < large.count("\n")
    assert "| 50 % |" in (tmp_path / "page.md").read_text()
    call(recipe / "curves.py", runs / "share_50", runs / "share_100", "-o", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
