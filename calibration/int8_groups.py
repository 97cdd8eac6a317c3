"""The parts of a Conformer that quantize together, and the nodes of a graph that belong to each.

sensitivity.py turns a group on and off. Nodes carry the path of the module that made them
(edge_asr.export.onnx_export), so a group is a pattern over names (edge_asr.graph.part_names).
What this file does not do: measure anything.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Literal, get_args

from edge_asr.errors import BundleError
from edge_asr.graph.part_names import (
    ANGLE_PRODUCT,
    ATTENTION,
    ATTENTION_PROJECTIONS,
    CONVOLUTION,
    DEPTHWISE,
    DISTANCE_TABLE,
    FEED_FORWARDS,
    FIRST_CONVOLUTION,
    HEAD,
    POINTWISE,
    SHIFTED_PRODUCT,
    SUBSAMPLING,
    SUBSAMPLING_PROJECTION,
)

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

# The first convolution of the subsampling stays in floating point: it has one input channel, and a weight of
# -1e4 for the mask (edge_asr.export.inference_form) that would leave the real weights a single step.
_FLOAT = re.compile(rf"^{re.escape(SUBSAMPLING)}\.{FIRST_CONVOLUTION}/")


def _within(part: str, *names: str) -> re.Pattern[str]:
    """Match the nodes of the named modules inside a part of a layer."""
    return re.compile(rf"\.{part}\.({'|'.join(names)})/")


_PATTERNS: tuple[tuple[Group, re.Pattern[str]], ...] = (
    ("subsampling_projection", re.compile(rf"^{re.escape(SUBSAMPLING)}\.{SUBSAMPLING_PROJECTION}/")),
    ("subsampling", re.compile(rf"^{re.escape(SUBSAMPLING)}\.")),
    ("feed_forward", re.compile(rf"\.({'|'.join(FEED_FORWARDS)})\.")),
    ("attention_projections", _within(ATTENTION, *ATTENTION_PROJECTIONS)),
    ("attention_positions", _within(ATTENTION, DISTANCE_TABLE, ANGLE_PRODUCT)),
    ("attention_products", re.compile(rf"\.{ATTENTION}(\.{SHIFTED_PRODUCT})?/")),
    ("pointwise", _within(CONVOLUTION, *POINTWISE)),
    ("depthwise", _within(CONVOLUTION, DEPTHWISE)),
    ("head", re.compile(rf"^{HEAD}\.")),
)


def group_nodes(model: onnx.ModelProto) -> dict[Group, tuple[str, ...]]:
    """List the quantizable nodes of every group that the graph has, in the order of `GROUPS`.

    Raises:
        BundleError: no node is named after a module of a Conformer, so another exporter wrote the graph.
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
    """Tell whether a node is a convolution over a single channel, which is raw features or samples."""
    if node.op_type != "Conv" or shapes.get(node.input[1], (0, 0))[1] != 1:
        return False
    return all(attribute.name != "group" or attribute.i == 1 for attribute in node.attribute)


def nodes_of(model: onnx.ModelProto, groups: Collection[Group]) -> list[str]:
    """List the nodes of several groups, in the order of the graph."""
    chosen = {name for group, names in group_nodes(model).items() if group in groups for name in names}
    return [node.name for node in model.graph.node if node.name in chosen]
