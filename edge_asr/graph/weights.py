"""Stores the weights of a float32 ONNX graph as float16, cast back to float32 on loading, and undoes it.

The graph still computes in float32; the file is about half the size. onnxruntime folds the casts
when it loads the model, so speed and memory are those of the float32 file. Only the large matrices
and kernels move: biases, norms, folded depthwise kernels, tables and constants stay float32, so a
checkpoint that was itself stored as float16 is not rounded further. This is not an FP16 graph (that is a
precision of its own) and needs no calibration.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_asr.errors import GateError, require

if TYPE_CHECKING:
    import onnx

_MIN_ELEMENTS = 1024
_FLOAT16_MAX = 65504.0  # IEEE 754 binary16
_WEIGHT_INPUT = {"MatMul": (0, 1), "Gemm": (0, 1), "Conv": (1,), "LSTM": (1, 2)}
_SUFFIX = "_float16"


def store_weights_as_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy `model` with its matrix and convolution weights as float16 initializers followed by a Cast.

    Args:
        model: a float32 graph with its weights inside (no external data).

    Returns:
        The new model; inputs, outputs and metadata are unchanged.

    Raises:
        GateError: a weight is not finite or beyond float16's range.
    """
    require("onnx", extra="export")
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    chosen = _select_weights(copy)
    casts = []
    for initializer in graph.initializer:
        if initializer.name not in chosen:
            continue
        name = initializer.name
        values = onnx.numpy_helper.to_array(initializer)
        peak = float(np.max(np.abs(values)))
        if not peak <= _FLOAT16_MAX:
            raise GateError(
                f"weight {name} reaches {peak:g}, which float16 cannot hold; export with --weights fp32"
            )
        initializer.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), name + _SUFFIX))
        casts.append(
            onnx.helper.make_node(
                "Cast", [name + _SUFFIX], [name], name=f"cast_{name}", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
    return copy


def load_float32(path: Path) -> onnx.ModelProto:
    """Read a float32 graph from a file, with float32 weights whichever way they are stored.

    Args:
        path: a bundle's model.onnx.

    Returns:
        The graph that was stored, with its weights rounded to float16 if they were stored so.
    """
    require("onnx", extra="export")
    import onnx

    model = onnx.load(path)
    fold_stored_weights(model)
    return model


def fold_stored_weights(model: onnx.ModelProto) -> None:
    """Undo `store_weights_as_float16` in place, except for the rounding."""
    import onnx

    stored = {i.name: i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in stored]
    for cast in casts:
        initializer = stored[cast.input[0]]
        values = onnx.numpy_helper.to_array(initializer).astype(np.float32)
        initializer.CopyFrom(onnx.numpy_helper.from_array(values, cast.output[0]))
        model.graph.node.remove(cast)


def _select_weights(model: onnx.ModelProto) -> set[str]:
    """List the float32 initializers that are weights of a matrix product or a dense convolution."""
    from onnx import TensorProto

    sizes = {
        i.name: int(np.prod(i.dims)) for i in model.graph.initializer if i.data_type == TensorProto.FLOAT
    }
    chosen = set()
    for node in model.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type not in _WEIGHT_INPUT or (node.op_type == "Conv" and groups > 1):
            continue
        for position in _WEIGHT_INPUT[node.op_type]:
            if position < len(node.input) and sizes.get(node.input[position], 0) >= _MIN_ELEMENTS:
                chosen.add(node.input[position])
    return chosen
