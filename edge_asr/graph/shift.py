"""Finds the scores by distance of a float32 graph, as an inference form gives them to the exporter.

Rewrites replace how a layer gets from its queries to these scores; both keep their names in every graph that
is made from the float32 one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_asr.graph.part_names import DISTANCE_TABLE, EVEN_WEIGHT, ODD_WEIGHT, SHIFTED_PRODUCT

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
_ODD, _EVEN = f".{DISTANCE_TABLE}.{ODD_WEIGHT}", f".{DISTANCE_TABLE}.{EVEN_WEIGHT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftedScores:
    """The scores by distance of one layer.

    Attributes:
        scope: name of the layer's attention, which its nodes begin with.
        query, scores: tensors (B, H, T, d) and (B, H, T, T).
        sine, cosine: tensors (T + 1, D / 2) of the distances 0, 1, ..., T, shared by all layers.
        odd, even: the weights of both, (D / 2, D).
        n_heads: H.
        nodes: names of the nodes from the product on, the first of them the product itself.
    """

    scope: str
    query: str
    scores: str
    sine: str
    cosine: str
    odd: F32Array
    even: F32Array
    n_heads: int
    nodes: tuple[str, ...]


def find_shifted_scores(model: onnx.ModelProto) -> tuple[ShiftedScores, ...]:
    """List the scores by distance in the order of the layers; empty for another attention, or a stream."""
    from onnx import numpy_helper

    weights = {i.name: i for i in model.graph.initializer}
    writers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for layer in [name.removesuffix(_ODD) for name in weights if name.endswith(_ODD)]:
        (by_odd,), (by_even,) = readers[layer + _ODD], readers[layer + _EVEN]
        scope = by_odd.name.split(f".{DISTANCE_TABLE}/")[0]
        shift = f"{scope}.{SHIFTED_PRODUCT}/"
        (product,) = (n for n in model.graph.node if n.op_type == "MatMul" and n.name.startswith(shift))
        # Its right side is a transpose of rows that were split into heads.
        split = writers[writers[product.input[1]].input[0]]
        shifted = [product]  # followed until the scores leave the module
        while (reader := readers[shifted[-1].output[0]][0]).name.startswith(shift):
            shifted.append(reader)
        found.append(
            ShiftedScores(
                scope=scope,
                query=product.input[0],
                scores=shifted[-1].output[0],
                sine=by_odd.input[0],
                cosine=by_even.input[0],
                odd=numpy_helper.to_array(weights[layer + _ODD]),
                even=numpy_helper.to_array(weights[layer + _EVEN]),
                n_heads=int(numpy_helper.to_array(weights[split.input[1]])[1]),
                nodes=tuple(node.name for node in shifted),
            )
        )
    return tuple(found)
