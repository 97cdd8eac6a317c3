"""The choice of groups, by the rule of its docstring, on losses that are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from edge_asr.bundle.folder import EMBEDDED_MODELS
from edge_asr.calibration.forms import WHOLE_CLIPS
from edge_asr.calibration.int8_groups import Group
from edge_asr.calibration.measure import Int8Loss
from edge_asr.calibration.sensitivity import Budget, Sensitivity, choose_groups, count_multiply_adds
from edge_asr.checkpoints import load_checkpoint
from edge_asr.errors import ConfigError
from edge_asr.export.optimize import set_metadata
from edge_asr.graph.mapped import MappedGraph

F32Array = npt.NDArray[np.float32]

#: Of the hand-made graph, in the order of GROUPS.
GROUPS: tuple[Group, ...] = ("feed_forward", "attention_positions", "pointwise", "depthwise", "head")
FRAMES = np.random.default_rng(0).standard_normal((10, 8)).astype(np.float32)
#: Of 10 frames: expand and project, two of two heads, pointwise, three taps, head.
MULTIPLY_ADDS = dict(zip(GROUPS, (10 * (128 + 128), 10 * 2 * 2 * 64, 10 * 64, 10 * 24, 10 * 40), strict=True))
# Divergence of a group alone: by multiply-add, depthwise is the costliest, then the head, then pointwise.
COSTS: dict[Group, float] = {
    "feed_forward": 0.010,
    "attention_positions": 0.005,
    "pointwise": 0.004,
    "depthwise": 0.005,
    "head": 0.006,
}
ORDER: list[Group] = ["depthwise", "head", "pointwise", "feed_forward", "attention_positions"]


class KnownLosses:
    """Stands in for `Reference`: the loss of a candidate is the sum over the groups named in its metadata."""

    form = WHOLE_CLIPS

    def __init__(self, *, changed: float = 10.0, wer: tuple[float, float] | None = None) -> None:
        self.changed = changed  # changed frames per unit of divergence
        self.wer = wer  # loss and lower end of its interval, per unit of divergence
        self.measured: list[tuple[Group, ...]] = []

    def measure(self, candidate: MappedGraph) -> Int8Loss:
        model = onnx.load(candidate.path, load_external_data=False)
        (listed,) = (p.value for p in model.metadata_props if p.key == "int8")
        groups: tuple[Any, ...] = tuple(listed.split(","))
        self.measured.append(groups)
        divergence = sum(COSTS[group] for group in groups)
        loss, low = (None, None) if self.wer is None else (self.wer[0] * divergence, self.wer[1] * divergence)
        return Int8Loss(
            divergence=divergence,
            agreement=1 - self.changed * divergence,
            wer_reference=None if loss is None else 0.1,
            wer_candidate=None if loss is None else 0.1 + loss,
            wer_loss_low=low,
            wer_loss_high=None if loss is None else 2 * loss,
            n_frames=1000,
            n_words=100,
        )


def choose(
    model: onnx.ModelProto, reference: Any, budget: Budget, progress: Any = None, **options: Any
) -> Sensitivity:
    def quantize(groups: Sequence[Group]) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        set_metadata(copy, {"int8": ",".join(groups)})
        return copy

    return choose_groups(model, quantize, reference, FRAMES, 0.1, budget, progress, **options)


def loss(**changes: Any) -> Int8Loss:
    values: dict[str, Any] = {
        "divergence": 0.0,
        "agreement": 1.0,
        "wer_reference": None,
        "wer_candidate": None,
        "wer_loss_low": None,
        "wer_loss_high": None,
        "n_frames": 1000,
        "n_words": 0,
    }
    return Int8Loss(**{**values, **changes})


def test_everything_in_int8_where_that_is_within_the_aim(hand_made: onnx.ModelProto) -> None:
    reference, seen = KnownLosses(), []
    budget = Budget(min_agreement=0.5)
    found = choose(hand_made, reference, budget, lambda done, total: seen.append((done, total)))
    assert [step.int8 for step in found.steps] == [GROUPS]
    assert found.chosen is found.steps[0]
    assert list(found.alone) == list(GROUPS)
    assert all(one.int8 == (group,) for group, one in found.alone.items())
    assert reference.measured == [*((group,) for group in GROUPS), GROUPS]
    assert seen == [(n, 10) for n in range(1, 7)]
    assert found.budget is budget
    assert found.clip_s == 0.1
    for candidate in (*found.alone.values(), *found.steps):
        assert candidate.time_ratio > 0
        assert candidate.size_bytes > 1000


def test_what_other_speech_refuses_goes_back_too(hand_made: onnx.ModelProto) -> None:
    asked: list[tuple[str, ...]] = []

    def accept(groups: tuple[str, ...]) -> bool:
        asked.append(groups)
        return len(groups) < len(GROUPS)

    found = choose(hand_made, KnownLosses(), Budget(min_agreement=0.5), accept=accept)
    assert asked == [step.int8 for step in found.steps]
    assert [step.refused for step in found.steps] == [True, False]
    assert found.chosen is found.steps[1]
    never = choose(hand_made, KnownLosses(), Budget(min_agreement=0.5), accept=lambda _: False)
    assert never.chosen is never.steps[-1]
    assert len(never.chosen.int8) == 1


def test_the_costliest_per_multiply_add_goes_back_first(hand_made: onnx.ModelProto) -> None:
    """0.30 of the frames changed at first; four fifths of 0.225 allowed are 0.18."""
    found = choose(hand_made, KnownLosses(), Budget(min_agreement=0.775))
    assert found.multiply_adds == MULTIPLY_ADDS
    assert [step.int8 for step in found.steps] == [
        GROUPS,
        ("feed_forward", "attention_positions", "pointwise", "head"),
        ("feed_forward", "attention_positions", "pointwise"),
        ("feed_forward", "attention_positions"),
    ]
    assert [round(1 - s.loss.agreement, 6) for s in found.steps] == [0.30, 0.25, 0.19, 0.15]
    # The third is within the budget, but only the fourth meets the aim.
    assert found.chosen is found.steps[3]


def test_order_is_that_of_divergence_over_multiply_adds(hand_made: onnx.ModelProto) -> None:
    found = choose(hand_made, KnownLosses(), Budget(min_agreement=1.0))
    ranked = sorted(GROUPS, key=lambda group: COSTS[group] / MULTIPLY_ADDS[group], reverse=True)
    assert ranked == ORDER
    lost = [
        next(iter(set(a.int8) - set(b.int8))) for a, b in zip(found.steps[:-1], found.steps[1:], strict=True)
    ]
    assert lost == ORDER[:-1]


def test_where_no_step_meets_the_aim_the_first_within_the_budget_is_taken(hand_made: onnx.ModelProto) -> None:
    """The last step changes 0.05 of the frames; 0.06 allowed, 0.048 aimed at."""
    found = choose(hand_made, KnownLosses(), Budget(min_agreement=0.94))
    assert len(found.steps) == 5
    assert found.chosen.int8 == ("attention_positions",)
    # 0.155 allowed, 0.124 aimed at, which the last meets: not the fourth, with 0.15.
    found = choose(hand_made, KnownLosses(), Budget(min_agreement=0.845))
    assert found.chosen is found.steps[4]


def test_a_budget_never_met_leaves_one_group_for_the_gate_to_refuse(hand_made: onnx.ModelProto) -> None:
    found = choose(hand_made, KnownLosses(), Budget(min_agreement=1.0))
    assert len(found.steps) == len(GROUPS)
    assert found.chosen is found.steps[-1]
    assert found.chosen.int8 == (ORDER[-1],)
    over = found.budget.exceeded_by(found.chosen.loss)
    assert over == "95.00 % of the frames keep their most likely token, at least 100.00 % required"


def test_a_wer_loss_counts_when_its_interval_is_above_zero(hand_made: onnx.ModelProto) -> None:
    budget = Budget(max_wer_loss=0.012, min_agreement=0.0)
    # Loss equal to the divergence: 0.030, 0.025, 0.019, 0.015, 0.005.
    found = choose(hand_made, KnownLosses(wer=(1.0, 0.1)), budget)
    assert found.chosen.int8 == ("attention_positions",)
    assert [step.loss.wer_loss for step in found.steps] == pytest.approx([0.03, 0.025, 0.019, 0.015, 0.005])
    found = choose(hand_made, KnownLosses(wer=(1.0, -0.1)), budget)
    assert found.chosen.int8 == GROUPS


@pytest.mark.parametrize(
    ("found", "significant", "anyway"),
    [
        (loss(), None, None),
        (loss(agreement=0.985), None, None),
        (loss(agreement=0.98), "98.00 % of the frames", "98.00 % of the frames"),
        (loss(wer_reference=0.1, wer_candidate=0.103, wer_loss_low=0.001), None, None),
        (
            loss(wer_reference=0.1, wer_candidate=0.11, wer_loss_low=0.001),
            "WER loss 1.00 points",
            "WER loss 1.00 points",
        ),
        (loss(wer_reference=0.1, wer_candidate=0.11, wer_loss_low=0.0), None, "WER loss 1.00 points"),
        (loss(wer_reference=0.1, wer_candidate=0.05, wer_loss_low=-0.1), None, None),
        (
            loss(wer_reference=0.1, wer_candidate=0.11, wer_loss_low=-0.1, agreement=0.5),
            "50.00 % of the frames",
            "WER loss 1.00 points",
        ),
    ],
)
def test_what_exceeds_a_budget(found: Int8Loss, significant: str | None, anyway: str | None) -> None:
    # 0.103 - 0.1 is a little more than 0.003 in floating point.
    budget = Budget(max_wer_loss=0.0030001, min_agreement=0.985)
    for text, expected in (
        (budget.exceeded_by(found, if_significant=True), significant),
        (budget.exceeded_by(found), anyway),
    ):
        assert text is None if expected is None else str(text).startswith(expected)


def test_the_aim_is_four_fifths_of_the_changed_frames() -> None:
    budget = Budget(max_wer_loss=0.01, min_agreement=0.985)
    assert budget.aim.min_agreement == pytest.approx(1 - 0.8 * 0.015)
    assert budget.aim.max_wer_loss == 0.01
    assert Budget(min_agreement=1.0).aim.min_agreement == 1.0


@pytest.mark.parametrize("values", [{"max_wer_loss": -0.1}, {"max_wer_loss": float("nan")}])
def test_budget_refuses_a_negative_loss(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"max_wer_loss is .*; give a fraction of 0 or more"):
        Budget(**values)


@pytest.mark.parametrize("value", [-0.1, 1.1, 98.5, float("nan")])
def test_budget_refuses_an_agreement_that_is_no_fraction(value: float) -> None:
    with pytest.raises(ConfigError, match=r"min_agreement is .*; give a fraction from 0 to 1"):
        Budget(min_agreement=value)


@pytest.mark.parametrize("n_frames", [400, 403])
def test_multiply_adds_of_a_conformer_are_those_of_the_formula(
    tiny_en: onnx.ModelProto, n_frames: int
) -> None:
    """The embedded model, from its configuration; d_model^2 a head and frame for the angles' products."""
    config = load_checkpoint(EMBEDDED_MODELS / "tiny-en" / "checkpoint").model_config
    assert (config.subsampling, config.subsampling_factor, config.n_mels) == ("dw_striding", 8, 80)
    d, layers, heads, t = config.d_model, config.n_layers, config.n_heads, -(-n_frames // 8)
    channels = config.subsampling_channels
    planes = channels * -(-n_frames // 4) * 20, channels * t * 10  # of the second and third stage; 80 bands
    frames = np.random.default_rng(0).standard_normal((n_frames, 80)).astype(np.float32)
    assert count_multiply_adds(tiny_en, frames) == {
        "subsampling": sum(plane * 9 + plane * channels for plane in planes),
        "subsampling_projection": planes[-1] * d,
        "feed_forward": layers * 4 * t * d * config.ff_inner,
        "attention_projections": layers * t * d * (3 * d + d),
        "attention_positions": layers * (2 * t * d * d + heads * t * t * d),
        "attention_products": layers * 2 * t * t * d,
        "pointwise": layers * t * d * (2 * d + d),
        "depthwise": layers * t * d * config.conv_kernel_size,
        "head": t * d * config.vocab_size,
    }
