"""The parts of a Conformer that quantize together, and the nodes of a graph that belong to each.

A group is what sensitivity.py turns on and off. Nodes carry the module path that made them
(edge_asr.export.onnx_export), so a group is a pattern over names. Nothing is measured here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from edge_asr.errors import BundleError

if TYPE_CHECKING:
    import onnx

Group = Literal[
    "subsampling",
    "subsampling_projection",
    "feed_forward",
    "attention_projections",
    "attention_positions",
    "attention_products",
    "pointwise",
    "depthwise",
    "head",
]
GROUPS: tuple[Group, ...] = get_args(Group)

#: Operators that have an INT8 kernel on onnxruntime and TensorRT alike.
QUANTIZABLE = ("Conv", "Gemm", "MatMul")

# The first convolution of the subsampling stays in floating point: one channel in, and a weight of -1e4 for
# the mask (edge_asr.export.inference_form) that would leave the real ones a single step.
_FLOAT = re.compile(r"^encoder\.subsampling\.first/")
_PATTERNS: tuple[tuple[Group, re.Pattern[str]], ...] = (
    ("subsampling_projection", re.compile(r"^encoder\.subsampling\.out/")),
    ("subsampling", re.compile(r"^encoder\.subsampling\.")),
    ("feed_forward", re.compile(r"\.feed_forward_(in|out)\.")),
    ("attention_projections", re.compile(r"\.attention\.(qkv|out)/")),
    ("attention_positions", re.compile(r"\.attention\.(position|by_distance)/")),
    ("attention_products", re.compile(r"\.attention(\.by_content|\.by_shift|\.context)?/")),
    ("pointwise", re.compile(r"\.convolution\.pointwise_(in|out)/")),
    ("depthwise", re.compile(r"\.convolution\.depthwise/")),
    ("head", re.compile(r"^head\.")),
)


def group_nodes(model: onnx.ModelProto) -> dict[Group, tuple[str, ...]]:
    """Names of the quantizable nodes of every group that the graph has, in the order of `GROUPS`.

    Raises:
        BundleError: no node has a name by which it could be told: another exporter wrote the graph.
    """
    found: dict[Group, list[str]] = {group: [] for group in GROUPS}
    shapes = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    for node in model.graph.node:
        if (
            node.op_type in QUANTIZABLE
            and not _FLOAT.search(node.name)
            and not _reads_one_channel(node, shapes)
        ):
            group = next((group for group, pattern in _PATTERNS if pattern.search(node.name)), None)
            if group is not None:
                found[group].append(node.name)
    if not any(found.values()):
        raise BundleError(
            "no node of the graph is named after a module of a Conformer, so nothing can be chosen for INT8; "
            "export the model again with this edge-asr"
        )
    return {group: tuple(names) for group, names in found.items() if names}


def _reads_one_channel(node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a node is a convolution over a single channel: features or samples as they come."""
    if node.op_type != "Conv" or shapes.get(node.input[1], (0, 0))[1] != 1:
        return False
    return all(attribute.name != "group" or attribute.i == 1 for attribute in node.attribute)


def nodes_of(model: onnx.ModelProto, groups: Collection[Group]) -> list[str]:
    """Names of the nodes of several groups, in the order of the graph."""
    chosen = {name for group, names in group_nodes(model).items() if group in groups for name in names}
    return [node.name for node in model.graph.node if node.name in chosen]
