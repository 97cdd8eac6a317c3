"""Scores by distance as a product with a table: the same function as the relative shift."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edge_asr.calibration.angles import MAX_HEADS, shift_to_angles
from edge_asr.calibration.int8_groups import group_nodes
from edge_asr.export.inference_form import to_inference_form
from edge_asr.export.onnx_export import export_onnx
from edge_asr.export.optimize import simplify_graph
from edge_asr.graph.check import check_graph

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
from small_models import N_MELS, build_model

pytestmark = pytest.mark.slow  # exports or trains


def export(n_heads: int) -> onnx.ModelProto:
    model = build_model(n_heads=n_heads)  # two layers, u and v far from 0
    return simplify_graph(export_onnx(to_inference_form(model), N_MELS), N_MELS)


@pytest.fixture(scope="module")
def shifting() -> onnx.ModelProto:
    return export(n_heads=MAX_HEADS)


def run(model: onnx.ModelProto, n_frames: int, lengths: list[int]) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features = torch.randn(len(lengths), N_MELS, n_frames, generator=torch.Generator().manual_seed(n_frames))
    feeds = {"audio_signal": features.numpy(), "length": np.asarray(lengths, np.int64)}
    (log_probs,) = session.run(None, feeds)
    return np.asarray(log_probs)


@pytest.mark.parametrize(
    ("n_frames", "lengths"), [(90, [90]), (90, [51, 90, 8]), (1, [1]), (9, [9, 3]), (3000, [3000])]
)
def test_it_is_the_same_function(shifting: onnx.ModelProto, n_frames: int, lengths: list[int]) -> None:
    """Angles in float32, as in test_inference_form: of 375 rad they cost 2e-5 each."""
    expected = run(shifting, n_frames, lengths)
    found = run(shift_to_angles(shifting), n_frames, lengths)
    n_valid = np.ceil(np.asarray(lengths) / (n_frames / expected.shape[1])).astype(int)
    for row, n in enumerate(n_valid):
        np.testing.assert_allclose(found[row, :n], expected[row, :n], rtol=0, atol=1e-4)


def test_positions_are_in_one_group_and_nothing_unread_is_left(shifting: onnx.ModelProto) -> None:
    before = shifting.SerializeToString(deterministic=True)
    angles = shift_to_angles(shifting)
    assert shifting.SerializeToString(deterministic=True) == before
    check_graph(angles)
    groups = group_nodes(angles)
    assert len(groups["attention_positions"]) == 2 * 3
    assert len(groups["attention_products"]) == 2 * 2
    read = {name for node in angles.graph.node for name in node.input}
    assert {i.name for i in angles.graph.initializer} <= read
    assert not any("by_shift" in node.name or ".position/" in node.name for node in angles.graph.node)
    assert len({node.name for node in angles.graph.node}) == len(angles.graph.node)


def test_it_shifts_no_more(shifting: onnx.ModelProto) -> None:
    """The operators that move scores about, a layer: three slices of q, k and v are all that is left."""
    count = sum(n.op_type == "Slice" and ".layers.0." in n.name for n in shift_to_angles(shifting).graph.node)
    assert count == 3
    assert sum(n.op_type == "Slice" and ".layers.0." in n.name for n in shifting.graph.node) == 6


def test_biases_that_the_simplifier_dropped() -> None:
    """Where u = v nothing is added to the queries."""
    model = build_model(n_heads=2)
    for layer in model.encoder.layers:
        layer.attention.pos_bias_v.data.copy_(layer.attention.pos_bias_u.data)
    shifting = simplify_graph(export_onnx(to_inference_form(model), N_MELS), N_MELS)
    assert not any("v_less_u" in i.name for i in shifting.graph.initializer)
    found, expected = run(shift_to_angles(shifting), 90, [90]), run(shifting, 90, [90])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_more_heads_keep_the_shift() -> None:
    shifting = export(n_heads=2 * MAX_HEADS)
    assert shift_to_angles(shifting) is shifting


def test_a_graph_without_a_shift_is_left(hand_made: onnx.ModelProto) -> None:
    assert shift_to_angles(hand_made) is hand_made
