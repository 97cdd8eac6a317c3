"""The loop: it learns, stops when told, skips what is not finite, resumes, averages, fine-tunes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.errors import TrainingError
from edge_asr.model import ConformerConfig, ConformerCTC
from edge_asr.training import trainer as trainer_module
from edge_asr.training.averaging import average_checkpoints, average_run
from edge_asr.training.config import OptimConfig, StreamingConfig, TrainConfig
from edge_asr.training.curves import read_metrics
from edge_asr.training.objective import CTCObjective
from edge_asr.training.pipeline import Batch
from edge_asr.training.run import train
from edge_asr.training.schedule import draw_chunk, learning_rate
from edge_asr.training.setup import initialize_subsampling
from edge_asr.training.state import MAX_BAD_STEPS, MAX_BAD_STEPS_AT_END, find_states, load_state
from edge_asr.training.trainer import Trainer

pytestmark = pytest.mark.slow  # exports or trains

MakeConfig = Callable[..., TrainConfig]


def losses(config: TrainConfig) -> dict[int, float]:
    rows = read_metrics(Path(config.run_dir) / "metrics.csv")
    return {int(row["step"]): float(row["loss"]) for row in rows if row["loss"]}


def weights(config: TrainConfig, name: str = "last") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(config.run_dir) / name).state_dict


def test_every_augmentation_at_once_in_bfloat16(
    make_config: MakeConfig, tone_manifests: tuple[Path, Path]
) -> None:
    config = make_config(
        augment={
            "noise_prob": 1.0,
            "noise_kinds": ["recorded", "babble"],
            "noise_manifest": str(tone_manifests[1]),
            "room_prob": 1.0,
            "n_rooms": 2,
            "clip_prob": 1.0,
            "codec_prob": 1.0,
            "vtlp_range": [0.9, 1.1],
            "offset_max_s": 0.04,
        },
        run={"precision": "bf16-mixed"},
        optim={"max_steps": 3},
    )
    train(config, quiet=True)
    assert all(math.isfinite(loss) for loss in losses(config).values())
    assert {value.dtype for value in weights(config).values() if value.is_floating_point()} == {torch.float32}


@pytest.mark.slow
def test_it_learns_sine_words(make_config: MakeConfig) -> None:
    config = make_config(
        model={"d_model": 48, "dropout": 0.0, "dropout_attention": 0.0, "subsampling_channels": 16},
        augment={"enabled": False},
        data={"max_batch_s": 24.0},
        optim={"max_steps": 160, "lr": 3e-3, "warmup_steps": 20},
        run={"log_every_steps": 20},
    )
    summary = train(config, quiet=True)
    assert sys.float_info.min / 2 > 0  # denormal numbers are back
    assert summary["dev"]["tones_dev"]["wer"] <= 0.1


def test_run_folder_and_logs(make_config: MakeConfig) -> None:
    config = make_config(
        optim={"max_steps": 5},
        run={"eval_every_steps": 2, "checkpoint_every_steps": 1, "keep_checkpoints": 3, "average_last": 2},
    )
    summary = train(config, quiet=True)
    run_dir = Path(config.run_dir)
    assert summary["step"] == 5
    rows = read_metrics(run_dir / "metrics.csv")
    assert [int(row["step"]) for row in rows if row["loss"]] == [1, 2, 3, 4, 5]
    hours = [float(row["audio_hours"]) for row in rows]
    assert hours[-1] == pytest.approx(summary["audio_hours"], abs=0.01)
    assert all(later >= earlier for earlier, later in itertools.pairwise(hours))
    evaluated = [int(row["step"]) for row in rows if row["tones_dev_wer"]]
    assert evaluated == [2, 4, 5]
    assert all(
        math.isfinite(float(row["loss"])) and float(row["audio_s_per_s"]) > 0 for row in rows if row["loss"]
    )
    assert (run_dir / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step_00000003", "step_00000004", "step_00000005"]
    mean = weights(config, "average")
    last_two = [weights(config, f"checkpoints/step_0000000{step}") for step in (4, 5)]
    for name, value in mean.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (last_two[0][name] + last_two[1][name]) / 2)
    best = load_checkpoint(run_dir / "best")
    assert best.provenance["dev"]["tones_dev"]["wer"] == pytest.approx(summary["best_wer"])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_an_unbroken_one(make_config: MakeConfig, tmp_path: Path, optimizer: str) -> None:
    optim = {"accumulate": 2, "optimizer": optimizer}
    whole = make_config(run_dir=str(tmp_path / "whole"), optim={"max_steps": 9, **optim})
    train(whole, quiet=True)
    first = make_config(run_dir=str(tmp_path / "parts"), optim={"max_steps": 4, **optim})
    train(first, quiet=True)
    rest = dataclasses.replace(first, optim=dataclasses.replace(first.optim, max_steps=9))
    train(rest, quiet=True, resume=True)
    assert losses(rest) == losses(whole)
    assert max(losses(whole)) == 9
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name


def test_resume_refuses_what_does_not_fit(make_config: MakeConfig) -> None:
    config = make_config(optim={"max_steps": 1})
    with pytest.raises(TrainingError, match="nothing to resume"):
        train(config, quiet=True, resume=True)
    train(config, quiet=True)
    with pytest.raises(TrainingError, match="already holds a run; use --resume"):
        train(config, quiet=True)
    with pytest.raises(TrainingError, match="seed differs"):
        train(dataclasses.replace(config, seed=99), quiet=True, resume=True)
    muon = dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimizer="muon"))
    with pytest.raises(TrainingError, match=r"optim\.optimizer differs"):
        train(muon, quiet=True, resume=True)


def test_stops_by_file_signal_and_clock(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_file = make_config(run_dir=str(tmp_path / "file"), optim={"max_steps": 10_000})
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "STOP").touch()
    assert train(by_file, quiet=True)["step"] == 0
    assert not (tmp_path / "file" / "STOP").exists()

    by_clock = make_config(run_dir=str(tmp_path / "clock"), optim={"max_steps": None, "max_minutes": 0.02})
    assert train(by_clock, quiet=True)["step"] < 1000

    real = trainer_module.learning_rate

    def interrupting(config: OptimConfig, step: int, minutes: float) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(config, step, minutes)

    monkeypatch.setattr(trainer_module, "learning_rate", interrupting)
    by_signal = make_config(run_dir=str(tmp_path / "signal"), optim={"max_steps": 10_000})
    assert train(by_signal, quiet=True)["step"] == 3
    assert (tmp_path / "signal" / "state" / "step_00000003" / "state.json").is_file()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_stopped_run_has_its_state_before_it_is_evaluated(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Trainer, row: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_evaluate", killed)
    run_dir = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        train(make_config(run_dir=str(run_dir), optim={"max_steps": 2}), quiet=True)
    assert [path.name for path in find_states(run_dir)] == ["step_00000002"]


def test_it_trains_in_a_thread_that_may_not_catch_signals(make_config: MakeConfig) -> None:
    with ThreadPoolExecutor(1) as threads:
        config = make_config(optim={"max_steps": 1})
        assert threads.submit(train, config, quiet=True).result(timeout=600)["step"] == 1


def test_gradients_that_are_not_finite_are_skipped(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CTCObjective.forward
    calls = []

    def poisoned(self: CTCObjective, *args: object) -> torch.Tensor:
        calls.append(None)
        result = real(self, *args)  # type: ignore[arg-type]
        return result * float("nan") if len(calls) == 2 else result

    monkeypatch.setattr(CTCObjective, "forward", poisoned)
    config = make_config(optim={"max_steps": 4})
    summary = train(config, quiet=True)
    assert summary["skipped_steps"] == 1
    assert all(bool(torch.isfinite(v).all()) for v in weights(config).values() if v.is_floating_point())
    assert math.isfinite(losses(config)[4])


@pytest.mark.parametrize(("max_steps", "n_bad"), [(1000, MAX_BAD_STEPS), (9, MAX_BAD_STEPS_AT_END)])
def test_training_that_diverges_is_an_error_and_keeps_the_last_good_state(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, max_steps: int, n_bad: int
) -> None:
    """The loss and the statistics of BatchNorm stop being finite; this ended with exit 0 once."""
    real, good = CTCObjective.forward, 4 if max_steps > 100 else max_steps - n_bad
    calls = []

    def poisoned(self: CTCObjective, features: torch.Tensor, *args: object) -> torch.Tensor:
        calls.append(None)
        bad = len(calls) > good
        return real(self, features * float("nan") if bad else features, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(CTCObjective, "forward", poisoned)
    config = make_config(optim={"max_steps": max_steps}, run={"state_every_steps": 1, "eval_every_steps": 0})
    with pytest.raises(TrainingError, match=f"not finite for {n_bad} steps in a row; lower optim.lr"):
        train(config, quiet=True)
    tensors, meta = load_state(Path(config.run_dir))
    assert (meta["step"], meta["n_skipped"]) == (good, 0)
    assert all(bool(torch.isfinite(v).all()) for v in tensors.values() if v.is_floating_point())
    monkeypatch.setattr(CTCObjective, "forward", real)
    again = make_config(optim={"max_steps": good + 1}, run={"state_every_steps": 1, "eval_every_steps": 0})
    assert train(again, quiet=True, resume=True)["skipped_steps"] == 0


def test_accumulation_is_the_same_as_one_batch(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(name: str) -> TrainConfig:
        return make_config(
            run_dir=str(tmp_path / name),
            model={"dropout": 0.0, "dropout_attention": 0.0, "conv_norm": "layer_norm"},
            augment={"enabled": False},
            # A gradient that is zero but for rounding (the keys' bias) must not become a whole AdamW step.
            optim={"max_steps": 1, "ema_decay": 0.0, "eps": 1e-5},
        )

    real = trainer_module.Trainer._train_step

    def split(self: trainer_module.Trainer, micro: list[Batch]) -> dict[str, float] | None:
        """The same batch, one micro-batch a row."""
        (batch,) = micro
        ends = np.cumsum([0, *batch.target_lens.tolist()])
        rows = range(len(batch.target_lens))
        assert len(rows) > 1
        return real(
            self,
            [
                Batch(
                    batch.features[i : i + 1],
                    batch.feature_lens[i : i + 1],
                    batch.targets[ends[i] : ends[i + 1]],
                    batch.target_lens[i : i + 1],
                    0.0,
                    batch.position,
                )
                for i in rows
            ],
        )

    train(config("whole"), quiet=True)
    monkeypatch.setattr(trainer_module.Trainer, "_train_step", split)
    train(config("cut"), quiet=True)
    assert losses(config("cut"))[1] == pytest.approx(losses(config("whole"))[1], rel=1e-5)
    for name, value in weights(config("whole")).items():
        torch.testing.assert_close(weights(config("cut"))[name], value, atol=2e-5, rtol=1e-4)


def test_fine_tuning_keeps_vocabulary_and_cmvn(make_config: MakeConfig, tmp_path: Path) -> None:
    first = make_config(run_dir=str(tmp_path / "first"), optim={"max_steps": 2})
    train(first, quiet=True)
    second = make_config(
        run_dir=str(tmp_path / "second"),
        init_from=str(tmp_path / "first" / "last"),
        seed=11,
        model={"dropout": 0.0},
        tokenizer={"kind": "sentencepiece", "vocab_size": 30},
        optim={"max_steps": 1, "lr": 1e-9, "weight_decay": 0.0, "ema_decay": 0.0},
    )
    train(second, quiet=True)
    before, after = (load_checkpoint(tmp_path / name / "last") for name in ("first", "second"))
    assert after.vocabulary == before.vocabulary
    assert after.model_config.dropout == 0.0
    for name, value in before.state_dict.items():
        if "running" not in name and value.is_floating_point():
            torch.testing.assert_close(after.state_dict[name], value, atol=1e-6, rtol=1e-5)


def test_averaging_refuses_strangers(make_config: MakeConfig, tmp_path: Path) -> None:
    one = make_config(run_dir=str(tmp_path / "one"), optim={"max_steps": 0})
    other = make_config(run_dir=str(tmp_path / "other"), optim={"max_steps": 0}, model={"d_model": 32})
    for config in (one, other):
        train(config, quiet=True)
    with pytest.raises(TrainingError, match="differ in shape"):
        average_checkpoints([tmp_path / "one" / "last", tmp_path / "other" / "last"], tmp_path / "mean")
    with pytest.raises(TrainingError, match="checkpoint_every_steps"):
        average_run(tmp_path / "one", 3, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("factor", [4, 8])
def test_initial_subsampling_passes_the_signal(factor: int) -> None:
    torch.manual_seed(0)
    config = ConformerConfig.from_preset("tiny", vocab_size=10, n_layers=1, subsampling_factor=factor)
    model = ConformerCTC(config)
    # Normalised log-mel frames resemble their neighbours; a random walk does too.
    features = torch.randn(2, 400, 80).cumsum(dim=1)
    features = (features - features.mean(dim=1, keepdim=True)) / features.std(dim=1, keepdim=True)

    @torch.no_grad()
    def signal_share() -> float:
        y = model.encoder.subsampling(features, torch.tensor([400, 400])).flatten(0, 1)
        return float(y.var(dim=0).mean() / y.square().mean())

    before = signal_share()
    initialize_subsampling(model)
    assert signal_share() > max(0.3, before)


def test_schedules() -> None:
    cosine = OptimConfig(lr=1.0, warmup_steps=10, schedule="cosine", max_steps=110, min_lr_ratio=0.1)
    assert [learning_rate(cosine, step, 0.0) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(cosine, 60, 0.0) == pytest.approx(0.55)
    assert learning_rate(cosine, 110, 0.0) == pytest.approx(0.1)
    linear = OptimConfig(
        lr=1.0, warmup_steps=0, schedule="linear", decay_over="minutes", max_minutes=40.0, min_lr_ratio=0.0
    )
    assert [learning_rate(linear, 5, minutes) for minutes in (0.0, 10.0, 40.0, 50.0)] == [1.0, 0.75, 0.0, 0.0]
    constant = OptimConfig(lr=0.3, warmup_steps=2, schedule="constant")
    assert learning_rate(constant, 10**6, 0.0) == 0.3


def test_chunks_are_drawn_as_asked() -> None:
    config = StreamingConfig(
        full_context_prob=0.4, chunk_frames=(3, 7), unlimited_left_prob=0.5, left_chunks=(1, 2)
    )
    drawn = [draw_chunk(config, 1, step) for step in range(2000)]
    assert drawn == [draw_chunk(config, 1, step) for step in range(2000)]
    full = [pair for pair in drawn if pair == (None, None)]
    assert len(full) / 2000 == pytest.approx(0.4, abs=0.055)  # five standard errors
    rest = [pair for pair in drawn if pair[0] is not None]
    assert {chunk for chunk, _ in rest} == {3, 4, 5, 6, 7}
    assert {left for _, left in rest} == {None, 1, 2}
