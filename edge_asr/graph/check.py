"""Checks what every ONNX graph that ships must be: valid, dynamic, one file, readable by onnxruntime 1.23."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_asr.bundle.names import ENCODED_NAME, INPUT_NAMES, OUTPUT_NAME
from edge_asr.errors import GateError, require
from edge_asr.graph.weightless import WeightlessGraph

if TYPE_CHECKING:
    import onnx


def check_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """Check a graph in full and infer its shapes.

    Returns:
        The graph with the inferred shapes of its intermediate values, and its large weights as inputs.

    Raises:
        GateError: the checker or strict shape inference objects, an input or output has another
            name or rank, batch or time is not dynamic, or weights lie outside the file.
    """
    inferred = check_model(model)
    outputs = zip(model.graph.output, (OUTPUT_NAME, ENCODED_NAME), strict=False)
    for value, name, rank, dynamic in (
        (model.graph.input[0], INPUT_NAMES[0], 3, (0, 2)),
        (model.graph.input[1], INPUT_NAMES[1], 1, (0,)),
        *((value, name, 3, (0, 1)) for value, name in outputs),
    ):
        dims = value.type.tensor_type.shape.dim
        if value.name != name or len(dims) != rank:
            raise GateError(
                f"the graph has {value.name} of rank {len(dims)} where {name} of rank {rank} belongs"
            )
        frozen = [axis for axis in dynamic if dims[axis].HasField("dim_value")]
        if frozen:
            raise GateError(f"{name} has the fixed axes {frozen}; batch and time must stay dynamic")
    if len(model.graph.input) != len(INPUT_NAMES) or not 1 <= len(model.graph.output) <= 2:
        raise GateError(
            f"the graph has {len(model.graph.input)} inputs and {len(model.graph.output)} outputs; "
            f"it must have {len(INPUT_NAMES)} and 1, or 2 for an attention decoder"
        )
    return inferred


def check_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """Run the part of `check_graph` that any graph must pass.

    Raises:
        GateError: the checker or strict shape inference objects, or weights lie outside the file.
    """
    onnx_module = require("onnx", extra="export")
    if any(i.data_location == onnx_module.TensorProto.EXTERNAL for i in model.graph.initializer):
        raise GateError("the graph keeps weights in another file; it must be one file")
    bare = WeightlessGraph(model).model
    try:
        onnx_module.checker.check_model(bare, full_check=True)
        inferred: onnx.ModelProto = onnx_module.shape_inference.infer_shapes(
            bare, check_type=True, strict_mode=True, data_prop=True
        )
    except (onnx_module.checker.ValidationError, onnx_module.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GateError(f"the exported graph is not valid ONNX: {reason}") from error
    if model.ir_version > MAX_IR_VERSION:
        raise GateError(
            f"the graph has ir_version {model.ir_version}; onnxruntime 1.23 reads {MAX_IR_VERSION} at most"
        )
    return inferred


MAX_IR_VERSION = 10
