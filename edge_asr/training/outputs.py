"""Writes and shows what rank 0 reports: run folder, metrics, checkpoints, states, progress.

RUN/config.yaml  bad_rows.jsonl  metrics.csv  curves.png
RUN/last  RUN/best  RUN/checkpoints/step_N   native checkpoints
RUN/state/step_N                             exact state, for --resume
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_asr.checkpoints.native import load_checkpoint, save_checkpoint
from edge_asr.checkpoints.native_config import NO_FACTS, SourceFacts
from edge_asr.model import ConformerCTC
from edge_asr.training.config import OptimConfig, TrainConfig
from edge_asr.training.curves import MetricsLog, draw_curves
from edge_asr.training.evaluate import DevSet, Scores, Weights, build_dev_sets, evaluate_sets
from edge_asr.training.progress import RunProgress
from edge_asr.training.setup import Prepared
from edge_asr.training.state import save_state


class RunOutputs:
    """Owns the run folder of one run."""

    def __init__(
        self, config: TrainConfig, prepared: Prepared, progress: RunProgress, *, resume_step: int | None
    ) -> None:
        self.config, self.prepared, self.progress = config, prepared, progress
        self.run_dir = Path(config.run_dir)
        self.dev_sets = build_dev_sets(prepared.dev.clips, prepared.features, prepared.tokenizer.encode)
        names = [dev.name for dev in self.dev_sets]
        self.metrics = MetricsLog(self.run_dir / "metrics.csv", names, resume_step=resume_step)
        self._last_minutes: dict[str, float] = {}

    def is_due(self, action: str, step: int, minutes: float) -> bool:
        """Tell whether "eval", "checkpoint" or "state" is due after `step`."""
        run = self.config.run
        every_steps = getattr(run, f"{action}_every_steps")
        every_minutes = getattr(run, f"{action}_every_minutes", 0.0)
        last = self._last_minutes.setdefault(action, minutes)
        due = bool(every_steps and step % every_steps == 0) or bool(
            every_minutes and minutes - last >= every_minutes
        )
        if due:
            self._last_minutes[action] = minutes
        return due

    def show_step(self, row: dict[str, float | int], optim: OptimConfig) -> None:
        """Move the progress bar."""
        self.progress.show_step(row, optim)

    def evaluate(self, model: ConformerCTC) -> dict[str, Scores]:
        """Score the model on each dev set."""
        scores = self._evaluate(model, self.dev_sets)
        self.progress.show_scores("eval", scores)
        return scores

    def evaluate_best_on_test(self) -> dict[str, Scores]:
        """Score RUN/best on each set of data.test; without dev sets, RUN/last."""
        clips = self.prepared.test.clips
        if not clips:
            return {}
        folder = next(path for name in ("best", "last") if (path := self.run_dir / name).exists())
        sets = build_dev_sets(clips, self.prepared.features, self.prepared.tokenizer.encode)
        scores = self._evaluate(load_checkpoint(folder).build_model(), sets)
        self.progress.show_scores("test", scores)
        return scores

    def _evaluate(self, model: ConformerCTC, sets: list[DevSet]) -> dict[str, Scores]:
        decoder = self.config.decoder
        return evaluate_sets(
            model,
            sets,
            self.prepared.tokenizer.vocabulary,
            max_batch_frames=int(self.config.run.eval_batch_s * 100),
            weights=Weights(
                ctc_weight=decoder.ctc_weight,
                label_smoothing=decoder.label_smoothing,
                by_decoder=decoder.ctc_weight == 0.0 or decoder.freeze_encoder,
            ),
        )

    def save_last_and_best(
        self,
        model: ConformerCTC,
        scores: dict[str, Scores],
        best_wer: float | None,
        provenance: dict[str, Any],
    ) -> float | None:
        """Write RUN/last, and RUN/best when the WER is the lowest so far; returns the lowest."""
        self._save(model, "last", provenance)
        if not scores:
            return best_wer
        chosen = self.config.run.best_by
        wer = scores[chosen].wer if chosen else sum(score.wer for score in scores.values()) / len(scores)
        if best_wer is not None and wer >= best_wer:
            return best_wer
        self._save(model, "best", provenance)
        return wer

    def save_numbered(self, model: ConformerCTC, step: int, provenance: dict[str, Any]) -> None:
        """Write RUN/checkpoints/step_N and drop the oldest beyond keep_checkpoints."""
        self._save(model, f"checkpoints/step_{step:08d}", provenance)
        folders = sorted((self.run_dir / "checkpoints").glob("step_*"))
        for old in folders[: -self.config.run.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)

    def save_state(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Write the exact state."""
        save_state(self.run_dir, step, tensors, meta)

    def draw(self) -> None:
        """Redraw curves.png."""
        draw_curves(self.metrics.path, self.run_dir / "curves.png")

    def save_initial(self) -> None:
        """Write RUN/last before the first step: tokenizer and shape, needed to resume."""
        if not (self.run_dir / "last").exists():
            self._save(self.prepared.model, "last", {"step": 0})

    def _save(self, model: ConformerCTC, name: str, provenance: dict[str, Any]) -> None:
        facts = NO_FACTS
        if model.decoder is not None:
            decoder = self.config.decoder
            # Over a frozen encoder the share says nothing: only the decoder was trained.
            facts = SourceFacts(ctc_weight=None if decoder.freeze_encoder else decoder.ctc_weight)
        save_checkpoint(
            self.run_dir / name,
            model,
            self.prepared.features,
            self.prepared.tokenizer.vocabulary,
            provenance,
            tokenizer_model=self.prepared.tokenizer.model,
            facts=facts,
        )
