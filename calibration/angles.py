"""Computes scores by distance without the relative shift, which is the better form for INT8.

The score (q_i + v) . W_pos r(i - j) is linear in r = [sin(w m), cos(w m)] of m = i - j: with
[a, b] = (q_i + v) W_pos it is the sum over the frequencies w of a sin(w (i - j)) + b cos(w (i - j)), and
by sin(x - y) = sin x cos y - cos x sin y, cos(x - y) = cos x cos y + sin x sin y that is
(a sin wi + b cos wi) cos wj + (b sin wi - a cos wi) sin wj: a product with one table of cosines and sines
that all heads and layers share. In INT8 that takes a third of the time and loses the least of all groups
(docs/log.md, 2026-11-23). In float32 the shift is faster, so exported graphs have the shift
(edge_asr.export.inference_form), and only a graph that becomes INT8 is rewritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.graph.nodes import set_nodes
from edge_asr.graph.part_names import ANGLE_PRODUCT
from edge_asr.graph.shift import find_shifted_scores

if TYPE_CHECKING:
    import onnx

# A score by distance costs d_model multiplications this way, and 2 * d_head with the shift, whose two
# copies of the scores cost about as much as 200 more multiplications in INT8.
MAX_HEADS = 4


def shift_to_angles(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite `attention.position` and `.by_shift` as `attention.by_distance`, which is the same function.

    Args:
        model: a float32 graph with its weights inside, as exported by edge-asr.

    Returns:
        A copy, or `model` itself if there is no such attention, or one with more than `MAX_HEADS` heads.
    """
    from onnx import numpy_helper

    layers = find_shifted_scores(model)
    if not layers or layers[0].n_heads > MAX_HEADS:
        return model
    replaced: dict[str, list[onnx.NodeProto]] = {}
    added: list[onnx.TensorProto] = []
    for layer in layers:
        table = [] if replaced else _table_nodes(layer.sine, layer.cosine)
        scope = f"{layer.scope}.{ANGLE_PRODUCT}"
        replaced |= {name: [] for name in layer.nodes}
        replaced[layer.nodes[0]] = [*table, *_score_nodes(scope, layer.query, layer.scores)]
        # (D / 2, D) -> (H, d, D / 2)
        sine, cosine = (half.T.reshape(layer.n_heads, -1, len(half)) for half in (layer.odd, layer.even))
        for name, halves in (("by_sine", (sine, cosine)), ("by_cosine", (cosine, -sine))):
            value = np.concatenate(halves, axis=-1)  # (H, d, D)
            added.append(numpy_helper.from_array(value, f"{scope}.{name}"))
    for name, number in (("angles.first", 0), ("angles.last", -1)):
        added.append(numpy_helper.from_array(np.asarray([number], np.int64), name))
    angles = type(model)()
    angles.CopyFrom(model)
    angles.graph.initializer.extend(added)
    set_nodes(angles.graph, [new for node in model.graph.node for new in replaced.get(node.name, [node])])
    return angles


def _table_nodes(sine: str, cosine: str) -> list[onnx.NodeProto]:
    """Make (T, D) of [sin, sin] and [cos, cos], and (D, T) of [cos; sin], from (T + 1, D / 2) of each.

    They start at frame 0 whatever the length, because INT8 rounds the table and padding must not change that.
    """
    scope = "encoder.positions"
    nodes = []
    for name, value in (("sine", sine), ("cosine", cosine)):
        rows = [value, "angles.first", "angles.last", "angles.first"]
        nodes.append(_node("Slice", scope, f"{name}_rows", rows))
        nodes.append(_node("Concat", scope, name, [nodes[-1].output[0]] * 2, axis=1))
    halves = [f"{scope}.cosine_rows", f"{scope}.sine_rows"]
    nodes.append(_node("Concat", scope, "rows", halves, axis=1))
    nodes.append(_node("Transpose", scope, "table", [nodes[-1].output[0]], perm=[1, 0]))
    return nodes


def _score_nodes(scope: str, query: str, scores: str) -> list[onnx.NodeProto]:
    """Compute the tensor `scores` (B, H, T, T) from queries (B, H, T, d)."""
    nodes = []
    for name in ("sine", "cosine"):
        nodes.append(_node("MatMul", scope, f"query_{name}", [query, f"{scope}.by_{name}"]))
        nodes.append(_node("Mul", scope, name, [nodes[-1].output[0], f"encoder.positions.{name}"]))
    nodes.append(_node("Add", scope, "rotated", [f"{scope}.sine", f"{scope}.cosine"]))
    last = _node("MatMul", scope, "scores", [nodes[-1].output[0], "encoder.positions.table"])
    last.output[0] = scores
    return [*nodes, last]


def _node(operator: str, scope: str, name: str, inputs: list[str], **attributes: Any) -> onnx.NodeProto:
    """Make a node whose one output is named `scope`.`name`."""
    from onnx import helper

    return helper.make_node(operator, inputs, [f"{scope}.{name}"], f"{scope}/{name}", **attributes)
