"""Bundles with fake plans (fake_tensorrt.py) and true sidecars, and their numbers against onnxruntime's.

For tests of engines and backends. Tolerance: 1e-4, the export's own bar, for padding changes rounding only.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_tensorrt import N_MELS, FakeGpu

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.names import STREAM_INPUTS, STREAM_OUTPUTS
from edge_asr.runtime.backends import Backend
from edge_asr.runtime.engine.lookup import Graph, artifact_of, fingerprint, plan_path_of, sidecar_path_of
from edge_asr.runtime.engine.sidecar import DeviceIdentity, EngineProfile, EngineSidecar, EngineTensor
from edge_asr.runtime.engine.trust import seal

F32Array = npt.NDArray[np.float32]
TOLERANCE = 1e-4
STREAMS = (1, 3)
"""Numbers of streams of a fake engine's profiles."""


def copy_bundle(target: Path, *precisions: str, **artifact: Any) -> Bundle:
    """The embedded model in a folder of its own, offline; its fp32 graph also serves as other precisions."""
    shutil.copytree(Bundle.load("tiny-en").path, target, ignore=shutil.ignore_patterns("*.*.onnx", "engines"))
    data = json.loads((target / "bundle.json").read_text())
    (fp32,) = (entry for entry in data["artifacts"] if entry["precision"] == "fp32")
    data |= {"artifacts": [fp32], "streaming": None}
    for precision in precisions:
        name = f"model.{precision}.onnx"
        shutil.copy(target / "model.onnx", target / name)
        data["artifacts"].append({**fp32, "file": name, "precision": precision, **artifact})
    (target / "bundle.json").write_text(json.dumps(data))
    return Bundle.load(target, check_hashes=False)


def add_engine(
    bundle: Bundle,
    gpu: FakeGpu,
    precision: Any = "fp32",
    *,
    profiles: tuple[tuple[int, ...], ...] = ((10, 100, 100, 1, 1, 4), (100, 400, 400, 1, 1, 4)),
    plan: Mapping[str, Any] = MappingProxyType({}),
    device: Mapping[str, Any] = MappingProxyType({}),
    graph: Graph = "model",
    sealed: bool = True,
    **sidecar: Any,
) -> Path:
    """Write a plan of `profiles` (min, opt, max frames; min, opt, max rows) and its sidecar.

    `plan` and `sidecar` replace what the fake plan and the sidecar say, `device` what its device says.
    """
    artifact = artifact_of(bundle, precision, graph)
    content = {
        "onnx": str(bundle.path / artifact.file),
        "sha256": artifact.sha256,
        "profiles": profiles,
        "factor": bundle.info.subsampling_factor,
        "classes": len(bundle.vocabulary),
        **plan,
    }
    data = json.dumps(content).encode()
    identity = {
        "gpu_name": gpu.name,
        "compute_capability": f"{gpu.capability[0]}.{gpu.capability[1]}",
        "driver": "12.6",
        "jetpack": None,
        "os": "linux",
        "arch": platform.machine(),
        "multiprocessors": gpu.multiprocessors,
        **device,
    }
    keys = ("min_frames", "opt_frames", "max_frames", "min_batch", "opt_batch", "max_batch")
    values: dict[str, Any] = {
        "format_version": 1,
        "onnx_file": artifact.file,
        "onnx_sha256": artifact.sha256,
        "precision": precision,
        "flavor": gpu.flavor,
        "tensorrt_version": gpu.version,
        "device": DeviceIdentity(**identity),
        "profiles": tuple(EngineProfile(**dict(zip(keys, p, strict=True))) for p in profiles),
        "tensors": (EngineTensor(name="length", mode="input", dtype="int64", shape=(-1,)),),
        "flags": ("STRONGLY_TYPED",),
        "workspace_mb": None,
        "plan_sha256": hashlib.sha256(data).hexdigest(),
        "plan_size_bytes": len(data),
        "build_time_s": 1.5,
        "built_at": "2026-11-23T12:00:00Z",
        "toolkit_version": "0.1.0",
        "proof": {"passed": True},
        **sidecar,
    }
    said = seal(EngineSidecar(**values)) if sealed else EngineSidecar(**values)
    folder = bundle.path / "engines" / fingerprint(said.flavor, said.tensorrt_version, said.device)
    folder.mkdir(parents=True, exist_ok=True)
    path = plan_path_of(folder, precision, graph)
    path.write_bytes(data)
    sidecar_path_of(path).write_text(said.to_json())
    return path


def add_stream_engine(
    bundle: Bundle,
    gpu: FakeGpu,
    precision: Any = "fp32",
    *,
    streams: tuple[int, ...] = STREAMS,
    **options: Any,
) -> Path:
    """Write a plan of the streaming graph, with a profile for each number of streams, and its sidecar."""
    geometry = bundle.streaming.geometry
    caches = (geometry.cache_last_channel, geometry.cache_last_time, ())
    inputs = [("float32", (-1, N_MELS, -1)), ("int64", (-1,))]
    state = [("int64" if not dims else "float32", (-1, *dims)) for dims in caches]
    given = [("float32", (-1, geometry.chunk_frames, bundle.info.vocabulary_size)), ("int64", (-1,))]
    tensors = dict(zip((*STREAM_INPUTS, *STREAM_OUTPUTS), (*inputs, *state, *given, *state), strict=True))
    first, window = geometry.first_window_frames, geometry.window_frames
    return add_engine(
        bundle,
        gpu,
        precision,
        graph="stream",
        profiles=tuple((first, window, window, n, n, n) for n in streams),
        plan={"tensors": tensors, "inputs": STREAM_INPUTS},
        **options,
    )


def batch(lens: list[int], n_frames: int | None = None, seed: int = 0) -> F32Array:
    """Log-mel-like noise [B, T, 80]; what lies behind a row's length is loud, so a leak would show."""
    n_frames = max(lens) if n_frames is None else n_frames
    features = np.random.default_rng(seed).normal(-8, 3, (len(lens), n_frames, 80)).astype(np.float32)
    for row, length in zip(features, lens, strict=True):
        row[length:] = 7.0
    return features


def assert_agrees(
    backend: Backend, reference: Any, lens: list[int], n_frames: int | None = None, seed: int = 0
) -> None:
    features = batch(lens, n_frames, seed)
    expected = reference(features, lens)
    got = backend.log_probs(features, np.array(lens, np.int64))
    assert got.shape == expected.shape
    assert got.dtype == np.float32
    for row, (length, a, b) in enumerate(zip(lens, got, expected, strict=True)):
        n_valid = -(-length // 4)
        np.testing.assert_allclose(a[:n_valid], b[:n_valid], atol=TOLERANCE, err_msg=f"row {row} of {lens}")
