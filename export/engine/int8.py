"""The INT8 graph for an engine: products in INT8, everything between them in half.

A bundle's INT8 file has float32 scales, so a strongly typed network computes all that is not quantized in
float32, and fuses no attention. Here the same file gets half scales and a half body. What TensorRT has no
fast INT8 kernel for returns to half: the products and positions of attention, so that it fuses, and depthwise
convolutions. No range is collected again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_asr.calibration.int8_groups import Group, nodes_of
from edge_asr.errors import BundleError, require
from edge_asr.export.fp16.convert import FLOAT16_MIN_NORMAL, HALF_SCALES_OPSET, opset_of
from edge_asr.graph.nodes import set_nodes
from edge_asr.graph.weightless import compacted

if TYPE_CHECKING:
    import onnx

#: Groups that an engine computes in half whatever the file says.
HALF_GROUPS: tuple[Group, ...] = ("attention_positions", "attention_products", "depthwise")
_LEVELS = 127


def free_groups(
    quantized: onnx.ModelProto, float32: onnx.ModelProto, groups: tuple[Group, ...] = HALF_GROUPS
) -> onnx.ModelProto:
    """Return a copy in which the nodes of `groups` are not quantized.

    Args:
        quantized: an INT8 graph of edge-asr.
        float32: the graph that it was made from, whose weights return; a weight that it lacks is dequantized.
        groups: what to free; nothing in a graph that edge-asr did not make.
    """
    from onnx import numpy_helper

    freed = compacted(quantized)
    graph = freed.graph
    writers = {name: node for node in graph.node for name in node.output}
    weights = {i.name: i for i in graph.initializer}
    originals = {i.name: i for i in float32.graph.initializer}
    try:
        chosen = set(nodes_of(freed, groups))
    except BundleError:  # another exporter wrote it, and named no node after a module
        return freed
    renamed: dict[str, str] = {}
    for node in [node for node in graph.node if node.name in chosen]:
        for index, name in enumerate(node.input):
            dequantize = writers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            source = dequantize.input[0]
            if source not in weights:
                node.input[index] = writers[source].input[0]
                continue
            original = source.removesuffix("_quantized")
            if original not in weights:
                weight = originals.get(original)
                if weight is None or weight.dims != weights[source].dims:
                    weight = numpy_helper.from_array(_dequantized(dequantize, weights), original)
                weights[original] = weight
                graph.initializer.append(weight)
            node.input[index] = original
        if node.op_type == "Conv":
            for quantize in graph.node:
                if quantize.op_type == "QuantizeLinear" and quantize.input[0] == node.output[0]:
                    renamed |= {
                        n.output[0]: node.output[0] for n in graph.node if n.input[:1] == quantize.output[:1]
                    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    set_nodes(graph, graph.node)
    return freed


def fit_scales(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy at opset 19 with scales that half can hold: small ones are raised, and weights follow."""
    onnx = require("onnx", extra="export")
    fitted = compacted(quantized)
    weights = {i.name: i for i in fitted.graph.initializer}
    for node in fitted.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        weight = weights.get(node.input[0])
        if weight is not None and weight.data_type != onnx.TensorProto.INT8:
            continue  # a quantized bias, which TensorRT refuses
        scale = onnx.numpy_helper.to_array(weights[node.input[1]])
        raised = np.maximum(scale, np.float32(FLOAT16_MIN_NORMAL))
        if np.array_equal(scale, raised):
            continue
        if weight is not None:
            values = _dequantized(node, weights) / _along(node, raised, weight.dims)
            levels = np.clip(np.rint(values), -_LEVELS, _LEVELS).astype(np.int8)
            weight.CopyFrom(onnx.numpy_helper.from_array(levels, weight.name))
        weights[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(raised, node.input[1]))
    if opset_of(fitted) < HALF_SCALES_OPSET:
        next(o for o in fitted.opset_import if o.domain in ("", "ai.onnx")).version = HALF_SCALES_OPSET
    return fitted


def _dequantized(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> np.ndarray:
    from onnx import numpy_helper

    levels, scale = (numpy_helper.to_array(weights[name]) for name in node.input[:2])
    values: np.ndarray = levels.astype(np.float32) * _along(node, scale, levels.shape)
    return values


def _along(node: onnx.NodeProto, scale: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """Shape a scale, or one scale a channel, so that it spreads over a weight."""
    if scale.ndim == 0:
        return scale
    shape = [1] * len(dims)
    shape[next((a.i for a in node.attribute if a.name == "axis"), 1)] = -1
    return scale.reshape(shape)
