"""A graph without its large weights, for tools that copy whatever they are given.

onnxsim, the checker and shape inference serialize a graph several times; for a model of a hundred million
parameters that is gigabytes of weights that they never use. In the bare graph the weights are inputs of known
shape. They are only transposed, which the exporter leaves undone for large ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

_LARGE_ELEMENTS = 16384


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight of the bare graph: an initializer of the whole one, transposed by `axes` unless None."""

    initializer: onnx.TensorProto
    axes: tuple[int, ...] | None = None

    def array(self) -> npt.NDArray[np.generic]:
        """Return its values, in the order that the bare graph needs."""
        from onnx import numpy_helper

        values: npt.NDArray[np.generic] = numpy_helper.to_array(self.initializer)
        return values if self.axes is None else np.ascontiguousarray(np.transpose(values, self.axes))


class WeightlessGraph:
    """A graph without its large weights, which can be put back into what a tool made of it.

    The whole graph is unchanged, and must live as long as this one. (Removing the weights from it would free
    nothing, because protobuf keeps the memory of a message together.)

    Attributes:
        model: the graph; the large weights are inputs behind its own.
    """

    def __init__(self, whole: onnx.ModelProto) -> None:
        self.model, self._weights = _split(whole)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The large weights by name, to be fed as inputs."""
        return {name: weight.array() for name, weight in self._weights.items()}

    def fill(self, graph: onnx.ModelProto, names: Collection[str] | None = None) -> None:
        """Put weights back as initializers of what a tool made of `model`, in place.

        Args:
            graph: has the weights as inputs.
            names: which of them, for a tool that needs some first; None takes all that are left, and drops
                those that no node reads any more.
        """
        wanted = self._weights.keys() if names is None else self._weights.keys() & set(names)
        _join(graph, {name: self._weights.pop(name) for name in list(wanted)})


def _split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, _Weight]]:
    import onnx

    large = {i.name: i for i in model.graph.initializer if np.prod(i.dims) >= _LARGE_ELEMENTS}
    transposed: dict[str, _Weight] = {}
    bare = onnx.ModelProto()
    copy_fields(model, bare, but=("graph",))
    graph = bare.graph
    graph.name = model.graph.name
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in large:
            rank = len(large[node.input[0]].dims)
            axes = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), tuple(range(rank))[::-1])
            transposed[node.output[0]] = _Weight(large[node.input[0]], axes)
        else:
            graph.node.add().CopyFrom(node)
    graph.initializer.extend(i for i in model.graph.initializer if i.name not in large)
    graph.output.extend(model.graph.output)
    graph.value_info.extend(value for value in model.graph.value_info if value.name not in transposed)
    read = {name for node in graph.node for name in node.input}
    weights = {name: _Weight(initializer) for name, initializer in large.items() if name in read} | transposed
    graph.input.extend(model.graph.input)
    for name, weight in weights.items():
        dims = np.asarray(weight.initializer.dims)
        shape = dims.tolist() if weight.axes is None else dims[list(weight.axes)].tolist()
        graph.input.append(onnx.helper.make_tensor_value_info(name, weight.initializer.data_type, shape))
    return bare, weights


def _join(bare: onnx.ModelProto, weights: Mapping[str, _Weight]) -> None:
    """Make weights initializers of a graph that has them as inputs, in place, if a node reads them."""
    import onnx

    own = onnx.GraphProto()
    own.input.extend(value for value in bare.graph.input if value.name not in weights)
    del bare.graph.input[:]
    bare.graph.input.extend(own.input)
    read = {name for node in bare.graph.node for name in node.input}
    for name, weight in weights.items():
        if name not in read:
            continue
        initializer = bare.graph.initializer.add()
        if weight.axes is None:
            initializer.CopyFrom(weight.initializer)
        else:
            initializer.CopyFrom(onnx.numpy_helper.from_array(weight.array(), name))


def compacted(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy `model` without the memory of removed parts, which a message keeps while it lives."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def copy_fields(source: Any, target: Any, *, but: Collection[str]) -> None:
    """Copy all fields except `but` into an empty message of the same type."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
