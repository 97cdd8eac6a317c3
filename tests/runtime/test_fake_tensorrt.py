"""The fake TensorRT against the real modules: what the backend calls on the fake exists there.

"RTX runtime on CPU: execution not tested": nothing here runs an engine, for there is no GPU.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_tensorrt as fake
from engine_bundles import add_engine, copy_bundle

from edge_asr.errors import EngineError
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.lookup import sidecar_path_of
from edge_asr.runtime.engine.runner import EngineRunner
from edge_asr.runtime.engine.sidecar import EngineSidecar


def _signature_arity(documented: str, name: str) -> set[int]:
    """Numbers of positional arguments, without self, in a pybind11 docstring."""
    found = re.findall(rf"\b{name}\(self: [^,)]*(.*?)\) -> ", documented)
    return {len(re.findall(r", \w+: ", arguments)) for arguments in found}


def test_the_fake_has_only_what_the_real_tensorrt_rtx_has() -> None:
    """What the backend calls on the fake exists, with as many arguments, in the installed module."""
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
    pairs = {
        fake.FakeRuntime: real.Runtime,
        fake.FakeLogger: real.ILogger,
        fake.FakeEngineRtx: real.ICudaEngine,
        fake.FakeContext: real.IExecutionContext,
        fake.FakeRuntimeConfig: real.IRuntimeConfig,
    }
    n_compared = 0
    for ours, theirs in pairs.items():
        for name, member in inspect.getmembers(ours):
            if name.startswith("_") or name == "constructed":
                continue
            assert hasattr(theirs, name), f"{theirs.__name__} has no {name}"
            if inspect.isfunction(member):
                arity = len(inspect.signature(member).parameters) - 1
                assert arity in _signature_arity(getattr(theirs, name).__doc__, name), name
                n_compared += 1
    assert n_compared >= 15
    for name in ("num_io_tensors", "num_optimization_profiles"):  # set in the fake's constructor
        assert hasattr(real.ICudaEngine, name)
    assert real.ExecutionContextAllocationStrategy.USER_MANAGED.name == "USER_MANAGED"
    assert real.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE.name == "WHOLE_GRAPH_CAPTURE"
    assert {"FLOAT", "INT64", "INT32"} <= set(real.DataType.__members__)
    assert real.TensorLocation.DEVICE.name == "DEVICE"
    assert {s.name for s in fake.Severity} <= set(real.ILogger.Severity.__members__)


def test_rtx_runtime_on_cpu_execution_not_tested_a_plan_that_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real deserializer refuses; its reason comes through our logger into the error."""
    real = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 of the test extra")
    gpu = fake.FakeGpu().install(monkeypatch)
    plan_path = add_engine(copy_bundle(tmp_path / "bundle"), gpu)
    sidecar = EngineSidecar.read(sidecar_path_of(plan_path))
    cuda = Cuda()
    told = pytest.raises(EngineError, match=r"refuses the plan: .*(?i:magicTag|serialization)")
    with told, cuda.current_device():
        EngineRunner(b"not a plan" * 50, sidecar, trt=real, cuda=cuda, n_mels=80, use_cuda_graphs=True)
    gpu.assert_all_released()
