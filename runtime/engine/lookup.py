"""TensorRT engines on disk: what a plan is for, where it lies, and whether it may run here.

A plan is a TensorRT program for one device. It lies inside the bundle, beside a sidecar: a JSON file that
says what the plan was built from, and for which device:

    engines/<fingerprint>/model.<precision>.plan
    engines/<fingerprint>/model.<precision>.json

`check_engine` compares a sidecar with the bundle and this device; `find_engine` picks the plan that fits.
Plans are programs: they are taken only from the bundle's own folder, never through a link that leaves it.

What must be equal, and why:
- `precision`, `onnx_file`, `onnx_sha256`: the model in the bundle is the one that the plan was built from.
- `plan_sha256`, `plan_size_bytes`: the plan is the one that was built, and proven.
- `flavor` and the full `tensorrt_version`: TensorRT guarantees nothing for a plan of another version, and
  refuses most of them.
- `os`, `arch`: a plan is bound to its platform.
- `gpu_name`, `compute_capability`, `multiprocessors`: kernels are compiled for the capability and chosen by
  timing on that very GPU. TensorRT runs a plan of a sibling GPU with a warning, slower or with errors. All
  Jetson Orin modules are called "Orin"; they differ in multiprocessors, and so do power modes of one module.
  An engine is proven on one device, so any difference is refused.
The CUDA driver, the CUDA version and the JetPack (L4T) release are recorded but not compared. TensorRT does
not require them to be equal; a driver that is too old causes an error when the plan is loaded. Driver and
JetPack are named beside the differences, as likely causes. There is one exception: a TensorRT-RTX plan built
on a machine without a GPU (`gpu_name` null) holds no kernels, which are compiled where it runs. It may run on
any GPU with the same flavor, version, OS and architecture.

A plan is read once: the bytes that were hashed are those that run.
What this file does not do: build plans (edge_asr.export.engine.builder) or run them (backend.py).
`check_trust` refuses what was never proven, or not built here (trust.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import PRECISIONS, Artifact, Precision
from edge_asr.bundle.names import ENGINES_FOLDER
from edge_asr.errors import BundleError, EngineError
from edge_asr.runtime.engine.sidecar import (
    FLAVORS,
    SIDECAR_FORMAT_VERSION,
    DeviceIdentity,
    EngineProfile,
    EngineSidecar,
    EngineTensor,
    Flavor,
)
from edge_asr.runtime.engine.trust import is_sealed

__all__ = [
    "ENGINES_FOLDER",
    "FLAVORS",
    "GRAPHS",
    "SIDECAR_FORMAT_VERSION",
    "DeviceIdentity",
    "EngineProfile",
    "EngineSidecar",
    "EngineTensor",
    "Flavor",
    "FoundEngine",
    "Graph",
    "artifact_of",
    "build_command",
    "check_engine",
    "check_trust",
    "engine_precisions",
    "find_engine",
    "fingerprint",
    "has_engine",
    "list_engines",
    "open_engine",
    "plan_path_of",
    "sidecar_path_of",
]


Graph = Literal["model", "stream"]
"""Which graph of the bundle a plan runs: the offline one, or a step of a stream."""
GRAPHS: tuple[Graph, ...] = get_args(Graph)


class FoundEngine(NamedTuple):
    """An engine that may run here: its plan's path, its sidecar, and the plan itself."""

    path: Path
    sidecar: EngineSidecar
    plan: bytes


def fingerprint(flavor: Flavor, tensorrt_version: str, device: DeviceIdentity) -> str:
    """Return the name of the folder for engines of this library and device.

    "tensorrt-10.3.0.26-orin-16mp-sm87-linux-aarch64", or without a GPU
    "tensorrt-rtx-1.7.1.116-no-gpu-linux-x86_64".
    """
    if device.gpu_name is None:
        gpu = ["no-gpu"]
    else:
        gpu = [re.sub(r"[^a-z0-9]+", "-", device.gpu_name.lower()).strip("-")]
        if device.multiprocessors is not None:
            gpu.append(f"{device.multiprocessors}mp")
        if device.compute_capability is not None:
            gpu.append("sm" + device.compute_capability.replace(".", ""))
    return "-".join([flavor, tensorrt_version, *gpu, device.os, device.arch])


def plan_path_of(folder: Path, precision: Precision, graph: Graph = "model") -> Path:
    """Return the path of a precision's plan in the folder of a fingerprint."""
    return folder / f"{graph}.{precision}.plan"


def sidecar_path_of(plan_path: Path) -> Path:
    """Return the path of the sidecar that belongs to a plan."""
    return plan_path.with_suffix(".json")


def artifact_of(bundle: Bundle, precision: Precision, graph: Graph = "model") -> Artifact:
    """Return the ONNX file that an engine is built from; FP16 is made from float32.

    Raises:
        BundleError: the bundle lacks it.
    """
    wanted: Precision = "int8" if precision == "int8" else "fp32"
    if graph == "model":
        return bundle.artifact(wanted)
    artifact = bundle.streaming.find(wanted)
    if artifact.precision != wanted:
        raise BundleError(
            f"{bundle.path} has its streaming graph in {artifact.precision} only, and an engine in "
            f"{precision} is built from {wanted}; export the model again"
        )
    return artifact


def engine_precisions(bundle: Bundle, graph: Graph = "model") -> list[Precision]:
    """List the precisions in which engines of a graph can be built."""
    found: list[Precision] = []
    for precision in PRECISIONS:
        with contextlib.suppress(BundleError):
            artifact_of(bundle, precision, graph)
            found.append(precision)
    return found


def build_command(bundle: Bundle, precision: Precision, flavor: Flavor, *, force: bool = False) -> str:
    """Return the command line that builds the engines of `bundle` for this device (again)."""
    words = ["edge-asr", "build", shlex.quote(str(bundle.path)), "--precision", precision]
    if flavor != "tensorrt":
        words += ["--flavor", flavor]
    if force:
        words.append("--force")
    return " ".join(words)


def check_trust(bundle: Bundle, path: Path, sidecar: EngineSidecar) -> None:
    """Refuse an engine that was never proven, failed its proof, or was not built on this machine.

    Raises:
        EngineError: it is refused; the message says why and how to build one.
    """
    if not sidecar.proven:
        why = "was never compared with its model" if sidecar.proof is None else "failed its proof"
    elif not is_sealed(sidecar):
        why = "is a native program that was not built by you on this machine"
    else:
        return
    command = build_command(bundle, sidecar.precision, sidecar.flavor, force=True)
    raise EngineError(
        f"the engine {path} {why}; build it on this device with: {command}, "
        "or pass --allow-unverified (allow_unverified=True) to run it anyway"
    )


def check_engine(
    bundle: Bundle,
    plan_path: Path,
    sidecar: EngineSidecar,
    *,
    flavor: Flavor,
    tensorrt_version: str,
    device: DeviceIdentity,
) -> FoundEngine:
    """Refuse a plan that is not for this bundle, library and device, or is not the one that was built.

    Args:
        bundle: the plan must come from one of its artifacts.
        plan_path: inside the bundle's `engines` folder.
        sidecar: the sidecar of the plan.
        flavor, tensorrt_version, device: what this machine has.

    Returns:
        The engine, with the bytes of the plan that were checked.

    Raises:
        EngineError: the plan does not fit. The message names each field that differs, both values, and the
            command that builds the engine again.
    """
    _check_inside(bundle, plan_path)
    _check_inside(bundle, sidecar_path_of(plan_path))
    here = (flavor, tensorrt_version, device)
    differences = _differences(bundle, plan_path, sidecar, *here)
    if not differences:
        plan = _read_plan(plan_path, sidecar)
        if isinstance(plan, bytes):
            return FoundEngine(plan_path, sidecar, plan)
        differences = [plan]
    raise EngineError(_refusal(bundle, plan_path, sidecar, differences, *here))


def has_engine(
    bundle: Bundle, flavor: Flavor, precision: Precision | None = None, graph: Graph = "model"
) -> bool:
    """Tell whether the bundle has an engine of a flavor (and a precision), fitting or not; reads no file."""
    return any(_sidecar_paths(bundle, f"{flavor}-[0-9]*", precision or "*", graph))


def list_engines(
    bundle: Bundle, flavor: Flavor, precision: Precision, graph: Graph = "model"
) -> list[tuple[Path, EngineSidecar]]:
    """List the proven, undamaged plans that were built from the bundle's graph, for whatever device.

    Raises:
        EngineError: a sidecar cannot be read.
    """
    found = []
    for path in _sidecar_paths(bundle, f"{flavor}-[0-9]*", precision, graph):
        plan_path = plan_path_of(path.parent, precision, graph)
        _check_inside(bundle, path)
        _check_inside(bundle, plan_path)
        sidecar = EngineSidecar.read(path)
        is_of_graph = sidecar.onnx_sha256 == artifact_of(bundle, precision, graph).sha256
        if is_of_graph and sidecar.proven and isinstance(_read_plan(plan_path, sidecar), bytes):
            found.append((plan_path, sidecar))
    return found


def _sidecar_paths(bundle: Bundle, folder: str, precision: str, graph: Graph) -> list[Path]:
    return sorted((bundle.path / ENGINES_FOLDER).glob(f"{folder}/{graph}.{precision}.json"))


def find_engine(
    bundle: Bundle,
    precision: Precision,
    *,
    flavor: Flavor,
    tensorrt_version: str,
    device: DeviceIdentity,
    graph: Graph = "model",
) -> tuple[Path, EngineSidecar]:
    """Find the plan that `open_engine` opens, and its sidecar; its errors."""
    return open_engine(
        bundle, precision, flavor=flavor, tensorrt_version=tensorrt_version, device=device, graph=graph
    )[:2]


def open_engine(
    bundle: Bundle,
    precision: Precision,
    *,
    flavor: Flavor,
    tensorrt_version: str,
    device: DeviceIdentity,
    graph: Graph = "model",
) -> FoundEngine:
    """Open the plan of a precision that fits this library and device.

    If several fit, a proven one built on this machine comes first, then a proven one, then one built on this
    very GPU, then the newest.

    Raises:
        EngineError: none fits. The message names the differences of the nearest one, and the command that
            builds one.
    """
    here = (flavor, tensorrt_version, device)
    candidates: list[tuple[list[str], Path, EngineSidecar]] = []
    unreadable: list[EngineError] = []
    for path in _sidecar_paths(bundle, "[!.]*", precision, graph):  # hidden folders are builds in progress
        plan_path = plan_path_of(path.parent, precision, graph)
        try:
            _check_inside(bundle, path)
            _check_inside(bundle, plan_path)
            sidecar = EngineSidecar.read(path)
        except EngineError as error:
            unreadable.append(error)
            continue
        candidates.append((_differences(bundle, plan_path, sidecar, *here), plan_path, sidecar))
    if not candidates and unreadable:
        raise EngineError(
            f"{unreadable[0]}: {build_command(bundle, precision, flavor, force=True)}"
        ) from unreadable[0]
    if not candidates:
        raise EngineError(
            f"{bundle.path} has no {precision} {'streaming ' if graph == 'stream' else ''}engine; "
            f"build one with: {build_command(bundle, precision, flavor)}"
        )
    # These sorts are stable, so the least important comes first.
    candidates.sort(key=lambda c: c[2].built_at, reverse=True)
    candidates.sort(key=lambda c: (len(c[0]), *_rank(c[2]), c[2].device.gpu_name is None))
    refusals = []
    for differences, plan_path, sidecar in candidates:
        if not differences:
            plan = _read_plan(plan_path, sidecar)
            if isinstance(plan, bytes):
                return FoundEngine(plan_path, sidecar, plan)
            differences = [plan]
        refusals.append((differences, plan_path, sidecar))
    differences, plan_path, sidecar = min(refusals, key=lambda r: len(r[0]))
    raise EngineError(_refusal(bundle, plan_path, sidecar, differences, *here))


def _rank(sidecar: EngineSidecar) -> tuple[bool, bool]:
    return not (sidecar.proven and is_sealed(sidecar)), not sidecar.proven


def _differences(
    bundle: Bundle,
    plan_path: Path,
    sidecar: EngineSidecar,
    flavor: Flavor,
    tensorrt_version: str,
    device: DeviceIdentity,
) -> list[str]:
    """List what differs, without reading the plan."""
    graph: Graph = "stream" if plan_path.name.startswith("stream.") else "model"
    if plan_path != plan_path_of(plan_path.parent, sidecar.precision, graph):
        return [f"precision is {sidecar.precision}, the file is {plan_path.name}"]
    try:
        artifact = artifact_of(bundle, sidecar.precision, graph)
    except BundleError as error:
        return [f"precision: {error}"]
    built = sidecar.device
    pairs: list[tuple[str, Any, Any]] = [
        ("onnx_file", sidecar.onnx_file, artifact.file),
        ("onnx_sha256", sidecar.onnx_sha256, artifact.sha256),
        ("flavor", sidecar.flavor, flavor),
        ("tensorrt_version", sidecar.tensorrt_version, tensorrt_version),
        ("os", built.os, device.os),
        ("arch", built.arch, device.arch),
    ]
    if not (sidecar.flavor == "tensorrt-rtx" and built.gpu_name is None):
        pairs += [
            ("gpu_name", built.gpu_name, device.gpu_name),
            ("compute_capability", built.compute_capability, device.compute_capability),
            ("multiprocessors", built.multiprocessors, device.multiprocessors),
        ]
    return [
        f"{name} is {_show(theirs)}, here {_show(ours)}" for name, theirs, ours in pairs if theirs != ours
    ]


def _read_plan(plan_path: Path, sidecar: EngineSidecar) -> bytes | str:
    """Read the plan, or say how it differs from the one that was built."""
    try:
        with plan_path.open("rb") as file:
            plan = file.read(sidecar.plan_size_bytes + 1)  # a larger file is not read
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return f"the plan cannot be read ({error})"
    if size != sidecar.plan_size_bytes or len(plan) != size:
        return f"plan_size_bytes is {sidecar.plan_size_bytes}, the file has {size}"
    sha256 = hashlib.sha256(plan).hexdigest()
    if sha256 != sidecar.plan_sha256:
        return f"plan_sha256 is {sidecar.plan_sha256}, the file has {sha256}"
    return plan


def _refusal(
    bundle: Bundle,
    plan_path: Path,
    sidecar: EngineSidecar,
    differences: list[str],
    flavor: Flavor,
    tensorrt_version: str,
    device: DeviceIdentity,
) -> str:
    notes = [
        f"{name} was {_show(theirs)}, is {_show(ours)}"
        for name, theirs, ours in (
            ("driver", sidecar.device.driver, device.driver),
            ("jetpack", sidecar.device.jetpack, device.jetpack),
        )
        if theirs != ours
    ]
    # Without --force the builder would refuse to overwrite.
    taken = plan_path.parent.name == fingerprint(flavor, tensorrt_version, device)
    command = build_command(bundle, sidecar.precision, flavor, force=taken)
    return (
        f"the engine {plan_path} does not fit: {'; '.join(differences)}"
        + (f" (also {', '.join(notes)})" if notes else "")
        + f". Build it for this device with: {command}"
    )


def _check_inside(bundle: Bundle, path: Path) -> None:
    home = bundle.path.resolve() / ENGINES_FOLDER
    if not path.resolve().is_relative_to(home):
        raise EngineError(
            f"{path} lies at {path.resolve()}, outside {home}; engines run only from their bundle's own "
            "folder, so copy the file there or build the engine again"
        )


def _show(value: object) -> str:
    return "unknown" if value is None else str(value)
