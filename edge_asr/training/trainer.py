"""The training loop: steps, schedule, evaluation, saving, stopping.

Every step is a function of (seed, step): data order and augmentation come from `plan`, chunk sizes and
dropout from generators seeded per step. A resumed run therefore repeats exactly what a killed one
would have done. The loss of a step is the sum of CTC losses over the GLOBAL batch (all processes, all
accumulated micro-batches) divided by its number of target tokens (or utterances), so neither the number of
processes nor accumulation changes it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_asr.errors import require
from edge_asr.model import ConformerCTC
from edge_asr.training.alignment import load_spans
from edge_asr.training.config import DistillationConfig, TrainConfig
from edge_asr.training.distillation import Teacher, load_posteriors
from edge_asr.training.evaluate import Scores
from edge_asr.training.flat_start import IGNORED, token_weights
from edge_asr.training.objective import N_LOSSES, CTCObjective
from edge_asr.training.outputs import RunOutputs
from edge_asr.training.pipeline import Batch, BatchBuilder, FlatStart, load_batches, word_separator
from edge_asr.training.plan import Position, iterate_batches
from edge_asr.training.schedule import build_optimizer, draw_chunk, learning_rate
from edge_asr.training.setup import Prepared
from edge_asr.training.state import (
    ExponentialAverage,
    check_divergence,
    load_optimizer,
    tensors_from_optimizer,
)

_LOG = logging.getLogger(__name__)


def launch_fabric(config: TrainConfig) -> Any:
    """Launch Lightning Fabric for this process, one of several if torchrun started it."""
    fabric_module = require("lightning.fabric", extra="train")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    fabric = fabric_module.Fabric(
        accelerator=config.run.accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=config.run.precision,
    )
    fabric.launch()
    return fabric


class Trainer:
    """One run. `fit` trains until a limit, a signal or the file STOP, and leaves a resumable state."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Prepared,
        fabric: Any,
        outputs: RunOutputs | None,
        *,
        resume: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
    ) -> None:
        """`outputs` is None on every rank but 0. `resume` is what `load_state` gave."""
        self.config, self.prepared, self.fabric, self.outputs = config, prepared, fabric, outputs
        self.model = prepared.model
        if resume is not None:
            tensors = {k.removeprefix("model."): v for k, v in resume[0].items() if k.startswith("model.")}
            self.model.load_state_dict(tensors)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        objective = CTCObjective(
            self.model,
            config.optim.intermediate_weight,
            config.distillation.temperature,
            label_smoothing=config.decoder.label_smoothing,
            freeze_encoder=config.decoder.freeze_encoder,
        )
        self.optimizer = build_optimizer(self.model, config.optim)
        self.objective, self.optimizer = fabric.setup(objective, self.optimizer)
        self.ema = ExponentialAverage(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self.step, self.n_skipped, self.minutes_before, self.audio_s = 0, 0, 0.0, 0.0
        self.position = Position(0, 0)
        self.best_wer: float | None = None
        self._stop_signal = False
        if resume is not None:
            self._restore(*resume)
        self.started = time.monotonic()
        self.builder = BatchBuilder(
            prepared.train.clips,
            prepared.targets,
            prepared.features,
            config.augment,
            config.spec_augment,
            prepared.mask_value,
            config.seed,
            _flat_start(prepared, config.optim.flat_start_alignments)
            if self.step < config.optim.flat_start_steps
            else None,
            word_separator(prepared.tokenizer.vocabulary),
            prepared.noises,
            _teacher(prepared, config.distillation),
        )

    @property
    def minutes(self) -> float:
        """Return the wall clock of training, including earlier parts of a resumed run."""
        return self.minutes_before + (time.monotonic() - self.started) / 60

    def fit(self) -> dict[str, Scores]:
        """Train; returns the final dev scores (empty without dev sets, or on ranks other than 0).

        Raises:
            TrainingError: it diverged (`check_divergence`); the last good state stays.
        """
        # Other threads may not catch signals; Ray Train calls from one.
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            return self._fit()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _fit(self) -> dict[str, Scores]:
        batches = self._batches()
        recent: deque[tuple[float, int, float]] = deque(maxlen=self.config.run.log_every_steps)
        skipped_in_a_row = 0
        rates: dict[str, Scores] = {}
        evaluated_at, stop = -1, self._limit_reached()
        while not stop:
            begun = time.monotonic()
            micro = [next(batches) for _ in range(self.config.optim.accumulate)]
            result = self._train_step(micro)
            if result is None:
                break
            skipped_in_a_row = 0 if math.isfinite(result["grad_norm"]) else skipped_in_a_row + 1
            self.step += 1
            self.audio_s += result["audio_s"]
            check_divergence(skipped_in_a_row, self.step, result["lr"], at_end=self._limit_reached())
            last = micro[-1].position
            self.position = Position(last.epoch, last.index + 1)
            recent.append((time.monotonic() - begun, int(result["n_utterances"]), result["audio_s"]))
            stop = self._limit_reached()
            if self.outputs is None:
                continue
            row = self._metrics_row(result, recent)
            self.outputs.show_step(row, self.config.optim)
            if self.outputs.is_due("eval", self.step, self.minutes) and not stop:
                rates, evaluated_at = self._evaluate(row), self.step
            elif self.step % self.config.run.log_every_steps == 0 or stop:
                self.outputs.metrics.write(row)
            if self.outputs.is_due("checkpoint", self.step, self.minutes):
                self.outputs.save_numbered(self._saved_model(), self.step, self._provenance(rates))
            if not skipped_in_a_row and self.outputs.is_due("state", self.step, self.minutes):
                self._save_state()
        if self.outputs is not None:
            good = not skipped_in_a_row  # a state of a run that diverges would push out the last good one
            if good:  # first, because who asked it to stop may not wait for the evaluation
                self._save_state()
            if evaluated_at != self.step:
                rates = self._evaluate(None)
                if good:
                    self._save_state()
            self._stop_file.unlink(missing_ok=True)
        return rates

    def _batches(self) -> Iterator[Batch]:
        clips = self.prepared.train.clips
        planned = iterate_batches(
            np.array([clip.n_samples / self.prepared.train.sample_rate for clip in clips]),
            np.array([clip.weight for clip in clips]),
            self.config.data,
            self.config.augment,
            seed=self.config.seed,
            start=self.position,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
        )
        return load_batches(
            self.builder,
            planned,
            n_workers=self.config.data.n_workers,
            prefetch_batches=self.config.data.prefetch_batches,
        )

    def _train_step(self, micro: list[Batch]) -> dict[str, float] | None:
        """Take one optimizer step; returns None if a process was asked to stop."""
        config, fabric = self.config.optim, self.fabric
        counts = torch.tensor(
            [
                sum(int(batch.target_lens.sum()) for batch in micro),
                sum(len(batch.target_lens) for batch in micro),
                sum(batch.audio_s for batch in micro),
                float(self._must_stop()),
                # All ranks share one clock, because ranks that disagree on the learning rate would drift
                # apart.
                self.minutes if fabric.global_rank == 0 else 0.0,
                sum(int((b.alignment != IGNORED).sum()) for b in micro if b.alignment is not None),
                sum(b.teacher.n_frames for b in micro if b.teacher is not None),
            ],
            dtype=torch.float64 if fabric.device.type != "mps" else torch.float32,
            device=fabric.device,
        )
        n_tokens, n_utterances, audio_s, n_stop, minutes, n_labels, n_taught = (
            float(value)
            for value in (fabric.all_reduce(counts, reduce_op="sum") if fabric.world_size > 1 else counts)
        )
        if n_stop:
            return None
        denominator = n_tokens if config.loss_normalization == "tokens" else n_utterances
        flat = self.step < config.flat_start_steps
        trained_denominator = n_labels if flat else denominator
        rate = learning_rate(config, self.step, minutes)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        chunk, left = draw_chunk(self.config.streaming, self.config.seed, self.step)
        self.objective.train()
        # A step that is skipped must leave no trace in BatchNorm's statistics either.
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        # What the sums of `CTCObjective.forward` count in the loss.
        share = self.config.decoder.ctc_weight if self.prepared.model.decoder is not None else 1.0
        n_guesses = n_tokens + n_utterances if config.loss_normalization == "tokens" else n_utterances
        factors = torch.tensor(
            [
                share / trained_denominator,
                0.0,
                self.config.distillation.weight / max(n_taught, 1.0),
                (1.0 - share) / n_guesses,
            ],
            device=fabric.device,
        )
        sums = torch.zeros(N_LOSSES, device=fabric.device)
        for index, batch in enumerate(micro):
            torch.manual_seed(_seed_of(self.config.seed, self.step, index, fabric.global_rank))
            on_device = batch.to(fabric.device)
            with fabric.no_backward_sync(self.objective, enabled=index < len(micro) - 1):
                losses = self.objective(
                    on_device.features,
                    on_device.feature_lens,
                    on_device.targets,
                    on_device.target_lens,
                    chunk,
                    left,
                    on_device.alignment if flat else None,
                    on_device.teacher,
                )
                # DDP averages gradients over processes; the loss is a sum, hence the factor.
                loss = torch.dot(losses.float(), factors)
                fabric.backward(loss * fabric.world_size)
            sums += losses.detach().float()
        if fabric.world_size > 1:
            sums = fabric.all_reduce(sums, reduce_op="sum")
        norm = _gradient_norm(self.model)
        if math.isfinite(norm):
            if config.clip_norm and norm > config.clip_norm:
                scale = config.clip_norm / (norm + 1e-6)
                torch._foreach_mul_([p.grad for p in self.model.parameters() if p.grad is not None], scale)
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.model, self.step + 1)
        else:
            self.n_skipped += 1
            for buffer, before in buffers:
                buffer.copy_(before)
            _LOG.warning("step %d skipped: the gradient is not finite", self.step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "loss": float(torch.dot(sums, factors)),
            "ctc_loss": float(sums[1]) / denominator,
            "attention_loss": float(sums[3]) / n_guesses,
            "lr": rate,
            "grad_norm": norm,
            "n_utterances": n_utterances,
            "audio_s": audio_s,
        }

    def _metrics_row(
        self, result: dict[str, float], recent: deque[tuple[float, int, float]]
    ) -> dict[str, float | int]:
        seconds = sum(entry[0] for entry in recent)
        return {
            **self._progress(),
            "epoch": self.position.epoch,
            "loss": result["loss"],
            "ctc_loss": result["ctc_loss"],
            **({} if self.prepared.model.decoder is None else {"attention_loss": result["attention_loss"]}),
            "lr": result["lr"],
            "grad_norm": result["grad_norm"],
            "utterances_per_s": round(sum(entry[1] for entry in recent) / seconds, 2),
            "audio_s_per_s": round(sum(entry[2] for entry in recent) / seconds, 2),
            "skipped_steps": self.n_skipped,
        }

    def _progress(self) -> dict[str, float | int]:
        return {
            "step": self.step,
            "minutes": round(self.minutes, 3),
            "audio_hours": round(self.audio_s / 3600, 4),
        }

    def _saved_model(self) -> ConformerCTC:
        """Return what is evaluated and saved: a copy of the average if there is one, else the model."""
        if self.ema is None and self.model is self.prepared.model:
            return self.model
        copy = ConformerCTC(self.prepared.model.config).to(self.fabric.device)
        copy.load_state_dict(self.ema.values if self.ema is not None else self.model.state_dict())
        return copy.eval()

    def _evaluate(self, row: dict[str, float | int] | None) -> dict[str, Scores]:
        assert self.outputs is not None
        model = self._saved_model()
        rates = self.outputs.evaluate(model)
        full_row = dict(row or self._progress())
        for name, scores in rates.items():
            full_row |= {f"{name}_{key}": round(value, 6) for key, value in scores.to_dict().items()}
        self.outputs.metrics.write(full_row)
        self.best_wer = self.outputs.save_last_and_best(model, rates, self.best_wer, self._provenance(rates))
        self.outputs.draw()
        self.model.train()
        return rates

    def _provenance(self, rates: dict[str, Scores]) -> dict[str, Any]:
        return {
            "step": self.step,
            "minutes": round(self.minutes, 2),
            "audio_hours": round(self.audio_s / 3600, 2),
            "epoch": self.position.epoch,
            "ema_decay": self.config.optim.ema_decay,
            # Only the last two parts, because a checkpoint travels and the folders of this machine are
            # private.
            "init_from": "/".join(Path(self.config.init_from).parts[-2:]) if self.config.init_from else None,
            "dev": {name: {"wer": rate.wer, "cer": rate.cer} for name, rate in rates.items()},
        }

    def _save_state(self) -> None:
        assert self.outputs is not None
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.values.items()}
        tensors |= tensors_from_optimizer(self.optimizer)
        meta = {
            "epoch": self.position.epoch,
            "index": self.position.index,
            "minutes": self.minutes,
            "audio_s": self.audio_s,
            "n_skipped": self.n_skipped,
            "best_wer": self.best_wer,
        }
        self.outputs.save_state(self.step, tensors, meta)

    def _restore(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, tensors)
        if self.ema is not None:
            for name, value in self.ema.values.items():
                if f"ema.{name}" in tensors:
                    value.copy_(tensors[f"ema.{name}"])
        self.step, self.n_skipped = int(meta["step"]), int(meta["n_skipped"])
        self.position = Position(int(meta["epoch"]), int(meta["index"]))
        self.minutes_before, self.best_wer = float(meta["minutes"]), meta["best_wer"]
        self.audio_s = float(meta.get("audio_s", 0.0))

    def _limit_reached(self) -> bool:
        steps = self.config.optim.max_steps
        return steps is not None and self.step >= steps

    def _must_stop(self) -> bool:
        """Tell whether this process must stop; the others learn it before the next step."""
        minutes = self.config.optim.max_minutes
        at_end = minutes is not None and self.minutes >= minutes
        return self._stop_signal or at_end or self._stop_file.exists()

    @property
    def _stop_file(self) -> Path:
        return Path(self.config.run_dir) / "STOP"

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._stop_signal:
            raise KeyboardInterrupt
        self._stop_signal = True
        _LOG.warning("%s: stopping after this step; repeat to stop at once", signal.Signals(number).name)


def _flat_start(prepared: Prepared, alignments: str | None) -> FlatStart:
    vocabulary = prepared.tokenizer.vocabulary
    spans: list[npt.NDArray[np.float32] | None] = []
    if alignments is not None:
        spans = load_spans(alignments, prepared.train.clips, prepared.targets, vocabulary)
    factor = prepared.model.config.subsampling_factor
    return FlatStart(token_weights(vocabulary), factor, vocabulary.blank_id, spans)


def _teacher(prepared: Prepared, config: DistillationConfig) -> Teacher | None:
    if config.posteriors is None or config.weight == 0:
        return None
    vocabulary, features = prepared.tokenizer.vocabulary, prepared.features
    return Teacher(
        load_posteriors(config.posteriors, prepared.train.clips, vocabulary),
        prepared.model.config.subsampling_factor * features.hop_length / features.sample_rate,
        vocabulary.blank_id,
        config.temperature,
    )


def _gradient_norm(model: nn.Module) -> float:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
