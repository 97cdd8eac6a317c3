"""A float32 ONNX graph as a typed FP16 graph: half arithmetic, float32 where half would lose the result.

The types are in the file (weights float16, Cast at the borders), as strongly typed TensorRT networks require;
inputs and outputs stay float32. Operators and inferred shapes, never names, decide what stays float32:

- everything before the first layer with weights (the features' range), lengths, masks and positions;
- LogSoftmax and norms that are one node. LayerNormalization alone computes in half and keeps its
  statistics in float32 by its own `stash_type` (ONNX, LayerNormalization-17), which saves two casts per norm;
- statistics and powers (Reduce*, Pow, Exp, ...), sums over a dynamic axis that no softmax has weighted
  (linear attention), and what is computed from those, up to a division, a norm or a layer with weights;
- what uses a constant beyond half's range, such as a mask of -1e9 or an epsilon of 1e-12.

Softmax computes in half, because a cast on either side keeps TensorRT from fusing attention, and every kernel
accumulates in float32; `widen_softmax` (attention.py) undoes it. A quantized graph at opset 19 keeps its INT8
products, with half on both sides of them.
What this file does not do: prove the numbers (proof.py), or store float16 weights for float32 arithmetic
(edge_asr/graph/weights.py).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

import numpy as np

from edge_asr.errors import GateError, require

if TYPE_CHECKING:
    import onnx

FLOAT16_MAX = 65504.0  # IEEE 754 binary16
FLOAT16_MIN_NORMAL = 2.0**-14

_LAYERS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"})
_BOUNDED = frozenset(
    {
        *("LogSoftmax", "Sin", "Cos"),
        *("InstanceNormalization", "GroupNormalization", "BatchNormalization", "RMSNormalization"),
    }
)
_STATISTICS = frozenset(
    {
        *("ReduceSum", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        *("ReduceLogSum", "ReduceLogSumExp", "CumSum", "GlobalAveragePool", "Einsum"),
        *("Pow", "Exp", "Log", "Sqrt", "Reciprocal"),
    }
)
_CLOSING = frozenset({"Div", "Sigmoid", "HardSigmoid", "Tanh", "Softmax"})
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
HALF_SCALES_OPSET = 19
# These operators keep the rows of a softmax: weights that sum to at most one.
_KEEPS_WEIGHTS = frozenset({"Identity", "Dropout", "Where", "Reshape", "Squeeze", "Unsqueeze", *_QUANTIZING})

#: half: computed as float16. wide: float32, and so is everything that follows. neutral: float32 so far (a
#: constant, a mask, a softmax), but exact enough in half for a reader that needs half.
_State = Literal["half", "wide", "neutral"]


def convert_to_fp16(model: onnx.ModelProto, *, half_inputs: Collection[str] = ()) -> onnx.ModelProto:
    """Convert a float32 graph to a typed FP16 graph.

    Args:
        model: float32, or Q/DQ at opset 19 with scales that half can hold; simplified, one file, without
            functions or control flow.
        half_inputs: inputs that hold what this graph computed in half before, such as the caches of a stream.

    Returns:
        A new model with the same inputs, outputs, names, opset and metadata, and float16 inside.

    Raises:
        GateError: the graph holds something that cannot be converted.
        MissingDependencyError: onnx is not installed.
    """
    require("onnx", extra="export")
    import onnx

    _refuse_what_is_not_float32(model)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    plan = _Plan(inferred, half_inputs)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _rewrite(converted.graph, plan)
    return converted


def _refuse_what_is_not_float32(model: onnx.ModelProto) -> None:
    from onnx import AttributeProto, TensorProto

    half = [i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT16]
    if half:
        raise GateError(
            f"weight {half[0]} is float16 already; undo the storage casts first (edge_asr/graph/weights.py)"
        )
    if model.functions:
        raise GateError(
            f"the graph calls the function {model.functions[0].name}; simplify it first, which inlines it"
        )
    opset = opset_of(model)
    for node in model.graph.node:
        if node.op_type in _QUANTIZING and opset < HALF_SCALES_OPSET:
            raise GateError(
                f"{node.name} quantizes at opset {opset}, which has no half scales; the FP16 graph is made "
                "from the float32 one"
            )
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise GateError(
                f"{node.op_type} {node.name} has a graph inside, which has no typed FP16 form here; "
                "export the model without control flow"
            )
        if node.domain not in ("", "ai.onnx"):
            raise GateError(
                f"{node.op_type} {node.name} is of the domain {node.domain}; convert the graph before a "
                "runtime's own optimization"
            )


class _Plan:
    """Which float32 values and nodes become half.

    Attributes:
        states: the state of each float32 value by name, constants included.
        constants: names of all initializers.
        wanted: by node index, the type that each input is read in, or None if it is not float32.
    """

    def __init__(self, inferred: onnx.ModelProto, half_inputs: Collection[str]) -> None:
        from onnx import TensorProto, numpy_helper

        graph = inferred.graph
        self.opset = opset_of(inferred)
        values = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self._dims = {
            name: [d.dim_value if d.HasField("dim_value") else None for d in value.shape.dim]
            for name, value in values.items()
        }
        self._float = {name for name, value in values.items() if value.elem_type == TensorProto.FLOAT}
        self.states: dict[str, _State] = {
            v.name: "neutral" if v.name in half_inputs else "wide"
            for v in graph.input
            if v.name in self._float
        }
        self.constants: set[str] = set()
        for initializer in graph.initializer:
            if initializer.data_type == TensorProto.FLOAT:
                fits = _fits_half(numpy_helper.to_array(initializer))
                self.states[initializer.name] = "neutral" if fits else "wide"
            self.constants.add(initializer.name)
        self._weights = set(self.constants)  # and dequantized ones
        self._weights_of_average: set[str] = set()
        self.wanted = [self._visit(node) for node in graph.node]

    def _visit(self, node: onnx.NodeProto) -> list[Literal["half", "float32"] | None]:
        halves = self._half_inputs(node)
        is_half, state = self._decide(node) if any(halves) else (False, self._state_as_float32(node))
        for name in node.output:
            if name in self._float:
                self.states[name] = state
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            self._weights.update(node.output)
        if node.op_type == "Softmax" or (
            node.op_type in _KEEPS_WEIGHTS and self._weights_of_average.intersection(node.input)
        ):
            self._weights_of_average.update(node.output)
        return [
            None if name not in self.states else "half" if is_half and takes_half else "float32"
            for name, takes_half in zip(node.input, halves, strict=True)
        ]

    def _decide(self, node: onnx.NodeProto) -> tuple[bool, _State]:
        """Decide whether a node that could compute in half does, and the state of its result."""
        states = [self.states[name] for name in node.input if name in self.states]
        wide_constant = any(self.states.get(n) == "wide" for n in node.input if n in self.constants)
        if node.op_type in _BOUNDED:
            return False, "neutral"
        if node.op_type in _STATISTICS:
            return False, "wide"
        if node.op_type == "DequantizeLinear":
            return (False, "neutral") if wide_constant else (True, "half")
        if node.op_type in _LAYERS:
            has_weights = any(name in self._weights for name in node.input[:2])
            wide = wide_constant if has_weights else "wide" in states or self._sums_freely(node)
            return (False, "wide") if wide else (True, "half")
        if "wide" in states:
            return False, self._state_as_float32(node)
        if node.op_type == "Slice" and node.input[0] in self.constants:
            return True, "half"  # a part of a table
        return (True, "half") if "half" in states else (False, "neutral")

    def _state_as_float32(self, node: onnx.NodeProto) -> _State:
        if node.op_type in _BOUNDED or node.op_type in _CLOSING or node.op_type == "LayerNormalization":
            return "neutral"
        return "wide" if any(self.states.get(name) == "wide" for name in node.input) else "neutral"

    def _sums_freely(self, node: onnx.NodeProto) -> bool:
        """Tell whether a product of activations sums over a dynamic axis without being a weighted average."""
        left = node.input[0]
        dims = self._dims.get(left)
        axis = 0 if any(a.name == "transA" and a.i for a in node.attribute) else -1
        return left not in self._weights_of_average and (not dims or dims[axis] is None)

    def _half_inputs(self, node: onnx.NodeProto) -> list[bool]:
        """Tell for each input whether it is float32 and the operator would accept float16."""
        import onnx

        formal = onnx.defs.get_schema(node.op_type, self.opset).inputs
        return [
            name in self.states and "tensor(float16)" in formal[min(index, len(formal) - 1)].types
            for index, name in enumerate(node.input)
        ]


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    version: int = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    return version


def _fits_half(values: np.ndarray) -> bool:
    """Tell whether nothing overflows, and a lone number, which may guard a division, is a normal half."""
    peak = float(np.max(np.abs(values), initial=0.0))
    if not peak <= FLOAT16_MAX:
        return False
    return values.size > 1 or peak == 0.0 or peak >= FLOAT16_MIN_NORMAL


def _rewrite(graph: onnx.GraphProto, plan: _Plan) -> None:
    """Give every value its type, in place, with at most one Cast per value for readers of the other type."""
    from onnx import TensorProto, helper, numpy_helper

    outputs = {value.name for value in graph.output}
    readers: dict[str, set[str]] = {name: {"float32"} for name in outputs}
    for node, wanted in zip(graph.node, plan.wanted, strict=True):
        for name, kind in zip(node.input, wanted, strict=True):
            if kind is not None:
                readers.setdefault(name, set()).add(kind)

    half = {name for name, state in plan.states.items() if state == "half"}
    casts_of_masks = {}
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in plan.states:
            if node.input[0] not in plan.states:
                casts_of_masks[node.output[0]] = node
                if readers.get(node.output[0]) == {"half"}:  # becomes half at its source
                    half.add(node.output[0])
            if node.output[0] in half:
                next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT16
    for initializer in list(graph.initializer):
        if "half" in readers.get(initializer.name, ()):
            values = numpy_helper.to_array(initializer).astype(np.float16)
            if readers[initializer.name] == {"half"}:
                initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))
                half.add(initializer.name)
            else:
                graph.initializer.append(
                    numpy_helper.from_array(values, _other_name(initializer.name, "half"))
                )

    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    # A half value that is also an output of the graph gives its name to the Cast of the output.
    inner = {name: _other_name(name, "half") for name in outputs & half}

    def convert(name: str, kind: str) -> str:
        """Return the name of `name` in the type that a reader needs."""
        if (name in half) == (kind == "half"):
            return inner.get(name, name)
        other = name if name in inner else _other_name(name, kind)
        if other not in cast and name not in plan.constants:
            cast.add(other)
            source = casts_of_masks[name].input[0] if name in casts_of_masks else inner.get(name, name)
            to = TensorProto.FLOAT16 if kind == "half" else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [source], [other], name=f"cast_{other}", to=to))
        return other

    for node, wanted in zip(list(graph.node), plan.wanted, strict=True):
        for index, (name, kind) in enumerate(zip(list(node.input), wanted, strict=True)):
            if kind is not None:
                node.input[index] = convert(name, kind)
        for index, name in enumerate(node.output):
            node.output[index] = inner.get(name, name)
        nodes.append(node)
    for name in inner:
        convert(name, "float32")
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.value_info:
        if value.name in half:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16


def _other_name(name: str, kind: str) -> str:
    return f"{name}_{'float16' if kind == 'half' else 'float32'}"
