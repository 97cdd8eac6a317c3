"""Simplifies and checks an ONNX graph, and describes it for other runtimes.

onnxsim folds constants and removes what shape arithmetic leaves behind; its own numerical check
runs on random inputs of several shapes, onnx.checker runs in full, and shape inference must keep
batch and time dynamic.
What this file does not do: compare with PyTorch (edge_asr.proof), quantize (edge_asr.calibration).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.names import INPUT_NAMES
from edge_asr.errors import GateError, require
from edge_asr.graph.check import MAX_IR_VERSION
from edge_asr.graph.weightless import WeightlessGraph

if TYPE_CHECKING:
    import onnx

#: (batch, frames) of the random inputs that onnxsim compares before and after.
CHECK_SHAPES = ((1, 1), (1, 97), (3, 250))
# Gemm takes only two axes, so each linear layer over [B, T, D] would gain reshapes and shape arithmetic,
# which hide it from quantizers and TensorRT's fusions (onnxsim 0.8).
_SKIPPED_PASSES = ("fuse_matmul_add_bias_into_gemm", "fuse_matmul_add_bias_into_gemm_batched")
_RTOL, _ATOL = 1e-3, 1e-4  # for log-probs of a deep graph; onnxsim's own 1e-5 is too strict


def simplify_graph(model: onnx.ModelProto, n_mels: int) -> onnx.ModelProto:
    """Simplify a graph with onnxsim; the result must give the same numbers on random inputs.

    Args:
        model: graph with inputs `audio_signal` [B, n_mels, T] and `length` [B].
        n_mels: feature channels.

    Raises:
        GateError: onnxsim's numerical check failed.
        MissingDependencyError: onnxsim is not installed.
    """
    generator = np.random.default_rng(0)
    inputs = [_random_inputs(generator, batch, n_frames, n_mels) for batch, n_frames in CHECK_SHAPES]
    return simplify_and_compare(model, inputs)


def simplify_and_compare(model: onnx.ModelProto, inputs: Sequence[Mapping[str, Any]]) -> onnx.ModelProto:
    """Simplify any graph; see `simplify_graph`.

    Args:
        model: the graph.
        inputs: what the graph runs on before and after, an array for each of its inputs.
    """
    onnxsim = require("onnxsim", extra="export")
    bare = WeightlessGraph(model)
    arrays = bare.arrays()
    simplified: onnx.ModelProto
    # onnxsim prints what it checks on stdout, which is for the result of the command.
    with contextlib.redirect_stdout(io.StringIO()):
        simplified, equal = onnxsim.simplify(bare.model, check_n=0, skipped_optimizers=list(_SKIPPED_PASSES))
        bars = {"rtol": _RTOL, "atol": _ATOL}
        differing = [
            {name: list(array.shape) for name, array in data.items()}
            for data in inputs
            if not onnxsim.model_checking.compare(
                simplified, bare.model, 1, input_data={**data, **arrays}, verbose=False, **bars
            )
        ]
    if not equal or differing:
        raise GateError(
            f"onnxsim's simplified graph differs from the exported one on inputs of the shapes {differing}; "
            "report it with the versions of onnxsim and torch"
        )
    simplified.ir_version = min(simplified.ir_version, MAX_IR_VERSION)
    del arrays
    bare.fill(simplified)
    return simplified


def set_metadata(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace the graph's metadata, in place."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


def count_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Count the nodes of each operator, the most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _random_inputs(
    generator: np.random.Generator, batch: int, n_frames: int, n_mels: int
) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.int64]]:
    features = generator.standard_normal((batch, n_mels, n_frames)).astype(np.float32)
    lengths = np.asarray([max(1, n_frames - 31 * row) for row in range(batch)], dtype=np.int64)
    return {INPUT_NAMES[0]: features, INPUT_NAMES[1]: lengths}
