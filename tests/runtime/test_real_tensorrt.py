"""Every name of TensorRT that our code calls, and every name that our fakes have, against the real bindings.

The names and the numbers of arguments are read from the source, so a new call is checked without a line here;
what only some versions have is listed below, and the list is checked too. Nothing here runs an engine.
"""

from __future__ import annotations

import ast
import enum
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "export"))

import fake_tensorrt as fake
from engine_bundles import add_engine, copy_bundle
from fake_tensorrt_builder import FakeBuilder
from real_tensorrt import VERSIONS, Bindings, read_bindings

from edge_asr.errors import EngineError
from edge_asr.runtime.engine.cuda import Cuda
from edge_asr.runtime.engine.lookup import sidecar_path_of
from edge_asr.runtime.engine.runner import EngineRunner
from edge_asr.runtime.engine.sidecar import EngineSidecar

# The class of TensorRT behind a name in our code; "" is the module.
RECEIVERS = {
    "trt": "",
    "self._trt": "",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "self._runtime": "Runtime",
    "context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "self._kernels": "IRuntimeCache",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "added": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "parser": "OnnxParser",
    "runtime": "Runtime",
    "inspector": "EngineInspector",
}
BUILDER_CONFIG = {"config": "IBuilderConfig"}
FILES: dict[str, dict[str, str]] = {
    "runtime/engine/api.py": RECEIVERS,
    "runtime/engine/deserialized.py": RECEIVERS,
    "runtime/engine/loaded.py": RECEIVERS,
    "export/engine/plan.py": RECEIVERS | BUILDER_CONFIG,
    "export/engine/profiles.py": RECEIVERS | BUILDER_CONFIG,
    "export/engine/parser.py": RECEIVERS | {"error": "ParserError"},
}
"""Files that speak to TensorRT. A file of these folders that names `trt` and is not here fails a test."""

ONLY = {
    # Probed with hasattr before they are used.
    ("ICudaEngine", "device_memory_size"): {"8.6", "10.3", "10.13"},
    ("ICudaEngine", "device_memory_size_v2"): {"10.3", "10.13", "11.4", "RTX"},
    ("ICudaEngine", "get_device_memory_size_for_profile_v2"): {"10.3", "10.13", "11.4", "RTX"},
    ("ICudaEngine", "create_execution_context_without_device_memory"): {"8.6", "10.3", "10.13"},
    ("IExecutionContext", "set_device_memory"): {"10.3", "10.13", "11.4", "RTX"},
    ("", "ExecutionContextAllocationStrategy"): {"10.3", "10.13", "11.4", "RTX"},
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"): {"10.3", "10.13", "11.4", "RTX"},
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"): {"10.3", "10.13", "11.4", "RTX"},
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"): {"8.6", "10.3", "10.13"},
    ("PreviewFeature", "PROFILE_SHARING_0806"): {"8.6", "10.3", "10.13"},
    ("BuilderFlag", "FP16"): {"8.6", "10.3", "10.13"},
    ("BuilderFlag", "INT8"): {"8.6", "10.3", "10.13"},
    ("", "IAttention"): {"11.4", "RTX"},
    ("", "IProgressMonitor"): {"10.3", "10.13", "11.4", "RTX"},
    ("IBuilderConfig", "progress_monitor"): {"10.3", "10.13", "11.4", "RTX"},
    ("ParserError", "node_name"): {"10.3", "10.13", "11.4", "RTX"},
    ("ParserError", "node_operator"): {"10.3", "10.13", "11.4", "RTX"},
    # Used with TensorRT-RTX alone.
    ("ICudaEngine", "create_runtime_config"): {"10.13", "11.4", "RTX"},
    ("IRuntimeConfig", "set_execution_context_allocation_strategy"): {"10.13", "11.4", "RTX"},
    ("", "CudaGraphStrategy"): {"RTX"},
    ("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE"): {"RTX"},
    ("IRuntimeConfig", "cuda_graph_strategy"): {"RTX"},
    ("IRuntimeConfig", "create_runtime_cache"): {"RTX"},
    ("IRuntimeConfig", "set_runtime_cache"): {"RTX"},
    ("IRuntimeCache", "serialize"): {"RTX"},
    ("IRuntimeCache", "deserialize"): {"RTX"},
}
BY_STRING = {
    ("BuilderFlag", "FP16"),
    ("BuilderFlag", "INT8"),
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
    ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH"),
    ("ParserError", "node_name"),
    ("ParserError", "node_operator"),
    *(("DataType", name) for name in ("FLOAT", "HALF", "INT32", "INT8")),
    *(("ILogger", name) for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")),
    ("TensorLocation", "DEVICE"),
}
"""Names that stand in our code as strings, or as the text of an enumerator."""
CALLBACKS = {"phase_start": 3, "step_complete": 2, "phase_finish": 1}
"""Methods of IProgressMonitor that we override, with their numbers of arguments."""


@dataclass(frozen=True, slots=True)
class Use:
    """One use in our code: of a member, and if it is called, with what."""

    owner: str
    name: str
    call: ast.Call | None
    where: str


def find_uses(repository: Path) -> Iterator[Use]:
    """Find every attribute of an object of TensorRT in `FILES`."""
    for file, receivers in FILES.items():
        tree = ast.parse((repository / file).read_text(encoding="utf-8"))
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                receiver, name, call = ast.unparse(node.value), node.attr, calls.get(id(node))
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("hasattr", "getattr")
                and isinstance(node.args[1], ast.Constant)
            ):
                receiver, name, call = ast.unparse(node.args[0]), str(node.args[1].value), None
            else:
                continue
            owner = receivers.get(receiver)
            if owner is None:
                module, _, inner = receiver.rpartition(".")
                if receivers.get(module) != "":
                    continue
                owner = inner
            if not name.startswith("__"):
                yield Use(owner, name, call, f"{file}:{node.lineno}")


@pytest.fixture(scope="module", params=VERSIONS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bindings]:
    version: str = request.param
    return version, read_bindings(request.config, version, tmp_path_factory.mktemp("bindings"))


def test_the_real_bindings_have_what_our_code_uses(real: tuple[str, Bindings], repository: Path) -> None:
    version, bindings = real
    uses = list(find_uses(repository))
    names = {(use.owner, use.name) for use in uses} | BY_STRING | ONLY.keys()
    found = {name for name in names if bindings.has(*name)}
    assert found == {name for name in names if version in ONLY.get(name, VERSIONS)}
    n_calls = 0
    for use in uses:
        if use.call is None or not bindings.has(use.owner, use.name):
            continue
        assert not any(isinstance(argument, ast.Starred) for argument in use.call.args[:-1])
        n_positional = len(use.call.args)
        if use.call.args and isinstance(use.call.args[-1], ast.Starred):
            n_positional = 4  # set_shape(name, *(min, opt, max))
        keywords = {str(keyword.arg) for keyword in use.call.keywords}
        accepted = bindings.accepts(use.owner, use.name, n_positional, keywords)
        if (version, use.name) == ("8.6", "create_execution_context"):
            accepted = True  # it has the name and not the argument; 8.6 takes the other branch
        assert accepted, f"{use.where}: {use.name}"
        n_calls += 1
    assert n_calls >= 30
    for name, n_arguments in CALLBACKS.items():
        if version in ONLY[("", "IProgressMonitor")]:
            assert bindings.accepts("IProgressMonitor", name, n_arguments, set()), name
    if version == "8.6":
        assert bindings.classes["IExecutionContext"]["device_memory"]["settable"]
        assert "INT64" not in bindings.classes["DataType"]
    nothing = ["TypeError", "pybind11::init(): factory function returned nullptr"]
    for what, raised in bindings.failures.items():
        assert raised == nothing, what
    assert len(bindings.failures) == (0 if version == "RTX" else 2)


def test_every_file_that_names_trt_is_read(repository: Path) -> None:
    for folder in ("runtime/engine", "export/engine"):
        for path in (repository / folder).glob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            receivers = {ast.unparse(node.value) for node in nodes if isinstance(node, ast.Attribute)}
            assert receivers.isdisjoint({"trt", "self._trt"}) or f"{folder}/{path.name}" in FILES, path


def assert_only_real(ours: type, theirs: str, bindings: Bindings) -> int:
    """Compare what a fake class has with the real one; return how many methods were compared."""
    n_compared = 0
    for name, member in inspect.getmembers(ours):
        if name.startswith("_"):
            continue
        assert bindings.has(theirs, name), f"{theirs} has no {name}"
        if isinstance(member, property):
            assert member.fset is None or bindings.classes[theirs][name]["settable"], f"{theirs}.{name}"
        if inspect.isfunction(member) and theirs not in ("ILogger", "IProgressMonitor"):
            parameters = list(inspect.signature(member).parameters.values())[1:]
            variable = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
            n_positional = 4 if variable else len(parameters)
            assert bindings.accepts(theirs, name, n_positional, set()), f"{theirs}.{name}"
            n_compared += 1
    return n_compared


STYLES = {"8.6": "8.6", "10.3": "10", "10.13": "10", "11.4": "11", "RTX": "rtx"}


def test_the_fakes_have_only_what_the_real_bindings_have(real: tuple[str, Bindings]) -> None:
    version, bindings = real
    style = STYLES[version]
    pairs: dict[type, str] = {
        fake.FakeRuntime: "Runtime",
        fake.FakeLogger: "ILogger",
        fake.ENGINES[style]: "ICudaEngine",
        fake.FakeContext86 if style == "8.6" else fake.FakeContext: "IExecutionContext",
    }
    modules: list[ModuleType] = [fake.tensorrt_module(fake.FakeGpu(style), "tensorrt")]
    if style == "rtx":
        pairs |= {fake.FakeRuntimeConfig: "IRuntimeConfig", fake.FakeRuntimeCache: "IRuntimeCache"}
    else:
        module: Any = FakeBuilder(style).module()  # type: ignore[arg-type]
        modules.append(module)
        builder = module.Builder(None)
        network, config = builder.create_network(1), builder.create_builder_config()
        pairs |= {
            module.Builder: "Builder",
            module.OnnxParser: "OnnxParser",
            type(network): "INetworkDefinition",
            type(network.get_input(0)): "ITensor",
            type(config): "IBuilderConfig",
            type(builder.create_optimization_profile()): "IOptimizationProfile",
            type(config.create_timing_cache(b"")): "ITimingCache",
        }
    n_compared = sum(assert_only_real(ours, theirs, bindings) for ours, theirs in pairs.items())
    assert n_compared >= 14
    for name in ("num_io_tensors", "num_optimization_profiles"):  # set in the fake's constructor
        assert bindings.has("ICudaEngine", name)
    for module in modules:
        for name, value in vars(module).items():
            if name.startswith("__"):
                continue
            assert bindings.has("", name), f"the module has no {name}"
            if inspect.isclass(value) and issubclass(value, enum.Enum):
                for member in value.__members__:
                    assert bindings.has(name, member), f"{name} has no {member}"
    assert all(bindings.has("ILogger", severity.name) for severity in fake.Severity)


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
