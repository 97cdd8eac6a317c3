"""Arranges the attention of a graph so that TensorRT can fuse it: MatMul, one Add, Softmax, MatMul.

The kernel of fused attention takes one bias. Graphs add the scores by position and the mask one after the
other, so `join_biases` adds these two first; what frames may see is unchanged to the bit, because the mask is
0 there. WeNet's attention also adds keys times a constant, summed over the channels of a head: a sum stays
float32, and the softmax with it, so `multiply_sums` makes it a product, whose kernels accumulate in float32
anyway. `widen_softmax` is the way back from a half Softmax, for a GPU whose fused kernel is wrong, and
`use_attention_operators` names the pattern to a TensorRT that has an operator for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_asr.errors import GateError, require
from edge_asr.graph.nodes import set_nodes
from edge_asr.graph.weightless import compacted

if TYPE_CHECKING:
    import onnx

_ATTENTION_OPSET, _ATTENTION_IR_VERSION = 23, 11


def join_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which all that is added to a product before a Softmax is added up first.

    Args:
        model: any graph; one without such sums gives an equal copy.
    """
    require("onnx", extra="export")
    from onnx import helper

    joined = compacted(model)
    graph = joined.graph
    writers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {output.name: 1 for output in graph.output}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1

    def terms(name: str) -> list[tuple[str, list[onnx.NodeProto]]]:
        """List what a sum adds up, each with the additions that lead to it."""
        node = writers.get(name)
        if node is None or node.op_type != "Add" or readers[name] > 1:
            return [(name, [])]
        return [(term, [node, *path]) for part in node.input for term, path in terms(part)]

    replaced: dict[int, list[onnx.NodeProto]] = {}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        summed = terms(softmax.input[0])
        products = [name for name, _ in summed if name in writers and writers[name].op_type == "MatMul"]
        if len(summed) < 3 or not products:
            continue
        others = [name for name, _ in summed if name != products[0]]
        last = writers[softmax.input[0]]
        nodes = []
        for number, other in enumerate(others[1:], start=1):
            bias = f"{softmax.input[0]}_bias_{number}"
            nodes.append(helper.make_node("Add", [others[0], other], [bias], f"{last.name}_bias_{number}"))
            others[0] = bias
        nodes.append(helper.make_node("Add", [products[0], others[0]], list(last.output), last.name))
        for _, path in summed:
            for node in path:
                replaced[id(node)] = nodes if node is last else []
    kept = [new for node in graph.node for new in replaced.get(id(node), [node])]
    set_nodes(graph, kept)
    return joined


def multiply_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which sums over the channels of heads, weighted by a constant, are matrix products.

    (..., H, T, d) times a constant (H, 1, d), summed over d, is the product with (H, d, 1). (..., H, d) times
    (H, d) is the product of (..., H d) with a matrix (H d, H), a row of the constant in each column and zeros
    elsewhere.

    Args:
        model: any graph; one without such sums gives an equal copy.
    """
    require("onnx", extra="export")
    from onnx import helper, numpy_helper, shape_inference

    multiplied = compacted(model)
    graph = multiplied.graph
    constants = {i.name: i for i in graph.initializer}
    writers = {name: node for node in graph.node for name in node.output}
    inferred = shape_inference.infer_shapes(model).graph
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info)
    }
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        product = writers.get(node.input[0]) if node.op_type == "ReduceSum" else None
        if product is None or product.op_type != "Mul" or len(node.input) < 2:
            continue
        axes = constants.get(node.input[1])
        keeps = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        values, weights = sorted(product.input, key=lambda name: name in constants)
        rank, name = ranks.get(values, 0), node.output[0]
        if keeps or axes is None or numpy_helper.to_array(axes).tolist() not in ([-1], [rank - 1]):
            continue
        rows = numpy_helper.to_array(constants[weights]) if weights in constants else np.zeros(0)
        if rows.ndim == 3 and rows.shape[1] == 1 and rank > 2:  # (H, 1, d)
            matrix, shape = np.ascontiguousarray(rows.transpose(0, 2, 1)), [-1]
            before, after = [], ["Squeeze"]
        elif rows.ndim == 2 and rank > 2:  # (H, d)
            of_head = np.eye(len(rows), dtype=rows.dtype)[:, None, :]
            matrix, shape = (rows[:, :, None] * of_head).reshape(-1, len(rows)), [0] * (rank - 2) + [-1]
            before, after = ["Reshape"], []
        else:
            continue
        added = {f"{name}_matrix": matrix, f"{name}_shape": np.asarray(shape, np.int64)}
        graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in added.items())
        kinds = [*before, "MatMul", *after]
        steps, source = [], values
        for number, kind in enumerate(kinds, start=1):
            target = name if number == len(kinds) else f"{name}_step_{number}"
            second = f"{name}_matrix" if kind == "MatMul" else f"{name}_shape"
            steps.append(helper.make_node(kind, [source, second], [target], f"{node.name}_{kind}"))
            source = target
        replaced[name] = steps
    set_nodes(graph, [new for node in graph.node for new in replaced.get(node.output[0], [node])])
    return multiplied


def widen_softmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a typed FP16 graph in which every half Softmax computes in float32."""
    onnx = require("onnx", extra="export")
    half, widened = onnx.TensorProto.FLOAT16, compacted(model)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    nodes = []
    for node in widened.graph.node:
        nodes.append(node)
        if node.op_type == "Softmax" and types.get(node.input[0]) == half:
            (source,), (target,) = list(node.input), list(node.output)
            node.input[0], node.output[0] = f"{source}_wide", f"{target}_wide"
            cast = onnx.helper.make_node
            before = cast("Cast", [source], [node.input[0]], f"{node.name}_in", to=onnx.TensorProto.FLOAT)
            nodes[-1:] = [before, node, cast("Cast", [node.output[0]], [target], f"{node.name}_out", to=half)]
    set_nodes(widened.graph, nodes)
    return widened


def use_attention_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy at opset 23 with an Attention operator for each MatMul, Add, Softmax, MatMul.

    Args:
        model: from `join_biases`, of any precision; queries are scaled already.

    Raises:
        GateError: there is no such attention in it.
    """
    make = require("onnx", extra="export").helper.make_node
    replaced_model = compacted(model)
    graph = replaced_model.graph
    writers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    for softmax in [node for node in graph.node if node.op_type == "Softmax"]:
        addition = writers[softmax.input[0]]
        product = writers.get(addition.input[0])
        average = readers[softmax.output[0]][0]
        if product is None or (addition.op_type, product.op_type, average.op_type) != (
            "Add",
            "MatMul",
            "MatMul",
        ):
            continue
        turn = writers[product.input[1]]  # (B, H, d, T) of the keys
        if turn.op_type != "Transpose" or average.input[0] != softmax.output[0]:
            continue
        *front, channel, time = next(a.ints for a in turn.attribute if a.name == "perm")
        keys = f"{turn.output[0]}_rows"
        rows = make("Transpose", [turn.input[0]], [keys], f"{turn.name}_rows", perm=[*front, time, channel])
        inputs = [product.input[0], keys, average.input[1], addition.input[1]]
        attention = make("Attention", inputs, list(average.output), f"{softmax.name}_fused", scale=1.0)
        replaced[average.output[0]] = [rows, attention]
    if not replaced:
        raise GateError("the graph has no attention that the operator Attention could stand for")
    set_nodes(graph, [new for node in graph.node for new in replaced.get(node.output[0], [node])])
    next(o for o in replaced_model.opset_import if o.domain in ("", "ai.onnx")).version = _ATTENTION_OPSET
    replaced_model.ir_version = max(replaced_model.ir_version, _ATTENTION_IR_VERSION)
    return replaced_model
