"""Trains with edge-asr on several machines of a Ray cluster, a process for each GPU.

    pip install 'edge-asr[train,ray]' 'ray[train]'
    python examples/cluster/train_ray.py my.yaml --workers 8 --gpu
    python examples/cluster/train_ray.py my.yaml --workers 2 --address local     # processes of this machine

Ray Train makes the processes and their group, and starts them again when a machine is lost; edge-asr then
continues from its own newest state. So the run folder has to lie where all machines see it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_one(settings: dict[str, Any]) -> None:
    """Run one process of the training; Ray has set RANK, WORLD_SIZE and the rest, as torchrun would."""
    from edge_asr.training.config_io import load_config
    from edge_asr.training.run import train
    from edge_asr.training.state import find_states

    config = load_config(settings["config"])
    train(config, resume=bool(find_states(Path(config.run_dir))))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="the YAML of `edge-asr train`")
    parser.add_argument("--workers", type=int, default=2, help="processes, on all machines together")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each")
    parser.add_argument("--address", default="auto", help="of the cluster, or local")
    parser.add_argument(
        "--retries", type=int, default=3, help="how often to start again when a machine is lost"
    )
    options = parser.parse_args()
    if options.address == "local":
        ray.init(num_cpus=options.workers + 1, include_dashboard=False)
    else:
        ray.init(address=options.address)
    trainer = TorchTrainer(
        train_one,
        train_loop_config={"config": str(options.config.resolve())},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(
            storage_path=str(Path("ray-train").resolve()),
            failure_config=FailureConfig(max_failures=options.retries),
        ),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
