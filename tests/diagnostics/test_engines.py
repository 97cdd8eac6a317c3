"""Engine lines: hand-written sidecars of fake plans; the comparison itself is tested with the runtime."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from edge_asr.bundle.folder import Bundle, resolve_bundle_path
from edge_asr.diagnostics.engines import check_engines
from edge_asr.diagnostics.tensorrt import TensorRTState
from edge_asr.runtime.engine.lookup import fingerprint, plan_path_of, sidecar_path_of
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineProfile, EngineSidecar

RTX = TensorRTState(flavor="tensorrt-rtx", version="1.7.1.116")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    shutil.copytree(resolve_bundle_path("tiny-en"), tmp_path / "bundle")
    return Bundle.load(tmp_path / "bundle")


def write_fake_engine(bundle: Bundle, version: str) -> None:
    here = DeviceIdentity.detect()
    device = DeviceIdentity(
        gpu_name=None, compute_capability=None, driver=None, jetpack=None, os=here.os, arch=here.arch
    )
    plan = plan_path_of(bundle.path / "engines" / fingerprint("tensorrt-rtx", version, device), "fp32")
    plan.parent.mkdir(parents=True)
    plan.write_bytes(b"fake plan")
    sidecar = EngineSidecar(
        format_version=1,
        onnx_file="model.onnx",
        onnx_sha256=bundle.artifact("fp32").sha256,
        precision="fp32",
        flavor="tensorrt-rtx",
        tensorrt_version=version,
        device=device,
        profiles=(
            EngineProfile(
                min_frames=10, opt_frames=800, max_frames=800, min_batch=1, opt_batch=1, max_batch=8
            ),
        ),
        tensors=(),
        flags=(),
        workspace_mb=None,
        plan_sha256=hashlib.sha256(b"fake plan").hexdigest(),
        plan_size_bytes=len(b"fake plan"),
        build_time_s=1.0,
        built_at="2026-11-23T00:00:00+00:00",
        toolkit_version="0.1.0",
        proof=None,
    )
    sidecar_path_of(plan).write_text(sidecar.to_json())


def test_an_engine_that_fits_and_was_never_proven_says_so(bundle: Bundle) -> None:
    write_fake_engine(bundle, RTX.version)
    (check,) = check_engines(str(bundle.path), [RTX])
    assert (check.name, check.status) == ("engine fp32", "ok")
    assert "not proven" in check.detail


def test_an_engine_of_another_version_names_the_difference_and_the_command(bundle: Bundle) -> None:
    write_fake_engine(bundle, "1.4.0.1")
    (check,) = check_engines(str(bundle.path), [RTX])
    assert check.status == "missing"
    assert "1.4.0.1" in check.detail
    assert RTX.version in check.detail
    assert check.fix.startswith(f"edge-asr build {bundle.path} --precision fp32")


def test_nothing_to_say_without_engines_or_without_tensorrt(bundle: Bundle) -> None:
    assert check_engines(str(bundle.path), [RTX]) == []
    write_fake_engine(bundle, RTX.version)
    assert check_engines(str(bundle.path), []) == []
