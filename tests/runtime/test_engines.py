"""Engines on disk: sidecars, fingerprints, and every way in which a plan may not fit. No TensorRT runs here;
the GPU is the fake of fake_tensorrt.py where one is needed.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_bundles import add_engine, copy_bundle
from fake_tensorrt import FakeGpu

from edge_asr.bundle.folder import Bundle, sha256_of
from edge_asr.errors import BackendError, DeviceError, EngineError
from edge_asr.runtime.engine import cuda
from edge_asr.runtime.engine import sidecar as engine_sidecar
from edge_asr.runtime.engine.lookup import check_engine, find_engine, fingerprint, has_engine
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineProfile, EngineSidecar

ORIN = DeviceIdentity(
    gpu_name="Orin",
    compute_capability="8.7",
    driver="12.6",
    jetpack="R36.4.3",
    os="linux",
    arch="aarch64",
    multiprocessors=16,
)
NO_GPU = DeviceIdentity(
    gpu_name=None, compute_capability=None, driver=None, jetpack=None, os="linux", arch="x86_64"
)
HERE: dict[str, Any] = {"flavor": "tensorrt", "tensorrt_version": "10.3.0.30", "device": ORIN}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return copy_bundle(tmp_path / "bundle", "fp16")


def add(bundle: Bundle, device: DeviceIdentity = ORIN, **sidecar: Any) -> Path:
    """An engine that fits `HERE`, but for what is given."""
    return add_engine(bundle, FakeGpu(), device=dataclasses.asdict(device), **sidecar)


# --- the sidecar ---


def test_a_sidecar_survives_json(bundle: Bundle) -> None:
    path = add(bundle, proof={"passed": True, "frame_agreement": 0.999}, workspace_mb=512)
    sidecar = EngineSidecar.read(path.with_suffix(".json"))
    assert EngineSidecar.from_dict(json.loads(sidecar.to_json())) == sidecar
    assert (sidecar.device, sidecar.workspace_mb) == (ORIN, 512)
    assert isinstance(sidecar.profiles[0], EngineProfile)
    assert sidecar.tensors[0].shape == (-1,)


def _drop(data: dict[str, Any], *path: Any) -> None:
    *parents, last = path
    for key in parents:
        data = data[key]
    del data[last]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.update(color="red"), "unknown key 'color'"),
        (lambda d: _drop(d, "plan_sha256"), "lacks 'plan_sha256'"),
        (lambda d: _drop(d, "proof"), "lacks 'proof'"),
        (lambda d: d["device"].update(uuid="x"), "device has the unknown key 'uuid'"),
        (lambda d: _drop(d, "device", "arch"), "device lacks 'arch'"),
        (lambda d: _drop(d, "profiles", 0, "max_batch"), r"profiles\[0\] lacks 'max_batch'"),
        (lambda d: d["tensors"][0].update(rank=1), r"tensors\[0\] has the unknown key 'rank'"),
        (lambda d: d.update(format_version=2), "format_version is 2, this edge-asr reads 1"),
        (lambda d: d.update(precision="fp8"), "precision is 'fp8'"),
        (lambda d: d.update(flavor="onnx"), "flavor is 'onnx'"),
        (lambda d: d.update(profiles=[]), "no optimization profile"),
        (lambda d: d["profiles"][0].update(min_frames=500), "500, 100, 100"),
        (lambda d: d["profiles"][0].update(min_batch=0), "0, 1, 4"),
        (lambda d: d.update(profiles=3), "profiles is 3; it must be a list"),
        (lambda d: d.update(plan_sha256=None), "plan_sha256 is None; it must be text"),
        (lambda d: d["proof"].update(passed="\ud800"), "passed is .*; it must be text"),
    ],
)
def test_a_sidecar_with_a_fault_says_which(bundle: Bundle, change: Any, told: str) -> None:
    path = add(bundle).with_suffix(".json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(EngineError, match=told) as caught:
        EngineSidecar.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("text", "told"), [("{", "not valid JSON"), ("[]", "it must be an object")])
def test_a_sidecar_that_is_none(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "model.fp32.json"
    with pytest.raises(EngineError, match="is missing; build"):
        EngineSidecar.read(path)
    path.write_text(text)
    with pytest.raises(EngineError, match=told):
        EngineSidecar.read(path)


# --- fingerprints and devices ---


@pytest.mark.parametrize(
    ("flavor", "version", "device", "name"),
    [
        ("tensorrt", "10.3.0.30", ORIN, "tensorrt-10.3.0.30-orin-16mp-sm87-linux-aarch64"),
        ("tensorrt-rtx", "1.7.1.116", NO_GPU, "tensorrt-rtx-1.7.1.116-no-gpu-linux-x86_64"),
        (
            "tensorrt",
            "11.4.1.7",
            dataclasses.replace(ORIN, gpu_name="NVIDIA GeForce RTX 4090/D (x)", multiprocessors=None),
            "tensorrt-11.4.1.7-nvidia-geforce-rtx-4090-d-x-sm87-linux-aarch64",
        ),
    ],
)
def test_fingerprints(flavor: Any, version: str, device: DeviceIdentity, name: str) -> None:
    assert fingerprint(flavor, version, device) == name


def test_the_device_as_a_fake_driver_tells_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeGpu().install(monkeypatch)
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n")
    monkeypatch.setattr(engine_sidecar, "NV_TEGRA_RELEASE", release)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert DeviceIdentity.detect() == ORIN


@pytest.mark.parametrize("fault", ["no libcuda", "no device"])
def test_a_device_without_a_gpu_never_raises(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu().install(monkeypatch)
    if fault == "no device":
        gpu.devices = 0
    else:

        def no_libcuda() -> None:
            raise DeviceError("libcuda.so.1 not found")

        monkeypatch.setattr(cuda, "load_driver", no_libcuda)
    found = DeviceIdentity.detect()
    assert (found.gpu_name, found.compute_capability, found.driver) == (None, None, None)
    assert found.os == platform.system().lower()


# --- what fits ---


def test_an_engine_that_fits_is_found_and_accepted(bundle: Bundle) -> None:
    path = add(bundle)
    found, sidecar = find_engine(bundle, "fp32", **HERE)
    assert found == path
    check_engine(bundle, found, sidecar, **HERE)
    assert has_engine(bundle, "tensorrt")
    assert has_engine(bundle, "tensorrt", "fp32")
    assert not has_engine(bundle, "tensorrt", "fp16")
    assert not has_engine(bundle, "tensorrt-rtx")


def test_no_engine_names_the_command(bundle: Bundle) -> None:
    assert not has_engine(bundle, "tensorrt")
    command = f"edge-asr build {bundle.path} --precision fp16"
    with pytest.raises(EngineError) as caught:
        find_engine(bundle, "fp16", **HERE)
    assert str(caught.value).endswith(f"has no fp16 engine; build one with: {command}")
    with pytest.raises(EngineError, match=f"{command} --flavor tensorrt-rtx$"):
        find_engine(bundle, "fp16", **{**HERE, "flavor": "tensorrt-rtx"})
    assert isinstance(caught.value, BackendError)


_SHA = "0" * 64


@pytest.mark.parametrize(
    ("field", "theirs", "ours"),
    [
        # (what the sidecar says instead, what is here)
        ("onnx_file", "other.onnx", "model.onnx"),
        ("onnx_sha256", _SHA, None),
        ("flavor", "tensorrt-rtx", "tensorrt"),
        ("tensorrt_version", "10.3.0.26", "10.3.0.30"),
        ("plan_sha256", _SHA, None),
        ("plan_size_bytes", 12345, None),
        ("device.gpu_name", "Thor", "Orin"),
        ("device.gpu_name", None, "Orin"),
        ("device.compute_capability", "11.0", "8.7"),
        ("device.multiprocessors", 8, 16),
        ("device.os", "windows", "linux"),
        ("device.arch", "x86_64", "aarch64"),
    ],
)
def test_each_mismatch_names_the_field_both_values_and_the_command(
    bundle: Bundle, field: str, theirs: Any, ours: Any
) -> None:
    name = field.removeprefix("device.")
    if field.startswith("device."):
        path = add(bundle, dataclasses.replace(ORIN, **{name: theirs}))
    else:
        path = add(bundle, **{name: theirs})
    if name == "onnx_sha256":
        ours = bundle.artifact("fp32").sha256
    elif name == "plan_sha256":
        ours = sha256_of(path)
    elif name == "plan_size_bytes":
        ours = path.stat().st_size
    sidecar = EngineSidecar.read(path.with_suffix(".json"))
    for refused in (
        lambda: check_engine(bundle, path, sidecar, **HERE),
        lambda: find_engine(bundle, "fp32", **HERE),
    ):
        with pytest.raises(EngineError) as caught:
            refused()
        message = str(caught.value)
        assert str(path) in message
        assert f"{name} is {'unknown' if theirs is None else theirs}, " in message
        assert f" {ours}" in message.split(f"{name} is", 1)[1]
        assert f"edge-asr build {bundle.path} --precision fp32" in message
        # --force is told where the builder would find its place taken.
        assert message.endswith(" --force") is (
            path.parent.name == fingerprint("tensorrt", "10.3.0.30", ORIN)
        )


def test_all_differences_are_told_at_once_and_what_is_not_compared_beside_them(bundle: Bundle) -> None:
    add(bundle, dataclasses.replace(ORIN, gpu_name="Thor", jetpack="R38.2", driver="13.0"))
    with pytest.raises(EngineError) as caught:
        find_engine(bundle, "fp32", **{**HERE, "tensorrt_version": "11.4.1.7"})
    message = str(caught.value)
    assert "tensorrt_version is 10.3.0.30, here 11.4.1.7; gpu_name is Thor, here Orin" in message
    assert "(also driver was 13.0, is 12.6, jetpack was R38.2, is R36.4.3)" in message


@pytest.mark.parametrize("changed", [{"driver": "12.9"}, {"jetpack": "R36.5"}, {"driver": None}])
def test_driver_and_jetpack_may_differ(bundle: Bundle, changed: dict[str, Any]) -> None:
    path = add(bundle, dataclasses.replace(ORIN, **changed))
    assert find_engine(bundle, "fp32", **HERE)[0] == path


def test_a_plan_of_another_precision_under_this_name(bundle: Bundle) -> None:
    path = add(bundle, precision="fp16")
    for suffix in (".plan", ".json"):
        path.with_suffix(suffix).rename(path.with_name(f"model.fp32{suffix}"))
    with pytest.raises(EngineError, match=r"precision is fp16, the file is model\.fp32\.plan"):
        find_engine(bundle, "fp32", **HERE)


def test_a_precision_that_the_bundle_no_longer_has(tmp_path: Path) -> None:
    bundle = copy_bundle(tmp_path / "bundle", "int8")
    path = add(bundle, precision="int8")
    sidecar = EngineSidecar.read(path.with_suffix(".json"))
    without = dataclasses.replace(
        bundle, info=dataclasses.replace(bundle.info, artifacts=bundle.info.artifacts[:1])
    )
    with pytest.raises(EngineError, match="has no int8 model"):
        check_engine(without, path, sidecar, **HERE)


def test_a_missing_plan(bundle: Bundle) -> None:
    add(bundle).unlink()
    with pytest.raises(EngineError, match="the plan cannot be read"):
        find_engine(bundle, "fp32", **HERE)


def test_a_damaged_sidecar_among_others_does_not_matter_alone_it_is_told(bundle: Bundle) -> None:
    path = add(bundle, dataclasses.replace(ORIN, gpu_name="Another"))
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(EngineError, match=r"format_version is None.*edge-asr build .* --force$"):
        find_engine(bundle, "fp32", **HERE)
    good = add(bundle)
    assert find_engine(bundle, "fp32", **HERE)[0] == good


def test_the_nearest_engine_is_told(bundle: Bundle) -> None:
    add(bundle, dataclasses.replace(ORIN, gpu_name="Thor", compute_capability="11.0", arch="x86_64"))
    near = add(bundle, dataclasses.replace(ORIN, multiprocessors=8))
    with pytest.raises(EngineError) as caught:
        find_engine(bundle, "fp32", **HERE)
    assert str(near) in str(caught.value)
    assert "multiprocessors is 8, here 16" in str(caught.value)


# --- TensorRT-RTX plans that were built without a GPU ---


@pytest.mark.parametrize("gpu_name", [None, "NVIDIA GeForce RTX 4090"])
def test_an_rtx_plan_built_without_a_gpu_fits_any_gpu(bundle: Bundle, gpu_name: str | None) -> None:
    version = "1.7.1.116"
    path = add(bundle, NO_GPU, flavor="tensorrt-rtx", tensorrt_version=version)
    here = dataclasses.replace(NO_GPU, gpu_name=gpu_name, compute_capability="8.9", multiprocessors=128)
    rtx: dict[str, Any] = {"flavor": "tensorrt-rtx", "tensorrt_version": version}
    assert find_engine(bundle, "fp32", **rtx, device=here)[0] == path
    with pytest.raises(EngineError, match="arch is x86_64, here aarch64"):
        find_engine(bundle, "fp32", **rtx, device=dataclasses.replace(here, arch="aarch64"))
    own = add(bundle, here, flavor="tensorrt-rtx", tensorrt_version=version)
    assert find_engine(bundle, "fp32", **rtx, device=here)[0] == own


def test_a_proven_engine_comes_before_a_newer_one(bundle: Bundle) -> None:
    rtx: dict[str, Any] = {"flavor": "tensorrt-rtx", "tensorrt_version": "1.7.1.116"}
    here = dataclasses.replace(ORIN, arch="x86_64")
    add(bundle, here, **rtx, proof=None, built_at="2026-11-24T00:00:00Z")
    proven = add(bundle, NO_GPU, **rtx)
    assert find_engine(bundle, "fp32", **rtx, device=here)[0] == proven


# --- only from the bundle's own folder ---


def test_a_plan_through_a_link_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = add(bundle)
    sidecar = EngineSidecar.read(path.with_suffix(".json"))
    path.rename(tmp_path / "model.fp32.plan")
    path.symlink_to(tmp_path / "model.fp32.plan")
    for refused in (
        lambda: check_engine(bundle, path, sidecar, **HERE),
        lambda: find_engine(bundle, "fp32", **HERE),
    ):
        with pytest.raises(EngineError, match=r"outside .*own folder"):
            refused()


@pytest.mark.parametrize("linked", ["engines", "engines/*"])
def test_a_folder_of_engines_elsewhere_is_refused(bundle: Bundle, tmp_path: Path, linked: str) -> None:
    add(bundle)
    (folder,) = bundle.path.glob(linked)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match=r"outside .*own folder"):
        find_engine(bundle, "fp32", **HERE)


def test_a_plan_given_from_elsewhere_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = add(bundle)
    sidecar = EngineSidecar.read(path.with_suffix(".json"))
    shutil.copytree(path.parent, tmp_path / "copy")
    with pytest.raises(EngineError, match="outside"):
        check_engine(bundle, tmp_path / "copy" / path.name, sidecar, **HERE)


def test_a_link_to_the_bundle_or_within_it_is_fine(bundle: Bundle, tmp_path: Path) -> None:
    add(bundle)
    (folder,) = bundle.path.glob("engines/*")
    folder.rename(folder.with_name("real"))
    folder.symlink_to("real")
    (tmp_path / "link").symlink_to(bundle.path)
    linked = Bundle.load(tmp_path / "link", check_hashes=False)
    assert find_engine(linked, "fp32", **HERE)[1].precision == "fp32"


_LIGHT = """
import sys
import edge_asr.runtime.engine.lookup, edge_asr.runtime.engine.api, edge_asr.runtime.engine.backend
import edge_asr.runtime.backends, edge_asr.runtime.engine.cuda
heavy = {"tensorrt", "tensorrt_rtx", "cuda", "torch", "onnx", "onnxruntime"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_the_runtime_imports_no_tensorrt_and_no_cuda() -> None:
    subprocess.run([sys.executable, "-c", _LIGHT], check=True)
