"""Rewrites a Gemm with a constant matrix as MatMul and Add, the form for which INT8 has a kernel.

onnxruntime's integer Gemm takes a bias only in INT32, which would have to be rounded; after an integer MatMul
the bias stays as it is. In float32 a Gemm is faster, so streaming graphs are exported with it. The products
get a third axis of one in front, because onnxruntime would make a float32 Gemm of a MatMul and an Add of two
axes again, and unpack the INT8 weights in every run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_asr.graph.weightless import compacted

if TYPE_CHECKING:
    import onnx


def gemms_to_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite every Gemm of an activation with a constant matrix; `model` itself if there is none."""
    from onnx import helper, numpy_helper

    weights = {i.name: i for i in model.graph.initializer}
    if not any(node.op_type == "Gemm" and node.input[1] in weights for node in model.graph.node):
        return model
    rewritten = type(model)()
    rewritten.CopyFrom(model)
    graph = rewritten.graph
    nodes = []
    for node in graph.node:
        flags = {a.name: a.i for a in node.attribute}
        scales = [a.f for a in node.attribute if a.name in ("alpha", "beta")]
        plain = node.op_type == "Gemm" and not flags.get("transA") and set(scales) <= {1.0}
        if not plain or node.input[1] not in weights:
            nodes.append(node)
            continue
        name, weight = node.name.removesuffix("Gemm"), node.input[1]
        if flags.get("transB"):
            turned = np.ascontiguousarray(numpy_helper.to_array(weights[weight]).T)
            weight = f"{weight}_transposed"
            if weight not in weights:
                weights[weight] = numpy_helper.from_array(turned, weight)
                graph.initializer.append(weights[weight])
        (output,), bias = node.output, node.input[2:]
        product = f"{output}_product" if bias else output
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], f"{name}MatMul"))
        if bias:
            nodes.append(helper.make_node("Add", [product, *bias], [output], f"{name}Add"))
    _add_axis(nodes, graph)
    del graph.node[:]
    del graph.value_info[:]
    graph.node.extend(nodes)
    read = {name for node in graph.node for name in node.input}
    kept = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return compacted(rewritten)


def _add_axis(nodes: list[onnx.NodeProto], graph: onnx.GraphProto) -> None:
    """Let each Reshape to (-1, N) give (1, -1, N), except before a Gather, which selects rows."""
    from onnx import numpy_helper

    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer if i.dims == [2]}
    gathered = {node.input[0] for node in nodes if node.op_type == "Gather"}
    for node in nodes:
        shape = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape[0] != -1 or node.output[0] in gathered:
            continue
        name = f"{node.input[1]}_of_products"
        if all(initializer.name != name for initializer in graph.initializer):
            graph.initializer.append(numpy_helper.from_array(np.asarray([1, *shape], np.int64), name))
        node.input[1] = name
