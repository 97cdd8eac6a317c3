"""Replaces the nodes of a graph, and drops what its outputs no longer need."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Keep in the graph those of `nodes` that its outputs need, and no other weight or value.

    Args:
        graph: changed in place.
        nodes: in topological order; they may be the graph's own.
    """
    read = {output.name for output in graph.output}
    needed = []
    for node in reversed(list(nodes)):
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
