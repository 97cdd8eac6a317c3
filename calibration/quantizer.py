"""Quantizes to static INT8: explicit Q/DQ nodes around the chosen nodes of a float32 graph.

onnxruntime's QDQQuantizer inserts the nodes; this file decides what is quantized, where and with which
ranges. Symmetric int8 (zero point 0) for activations and weights, one scale per output channel of a weight,
biases in float32: what TensorRT's parser accepts, and what onnxruntime fuses into integer kernels on a CPU.
- MatMul and Gemm keep a float32 output, so onnxruntime runs one kernel that scales as it writes.
- Conv gets a quantized output, without which onnxruntime has no integer kernel for it.
- Weights, and an activation on the right of a product, use 7 of the 8 bits. On x86 CPUs without VNNI
  onnxruntime adds pairs of products in signed 16-bit lanes that saturate (VPMADDUBSW): 2 * 255 * 127 is too
  much for them, 2 * 255 * 64 is not. So a file gives the same numbers on every machine.
What this file does not do: collect ranges (ranges.py), choose groups (sensitivity.py).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_asr.calibration.int8_groups import QUANTIZABLE, Group, nodes_of
from edge_asr.errors import ConfigError, require
from edge_asr.graph.check import MAX_IR_VERSION
from edge_asr.graph.weightless import WeightlessGraph, compacted

if TYPE_CHECKING:
    import onnx

_FLOAT_OUTPUT = ["MatMul", "Gemm"]
_LEVELS = 127
_RIGHT_LEVELS = 64  # levels of the right side of a product, see above


def activation_tensors(model: onnx.ModelProto, groups: Collection[Group]) -> list[str]:
    """List the activations whose range the quantization of `groups` needs, in the order of the graph."""
    initializers = {initializer.name for initializer in model.graph.initializer}
    chosen = set(nodes_of(model, groups))
    tensors: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in chosen:
            inputs = node.input[:2]  # the third is a bias
            outputs = node.output if node.op_type == "Conv" else ()
            tensors |= dict.fromkeys(t for t in (*inputs, *outputs) if t not in initializers)
    return list(tensors)


def quantize_model(
    model: onnx.ModelProto, amax: Mapping[str, float], groups: Collection[Group]
) -> onnx.ModelProto:
    """Return a copy of `model` in which the nodes of `groups` compute in INT8.

    Args:
        model: a float32 graph with its weights inside, as exported by edge-asr.
        amax: largest magnitude to represent, for every tensor of `activation_tensors(model, groups)`, > 0.
        groups: what to quantize; none gives an unchanged copy.

    Returns:
        The Q/DQ graph; inputs, outputs and metadata are those of `model`.

    Raises:
        ConfigError: the range of a tensor is missing, or not a positive number.
        MissingDependencyError: onnx or onnxruntime is not installed.
    """
    require("onnx", extra="export")
    require("onnxruntime", extra="cpu")
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    nodes = nodes_of(model, groups)
    if not nodes:
        return compacted(model)
    rights = _right_sides(model, nodes)
    ranges = {}
    for tensor in activation_tensors(model, groups):
        bound = amax.get(tensor, 0.0)
        if not (np.isfinite(bound) and bound > 0):
            raise ConfigError(f"the range of {tensor} is {bound!r}; collect it before quantizing")
        if tensor in rights:
            bound *= _LEVELS / _RIGHT_LEVELS
        ranges[tensor] = (np.float32(-bound), np.float32(bound))
    bare = WeightlessGraph(model)
    chosen = set(nodes)
    read = {name for node in bare.model.graph.node if node.name in chosen for name in node.input}
    working = onnx.shape_inference.infer_shapes(bare.model)  # it must know which values are float32
    working.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # or it would copy the model
    bare.fill(working, read)
    quantizer = QDQQuantizer(
        working,
        per_channel=True,
        reduce_range=True,  # applies to weights only
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(QUANTIZABLE),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUT,
            "TensorQuantOverrides": _per_tensor_weights(working, rights),
        },
    )
    working = _quietly(quantizer.quantize_model)
    _free_other_readers(working, chosen)
    _separate_shared_inputs(working)
    quantizer.model.topological_sort()  # it appends nodes, but ONNX requires an order (onnxruntime does not)
    quantized = compacted(working)
    del quantizer, working
    bare.fill(quantized)
    quantized.ir_version = min(quantized.ir_version, MAX_IR_VERSION)
    _drop_unused_domains(quantized)
    del quantized.metadata_props[:]  # the quantizer adds its own entries
    quantized.metadata_props.extend(model.metadata_props)
    return quantized


def _right_sides(model: onnx.ModelProto, nodes: Iterable[str]) -> set[str]:
    """List the tensors, constant or not, on the right of the products among `nodes`."""
    chosen = set(nodes)
    return {n.input[1] for n in model.graph.node if n.name in chosen and n.op_type in _FLOAT_OUTPUT}


def _per_tensor_weights(model: onnx.ModelProto, rights: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """List batched MatMul weights (more than two axes), for which onnxruntime's kernel takes one scale."""
    from onnxruntime.quantization import QuantType

    return {
        initializer.name: [{"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": True}]
        for initializer in model.graph.initializer
        if initializer.name in rights and len(initializer.dims) > 2
    }


def _free_other_readers(model: onnx.ModelProto, chosen: Collection[str]) -> None:
    """Let nodes that stay in float32 read the original value, and not its quantized form.

    This does not apply after a convolution, whose kernel is integer only if all readers take its INT8 output.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name in chosen or node.op_type == "QuantizeLinear":
            continue
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(dequantize.input[0])  # a weight has none
            producer = producers.get(quantize.input[0]) if quantize is not None else None
            if quantize is not None and (producer is None or producer.name not in chosen):
                node.input[index] = quantize.input[0]


def _separate_shared_inputs(model: onnx.ModelProto) -> None:
    """Give each product a quantization of its own left input.

    onnxruntime (1.32) leaves products that share one in float32. It also merges equal nodes, so the scale of
    each further one is the next larger float32, which changes nothing that int8 could hold.
    """
    import onnx

    initializers = {initializer.name: initializer for initializer in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    n_readers: dict[str, int] = {}
    for node in list(model.graph.node):
        dequantize = producers.get(node.input[0]) if node.op_type in _FLOAT_OUTPUT else None
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            continue
        quantize = producers.get(dequantize.input[0])
        if quantize is None:
            continue
        number = n_readers[dequantize.output[0]] = n_readers.get(dequantize.output[0], -1) + 1
        if number == 0:
            continue
        scale = onnx.numpy_helper.to_array(initializers[quantize.input[1]])
        for _ in range(number):
            scale = np.nextafter(scale, np.float32(np.inf))
        own = f"{quantize.input[1]}_{number}"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(scale, np.float32), own))
        for source in (quantize, dequantize):
            twin = model.graph.node.add()
            twin.CopyFrom(source)
            twin.name, twin.output[0], twin.input[1] = (
                f"{source.name}_{number}",
                f"{source.output[0]}_{number}",
                own,
            )
            if source is dequantize:
                twin.input[0] = f"{quantize.output[0]}_{number}"
        node.input[0] = f"{dequantize.output[0]}_{number}"


def _quietly(function: Any) -> Any:
    """Call without onnxruntime's remarks about what it does not quantize, which is intended here."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        return function()
    finally:
        root.setLevel(level)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Drop operator sets that no node uses: onnxruntime adds its own, which other runtimes may not know."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
