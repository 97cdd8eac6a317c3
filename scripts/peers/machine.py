"""What a measurement must say of the machine, and the environment that makes libraries keep to N threads."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PEAK_SIZE = 1024
_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


def restart_with_threads(num_threads: int) -> None:
    """Start this program again where the environment allows more threads: libraries read it when loaded."""
    wanted = dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def machine_name() -> str:
    """Processor, its vector extensions, cores and load."""
    flags = _cpu_lines("flags", "Features")
    known = [name for name in _FEATURES if flags and name in flags[0].split()]
    return f"{cpu_name()} ({', '.join(known)}), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def cpu_name() -> str:
    """Name of the processor, where the system tells."""
    names = _cpu_lines("model name", "Model")
    return names[0] if names else platform.processor() or platform.machine()


def _cpu_lines(*keys: str) -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [line.partition(":")[2].strip() for line in lines if line.startswith(keys)]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of what is compared, Python's first."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


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
    best_s = float("inf")
    for _ in range(15):
        started = time.perf_counter()
        session.run(None, {"a": right})
        best_s = min(best_s, time.perf_counter() - started)
    return 2 * _PEAK_SIZE**3 / best_s / 1e9
