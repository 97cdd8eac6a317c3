#!/usr/bin/env python3
"""Tables of what TensorRT makes of a bundle's graphs: layers by precision, and whether attention is fused.

TensorRT-RTX builds on a CPU for a GPU that is not there, and its log lists the layers of the plan with the
types of their inputs, constants and outputs. "Before" is the file as it is, in FP16 with a float32 softmax;
"after" is the graph that `edge-asr build` makes of it. Nothing is run, so there are no times.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx as trt

from edge_asr.bundle.folder import Bundle
from edge_asr.export.engine.model import CACHES, make_engine_model
from edge_asr.export.fp16.attention import widen_softmax
from edge_asr.export.fp16.convert import convert_to_fp16
from edge_asr.graph.weights import load_float32
from edge_asr.markdown import markdown_table
from edge_asr.runtime.engine.lookup import Graph, artifact_of, engine_precisions

FRAMES = (16, 800, 3000)
_LAYER = re.compile(
    r"^Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: \[(.*?)\], Tactic",
    re.M,
)
_PRODUCTS = ("gemm", "correlation", "runtime_fusion")
_CONTROL = ("signal", "wait", "shape_call")
COLUMNS = (
    "graph",
    "layers",
    "INT8 products",
    "half",
    "float32",
    "others: INT8",
    "half",
    "float32",
    "fused attention",
)


class _Log(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        self.lines.append(msg)


LOG = _Log()


def list_layers(
    model: onnx.ModelProto, capability: str, window_frames: int | None
) -> list[tuple[str, str, str]]:
    """Build a plan; the name, kind and type of each layer: INT8 if a product reads it, or another has it."""
    LOG.lines.clear()
    builder = trt.Builder(LOG)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, LOG)
    if not parser.parse(model.SerializeToString()):
        raise SystemExit("\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = 0
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    for value in model.graph.input:
        dims = [d.dim_value if d.HasField("dim_value") else 1 for d in value.type.tensor_type.shape.dim]
        shapes = []
        for n_frames in FRAMES:
            if value.name == "audio_signal":
                dims[2] = window_frames or n_frames
            shapes.append(tuple(dims))
        profile.set_shape(value.name, *shapes)
    config.add_optimization_profile(profile)
    if builder.build_serialized_network(network, config) is None:
        raise SystemExit("\n".join(LOG.lines[-5:]))
    return parse_log("\n".join(LOG.lines))


def parse_log(text: str) -> list[tuple[str, str, str]]:
    """Read the list of layers out of a builder's log."""
    layers: list[tuple[str, str, str]] = []
    for name, kind, *tensors in _LAYER.findall(text):
        types = [re.findall(r"Datatype: (\w+)", part) for part in tensors]
        first = next((part[0] for part in types if part), "")
        relevant = types[:2] if kind in _PRODUCTS else types
        layers.append((name, kind, "Int8" if any("Int8" in part for part in relevant) else first))
    return layers


def make_row(name: str, model: onnx.ModelProto, capability: str, window_frames: int | None) -> list[str]:
    """Build a graph, and count its layers."""
    n_attention = sum(node.op_type == "Softmax" for node in model.graph.node)
    return count_layers(name, list_layers(model, capability, window_frames), n_attention)


def count_layers(name: str, layers: Sequence[tuple[str, str, str]], n_attention: int) -> list[str]:
    """Count layers as a row of the table."""
    fused = sum("mha" in name for name, _, _ in layers)
    counts = Counter((kind in _PRODUCTS, kind_type) for _, kind, kind_type in layers if kind not in _CONTROL)
    cells = [str(counts[key]) for key in ((p, t) for p in (True, False) for t in ("Int8", "Half", "Float"))]
    return [name, str(sum(counts.values())), *cells, f"{fused} of {n_attention}"]


def forms(bundle: Bundle, stream: bool) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The graphs of a table, with their names."""
    label = "stream" if stream else "offline"
    graph: Graph = "stream" if stream else "model"
    have = engine_precisions(bundle, graph)
    if "fp16" in have:
        float32 = load_float32(bundle.path / artifact_of(bundle, "fp32", graph).file)
        old = widen_softmax(convert_to_fp16(float32, half_inputs=CACHES if stream else ()))
        yield f"{label} FP16 before", old
    for precision in (p for p in have if p != "fp32"):
        if precision == "int8":
            path = bundle.path / artifact_of(bundle, "int8", graph).file
            yield f"{label} INT8 before ({path.name})", onnx.load(path)
        name = "FP16" if precision == "fp16" else "INT8 + FP16"
        made = make_engine_model(bundle, precision, stream=stream, max_frames=None if stream else FRAMES[-1])
        yield f"{label} {name} after", made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="+")
    parser.add_argument(
        "--capability", default="SM86", choices=["SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
    )
    options = parser.parse_args()
    for name in options.bundle:
        bundle = Bundle.load(name)
        rows = []
        for stream in (False, True) if bundle.info.streaming is not None else (False,):
            window = (
                bundle.info.streaming.geometry.window_frames if stream and bundle.info.streaming else None
            )
            rows += [
                make_row(form, model, options.capability, window) for form, model in forms(bundle, stream)
            ]
        print(f"{Path(name).name}, TensorRT-RTX {trt.__version__}, {options.capability}\n")
        print("\n".join(markdown_table(COLUMNS, rows)), "\n", flush=True)


if __name__ == "__main__":
    main()
