"""`edge-asr build`: options, exit codes, one-line errors, JSON alone on stdout.

Real plans are built by TensorRT-RTX (RTX builder on CPU: execution not tested); elsewhere the builder is
replaced, and only the command is tested.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.errors import GateError
from edge_asr.export.engine import builder as engine_builder
from edge_asr.export.engine import put as engine_put
from edge_asr.export.engine.put import EngineReport
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineProfile, EngineSidecar

Run = Callable[..., Result]

NO_GPU = DeviceIdentity(
    gpu_name=None, compute_capability=None, driver=None, jetpack=None, os="linux", arch="x86_64"
)


@pytest.fixture
def bundle_path(tmp_path: Path) -> Path:
    """The embedded model in a folder that a test may write into."""
    ignored = shutil.ignore_patterns("engines")
    return Path(shutil.copytree(Bundle.load("tiny-en").path, tmp_path / "mine", ignore=ignored))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every call of `build_engine`, which is replaced; int8 fails its proof."""
    calls: list[dict[str, Any]] = []

    def build(bundle: Bundle, precision: Any, **options: Any) -> EngineReport:
        calls.append({"precision": precision, **options})
        if precision == "int8":
            raise GateError("the int8 engine failed its proof")
        options["progress"]("build engine", 0, 0)
        sidecar = EngineSidecar(
            format_version=1,
            onnx_file="model.onnx",
            onnx_sha256="0",
            precision=precision,
            flavor=options["flavor"],
            tensorrt_version="10.3.0.26",
            device=NO_GPU,
            profiles=(
                EngineProfile(
                    min_frames=1, opt_frames=2, max_frames=3, min_batch=1, opt_batch=1, max_batch=1
                ),
            ),
            tensors=(),
            flags=(),
            workspace_mb=None,
            plan_sha256="0",
            plan_size_bytes=2_500_000,
            build_time_s=12.3,
            built_at="2026-11-23T00:00:00+00:00",
            toolkit_version="0",
            proof=None,
        )
        return EngineReport(plan=Path(f"model.{precision}.plan"), sidecar=sidecar, notes=("a note",))

    monkeypatch.setattr(engine_builder, "build_engine", build)
    return calls


def test_options_reach_the_builder(
    run: Run, builds: list[dict[str, Any]], bundle_path: Path, tmp_path: Path
) -> None:
    result = run(
        *("build", bundle_path, "-p", "fp32,fp16", "--precision", "fp32", "--profile-seconds", "0,1.5,7"),
        *("--batch", "1,2,4", "--workspace-mb", "100", "--timing-cache", tmp_path / "t", "--force"),
        *("--flavor", "tensorrt-rtx", "--clips", bundle_path, "--manifest", bundle_path / "bundle.json"),
    )
    assert result.exit_code == 0, result.stderr
    assert [call["precision"] for call in builds] == ["fp32", "fp16"]
    expected = {
        "flavor": "tensorrt-rtx",
        "profile_seconds": (0.0, 1.5, 7.0),
        "batch": (1, 2, 4),
        "workspace_mb": 100,
        "timing_cache": tmp_path / "t",
        "clips": (bundle_path,),
        "manifest": bundle_path / "bundle.json",
        "force": True,
    }
    assert {name: builds[0][name] for name in expected} == expected
    assert result.stdout.splitlines() == [
        "model.fp32.plan: fp32, 2.5 MB, 1 profiles, 12.3 s, not proven",
        "model.fp16.plan: fp16, 2.5 MB, 1 profiles, 12.3 s, not proven",
    ]
    assert result.stderr.splitlines().count("edge-asr: a note") == 1


def test_defaults(run: Run, builds: list[dict[str, Any]], bundle_path: Path) -> None:
    result = run("build", bundle_path)
    assert builds[0]["profile_seconds"] == (0.1, 2.0, 8.0, 30.0)
    assert builds[0]["batch"] is None  # the device's
    assert builds[0]["flavor"] == "tensorrt"
    wanted = engine_builder.default_precisions(Bundle.load(bundle_path))
    assert builds[0]["precision"] == wanted[0]
    assert result.exit_code == (3 if "int8" in wanted else 0)


def test_a_failed_proof_is_exit_3_and_what_is_built_is_told(
    run: Run, builds: list[dict[str, Any]], bundle_path: Path
) -> None:
    result = run("build", bundle_path, "-p", "fp16,int8", "--json")
    assert result.exit_code == 3
    assert [engine["precision"] for engine in json.loads(result.stdout)["engines"]] == ["fp16"]
    assert result.stderr.splitlines()[-1] == "edge-asr: the int8 engine failed its proof"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "int4"],
        ["--profile-seconds", "1,two"],
        ["--batch", "1,1.5,2"],
        ["--workspace-mb", "0"],
        ["--flavor", "openvino"],
    ],
)
def test_wrong_usage_is_exit_2(
    arguments: list[str], run: Run, builds: list[dict[str, Any]], bundle_path: Path
) -> None:
    result = run("build", bundle_path, *arguments)
    assert result.exit_code == 2
    assert not builds


def test_without_tensorrt_is_exit_1_in_one_line(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    result = run("build", bundle_path)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert "tensorrt is needed here and is not installed" in line
    assert not (bundle_path / "engines").exists()


@pytest.mark.tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_builder_on_cpu_execution_not_tested_command(
    run: Run, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (extra: test, Linux x86-64)")
    monkeypatch.setattr(DeviceIdentity, "detect", classmethod(lambda cls: NO_GPU))
    assert not (bundle_path / "model.fp16.onnx").exists()  # which an FP16 engine does not need
    arguments = ("build", bundle_path, "-p", precision, "--profile-seconds", "0.1,1")
    arguments += ("--flavor", "tensorrt-rtx")
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    (engine,) = json.loads(result.stdout)["engines"]
    assert len(result.stdout.splitlines()) == 1
    assert Path(engine["plan"]).stat().st_size == engine["plan_size_bytes"]
    assert engine["proof"] is None
    assert engine["notes"][-1].startswith(engine_put.NOT_RUN)
    assert f"edge-asr: build {precision} engine ..." in result.stderr
    again = run(*arguments)
    assert again.exit_code == 1
    assert "exists; add --force" in again.stderr


@pytest.mark.tensorrt
def test_rtx_builder_on_cpu_execution_not_tested_every_parser_error_is_a_line(
    run: Run, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dynamically quantized model: each node on stderr, and last the one line that says how to fix it."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13 (extra: test, Linux x86-64)")
    from onnxruntime.quantization import quantize_dynamic

    monkeypatch.setattr(DeviceIdentity, "detect", classmethod(lambda cls: NO_GPU))
    model = bundle_path / "model.int8.onnx"
    n_products = 12
    weight = onnx.numpy_helper.from_array(np.eye(80, dtype=np.float32), "weight")
    names = ["audio_signal", *(f"x{index}" for index in range(n_products - 1)), "logprobs"]
    nodes = [
        onnx.helper.make_node("MatMul", [source, "weight"], [target], f"product{index}")
        for index, (source, target) in enumerate(pairwise(names))
    ]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 80, 80])
        for name in ("audio_signal", "logprobs")
    ]
    graph = onnx.helper.make_graph(nodes, "products", ends[:1], ends[1:], [weight])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", model)
    n_nodes = sum(
        node.op_type in ("DynamicQuantizeLinear", "MatMulInteger") for node in onnx.load(model).graph.node
    )
    data = json.loads((bundle_path / "bundle.json").read_text())
    fp32 = next(entry for entry in data["artifacts"] if entry["precision"] == "fp32")
    changes = {"sha256": sha256_of(model), "size_bytes": model.stat().st_size}
    data["artifacts"] = [fp32, {**fp32, "file": model.name, "precision": "int8", **changes}]
    (bundle_path / "bundle.json").write_text(json.dumps(data))
    result = run("build", bundle_path, "-p", "int8", "--flavor", "tensorrt-rtx")
    assert result.exit_code == 1
    *_, last = result.stderr.splitlines()
    lines = [line for line in result.stderr.splitlines() if "ERROR" in line]
    assert n_nodes == 2 * n_products
    assert len(lines) == n_nodes
    assert all("model.int8.onnx, dynamically quantized: node " in line for line in lines)
    assert "it was quantized dynamically" in last
    assert f"and {n_nodes - 1} more" in last
    assert not (bundle_path / "engines").exists()
