"""The teacher's frames: written and read, placed where the sound went, and pulling the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_asr.checkpoints.native import load_checkpoint
from edge_asr.errors import ConfigError
from edge_asr.training.config import TrainConfig
from edge_asr.training.corpus import Clip
from edge_asr.training.curves import read_metrics
from edge_asr.training.distillation import (
    Posteriors,
    Teacher,
    TeacherTargets,
    collate_targets,
    load_posteriors,
    place_posteriors,
    teacher_divergence,
    write_posteriors,
)
from edge_asr.training.run import train
from edge_asr.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_characters("abc")
BLANK = VOCABULARY.blank_id
MakeConfig = Callable[..., TrainConfig]


def clip(name: str, source: str = "a") -> Clip:
    return Clip(
        id=name, source=source, row=1, text="a", n_samples=16000, weight=1.0, path=Path(name), audio=None
    )


def random_log_probs(n_frames: int, seed: int = 0, n_tokens: int = 4) -> np.ndarray:
    return np.log(np.random.default_rng(seed).dirichlet(np.ones(n_tokens), n_frames)).astype(np.float32)


def test_written_and_read_back(tmp_path: Path) -> None:
    rows = {"1": random_log_probs(5, 1), "2": random_log_probs(3, 2)}
    write_posteriors(tmp_path / "a.npz", rows.items(), VOCABULARY, frame_s=0.04, n_kept=2)
    first, second, missing, other = load_posteriors(
        tmp_path, [clip("1"), clip("2"), clip("3"), clip("1", "b")], VOCABULARY
    )
    assert missing is None
    assert other is None
    for found, row in ((first, rows["1"]), (second, rows["2"])):
        assert found is not None
        assert found.frame_s == 0.04
        np.testing.assert_array_equal(found.tokens[:, 0], row.argmax(axis=1))
        np.testing.assert_allclose(found.log_probs[:, 0], row.max(axis=1), rtol=1e-3)
        assert (found.log_probs[:, 0] >= found.log_probs[:, 1]).all()
    with pytest.raises(ConfigError, match="not the student's of 5"):
        load_posteriors(tmp_path, [clip("1")], Vocabulary.from_characters("abcd"))
    with pytest.raises(ConfigError, match="no posteriors of a training clip"):
        load_posteriors(tmp_path, [clip("3")], VOCABULARY)
    (tmp_path / "a.npz").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match=r"cannot read the teacher's posteriors .*a\.npz"):
        load_posteriors(tmp_path, [clip("1")], VOCABULARY)


def spikes(places: dict[int, int], n_frames: int, frame_s: float = 0.04) -> Posteriors:
    """Blank with probability 0.9 but for a token, of probability 0.9, at some frames."""
    tokens = np.full((n_frames, 2), BLANK, np.uint16)
    tokens[:, 1] = 0
    for frame, token in places.items():
        tokens[frame] = token, BLANK
    log_probs = np.tile(np.log(np.array([0.9, 0.1], np.float16)), (n_frames, 1))
    return Posteriors(tokens, log_probs, frame_s)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_every_spike_survives_where_the_sound_went(speed: float) -> None:
    # 2 s of clip behind 0.5 s of silence, at half the teacher's frame rate.
    teacher = Teacher([spikes({5: 0, 20: 1, 47: 2}, 50), None], 0.08, BLANK, 1.0)
    parts = [(0, 0.5, 2.0 / speed, speed), (1, 0.5 + 2.0 / speed, 1.0, 1.0)]
    placed = place_posteriors(parts, 60, teacher)
    assert placed is not None
    tokens, probs = placed
    best = tokens[np.arange(60), probs.argmax(axis=1)]
    known = probs.sum(axis=1) > 0
    assert known.sum() == pytest.approx(2.0 / speed / 0.08, abs=1)
    assert not known[:6].any()
    for frame, token in ((5, 0), (20, 1), (47, 2)):
        expected = (0.5 + (frame + 0.5) * 0.04 / speed) / 0.08
        found = np.flatnonzero(known & (best == token))
        assert len(found) in (1, 2), token
        assert abs(found[0] + 0.5 - expected) <= 1.2
    assert place_posteriors(parts[1:], 60, teacher) is None


def test_temperature_softens() -> None:
    parts = [(0, 0.0, 2.0, 1.0)]
    hot, cold = (
        place_posteriors(parts, 25, Teacher([spikes({}, 50)], 0.08, BLANK, temperature))
        for temperature in (2.0, 1.0)
    )
    assert hot is not None
    assert cold is not None
    np.testing.assert_allclose(cold[1][0], [0.9, 0.1], atol=1e-3)
    np.testing.assert_allclose(hot[1][0], [0.75, 0.25], atol=1e-3)  # 3 to 1 is the root of 9 to 1


def test_divergence_is_that_of_torch_and_zero_at_the_teacher() -> None:
    row = random_log_probs(6)
    tokens = torch.arange(4).expand(1, 6, 4)
    targets = TeacherTargets(tokens.clone(), torch.from_numpy(np.exp(row))[None])
    student = torch.from_numpy(random_log_probs(7, 5))[None]
    expected = torch.nn.functional.kl_div(
        student[:, :6], torch.from_numpy(row)[None], log_target=True, reduction="sum"
    )
    torch.testing.assert_close(teacher_divergence(student, targets, 1.0), expected)
    same = torch.from_numpy(row)[None]
    assert float(teacher_divergence(same, targets, 1.0)) == pytest.approx(0.0, abs=1e-5)
    assert collate_targets([None, None]) is None


@pytest.mark.slow
def test_a_student_follows_its_teacher(make_config: MakeConfig, tmp_path: Path) -> None:
    base = make_config(optim={"max_steps": 1})
    train(base, quiet=True)
    vocabulary = load_checkpoint(Path(base.run_dir) / "last").vocabulary
    rows = ((f"{n}.wav", random_log_probs(60, n, len(vocabulary))) for n in range(32))
    write_posteriors(tmp_path / "tones.npz", rows, vocabulary, frame_s=0.04)
    losses = {}
    for weight in (0.0, 1.0):
        config = make_config(
            run_dir=str(tmp_path / f"run{weight}"),
            distillation={"posteriors": str(tmp_path), "weight": weight},
            optim={"max_steps": 3},
        )
        train(config, quiet=True)
        rows_read = read_metrics(Path(config.run_dir) / "metrics.csv")
        losses[weight] = [(float(row["loss"]), float(row["ctc_loss"])) for row in rows_read if row["loss"]]
    first_plain, first_taught = losses[0.0][0], losses[1.0][0]
    assert first_taught[1] == pytest.approx(first_plain[1], rel=1e-5)  # the same CTC
    assert first_taught[0] > first_plain[0] + 0.1  # and the divergence of random posteriors beside it
    assert losses[1.0][2][1] != losses[0.0][2][1]
