"""kill -9 in the middle of a run, then --resume: the same losses and weights as an unbroken run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import dump_config
from edge_asr.training.curves import read_metrics
from edge_asr.training.run import train
from edge_asr.training.state import find_states

# The process kills itself, so that the moment is the same on every machine: after step 8 is logged,
# two steps after the last saved state.
KILLED = """
import os, signal
from edge_asr.training.progress import RunProgress
from edge_asr.cli.main import main

def show_step(self, row, optim):
    if row["step"] == 9:
        os.kill(os.getpid(), signal.SIGKILL)

RunProgress.show_step = show_step
main()
"""


def read_losses(config: TrainConfig) -> dict[int, str]:
    rows = read_metrics(Path(config.run_dir) / "metrics.csv")
    steps = [int(row["step"]) for row in rows if row["loss"]]
    assert len(set(steps)) == len(steps)
    return {int(row["step"]): row["loss"] for row in rows if row["loss"]}


def test_killed_and_resumed_run_equals_an_unbroken_one(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    # A worker process prepares batches ahead of the step, which resuming must not notice.
    whole = make_config(
        run_dir=str(tmp_path / "whole"),
        optim={"max_steps": 12},
        run={"state_every_steps": 6},
        data={"n_workers": 1, "prefetch_batches": 3},
    )
    train(whole, quiet=True)
    parts = dataclasses.replace(whole, run_dir=str(tmp_path / "parts"))
    yaml_path = tmp_path / "train.yaml"
    yaml_path.write_text(dump_config(parts))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "train", str(yaml_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=240,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert [path.name for path in find_states(tmp_path / "parts")] == ["step_00000006"]
    assert max(read_losses(parts)) == 8  # logged, but beyond the saved state
    train(parts, quiet=True, resume=True)
    assert read_losses(parts) == read_losses(whole)
    assert sorted(read_losses(whole)) == list(range(1, 13))
    mine, theirs = (load_checkpoint(Path(c.run_dir) / "last").state_dict for c in (parts, whole))
    for name, value in theirs.items():
        assert torch.equal(value, mine[name]), name
