"""The INT8 step that `export` and `quantize` share: its order, and when there is a copy for the CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from edge_asr.calibration import Int8Options, proof
from edge_asr.feature_config import FeatureConfig
from edge_asr.frames import OutputFrames
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.stages import Stages
from edge_asr.vocabulary import Vocabulary

STAGES = ["int8", "prove: float32", "prove: int8", "int8 for the CPU"]


@pytest.fixture
def inputs(hand_made_vocabulary: Vocabulary) -> ProofInputs:
    """Two short cases of the hand-made graph's 8 channels."""
    generator = np.random.default_rng(0)
    rows = [generator.standard_normal((n, 8)).astype(np.float32) for n in (5, 9)]
    return ProofInputs(
        cases=[ProofCase(family="real", name=f"{len(row)} frames", features=(row,)) for row in rows],
        features=FeatureConfig.from_preset("nemo"),
        vocabulary=hand_made_vocabulary,
        output_frames=OutputFrames(factor=1, first=1),
    )


def make(
    float32: onnx.ModelProto,
    inputs: ProofInputs,
    stages: Stages,
    monkeypatch: pytest.MonkeyPatch,
    **changes: Any,
) -> proof.Int8Graph:
    """The step, with a quantization that gives the graph itself, unless `changes` say otherwise."""
    result: Any = SimpleNamespace(**{"model": float32, "failure": None, **changes})
    monkeypatch.setattr(proof, "quantize_to_int8", lambda *args, **kwargs: result)
    return proof.make_int8(float32, Int8Options(), inputs, stages)


def test_a_graph_that_passes_gets_a_copy_for_the_cpu(
    hand_made: onnx.ModelProto, inputs: ProofInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(None)
    made = make(hand_made, inputs, stages, monkeypatch)
    assert made.failure is None
    assert made.step.name == "ONNX simplified -> ONNX INT8"
    assert len(made.step.results) == 2
    assert made.cpu_graph is not None
    assert list(stages.timings_s) == STAGES


def test_over_the_budget_there_is_no_copy_but_a_proof(
    hand_made: onnx.ModelProto, inputs: ProofInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(None)
    made = make(hand_made, inputs, stages, monkeypatch, failure="too much is lost")
    assert made.failure == "too much is lost"
    assert made.step.passed
    assert made.cpu_graph is None
    assert list(stages.timings_s) == STAGES[:-1]


def test_a_graph_that_gives_nan_fails_within_the_budget(
    hand_made: onnx.ModelProto, inputs: ProofInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(hand_made)
    weight = next(i for i in broken.graph.initializer if i.name == "expand")
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full((8, 16), np.nan, np.float32), "expand"))
    made = make(hand_made, inputs, Stages(None), monkeypatch, model=broken)
    assert made.failure is not None
    assert "NaN" in made.failure
    assert made.cpu_graph is None
