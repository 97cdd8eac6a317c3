"""Applies SmoothQuant: moves the spread of activation channels into weights, where this is exact.

Activations have a few large channels that spoil the one scale they share; weights have a scale per column.
Dividing channel j of a product's input by s_j and multiplying row j of its weight by s_j changes nothing
in exact arithmetic (Xiao et al. 2023, "SmoothQuant", arXiv 2211.10438, equations 3 and 4). It costs nothing
if a LayerNormalization makes that input, because the division goes into gamma and beta. After a SiLU, whose
tail is the longest in a Conformer, it costs one more multiplication. Only these places change; they are found
by the structure of the graph. Ranges must be collected again on the smoothed graph.
What this file does not do: quantize (quantizer.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_asr.errors import ConfigError, require
from edge_asr.graph.weightless import compacted

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]
_SUFFIX = "_smoothed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedLinear:
    """One tensor whose spread of channels moved into the products that read it."""

    tensor: str
    """The input of the products: the output of a LayerNormalization or of a SiLU."""
    producer: str
    """Name of the node that makes this tensor."""
    linears: tuple[str, ...]
    """Names of the MatMul and Gemm nodes whose weights took the scale."""
    spread_before: float
    """Largest channel amax over the median one in the calibration clips, which one scale has to cover."""
    spread_after: float
    """The same after smoothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    producer: onnx.NodeProto
    linears: tuple[onnx.NodeProto, ...]

    @property
    def tensor(self) -> str:
        name: str = self.producer.output[0]
        return name


def find_smoothable_tensors(model: onnx.ModelProto) -> list[str]:
    """List outputs of LayerNormalizations and SiLUs that only products with constant weights read, in order.

    `smooth_model` needs the channel ranges of these tensors (`collect_channel_amax`).
    """
    return [site.tensor for site in _find_sites(model.graph)]


def smooth_model(
    model: onnx.ModelProto, channel_amax: Mapping[str, F32Array], alpha: float = 0.5
) -> tuple[onnx.ModelProto, list[SmoothedLinear]]:
    """Move s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) from activations into the products that read them.

    max|W_j| is taken over row j of all the products that share the input, because they share s. A channel
    that is always 0, or that no product reads, keeps s = 1.

    Args:
        model: float32 graph with its weights inside.
        channel_amax: [C] by tensor, for some or all of `find_smoothable_tensors(model)`.
        alpha: 0 leaves all difficulty to the activations, 1 moves it all to the weights.

    Returns:
        A new model, equal in exact arithmetic, and the changes, in graph order.

    Raises:
        ConfigError: alpha is outside 0 to 1, or channel ranges are of an unknown tensor, another size, or not
            finite.
        MissingDependencyError: onnx is not installed.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha is {alpha}; give 0 to 1, such as 0.5")
    onnx_module = require("onnx", extra="export")
    copy: onnx.ModelProto = onnx_module.ModelProto()
    copy.CopyFrom(model)
    sites = {site.tensor: site for site in _find_sites(copy.graph)}
    unknown = [name for name in channel_amax if name not in sites]
    if unknown:
        raise ConfigError(
            f"tensor {unknown[0]!r} is not an output of a LayerNormalization or SiLU that only constant "
            "products read; give ranges of find_smoothable_tensors(model)"
        )
    weights = _Weights(copy.graph)
    smoothed = [
        _smooth_site(site, np.asarray(channel_amax[name], np.float64), alpha, weights)
        for name, site in sites.items()
        if name in channel_amax
    ]
    return compacted(copy), smoothed


def _smooth_site(
    site: _Site, activation: npt.NDArray[np.float64], alpha: float, weights: _Weights
) -> SmoothedLinear:
    rows = [np.abs(_rows_first(node, weights.read(node.input[1]))).max(axis=1) for node in site.linears]
    weight = np.max(rows, axis=0).astype(np.float64)  # (C,)
    if activation.shape != weight.shape or not np.isfinite(activation).all():
        raise ConfigError(
            f"channel ranges of {site.tensor!r} have shape {activation.shape}, and must be "
            f"{weight.shape[0]} finite numbers; collect them again with collect_channel_amax"
        )
    alive = (activation > 0) & (weight > 0)
    scale = np.ones_like(weight)
    scale[alive] = activation[alive] ** alpha / weight[alive] ** (1.0 - alpha)

    tensor = site.tensor
    if site.producer.op_type == "LayerNormalization":
        for position in range(1, len(site.producer.input)):  # gamma and, if there is one, beta
            if site.producer.input[position]:
                weights.scale(site.producer, position, 1.0 / scale)
    else:
        weights.insert_product(site, 1.0 / scale)
    for node in site.linears:
        weights.scale(node, 1, scale[None, :] if _is_transposed(node) else scale[:, None])
    return SmoothedLinear(
        tensor=tensor,
        producer=site.producer.name,
        linears=tuple(node.name for node in site.linears),
        spread_before=_spread(activation),
        spread_after=_spread(activation / scale),
    )


def _spread(channel_amax: npt.NDArray[np.float64]) -> float:
    """Divide the largest by the median; 1 if most channels are dead."""
    median = float(np.median(channel_amax))
    return float(channel_amax.max()) / median if median > 0 else 1.0


class _Weights:
    """Changes the initializers of a graph in place, unless another node reads them too."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._by_name = {initializer.name: initializer for initializer in graph.initializer}
        self._n_readers = Counter(name for node in graph.node for name in node.input)

    def read(self, name: str) -> F32Array:
        from onnx import numpy_helper

        values: F32Array = numpy_helper.to_array(self._by_name[name])
        return values

    def scale(self, node: onnx.NodeProto, position: int, factor: npt.NDArray[np.float64]) -> None:
        """Multiply the weight at an input of `node`; a shared one is copied for this node first."""
        from onnx import numpy_helper

        name = node.input[position]
        values = (self.read(name).astype(np.float64) * factor).astype(np.float32)
        if self._n_readers[name] == 1:
            self._by_name[name].CopyFrom(numpy_helper.from_array(values, name))
            return
        self._n_readers[name] -= 1
        own = f"{name}{_SUFFIX}_{self._n_readers[name]}"
        self._graph.initializer.append(numpy_helper.from_array(values, own))
        node.input[position] = own

    def insert_product(self, site: _Site, factor: npt.NDArray[np.float64]) -> None:
        """Let the products of a site read its tensor times `factor` (C,)."""
        from onnx import helper, numpy_helper

        scaled, constant = f"{site.tensor}{_SUFFIX}", f"{site.tensor}{_SUFFIX}_factor"
        self._graph.initializer.append(numpy_helper.from_array(factor.astype(np.float32), constant))
        node = helper.make_node(
            "Mul", [site.tensor, constant], [scaled], name=f"{site.linears[0].name}/Smooth"
        )
        for linear in site.linears:
            linear.input[0] = scaled
        self._graph.node.insert(list(self._graph.node).index(site.producer) + 1, node)


def _find_sites(graph: onnx.GraphProto) -> list[_Site]:
    """Find every LayerNormalization over the last axis, and every SiLU, that only constant products read."""
    from onnx import TensorProto

    dims = {i.name: tuple(i.dims) for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers.setdefault(name, []).append(node)
    sigmoids = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Sigmoid"}
    sites = []
    for node in graph.node:
        if not node.output or node.output[0] in outputs:
            continue
        linears = readers.get(node.output[0], [])
        n_channels = None
        if node.op_type == "LayerNormalization" and all(name in dims for name in node.input[1:] if name):
            gamma = dims[node.input[1]]
            n_channels = gamma[0] if len(gamma) == 1 else None
        elif _is_silu(node, sigmoids) and linears:
            shape = dims.get(linears[0].input[1], ()) if len(linears[0].input) > 1 else ()
            n_channels = shape[1 if _is_transposed(linears[0]) else 0] if len(shape) == 2 else None
        if n_channels is None or not linears:
            continue
        if all(_is_linear(linear, node.output[0], n_channels, dims) for linear in linears):
            sites.append(_Site(producer=node, linears=tuple(linears)))
    return sites


def _is_silu(node: onnx.NodeProto, sigmoids: Mapping[str, str]) -> bool:
    """Tell whether `node` is x * sigmoid(x); `sigmoids` maps the output of each Sigmoid to its input."""
    return node.op_type == "Mul" and any(
        sigmoids.get(gate) == x for x, gate in (node.input[:2], reversed(node.input[:2]))
    )


def _is_linear(
    node: onnx.NodeProto, tensor: str, n_channels: int, dims: Mapping[str, tuple[int, ...]]
) -> bool:
    """Tell if `node` multiplies `tensor` from the right by a constant matrix, and reads it nowhere else."""
    if node.op_type not in ("MatMul", "Gemm") or list(node.input).count(tensor) != 1:
        return False
    shape = dims.get(node.input[1], ())
    if node.input[0] != tensor or len(shape) != 2 or _attribute(node, "transA"):
        return False
    return shape[1 if _is_transposed(node) else 0] == n_channels


def _rows_first(node: onnx.NodeProto, weight: F32Array) -> F32Array:
    """Return the weight as [C_in, C_out], however the node stores it."""
    return weight.T if _is_transposed(node) else weight


def _is_transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(_attribute(node, "transB"))


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)
