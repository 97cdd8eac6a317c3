"""Keeps an INT8 graph as onnxruntime's CPU provider rewrites it on loading, so that it need not do so again.

Most of the time to load a quantized model is spent on finding patterns of QuantizeLinear and DequantizeLinear
and replacing them by integer operators. The rewritten graph has onnxruntime's own operators
(com.microsoft), which no other runtime and no TensorRT knows. So it stands beside the portable file, and
ships only if it gives the same bits on the machine that makes it; elsewhere (arm64) it gives the same words.
Layouts that depend on the CPU's vector width are left to loading.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_asr.calibration.forms import WHOLE_CLIPS, GraphForm
from edge_asr.errors import BackendError
from edge_asr.frames import OutputFrames
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import Outputs, run_cases
from edge_asr.proof.stages import Progress
from edge_asr.runtime.onnxruntime_backend import SLOW_OPTIMIZERS

if TYPE_CHECKING:
    import onnx

F32Array = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


def make_cpu_graph(
    model: onnx.ModelProto,
    cases: Sequence[ProofCase],
    outputs: Outputs,
    output_frames: OutputFrames,
    progress: Progress | None = None,
    *,
    form: GraphForm = WHOLE_CLIPS,
) -> onnx.ModelProto | None:
    """Make the graph that onnxruntime's CPU provider runs; None, with a warning, if its outputs differ.

    Args:
        model: an INT8 graph.
        cases: inputs to compare on.
        outputs: what `model` gave for them.
        output_frames: the model's rule for output frames.
        progress: called with (cases done, cases in all).
        form: the kind of graph.
    """
    try:
        rewritten = _rewrite(model)
        with form.open(rewritten, rewritten=True) as backend:
            candidate = run_cases(backend, cases, output_frames, progress=progress)
    except (BackendError, RuntimeError) as error:
        logger.warning("no copy of the INT8 graph for the CPU: %s", error)
        return None
    for case, expected, got in zip(cases, outputs, candidate, strict=True):
        if not _same(expected, got):
            logger.warning("no copy of the INT8 graph for the CPU: it differs on %s", case.name)
            return None
    return rewritten


def _rewrite(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="edge-asr-", ignore_cleanup_errors=True) as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "target.onnx")
        source.write_bytes(model.SerializeToString())
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            str(source),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[*SLOW_OPTIMIZERS["cpu"], "NchwcTransformer"],  # blocks of a CPU's width
        )
        rewritten = onnx.load(target)
    # The file imports every domain that onnxruntime knows, which an older version may not know.
    used = {node.domain for node in rewritten.graph.node}
    kept = [entry for entry in rewritten.opset_import if entry.domain in used]
    del rewritten.opset_import[:]
    rewritten.opset_import.extend(kept)
    _fuse_biases(rewritten.graph)
    return rewritten


def _fuse_biases(graph: onnx.GraphProto) -> None:
    """Move biases into the integer products before them, in place; onnxruntime leaves them in nodes."""
    shapes = {initializer.name: list(initializer.dims) for initializer in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    products = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "MatMulIntegerToFloat" and len(node.input) == 6 and readers[node.output[0]] == 1
    }
    for node in [node for node in graph.node if node.op_type == "Add"]:
        product = next((products[name] for name in node.input if name in products), None)
        if product is None:
            continue
        (bias,) = (name for name in node.input if name not in product.output)
        weight = shapes.get(product.input[1])
        if weight is not None and shapes.get(bias) == weight[-1:]:
            product.input.append(bias)
            product.output[0] = node.output[0]
            graph.node.remove(node)


def _same(expected: tuple[F32Array, ...] | str, got: tuple[F32Array, ...] | str) -> bool:
    if isinstance(expected, str) or isinstance(got, str):
        return expected == got
    return all(np.array_equal(a, b) for a, b in zip(expected, got, strict=True))
