"""States are whole or absent, newest wins, and an optimizer goes through one unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_asr.errors import TrainingError
from edge_asr.training.state import (
    ExponentialAverage,
    find_states,
    load_optimizer,
    load_state,
    save_state,
    tensors_from_optimizer,
)


def test_newest_complete_state_wins(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_state(tmp_path, step, {"x": torch.full((2,), float(step))}, {"epoch": step}, keep=2)
    assert [path.name for path in find_states(tmp_path)] == ["step_00000010", "step_00000011"]
    # What a kill leaves behind: a temporary folder, newer than all others.
    (tmp_path / "state" / "step_00000012.tmp").mkdir()
    (tmp_path / "state" / "step_00000012.tmp" / "state.json").write_text("{")
    tensors, meta = load_state(tmp_path)
    assert (meta["step"], meta["epoch"]) == (11, 11)
    assert tensors["x"].tolist() == [11.0, 11.0]
    save_state(tmp_path, 12, {"x": torch.zeros(1)}, {})
    assert load_state(tmp_path)[1]["step"] == 12


def test_nothing_or_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing to resume"):
        load_state(tmp_path)
    folder = save_state(tmp_path, 1, {"x": torch.zeros(4)}, {})
    weights = folder / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(TrainingError, match=r"step_00000001.*delete that folder"):
        load_state(tmp_path)
    (folder / "state.json").write_text('{"format_version": 99, "step": 1}')
    weights.write_bytes(save_state(tmp_path / "other", 1, {}, {}).joinpath("state.safetensors").read_bytes())
    with pytest.raises(TrainingError, match="format 99"):
        load_state(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[1]", "must be an object"),
        ('{"format_version": 1}', "lacks 'step'"),
        ('{"format_version": 1, "step": "4"}', "step is '4'; it must be a whole number"),
        ('{"format_version": 1, "step": 1, "best_wer": NaN}', "NaN is no JSON number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_description_is_named(tmp_path: Path, content: str, message: str) -> None:
    folder = save_state(tmp_path, 1, {"x": torch.zeros(4)}, {})
    (folder / "state.json").write_text(content)
    with pytest.raises(
        TrainingError, match=rf"{message}.*; delete that folder to resume from the previous one"
    ):
        load_state(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path, value: float) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, {"x": torch.zeros(1)}, {})
    with pytest.raises(TrainingError, match=r"model\.x is not finite at step 3: the training diverged"):
        save_state(tmp_path, 3, {"model.x": torch.tensor([0.0, value]), "n": torch.tensor(1)}, {})
    assert [path.name for path in find_states(tmp_path)] == ["step_00000001", "step_00000002"]


def test_optimizer_round_trip_gives_the_same_next_step() -> None:
    def build() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.AdamW, scale: float) -> None:
        optimizer.zero_grad()
        (model(torch.ones(4, 3)) * scale).square().sum().backward()
        optimizer.step()

    model, optimizer = build()
    for scale in (1.0, 2.0):
        step(model, optimizer, scale)
    tensors = {name: value.clone() for name, value in tensors_from_optimizer(optimizer).items()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    other, fresh = build()
    other.load_state_dict(weights)
    load_optimizer(fresh, tensors)
    step(model, optimizer, 3.0)
    step(other, fresh, 3.0)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_average_follows_the_formula() -> None:
    model = torch.nn.BatchNorm1d(1)
    average = ExponentialAverage(model, 0.5)
    expected = 1.0
    for n, value in enumerate((3.0, 5.0, 9.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        model.num_batches_tracked += 1
        average.update(model, n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert average.values["weight"].item() == pytest.approx(expected)
    assert average.values["num_batches_tracked"].item() == 3
