"""Time by operator of an ONNX file, run as the runtime's backend runs it, and the roof of its products."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.benchmark.table import Table
from edge_asr.benchmark.timing import lap, rounds, take_turns
from edge_asr.runtime.onnxruntime_backend import SLOW_OPTIMIZERS

F32Array = npt.NDArray[np.float32]
Numbers = dict[str, float]

WARM_UP = 5
PROFILED_RUNS = 20
MIN_SHARE = 0.005
_PEAK_SIZE = 1024


def operator_table(title: str, operators: Mapping[str, Numbers]) -> Table:
    """Format what `profile_file` found."""
    rows = tuple(
        (name, f"{entry['ms']:.3f}", f"{entry['share']:.1%}", f"{entry['nodes']:.0f}")
        for name, entry in operators.items()
    )
    return Table(title=title, columns=("operator", "ms", "share", "nodes"), rows=rows)


def profile_file(path: Path, features: F32Array, folder: Path) -> dict[str, Numbers]:
    """Mean milliseconds of a run by operator, most first; from 0.5 % on.

    Args:
        path: path of the model.
        features: [T, n_mels], one clip; one thread.
        folder: where the profiler may write.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / path.stem)
    session = onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=SLOW_OPTIMIZERS["cpu"],  # as the runtime does
    )
    feeds = {
        "audio_signal": np.ascontiguousarray(features.T[None]),
        "length": np.array([len(features)], np.int64),
    }
    for _ in range(WARM_UP + PROFILED_RUNS):
        session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    totals: dict[str, Numbers] = {}
    for event in events:
        if (
            event.get("cat") == "Node"
            and event["name"].endswith("_kernel_time")
            and event["ts"] >= runs[WARM_UP]
        ):
            entry = totals.setdefault(event["args"]["op_name"], {"ms": 0.0, "nodes": 0})
            entry["ms"] += event["dur"] / 1e3 / PROFILED_RUNS
            entry["nodes"] += 1 / PROFILED_RUNS
    whole = sum(entry["ms"] for entry in totals.values())
    return {
        name: {
            "ms": float(f"{entry['ms']:.4g}"),
            "share": round(entry["ms"] / whole, 4),
            "nodes": round(entry["nodes"]),
        }
        for name, entry in sorted(totals.items(), key=lambda item: -item[1]["ms"])
        if entry["ms"] / whole >= MIN_SHARE
    }


def measure_peak_gflops(num_threads: int) -> float:
    """Best rate of a float32 product of two 1024 x 1024 matrices by onnxruntime: the roof for its graphs."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    right = generator.standard_normal((_PEAK_SIZE, _PEAK_SIZE)).astype(np.float32)
    shape = [_PEAK_SIZE, _PEAK_SIZE]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "peak",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(right, "b")],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    laps = take_turns({"peak": lambda: lap(lambda: session.run(None, {"a": right}))}, rounds(15))["peak"]
    return 2 * _PEAK_SIZE**3 / min(run.wall_s for run in laps) / 1e9
