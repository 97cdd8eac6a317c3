"""Makes the positions of relative attention constants: a table a layer, of which a run reads the middle.

A graph computes W_pos r(m) for the distances of the clip at hand in every run, nine small nodes a layer on
values that depend on its length only. An engine knows its longest clip, so the table is computed here once.
What this file does not do: other kinds of attention, and streams, whose tables are constants already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.graph.nodes import set_nodes
from edge_asr.graph.shift import F32Array, ShiftedScores, find_shifted_scores
from edge_asr.graph.weightless import compacted

if TYPE_CHECKING:
    import onnx

_BASE = 10000.0  # of the sinusoids, as in edge_asr.export.inference_form
_SCOPE = "encoder.positions"
_NUMBERS = {"zero": 0, "last": -1, "time": 2, "columns": 3, "far": 2**31 - 1}


def freeze_positions(model: onnx.ModelProto, float32: onnx.ModelProto, max_frames: int) -> onnx.ModelProto:
    """Return a copy of `model` that reads positions from constants; the same for another attention.

    Args:
        model: the float32 graph, or the INT8 one that was made from it.
        float32: the float32 graph, which has the weights of the positions.
        max_frames: most output frames of a clip.
    """
    from onnx import numpy_helper

    layers = find_shifted_scores(float32)
    frozen = compacted(model)
    if not layers:
        return frozen
    graph = frozen.graph
    constants: dict[str, Any] = {name: np.asarray([n], np.int64) for name, n in _NUMBERS.items()}
    constants["middle"] = np.asarray([max_frames], np.int64)
    constants["keep_heads"] = np.asarray([0, 0], np.int64)
    constants["flat"] = np.asarray([0, 0, -1], np.int64)
    weights = [numpy_helper.from_array(value, f"{_SCOPE}.{name}") for name, value in constants.items()]
    added = {layer.scores: _score_nodes(layer) for layer in layers}
    for layer in layers:
        weights.append(numpy_helper.from_array(_table(layer, max_frames), f"{layer.scope}.distances"))
    graph.initializer.extend(weights)
    added[layers[0].scores] = [*_length_nodes(layers[0].query), *added[layers[0].scores]]
    set_nodes(graph, [new for node in graph.node for new in added.get(node.output[0], [node])])
    return frozen


def _table(layer: ShiftedScores, max_frames: int) -> F32Array:
    """Compute W_pos r(m) for m = T, ..., -(T - 1): float32 (H, d, 2T), an even number for aligned kernels."""
    n_frequencies = len(layer.odd)
    step = np.float32(-(np.log(_BASE) / (2 * n_frequencies)))
    frequency = np.exp(np.arange(0, 2 * n_frequencies, 2, dtype=np.float32) * step)
    distance = np.arange(max_frames, -max_frames, -1).astype(np.float32)
    angle = (distance[:, None] * frequency[None]).astype(np.float64)
    rows = np.sin(angle) @ layer.odd + np.cos(angle) @ layer.even  # (2T, D)
    table: F32Array = rows.reshape(2 * max_frames, layer.n_heads, -1).transpose(1, 2, 0).astype(np.float32)
    return np.ascontiguousarray(table)


def _length_nodes(query: str) -> list[onnx.NodeProto]:
    """Compute what layers share: the length T of the clip, where its columns lie, the shape of a shift."""
    name = _SCOPE
    return [
        _node("Shape", [query], f"{name}.n_frames", start=2, end=3),
        _node("Sub", [f"{name}.middle", f"{name}.n_frames"], f"{name}.first"),
        _node("Add", [f"{name}.middle", f"{name}.n_frames"], f"{name}.end"),
        _node(
            "Concat", [f"{name}.keep_heads", f"{name}.n_frames", f"{name}.last"], f"{name}.shifted", axis=0
        ),
    ]


def _score_nodes(layer: ShiftedScores) -> list[onnx.NodeProto]:
    """Compute the scores (B, H, T, T) of the queries (B, H, T, d) and the middle 2T columns of the table.

    Row i needs the columns T - i and up, which in the flat matrix are rows of 2T - 1 that begin at T.
    """
    scope, name = layer.scope, _SCOPE
    end = f"{name}.far"
    return [
        _node(
            "Slice", [f"{scope}.distances", f"{name}.first", f"{name}.end", f"{name}.time"], f"{scope}.near"
        ),
        _node("MatMul", [layer.query, f"{scope}.near"], f"{scope}.by_row"),
        _node("Reshape", [f"{scope}.by_row", f"{name}.flat"], f"{scope}.by_row_flat"),
        _node("Slice", [f"{scope}.by_row_flat", f"{name}.n_frames", end, f"{name}.time"], f"{scope}.cut"),
        _node("Reshape", [f"{scope}.cut", f"{name}.shifted"], f"{scope}.lined_up"),
        _node(
            "Slice",
            [f"{scope}.lined_up", f"{name}.zero", f"{name}.n_frames", f"{name}.columns"],
            layer.scores,
        ),
    ]


def _node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    from onnx import helper

    return helper.make_node(operator, inputs, [output], f"{output}/{operator}", **attributes)
