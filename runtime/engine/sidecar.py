"""The sidecar of a TensorRT engine: what a plan was built from, for and how, as JSON beside the plan.

This file holds only data and its JSON form.
What this file does not do: decide which plan may run here (lookup.py).
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_asr.bundle.manifest import Precision
from edge_asr.errors import EngineError
from edge_asr.records import json_from_record, read_json, record_from_json
from edge_asr.runtime.engine.cuda import query_gpu

SIDECAR_FORMAT_VERSION = 1
MAX_SIDECAR_BYTES = 4 << 20
_REMEDY = "build the engine again"
NV_TEGRA_RELEASE = Path("/etc/nv_tegra_release")

Flavor = Literal["tensorrt", "tensorrt-rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

_ARCH_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """The device that a plan was built on, or this one.

    Attributes:
        gpu_name: name from the CUDA driver; None if built without a GPU (TensorRT-RTX can).
        compute_capability: "8.7"; None without a GPU.
        driver: newest CUDA version that the driver supports, "12.6"; None without a driver.
        jetpack: L4T release, "R36.4.3"; None on anything but a Jetson.
        os: "linux".
        arch: "x86_64" or "aarch64".
        multiprocessors: multiprocessors of the GPU, which distinguish Jetson Orin modules.
    """

    gpu_name: str | None
    compute_capability: str | None
    driver: str | None
    jetpack: str | None
    os: str
    arch: str
    multiprocessors: int | None = None

    @classmethod
    def detect(cls) -> DeviceIdentity:
        """This machine with its first GPU; never raises for a missing GPU or driver."""
        gpu = query_gpu()
        machine = platform.machine().lower()
        return cls(
            gpu_name=None if gpu is None else gpu.name,
            compute_capability=None if gpu is None else gpu.compute_capability,
            driver=None if gpu is None else gpu.driver,
            jetpack=_read_l4t_release(),
            os=platform.system().lower(),
            arch=_ARCH_NAMES.get(machine, machine),
            multiprocessors=None if gpu is None else gpu.multiprocessors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """One optimization profile: what it accepts, in feature frames and rows of a batch.

    Raises:
        EngineError: not 1 <= min <= opt <= max.
    """

    min_frames: int
    opt_frames: int
    max_frames: int
    min_batch: int
    opt_batch: int
    max_batch: int

    def __post_init__(self) -> None:
        for unit in ("frames", "batch"):
            low, opt, high = (getattr(self, f"{edge}_{unit}") for edge in ("min", "opt", "max"))
            if not 1 <= low <= opt <= high:
                raise EngineError(
                    f"an engine profile has min, opt, max {unit} {low}, {opt}, {high}; they must be at least "
                    "1 and must not fall"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTensor:
    """An input or output of an engine; -1 in `shape` is a dynamic axis, `dtype` a NumPy name."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSidecar:
    """What a plan was built from, for and how; the JSON file beside it.

    Attributes:
        onnx_file, onnx_sha256, precision: the artifact of the bundle, even if the builder worked on a
            rewritten copy of it (opset 17 for TensorRT 8.6).
        flavor, tensorrt_version: which library; the full version, "10.3.0.26".
        device: where it was built.
        profiles, tensors: what it accepts and gives.
        flags: names of builder and network flags, such as "STRONGLY_TYPED".
        workspace_mb: memory limit of the builder, None for TensorRT's default.
        plan_sha256, plan_size_bytes: those of the plan.
        build_time_s, built_at: how long it took; when it ended, ISO 8601 in UTC.
        toolkit_version: version of edge-asr that built it.
        proof: result of the comparison with the fp32 ONNX, with at least `"passed": bool`; None if there
            was no device to run it on.
        seal: keyed hash of all the rest, by the machine that built it (trust.py); None without one.

    Raises:
        EngineError: a value that cannot be.
    """

    format_version: int
    onnx_file: str
    onnx_sha256: str
    precision: Precision
    flavor: Flavor
    tensorrt_version: str
    device: DeviceIdentity
    profiles: tuple[EngineProfile, ...]
    tensors: tuple[EngineTensor, ...]
    flags: tuple[str, ...]
    workspace_mb: int | None
    plan_sha256: str
    plan_size_bytes: int
    build_time_s: float
    built_at: str
    toolkit_version: str
    proof: Mapping[str, Any] | None
    seal: str | None = None

    def __post_init__(self) -> None:
        if not self.profiles:
            raise EngineError("the engine has no optimization profile; build it again")

    @property
    def proven(self) -> bool:
        """Tell whether the engine was compared with the fp32 ONNX on its device, and passed."""
        return self.proof is not None and self.proof.get("passed") is True

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the inverse of `from_dict`."""
        data: dict[str, Any] = json_from_record(self)
        return data

    def to_json(self) -> str:
        """Content of the sidecar file."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: Any, where: str = "the engine's sidecar") -> EngineSidecar:
        """Read the JSON form.

        Args:
            data: decoded JSON.
            where: how the file is called in errors.

        Raises:
            EngineError: missing or unknown keys, which it names, a wrong type, or a value that cannot be.
        """
        version = data.get("format_version") if isinstance(data, Mapping) else SIDECAR_FORMAT_VERSION
        if version != SIDECAR_FORMAT_VERSION or isinstance(version, bool):
            raise EngineError(
                f"{where}: format_version is {version!r}, this edge-asr reads {SIDECAR_FORMAT_VERSION}; "
                f"{_REMEDY}"
            )
        return record_from_json(cls, data, where, error=EngineError, remedy=_REMEDY)

    @classmethod
    def read(cls, path: Path) -> EngineSidecar:
        """Read a sidecar file.

        Raises:
            EngineError: missing, not JSON, or as `from_dict`.
        """
        try:
            data = read_json(path, error=EngineError, remedy=_REMEDY, max_bytes=MAX_SIDECAR_BYTES)
        except FileNotFoundError as error:
            raise EngineError(f"{path} is missing; {_REMEDY}") from error
        return cls.from_dict(data, str(path))


def _read_l4t_release() -> str | None:
    """L4T release of a Jetson: "# R36 (release), REVISION: 4.3, ..." -> "R36.4.3"."""
    try:
        text = NV_TEGRA_RELEASE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"#\s*(R\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return None if match is None else f"{match[1]}.{match[2]}"
