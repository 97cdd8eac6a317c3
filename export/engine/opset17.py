"""A copy of an ONNX graph at opset 17, the newest that TensorRT 8.6 (JetPack 6.0) reads.

It rewrites what opset 18 and later moved: the axes of Reduce* (input -> attribute), Split's count of outputs
(-> sizes), Pad's axes (-> pads of every axis). Operators to which later opsets only added types are copied
unchanged; everything else that is newer is refused by name. onnx.version_converter cannot convert Split down
from opset 18 (onnx 1.23). The copy is checked to be equal on onnxruntime; it has not run on 8.6 yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import INPUT_NAMES
from edge_asr.errors import GateError, require
from edge_asr.export.fp16.rounding import unoptimized_session
from edge_asr.graph.weights import fold_stored_weights

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8  # the version that onnx wrote with opset 17
#: (batch, frames) at which the copy must give the same numbers.
CHECK_SHAPES = ((1, 1), (1, 8), (1, 97), (2, 250), (4, 333))

# Only their type lists grew between opsets 17 and 22 (onnx, docs/Changelog.md); attributes that were
# added too are dropped at their default and refused at any other value.
_RETYPED = frozenset(
    {
        *("AveragePool", "Cast", "CastLike", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos"),
        *("DequantizeLinear", "Dropout", "Elu", "Equal", "Flatten", "GRU", "GlobalAveragePool"),
        *("GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "IsInf", "IsNaN"),
        *("LSTM", "MaxPool", "QuantizeLinear", "RNN", "Reshape", "Round", "Selu", "Shape", "Sin", "Size"),
        *("Softplus", "Softsign", "Squeeze", "Transpose", "Unsqueeze"),
    }
)
_NEW_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "saturate": (1,),
    "block_size": (0,),
    "output_dtype": (0,),
    "noop_with_empty_axes": (0,),
}


def convert_to_opset17(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return an equal graph at opset 17 and ir_version 8.

    Args:
        model: float32, FP16 or Q/DQ graph, opset 18 to 22, one file.

    Returns:
        A new model with the same inputs, outputs, names and metadata; a graph at opset 17 or older is
        copied unchanged.

    Raises:
        GateError: opset 17 lacks an operator, or the way it is used.
        MissingDependencyError: onnx is not installed.
    """
    require("onnx", extra="export")
    import onnx

    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    (default,) = (o for o in converted.opset_import if o.domain in ("", "ai.onnx"))
    if default.version <= OPSET:
        return converted
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    context = _Context(converted.graph, graph)
    for node in converted.graph.node:
        if node.domain in ("", "ai.onnx"):
            _convert_node(node, default.version, context)
    default.version = OPSET
    converted.ir_version = min(converted.ir_version, IR_VERSION)
    context.drop_unused_constants()
    try:
        onnx.checker.check_model(converted, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GateError(f"the opset-17 copy is not valid: {str(error).strip().splitlines()[0]}") from error
    return converted


def make_opset17_copy(model: bytes, n_mels: int) -> bytes:
    """Return the bytes of a checked copy; weights that are stored as float16 become float32.

    TensorRT 8.6 takes the kernels of a convolution only as constants, and those would be behind a Cast.

    Raises:
        GateError: see `convert_to_opset17` and `check_opset17`.
    """
    onnx = require("onnx", extra="export")
    original = onnx.load_from_string(model)
    fold_stored_weights(original)
    converted = convert_to_opset17(original)
    check_opset17(original, converted, n_mels)
    content: bytes = converted.SerializeToString()
    return content


def check_opset17(model: onnx.ModelProto, converted: onnx.ModelProto, n_mels: int) -> None:
    """Refuse the copy unless both graphs, unoptimized, give the same bits on random inputs of several shapes.

    Args:
        model: the graph that was converted; inputs `audio_signal` [B, n_mels, T] and `length` [B].
        converted: from `convert_to_opset17`.
        n_mels: feature channels.

    Raises:
        GateError: the outputs differ.
        MissingDependencyError: onnxruntime is not installed.
    """
    before, after = unoptimized_session(model), unoptimized_session(converted)
    generator = np.random.default_rng(0)
    for batch, n_frames in CHECK_SHAPES:
        features = 3.0 * generator.standard_normal((batch, n_mels, n_frames)).astype(np.float32)
        lengths = np.asarray([max(1, n_frames - 61 * row) for row in range(batch)], np.int64)
        feed = {INPUT_NAMES[0]: features, INPUT_NAMES[1]: lengths}
        expected: npt.NDArray[Any] = before.run(None, feed)[0]
        given: npt.NDArray[Any] = after.run(None, feed)[0]
        if not np.array_equal(expected, given):
            raise GateError(
                f"the opset-17 copy differs at batch {batch}, {n_frames} frames "
                f"(largest difference {float(np.max(np.abs(expected - given))):.2e}); "
                "report it with the version of onnxruntime"
            )


class _Context:
    """What converting a node needs to know about the graph, and where new constants go."""

    def __init__(self, graph: onnx.GraphProto, inferred: onnx.GraphProto) -> None:
        self.graph = graph
        self._initializers = {i.name: i for i in graph.initializer}
        self._constants = {
            n.output[0]: next((a.t for a in n.attribute if a.name == "value"), None)
            for n in graph.node
            if n.op_type == "Constant"
        }
        self._dims = {
            v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
            for v in (*inferred.input, *inferred.value_info, *inferred.output)
            if v.type.tensor_type.HasField("shape")
        }
        self._freed: set[str] = set()

    def dims(self, name: str) -> list[int | None] | None:
        """Return the sizes of a value, None for a dynamic one; None for an unknown rank."""
        return self._dims.get(name)

    def take_integers(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """Remove an input and all after it, and return its constant integers; None if it has none."""
        from onnx import numpy_helper

        if index >= len(node.input) or not node.input[index]:
            return None
        name = node.input[index]
        tensor = self._initializers.get(name) or self._constants.get(name)
        if tensor is None:
            raise _refusal(node, f"input {index} ({name}) is computed, and opset 17 needs a constant")
        self._freed.add(name)
        del node.input[index:]
        return [int(v) for v in np.atleast_1d(numpy_helper.to_array(tensor))]

    def add_integers(self, name: str, values: list[int]) -> str:
        """Add an int64 constant [n], and return its name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def drop_unused_constants(self) -> None:
        """Remove the constants that only became attributes."""
        used = {name for node in self.graph.node for name in node.input}
        for name in self._freed - used:
            if name in self._initializers:
                self.graph.initializer.remove(self._initializers[name])


def _convert_node(node: onnx.NodeProto, opset: int, context: _Context) -> None:
    import onnx

    newer = onnx.defs.get_schema(node.op_type, opset)
    if newer.since_version <= OPSET:
        return
    adapter = _ADAPTERS.get(node.op_type)
    if adapter is not None:
        adapter(node, context)
    elif node.op_type not in _RETYPED:
        raise _refusal(node, f"it is of opset {newer.since_version}")
    known = onnx.defs.get_schema(node.op_type, OPSET).attributes
    for attribute in [a for a in node.attribute if a.name not in known]:
        value = onnx.helper.get_attribute_value(attribute)
        harmless = _NEW_DEFAULTS.get(attribute.name, ())
        if value not in harmless and not (attribute.name == "dilations" and set(value) == {1}):
            raise _refusal(node, f"its attribute {attribute.name} = {value} came later")
        node.attribute.remove(attribute)


def _reduce(node: onnx.NodeProto, context: _Context) -> None:
    """Convert ReduceMean-18 and the like, whose axes were an attribute; without axes they reduce all."""
    from onnx import helper

    keep_all = any(a.name == "noop_with_empty_axes" and a.i for a in node.attribute)
    axes = context.take_integers(node, 1)
    if not axes and keep_all:
        raise _refusal(node, "noop_with_empty_axes is set and there are no axes")
    for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
        node.attribute.remove(attribute)
    if axes:
        node.attribute.append(helper.make_attribute("axes", axes))


def _split(node: onnx.NodeProto, context: _Context) -> None:
    """Convert Split-18, whose last part of `num_outputs` is smaller; opset 17 has equal parts or sizes."""
    counts = [a for a in node.attribute if a.name == "num_outputs"]
    if not counts:
        return
    node.attribute.remove(counts[0])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    dims = context.dims(node.input[0])
    size = dims[axis] if dims else None
    if size is None:
        raise _refusal(node, f"it splits the dynamic axis {axis}, whose sizes opset 17 must know")
    part = -(-size // counts[0].i)
    sizes = [max(0, min(part, size - part * index)) for index in range(counts[0].i)]
    node.input.append(context.add_integers(f"{node.output[0]}_split_sizes", sizes))


def _pad(node: onnx.NodeProto, context: _Context) -> None:
    """Convert Pad-18, which pads named axes only; opset 17 requires the pads of all axes."""
    mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
    if mode == b"wrap":
        raise _refusal(node, "its mode wrap came with opset 19")
    axes = context.take_integers(node, 3)
    if axes is None:
        return
    dims = context.dims(node.input[0])
    if dims is None:
        raise _refusal(node, f"the rank of {node.input[0]} is unknown")
    value = node.input[2] if len(node.input) > 2 else ""
    pads = context.take_integers(node, 1)
    assert pads is not None  # Pad always has them
    full = [0] * (2 * len(dims))  # all begins, then all ends
    for position, axis in enumerate(axes):
        full[axis % len(dims)] = pads[position]
        full[len(dims) + axis % len(dims)] = pads[len(axes) + position]
    node.input.append(context.add_integers(f"{node.output[0]}_pads", full))
    if value:
        node.input.append(value)


_ADAPTERS: dict[str, Callable[[Any, _Context], None]] = {
    "Split": _split,
    "Pad": _pad,
    **{
        f"Reduce{kind}": _reduce
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
    },
}


def _refusal(node: onnx.NodeProto, reason: str) -> GateError:
    return GateError(
        f"{node.op_type} {node.name} has no form at opset 17: {reason}; export with --opset 18 and without "
        "this operator, or build on TensorRT 10"
    )
