"""Goes from configuration to trained model in one call: prepare, resume, train, average, summarize."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.errors import TrainingError
from edge_asr.training.averaging import average_run
from edge_asr.training.config import TrainConfig
from edge_asr.training.config_io import config_to_dict, dump_config
from edge_asr.training.corpus import Corpus
from edge_asr.training.outputs import RunOutputs
from edge_asr.training.progress import RunProgress
from edge_asr.training.setup import prepare, write_bad_rows
from edge_asr.training.state import find_states, load_state
from edge_asr.training.tokenizer import tokenizer_from_vocabulary
from edge_asr.training.trainer import Trainer, launch_fabric

_FIXED_SECTIONS = ("seed", "features", "model", "decoder", "tokenizer")


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Denormal numbers in BatchNorm and Adam cost CPUs dearly; what runs after the training may need them."""
    already = sys.float_info.min / 2 == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


@_denormals_as_zero()
def train(
    config: TrainConfig, *, resume: bool = False, strict: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """Run (or go on with) a training.

    Args:
        config: from `load_config`.
        resume: go on from the newest state of config.run_dir.
        strict: refuse bad rows instead of skipping them.
        quiet: no progress on stderr.

    Returns:
        Summary: run_dir, step, minutes, best_wer, dev {name: {wer, cer, ...}} of the last evaluation and test
        of run/best. Only rank 0's is filled.

    Raises:
        TrainingError: nothing to resume, a finished or unrelated run in run_dir, bad rows with `strict`.
        ConfigError, ManifestError, CheckpointError: named in the message.
    """
    run_dir = Path(config.run_dir)
    state = _find_state(config, run_dir, resume)
    if config.run.n_threads is not None:
        torch.set_num_threads(config.run.n_threads)
    fabric = launch_fabric(config)
    is_first = fabric.global_rank == 0
    progress = RunProgress(log_every_steps=config.run.log_every_steps, enabled=is_first and not quiet)
    resumed = None
    if state is not None:
        shape = load_checkpoint(run_dir / "last")
        resumed = (tokenizer_from_vocabulary(shape.vocabulary, shape.tokenizer_model), shape.model_config)
    if is_first:
        run_dir.mkdir(parents=True, exist_ok=True)

    def report(train: Corpus, dev: Corpus, test: Corpus) -> None:
        if is_first:
            write_bad_rows(run_dir / "bad_rows.jsonl", train, dev, test)
            progress.show_corpora(train, dev, test)

    # The first process decodes audio into the cache; the others then find it there.
    with fabric.rank_zero_first() if fabric.world_size > 1 else nullcontext():
        prepared = prepare(config, strict=strict, resumed=resumed, progress=progress.track, report=report)
    outputs = None
    if is_first:
        resume_step = None if state is None else int(state[1]["step"])
        outputs = RunOutputs(config, prepared, progress, resume_step=resume_step)
        (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        outputs.save_initial()
    trainer = Trainer(config, prepared, fabric, outputs, resume=state)
    try:
        scores = trainer.fit()
        tested = {} if outputs is None else outputs.evaluate_best_on_test()
    finally:
        progress.close()
    summary = {
        "run_dir": str(run_dir),
        "step": trainer.step,
        "minutes": round(trainer.minutes, 2),
        "audio_hours": round(trainer.audio_s / 3600, 2),
        "best_wer": trainer.best_wer,
        "skipped_steps": trainer.n_skipped,
        "dev": {name: score.to_dict() for name, score in scores.items()},
        "test": {name: score.to_dict() for name, score in tested.items()},
    }
    if is_first and config.run.average_last:
        average_run(run_dir, config.run.average_last, run_dir / "average")
    if is_first:
        (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _find_state(config: TrainConfig, run_dir: Path, resume: bool) -> tuple[Any, Any] | None:
    if not resume:
        # Only the launching process looks; the others of a torchrun would see its new files.
        if int(os.environ.get("RANK", "0")) == 0 and find_states(run_dir):
            raise TrainingError(f"{run_dir} already holds a run; use --resume, or another run_dir")
        return None
    state = load_state(run_dir)
    yaml_path = run_dir / "config.yaml"
    if yaml_path.is_file():
        import yaml

        before = yaml.safe_load(yaml_path.read_text(encoding="utf-8"))
        now = config_to_dict(config)
        kept = {section: (before.get(section, now[section]), now[section]) for section in _FIXED_SECTIONS}
        kept["optim.optimizer"] = before["optim"].get("optimizer", "adamw"), config.optim.optimizer
        for name, (old, new) in kept.items():
            if old != new:
                raise TrainingError(
                    f"{name} differs from that of the run in {run_dir}; resume with the same, "
                    "or start another run with init_from"
                )
    return state
