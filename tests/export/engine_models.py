"""Small ONNX graphs, quantized in the ways that TensorRT takes and in those that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

N_MELS = 80


def make_graph(*, batch: int | str = "B", extra_input: bool = False) -> onnx.ModelProto:
    """Convolution, Relu and a product, named as a bundle's graph is; one input more on demand."""
    generator = np.random.default_rng(0)
    weights = {
        "stem.weight": generator.normal(size=(16, N_MELS, 3)),
        "stem.bias": generator.normal(size=16),
        "head.weight": generator.normal(size=(16, 5)),
    }
    nodes = [
        helper.make_node(
            "Conv", ["audio_signal", "stem.weight", "stem.bias"], ["c"], "stem/Conv", pads=[1, 1]
        ),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Transpose", ["r"], ["t"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "head.weight"], ["h"], "head/MatMul"),
    ]
    inputs = [helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, [batch, N_MELS, "T"])]
    last = "h"
    if extra_input:
        inputs.append(helper.make_tensor_value_info("gain", TensorProto.FLOAT, ["B", "T", 5]))
        nodes.append(helper.make_node("Mul", ["h", "gain"], ["g"], "gain/Mul"))
        last = "g"
    nodes.append(helper.make_node("LogSoftmax", [last], ["logprobs"], "log_softmax", axis=2))
    graph = helper.make_graph(
        nodes,
        "small",
        inputs,
        [helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, [batch, "T", 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def quantize(model: onnx.ModelProto, folder: Path, kind: str) -> onnx.ModelProto:
    """A copy of `model` in INT8: "good" as TensorRT takes it, or wrong in the way that `kind` names.

    Kinds: good, quantized_bias, asymmetric, unsigned, unsigned_zero (only the Relu output, zero point 0),
    operators (QLinearConv and the like) and dynamic.
    """
    source, target = folder / "fp32.onnx", folder / f"{kind}.onnx"
    onnx.save(model, source)
    if kind == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return onnx.load(target)
    unsigned = kind in ("unsigned", "unsigned_zero")
    symmetric = kind not in ("asymmetric", "unsigned", "unsigned_zero")
    quantize_static(
        source,
        target,
        _Random(model),
        quant_format=QuantFormat.QOperator if kind == "operators" else QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"] if kind == "unsigned_zero" else ["Conv", "MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": kind == "quantized_bias",
            **({"OpTypesToExcludeOutputQuantization": ["MatMul"]} if kind == "unsigned_zero" else {}),
        },
    )
    return onnx.load(target)


class _Random(CalibrationDataReader):  # type: ignore[misc]
    """Two batches of noise, for whichever of our inputs the graph has."""

    def __init__(self, model: onnx.ModelProto) -> None:
        generator = np.random.default_rng(1)
        names = {tensor.name for tensor in model.graph.input}
        feeds: list[dict[str, Any]] = []
        for n_frames in (40, 97):
            features = generator.normal(size=(1, N_MELS, n_frames)).astype(np.float32)
            feeds.append({"audio_signal": features, "length": np.asarray([n_frames])})
        self._feeds = iter([{k: v for k, v in feed.items() if k in names} for feed in feeds])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)
