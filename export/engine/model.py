"""The graph that an engine is built from: a bundle's ONNX file, arranged for TensorRT.

The file decides the precision, and stays as it is in the bundle; what is made here is only built.
- fp32: model.onnx or stream.onnx. fp16: the same, converted as an export converts model.fp16.onnx.
- int8: model.int8.onnx or stream.int8.onnx with half scales, a half body and attention in half (int8.py).
- All of them add up the biases of attention first (fp16/attention.py) and have positions as constants
  (positions.py).
TensorRT 8.6, which is not strongly typed, takes the file itself (opset17.py).
What this file does not do: prove the graph (graph_proof.py) or build it (plan.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import BundleError, require
from edge_asr.export.engine.int8 import fit_scales, free_groups
from edge_asr.export.engine.positions import freeze_positions
from edge_asr.export.fp16.attention import (
    join_biases,
    multiply_sums,
    use_attention_operators,
    widen_softmax,
)
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.graph.weights import load_float32
from edge_asr.runtime.engine.lookup import artifact_of
from edge_asr.runtime.engine.sidecar import NV_TEGRA_RELEASE

if TYPE_CHECKING:
    import onnx

#: Inputs of a stream that hold what the graph computed before, so half can hold them.
CACHES = ("cache_last_channel", "cache_last_time")


def make_engine_model(
    bundle: Bundle,
    precision: Precision,
    *,
    max_frames: int | None = None,
    stream: bool = False,
    wide_softmax: bool = False,
    attention_operator: bool = False,
) -> onnx.ModelProto:
    """Make the graph of an engine, for a TensorRT with strongly typed networks.

    Args:
        bundle: a loaded bundle.
        precision: that of the engine.
        max_frames: most feature frames of a clip; a stream needs none.
        stream: the streaming graph in the place of the offline one. Its inputs and outputs stay float32.
        wide_softmax: compute the softmax of attention in float32.
        attention_operator: use ONNX's operator Attention (opset 23), for `plan.has_attention_operator`.

    Raises:
        BundleError: the bundle lacks the file.
        GateError: the file holds something that cannot be converted.
        MissingDependencyError: onnx is not installed.
    """
    require("onnx", extra="jetson" if NV_TEGRA_RELEASE.exists() else "tensorrt")
    import onnx

    model = arrange_model(bundle, precision, max_frames=max_frames, stream=stream)
    if precision != "fp32":
        model = convert_to_fp16(model, half_inputs=CACHES if stream else ())
    if wide_softmax:
        model = widen_softmax(model)
    if attention_operator:
        model = use_attention_operators(model)
    onnx.checker.check_model(model)
    return model


def arrange_model(
    bundle: Bundle, precision: Precision, *, max_frames: int | None = None, stream: bool = False
) -> onnx.ModelProto:
    """Do for `make_engine_model` what changes no type: INT8 between float32, positions, biases.

    Raises:
        BundleError: the bundle lacks the file.
    """
    float32, model = _load(bundle, precision, stream=stream)
    if precision == "int8":
        model = fit_scales(free_groups(model, float32))
    if max_frames is not None and not stream:
        n_frames = bundle.info.output_frames.n_graph(max_frames)
        model = freeze_positions(model, float32, n_frames)
    return join_biases(multiply_sums(model))


def _load(bundle: Bundle, precision: Precision, *, stream: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Load the float32 graph and the graph to arrange; a bundle without the first gives the second twice."""
    import onnx

    def path_of(precision: Precision) -> Path:
        return bundle.path / artifact_of(bundle, precision, "stream" if stream else "model").file

    if precision != "int8":
        model = load_float32(path_of("fp32"))
        return model, model
    model = onnx.load(path_of("int8"))
    try:
        return load_float32(path_of("fp32")), model
    except BundleError:
        return model, model
