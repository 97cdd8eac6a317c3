"""The examples of training on several machines: what they start, with stand-ins for Slurm and Ray.

That several processes train one model is tested in tests/training/test_multi_process.py, with torchrun.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

YAML = "run_dir: runs/mine\ndata: {train: [{path: train.jsonl}]}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training, and programs that stand in for Slurm's."""
    (tmp_path / "my.yaml").write_text(YAML)
    programs = {
        "scontrol": 'echo "$@" >&2; printf "node7\\nnode8\\n"',
        "srun": 'exec "$@"',
        "torchrun": f'"{sys.executable}" -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@"',
        "python3": f'exec "{sys.executable}" "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, body in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def submit(folder: Path, repository: Path) -> list[str]:
    """Run the job as Slurm would on the first of two machines; return the arguments of torchrun."""
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(repository),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_JOB_ID": "123",
    }
    script = repository / "examples" / "cluster" / "train.sbatch"
    done = subprocess.run(
        ["bash", str(script), str(folder / "my.yaml")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "show hostnames node[7-8]\n"
    arguments: list[str] = json.loads(done.stdout)
    return arguments


def test_slurm_starts_torchrun_on_every_machine(folder: Path, repository: Path) -> None:
    given = get_args_parser().parse_args(submit(folder, repository))
    assert (given.nnodes, given.nproc_per_node) == ("2", "4")
    assert (given.rdzv_backend, given.rdzv_endpoint, given.rdzv_id) == ("c10d", "node7:29500", "123")
    assert given.module
    assert given.training_script == "edge_asr"
    assert given.training_script_args == ["train", str(folder / "my.yaml")]


def test_a_job_that_was_requeued_resumes(folder: Path, repository: Path) -> None:
    (folder / "runs" / "mine" / "state" / "step_000100").mkdir(parents=True)
    assert submit(folder, repository)[-1] == "--resume"


class StandIn(ModuleType):
    """Stands in for a module of Ray: every attribute keeps its arguments."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **given: SimpleNamespace(name=name, arguments=arguments, **given)


@pytest.fixture
def example(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, StandIn(name))
    spec = importlib.util.spec_from_file_location(
        "train_ray", repository / "examples" / "cluster" / "train_ray.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    spec.loader.exec_module(module)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    return module


def test_ray_train_is_told_what_was_asked_for(
    example: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def trainer(function: Any, **given: Any) -> Any:
        made.append((function, given))
        return SimpleNamespace(fit=lambda: None)

    monkeypatch.setattr(example, "TorchTrainer", trainer)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["train_ray.py", "my.yaml", "--workers", "8", "--gpu"])
    example.main()
    ((function, given),) = made
    assert function is example.train_one
    assert given["train_loop_config"] == {"config": str(folder / "my.yaml")}
    assert (given["scaling_config"].num_workers, given["scaling_config"].use_gpu) == (8, True)
    assert given["run_config"].failure_config.max_failures == 3


def test_a_process_resumes_where_there_is_a_state(
    example: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_asr.training import run

    resumed: list[bool] = []
    monkeypatch.setattr(run, "train", lambda config, resume: resumed.append(resume))
    settings = {"config": str(folder / "my.yaml")}
    example.train_one(settings)
    state = folder / "runs" / "mine" / "state" / "step_000100"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{}")
    example.train_one(settings)
    assert resumed == [False, True]
