"""Averages several checkpoints of one run; the mean is usually better than each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from edge_asr.checkpoints.native import load_checkpoint, save_checkpoint
from edge_asr.errors import TrainingError
from edge_asr.model import ConformerCTC


def average_checkpoints(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Average floating-point tensors (integers come from the last) and write a checkpoint.

    Raises:
        TrainingError: no path is given, or the checkpoints differ in shape or vocabulary.
        CheckpointError: one cannot be read.
    """
    if not paths:
        raise TrainingError("no checkpoint to average; give at least one")
    checkpoints = [load_checkpoint(path) for path in paths]
    last = checkpoints[-1]
    for checkpoint in checkpoints:
        if checkpoint.model_config != last.model_config or checkpoint.vocabulary != last.vocabulary:
            raise TrainingError(
                f"{checkpoint.path} and {last.path} differ in shape or vocabulary; "
                "average checkpoints of one run"
            )
    mean = dict(last.state_dict)
    for name, value in mean.items():
        if value.is_floating_point():
            stacked = torch.stack([checkpoint.state_dict[name].double() for checkpoint in checkpoints])
            mean[name] = stacked.mean(dim=0).to(value.dtype)
    model = ConformerCTC(last.model_config)
    model.load_state_dict(mean)
    provenance = {
        **last.provenance,
        "averaged": [checkpoint.provenance.get("step", checkpoint.path.name) for checkpoint in checkpoints],
    }
    return save_checkpoint(
        output,
        model,
        last.features,
        last.vocabulary,
        provenance,
        tokenizer_model=last.tokenizer_model,
        facts=last.facts,
    )


def average_run(run_dir: str | Path, n_last: int, output: str | Path) -> Path:
    """Average the newest `n_last` of RUN/checkpoints (all of them if there are fewer).

    Raises:
        TrainingError: the run has no numbered checkpoint, or n_last < 1.
    """
    if n_last < 1:
        raise TrainingError(f"cannot average {n_last} checkpoints; give 1 or more")
    found = sorted((Path(run_dir) / "checkpoints").glob("step_*"))
    if not found:
        raise TrainingError(f"{run_dir} has no checkpoints/step_*; set run.checkpoint_every_steps")
    return average_checkpoints(found[-n_last:], output)
