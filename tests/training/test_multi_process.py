"""Two gloo processes under torchrun equal one process with the doubled batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import dump_config
from edge_asr.training.curves import read_metrics
from edge_asr.training.run import train

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2 -m edge_asr train"


def run_group(command: list[str]) -> tuple[int, str]:
    """Run a program; one that takes too long is ended with its children, which hold its pipe open."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=480)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, said


def test_two_processes_equal_one(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    common = {
        # BatchNorm sees only its own process's rows on CPUs; dropout and augmentation draw per process.
        "model": {"conv_norm": "layer_norm", "dropout": 0.0, "dropout_attention": 0.0},
        "augment": {"enabled": False},
        "optim": {"max_steps": 3, "ema_decay": 0.0, "lr": 1e-3, "eps": 1e-5},
    }
    one = make_config(run_dir=str(tmp_path / "one"), data={"max_batch_s": 16.0}, **common)
    two = make_config(run_dir=str(tmp_path / "two"), data={"max_batch_s": 8.0}, **common)
    train(one, quiet=True)
    yaml_path = tmp_path / "two.yaml"
    yaml_path.write_text(dump_config(two))
    code, said = run_group([sys.executable, *TORCHRUN.split(), str(yaml_path)])
    assert code == 0, said[-3000:]
    rows = [read_metrics(Path(config.run_dir) / "metrics.csv") for config in (one, two)]
    single, double = ([float(row["loss"]) for row in part if row["loss"]] for part in rows)
    assert len(single) == 3
    # float32 sums in another order: relative 1e-5 on losses. AdamW divides by the gradient's own size,
    # so eps is 1e-5 here: with 1e-8 it would turn rounding of a zero gradient into a whole step.
    assert double == pytest.approx(single, rel=1e-5)
    mine, theirs = (load_checkpoint(Path(config.run_dir) / "last").state_dict for config in (two, one))
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
