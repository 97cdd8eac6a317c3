"""Runs a typed FP16 graph with half's rounding, and measures a float32 graph, on onnxruntime's CPU provider.

That provider computes float16 graphs in float32 and rounds only where it must, so an overflow does not show
and a run of the FP16 file proves little. Here the graph is rewritten to float32, and each value that was
float16 is cast to float16 and back as soon as it is computed. The arithmetic inside a node is float32 (as
tensor cores accumulate), and its result is a half.
What this file does not do: judge the results (proof.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import INPUT_NAMES, OUTPUT_NAME
from edge_asr.errors import BackendError, GateError, require
from edge_asr.graph.mapped import MappedGraph
from edge_asr.graph.session import CpuSession

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]


def float16_values(fp16_model: onnx.ModelProto) -> list[str]:
    """List the names of all float16 values that nodes compute, in order."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(fp16_model, check_type=True, strict_mode=True)
    half = {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    return [name for node in fp16_model.graph.node for name in node.output if name in half]


def round_every_value(fp16_model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the FP16 graph in float32, with every value that was float16 rounded to half when computed.

    Args:
        fp16_model: from `fp16.convert_to_fp16`.

    Returns:
        A graph with the same inputs and outputs, and one more output: the last rounded value.
    """
    require("onnx", extra="export")
    from onnx import TensorProto, helper, numpy_helper

    values = float16_values(fp16_model)
    half = set(values)
    rounded = type(fp16_model)()
    rounded.CopyFrom(fp16_model)
    graph = rounded.graph
    del graph.value_info[:]
    for initializer in graph.initializer:
        if initializer.data_type == TensorProto.FLOAT16:
            widened = numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(numpy_helper.from_array(widened, initializer.name))
    nodes = []
    for node in list(graph.node):
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in half:
                continue
            exact, narrow = f"{name}_exact", f"{name}_narrow"
            node.output[index] = exact
            if node.op_type == "Cast":
                next(a for a in node.attribute if a.name == "to").i = TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [exact], [narrow], to=TensorProto.FLOAT16))
            nodes.append(helper.make_node("Cast", [narrow], [name], to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(values[-1], TensorProto.FLOAT, None))
    return rounded


class RoundedModel:
    """The FP16 graph with half's rounding, as a `LogProbModel`."""

    def __init__(self, fp16_model: onnx.ModelProto) -> None:
        rounded = round_every_value(fp16_model)
        self._session = unoptimized_session(rounded)
        self._witness = rounded.graph.output[-1].name

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        """See `LogProbModel`.

        Raises:
            BackendError: onnxruntime failed.
            GateError: onnxruntime removed the rounding from the graph.
        """
        log_probs: F32Array
        feed = _feed(features, feature_lens)
        try:
            log_probs, witness = self._session.run([OUTPUT_NAME, self._witness], feed)
        except Exception as error:  # onnxruntime raises a dozen classes without a common base
            raise BackendError(
                f"onnxruntime failed on features of shape {list(features.shape)}: {error}"
            ) from error
        with np.errstate(over="ignore"):
            halved = witness.astype(np.float16).astype(np.float32)
        if not np.array_equal(halved, witness, equal_nan=True):
            raise GateError(
                f"onnxruntime removed the rounding of {self._witness}, so its run proves nothing about FP16; "
                "report its version and use another"
            )
        return log_probs


def measure_peaks(
    float32_model: onnx.ModelProto,
    fp16_model: onnx.ModelProto,
    batches: Iterable[tuple[F32Array, npt.NDArray[np.int64]]],
) -> dict[str, float]:
    """Measure the largest magnitude in the float32 graph of each value that is float16 in the FP16 graph.

    Args:
        float32_model: the graph that `fp16_model` was made from.
        fp16_model: from `fp16.convert_to_fp16`.
        batches: features [B, T, F] float32 and their lengths [B] int64.

    Returns:
        Magnitudes by name, the largest first, weights included; NaN counts as infinite.
    """
    require("onnx", extra="export")
    from onnx import TensorProto, helper, numpy_helper

    computed = {name for node in float32_model.graph.node for name in node.output}
    sources = {n.output[0]: n.input[0] for n in fp16_model.graph.node if n.op_type == "Cast"}
    masks = {
        n.input[0]: n.output[0]
        for n in float32_model.graph.node
        if n.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT for a in n.attribute)
    }
    # A value that the float32 graph lacks is a Cast of one that it has; that of a mask is float32 there.
    sources = {name: masks.get(source, source) for name, source in sources.items()}
    origins = {name: name if name in computed else sources[name] for name in float16_values(fp16_model)}
    measured = type(float32_model)()
    measured.CopyFrom(float32_model)
    graph = measured.graph
    del graph.output[:]
    tensors = list(dict.fromkeys(origins.values()))
    for index, name in enumerate(tensors):
        graph.node.append(helper.make_node("Abs", [name], [f"magnitude_{index}"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"magnitude_{index}"], [f"peak_{index}"], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(f"peak_{index}", TensorProto.FLOAT, []))
    session = unoptimized_session(measured)
    peaks = np.zeros(len(tensors))
    for features, lengths in batches:
        found = session.run(None, _feed(features, lengths))
        peaks = np.maximum(peaks, np.nan_to_num(np.asarray(found, np.float64), nan=np.inf, posinf=np.inf))
    by_tensor = dict(zip(tensors, peaks.tolist(), strict=True))
    result = {name: by_tensor[origin] for name, origin in origins.items()}
    for initializer in fp16_model.graph.initializer:
        if initializer.data_type == TensorProto.FLOAT16:
            weights = numpy_helper.to_array(initializer).astype(np.float64)
            result[initializer.name] = float(np.max(np.abs(weights), initial=0.0))
    return dict(sorted(result.items(), key=lambda item: -item[1]))


def unoptimized_session(model: onnx.ModelProto) -> CpuSession:
    """Open an onnxruntime CPU session that runs the graph exactly as written.

    Raises:
        GateError: onnxruntime cannot load it.
    """
    with MappedGraph(model) as graph:
        return CpuSession(graph, optimize=False)


def _feed(features: F32Array, lengths: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    return {INPUT_NAMES[0]: np.ascontiguousarray(features.transpose(0, 2, 1)), INPUT_NAMES[1]: lengths}
