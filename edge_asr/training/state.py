"""The exact state of a run, to continue after a kill: tensors as safetensors, the rest as JSON.

RUN/state/step_00001200/{state.safetensors,state.json}; written to a temporary folder and renamed,
so a state is whole or absent. Random numbers need no state: data order, augmentation, chunk sizes and
dropout are all functions of (seed, epoch, step), see `plan` and `trainer`. No pickle is read or written.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from edge_asr.atomic import partial_folder, put_in_place
from edge_asr.errors import TrainingError
from edge_asr.records import json_from_record, read_json, record_from_json

STATE_VERSION = 1

MAX_BAD_STEPS = 20
"""Steps in a row without a finite gradient that end a run; a rare one alone does no harm."""

MAX_BAD_STEPS_AT_END = 3
"""The same for the last steps of a run, which would otherwise end as if it had succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPosition:
    """Content of state.json.

    Attributes:
        step: optimizer steps taken.
        epoch, index: the next batch.
        minutes: wall clock of training.
        n_skipped: steps whose gradient was not finite.
        audio_s: sound that was trained on, seconds.
        best_wer: the lowest so far; None before the first evaluation.
    """

    format_version: int
    step: int
    epoch: int = 0
    index: int = 0
    minutes: float = 0.0
    n_skipped: int = 0
    audio_s: float = 0.0
    best_wer: float | None = None


def save_state(
    run_dir: Path, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any], *, keep: int = 2
) -> Path:
    """Write one state atomically, then drop all but the newest `keep`.

    Raises:
        TrainingError: a tensor is not finite; nothing is written or dropped.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"{name} is not finite at step {step}: the training diverged, and this state is not saved; "
                "lower optim.lr and go on from the last good state with --resume"
            )
    folder = run_dir / "state" / f"step_{step:08d}"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(folder) as partial:
        save_file(plain, partial / "state.safetensors")
        values = {"format_version": STATE_VERSION, "step": step, **meta}
        (partial / "state.json").write_text(json.dumps(values), encoding="utf-8")
        put_in_place(partial, folder)
    for old in find_states(run_dir)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def check_divergence(n_bad: int, step: int, rate: float, *, at_end: bool) -> None:
    """End a run whose gradient is no longer finite.

    Args:
        n_bad: steps in a row without a finite gradient, the latest included.
        step: the latest.
        rate: its learning rate.
        at_end: it is the last of the run.

    Raises:
        TrainingError: there are `MAX_BAD_STEPS` of them, or `MAX_BAD_STEPS_AT_END` at the end.
    """
    if n_bad >= (MAX_BAD_STEPS_AT_END if at_end else MAX_BAD_STEPS):
        raise TrainingError(
            f"the training diverged: up to step {step} the gradient was not finite for {n_bad} steps in a "
            f"row; lower optim.lr (now {rate:g}) or use precision 32-true, and go on from the last good "
            "state with --resume"
        )


def find_states(run_dir: Path) -> list[Path]:
    """List complete states, oldest first."""
    return sorted(
        path
        for path in (run_dir / "state").glob("step_*")
        if path.is_dir() and path.suffix != ".tmp" and (path / "state.json").is_file()
    )


def load_state(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Load the newest state's tensors (on the CPU) and metadata.

    Raises:
        TrainingError: there is no state, or it cannot be read.
    """
    states = find_states(run_dir)
    if not states:
        raise TrainingError(f"nothing to resume in {run_dir}: no state/step_* there; start without --resume")
    folder = states[-1]
    remedy = "delete that folder to resume from the previous one"
    try:
        meta = read_json(folder / "state.json", error=TrainingError, remedy=remedy)
        version = meta.get("format_version") if isinstance(meta, dict) else STATE_VERSION
        if version != STATE_VERSION:
            raise TrainingError(
                f"{folder} has state format {version!r}, this version reads {STATE_VERSION}; {remedy}"
            )
        where = str(folder / "state.json")
        position = record_from_json(RunPosition, meta, where, error=TrainingError, remedy=remedy)
        tensors = load_file(folder / "state.safetensors")
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot read the state {folder} ({error}); {remedy}") from error
    return tensors, json_from_record(position)


def tensors_from_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return AdamW's moments and step counts, as `optimizer.<parameter index>.<name>`."""
    found: dict[str, torch.Tensor] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            found[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load what `tensors_from_optimizer` returned; hyperparameters stay those of `optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class ExponentialAverage:
    """Exponential moving average of a model's floating-point state, buffers included.

    The decay rises with the step, min(decay, (1 + n) / (10 + n)), so the random start is forgotten.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, n_updates: int) -> None:
        """Move toward the model's present state; `n_updates` counts from 1."""
        decay = min(self.decay, (1 + n_updates) / (10 + n_updates))
        mine, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                mine.append(self.values[name])
                theirs.append(value.detach())
            else:
                self.values[name].copy_(value)
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)
