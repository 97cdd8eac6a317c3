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

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.graph.part_names import (
    ANGLE_PRODUCT,
    DISTANCE_TABLE,
    EVEN_WEIGHT,
    ODD_WEIGHT,
    SHIFTED_PRODUCT,
)

if TYPE_CHECKING:
    import onnx

# A score by distance costs d_model multiplications this way, and 2 * d_head with the shift, whose two
# copies of the scores cost about as much as 200 more multiplications in INT8.
MAX_HEADS = 4

_ODD, _EVEN = f".{DISTANCE_TABLE}.{ODD_WEIGHT}", f".{DISTANCE_TABLE}.{EVEN_WEIGHT}"


def shift_to_angles(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite `attention.position` and `.by_shift` as `attention.by_distance`, which is the same function.

    Args:
        model: a float32 graph with its weights inside, as exported by edge-asr.

    Returns:
        A copy, or `model` itself if there is no such attention, or one with more than `MAX_HEADS` heads.
    """
    from onnx import numpy_helper

    weights = {i.name: i for i in model.graph.initializer}
    layers = [name.removesuffix(_ODD) for name in weights if name.endswith(_ODD)]
    if not layers:
        return model
    graph = model.graph
    writers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    replaced: dict[str, list[onnx.NodeProto]] = {}
    added: list[onnx.TensorProto] = []
    for layer in layers:
        (by_odd,), (by_even,) = readers[layer + _ODD], readers[layer + _EVEN]
        scope = by_odd.name.split(f".{DISTANCE_TABLE}/")[0]
        shift = f"{scope}.{SHIFTED_PRODUCT}/"
        (product,) = (n for n in graph.node if n.op_type == "MatMul" and n.name.startswith(shift))
        # Its right side is a transpose of rows that were split into heads.
        split = writers[writers[product.input[1]].input[0]]
        _, n_heads, d_head = numpy_helper.to_array(weights[split.input[1]])
        if n_heads > MAX_HEADS:
            return model
        shifted = [product]  # followed until the scores leave the module
        while (reader := readers[shifted[-1].output[0]][0]).name.startswith(shift):
            shifted.append(reader)
        table = [] if replaced else _table_nodes(by_odd.input[0], by_even.input[0])
        scores = _score_nodes(f"{scope}.{ANGLE_PRODUCT}", product.input[0], shifted[-1].output[0])
        replaced |= {node.name: [] for node in shifted}
        replaced[product.name] = [*table, *scores]
        odd, even = (numpy_helper.to_array(weights[layer + part]) for part in (_ODD, _EVEN))  # (D / 2, D)
        sine, cosine = (half.T.reshape(n_heads, d_head, -1) for half in (odd, even))
        for name, halves in (("by_sine", (sine, cosine)), ("by_cosine", (cosine, -sine))):
            value = np.concatenate(halves, axis=-1)  # (H, d, D)
            added.append(numpy_helper.from_array(value, f"{scope}.{ANGLE_PRODUCT}.{name}"))
    for name, number in (("angles.first", 0), ("angles.last", -1)):
        added.append(numpy_helper.from_array(np.asarray([number], np.int64), name))
    angles = type(model)()
    angles.CopyFrom(model)
    angles.graph.initializer.extend(added)
    _set_nodes(angles.graph, [new for node in graph.node for new in replaced.get(node.name, [node])])
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


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Keep in the graph those of `nodes` that its outputs need, and no other weight or value."""
    read = {output.name for output in graph.output}
    needed = []
    for node in reversed(nodes):
        if read.intersection(node.output):
            read.update(node.input)
            needed.append(node)
    written = {name for node in needed for name in node.output}
    kept_weights = [i for i in graph.initializer if i.name in read]
    kept_values = [value for value in graph.value_info if value.name in written]
    for field, kept in (
        (graph.node, needed[::-1]),
        (graph.initializer, kept_weights),
        (graph.value_info, kept_values),
    ):
        copies = copy.deepcopy(kept)  # deleting them from the field empties them
        del field[:]
        field.extend(copies)
