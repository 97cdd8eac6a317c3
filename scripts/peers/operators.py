"""Time by operator of an ONNX file, by onnxruntime's profiler, run as the runtime's backend runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.runtime.backends import SLOW_OPTIMIZERS

F32Array = npt.NDArray[np.float32]
Numbers = dict[str, float]

WARM_UP = 5
PROFILED_RUNS = 20
MIN_SHARE = 0.005


def profile_file(path: Path, features: F32Array, folder: Path) -> dict[str, Numbers]:
    """Mean milliseconds of a run by operator, most first; from 0.5 % on.

    Args:
        path: of the model.
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
