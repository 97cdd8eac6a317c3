"""Builds the plan of a graph, proves it, and puts it into the bundle: the steps that all engines share.

The plan appears in its place proven, or not at all. If no GPU can run it (TensorRT-RTX builds without one),
its sidecar says so and the runtime refuses it. An older engine stays until the new one is written. An engine
that fails its proof is built once more with the softmax of attention in float32, because fused attention
kernels exist that are wrong.
What this file does not do: decide what to build (builder.py, streams.py), or build (plan.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import edge_asr
from edge_asr.atomic import write_file
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Artifact, Precision
from edge_asr.bundle.names import ENGINES_FOLDER
from edge_asr.errors import ConfigError, EngineError, GateError
from edge_asr.export.engine.files import TIMING_CACHE_NAME, adding_files, layers_name_of
from edge_asr.export.engine.plan import (
    Plan,
    SearchOptions,
    describe_layers,
    has_attention_operator,
    is_strongly_typed,
    make_plan,
)
from edge_asr.export.engine.proof import EngineProof
from edge_asr.proof.stages import Progress, Stages
from edge_asr.runtime.engine.api import create_logger, load_tensorrt, version_of
from edge_asr.runtime.engine.cuda import Cuda, query_gpu
from edge_asr.runtime.engine.lookup import (
    Graph,
    build_command,
    fingerprint,
    plan_path_of,
    sidecar_path_of,
)
from edge_asr.runtime.engine.sidecar import (
    FLAVORS,
    SIDECAR_FORMAT_VERSION,
    DeviceIdentity,
    EngineProfile,
    EngineSidecar,
    Flavor,
)
from edge_asr.runtime.engine.trust import machine_key, seal
from edge_asr.stream_geometry import StreamingGeometry

_MOST_SHARED_WORKSPACE_MB = 2048
NOT_RUN = (
    "the plan was built but not run, because this machine has no GPU; so it is not proven, and the runtime "
    "refuses it. For a proven plan, build on the device that will run it: "
)
WIDE_SOFTMAX = (
    "the engine with half softmax failed its proof; this one computes the softmax of attention in float32, "
    "and is slower where that keeps TensorRT from fusing attention"
)
#: In the flags of a sidecar.
WIDE_SOFTMAX_FLAG = "FLOAT32_SOFTMAX"
NO_TIMING_CACHE = "this TensorRT keeps no timing cache, so none was read or written"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Result of `build_engine`.

    Attributes:
        plan: path of the plan; its sidecar lies beside it.
        sidecar: content of the sidecar, proof included.
        notes: sentences that the user should read, such as why there was no proof.
    """

    plan: Path
    sidecar: EngineSidecar
    notes: tuple[str, ...]

    @property
    def proven(self) -> bool:
        """Tell whether the engine ran on its device and passed."""
        return self.sidecar.proven

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form: path, notes, and the sidecar under its own keys."""
        return {"plan": str(self.plan), **self.sidecar.to_dict(), "notes": list(self.notes)}

    def describe(self) -> str:
        """Describe the engine in one line for people."""
        sidecar = self.sidecar
        size_mb = sidecar.plan_size_bytes / 1e6
        proof = sidecar.proof
        if proof is None:
            verdict = "not proven"
        else:
            verdict = f"proven: {proof['n_cases']} cases, {proof['frame_agreement']:.4f} of frames agree"
        return (
            f"{self.plan}: {sidecar.precision}, {size_mb:.1f} MB, {len(sidecar.profiles)} profiles, "
            f"{sidecar.build_time_s:.1f} s, {verdict}"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build any engine.

    Attributes:
        flavor: "tensorrt", or "tensorrt-rtx".
        workspace_mb: limit of the builder's scratch memory, MiB; None for TensorRT's own, which is all of a
            GPU, and on a GPU that shares the processor's memory for a quarter of it, at most 2048.
        timing_cache: a file to read and to write back, in addition to the copy beside the engine.
        force: replace an existing engine, once the new one is proven.
        search: how TensorRT searches for kernels.
        attention_operator: build attention with TensorRT's own operator for it, which fuses or fails.

    Raises:
        ConfigError: an option is out of range.
    """

    flavor: Flavor = "tensorrt"
    workspace_mb: int | None = None
    timing_cache: str | Path | None = None
    force: bool = False
    search: SearchOptions = dataclasses.field(default_factory=SearchOptions)
    attention_operator: bool = False

    def __post_init__(self) -> None:
        if self.flavor not in FLAVORS:
            raise ConfigError(f"flavor is {self.flavor!r}; it must be one of {', '.join(FLAVORS)}")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"workspace_mb is {self.workspace_mb}; give 1 or more, or leave it out")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlace:
    """This machine's TensorRT and GPU, and where its engines of a bundle lie.

    Attributes:
        trt, version: the library.
        device: this machine.
        folder: for its engines.
        shared_bytes: memory that GPU and processor share; None if the GPU has its own, or there is none.
    """

    trt: Any
    version: str
    device: DeviceIdentity
    folder: Path
    shared_bytes: int | None

    @classmethod
    def find(cls, bundle: Bundle, flavor: Flavor) -> BuildPlace:
        """Find it.

        Raises:
            MissingDependencyError: TensorRT is not installed.
            EngineError: there is no GPU, and this TensorRT needs one; or no key can be kept.
        """
        trt = load_tensorrt(flavor)
        version, device = version_of(trt), DeviceIdentity.detect()
        if device.gpu_name is None and flavor == "tensorrt":
            raise EngineError(
                "no GPU was found (or no CUDA driver), and TensorRT builds engines on the device that will "
                "run them; run `edge-asr doctor`"
            )
        machine_key()  # without it the engine would be refused after a long build
        folder = bundle.path / ENGINES_FOLDER / fingerprint(flavor, version, device)
        return cls(trt=trt, version=version, device=device, folder=folder, shared_bytes=_count_shared_bytes())

    def check(self, options: BuildOptions) -> None:
        """Refuse an option that this TensorRT lacks.

        Raises:
            EngineError: it has no attention operator.
        """
        typed = is_strongly_typed(self.trt)
        if options.attention_operator and not (typed and has_attention_operator(self.trt)):
            raise EngineError(
                f"{self.trt.__name__} {self.version} has no attention operator, which came with TensorRT "
                "10.14; leave out --attention-operator"
            )

    @property
    def can_run(self) -> bool:
        """Tell whether engines run here, so that they can be proven."""
        return self.device.gpu_name is not None

    def workspace_mb(self, asked: int | None) -> int | None:
        """Return the limit of the builder's scratch memory."""
        if asked is not None or self.shared_bytes is None:
            return asked
        return min(_MOST_SHARED_WORKSPACE_MB, self.shared_bytes >> 22)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineSource:
    """What an engine is built from.

    Attributes:
        artifact: the file of the bundle.
        precision: that of the engine.
        graph: which graph it is.
        make_model: content for the parser; told whether the softmax of attention is to be float32.
        profiles: shapes to serve.
        geometry: that of a streaming graph.
        notes: for the user.
    """

    artifact: Artifact
    precision: Precision
    graph: Graph = "model"
    make_model: Callable[[bool], bytes]
    profiles: tuple[EngineProfile, ...]
    geometry: StreamingGeometry | None = None
    notes: tuple[str, ...] = ()


#: Runs a plan, which is not in its place yet, against its reference: path, sidecar, progress.
Prove = Callable[[Path, EngineSidecar, Progress], EngineProof]


def put_engine(
    bundle: Bundle,
    source: EngineSource,
    place: BuildPlace,
    options: BuildOptions,
    prove: Prove | None,
    stages: Stages,
) -> EngineReport:
    """Build the plan of a source, prove it, and put it into the bundle.

    Raises:
        EngineError, GateError: as `build_engine`.
    """
    precision, folder = source.precision, place.folder
    name = f"{precision} {'streaming ' if source.graph == 'stream' else ''}engine"
    notes = list(source.notes)
    if not place.can_run:
        notes.append(NOT_RUN + build_command(bundle, precision, options.flavor))
    workspace_mb = place.workspace_mb(options.workspace_mb)
    cache_path = folder / TIMING_CACHE_NAME if options.timing_cache is None else Path(options.timing_cache)
    # A half softmax may be wrong, but without a GPU nobody would know.
    may_widen = prove is not None and precision != "fp32" and is_strongly_typed(place.trt)
    for wide_softmax in (False, True) if may_widen else (False,):
        with stages.stage(f"make {name}'s graph"):
            model = source.make_model(wide_softmax)
        with stages.stage(f"build {name}") as advance:
            plan = make_plan(
                place.trt,
                create_logger(place.trt),
                model,
                source.artifact.file,
                precision=precision,
                profiles=source.profiles,
                n_mels=bundle.info.features.n_mels,
                geometry=source.geometry,
                workspace_mb=workspace_mb,
                search=options.search,
                timing_cache=cache_path.read_bytes() if cache_path.is_file() else b"",
                progress=advance,
            )
        del model
        if options.timing_cache is not None:
            if plan.timing_cache is None:
                notes.append(NO_TIMING_CACHE)
            else:  # before the proof: timings cost time and do not depend on whether the engine is right
                write_file(Path(options.timing_cache), plan.timing_cache)
        sidecar = EngineSidecar(
            format_version=SIDECAR_FORMAT_VERSION,
            onnx_file=source.artifact.file,
            onnx_sha256=source.artifact.sha256,
            precision=precision,
            flavor=options.flavor,
            tensorrt_version=place.version,
            device=place.device,
            profiles=source.profiles,
            tensors=plan.tensors,
            flags=(*plan.flags, *((WIDE_SOFTMAX_FLAG,) if wide_softmax else ())),
            workspace_mb=workspace_mb,
            plan_sha256=hashlib.sha256(plan.data).hexdigest(),
            plan_size_bytes=len(plan.data),
            build_time_s=round(plan.build_time_s, 3),
            built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            toolkit_version=edge_asr.__version__,
            proof=None,
        )
        try:
            sidecar = _write(bundle, source, place, plan, sidecar, prove, stages, name)
        except GateError:
            if wide_softmax or not may_widen:
                raise
            continue
        if wide_softmax:
            notes.append(WIDE_SOFTMAX)
        break
    report_path = plan_path_of(folder, precision, source.graph)
    return EngineReport(plan=report_path, sidecar=sidecar, notes=tuple(dict.fromkeys(notes)))


def _write(
    bundle: Bundle,
    source: EngineSource,
    place: BuildPlace,
    plan: Plan,
    sidecar: EngineSidecar,
    prove: Prove | None,
    stages: Stages,
    name: str,
) -> EngineSidecar:
    """Write the files of an engine, proven before they appear; return the sidecar with the proof.

    Raises:
        GateError: it failed its proof; nothing was written.
    """
    with adding_files(place.folder) as partial:
        path = plan_path_of(partial, source.precision, source.graph)
        path.write_bytes(plan.data)
        sidecar_path_of(path).write_text(sidecar.to_json(), encoding="utf-8")
        if prove is not None:
            layers = describe_layers(place.trt, create_logger(place.trt), plan.data)
            if layers is not None:
                (partial / layers_name_of(source.precision, source.graph)).write_text(
                    layers, encoding="utf-8"
                )
            with stages.stage(f"prove {name}") as advance:
                result = prove(path, sidecar, advance)
            if not result.passed:
                raise GateError(_failed(bundle, name, result))
            sidecar = dataclasses.replace(sidecar, proof=result.to_dict())
        sidecar = seal(sidecar)
        sidecar_path_of(path).write_text(sidecar.to_json(), encoding="utf-8")
        if plan.timing_cache is not None:
            (partial / TIMING_CACHE_NAME).write_bytes(plan.timing_cache)
    return sidecar


def _count_shared_bytes() -> int | None:
    gpu = query_gpu()
    if gpu is None or not gpu.integrated:
        return None
    cuda = Cuda()
    with cuda.current_device():
        return cuda.memory()[1]


def _failed(bundle: Bundle, name: str, proof: EngineProof) -> str:
    return (
        f"the {name} of {bundle.path} failed its proof and was deleted: {len(proof.failures)} "
        f"findings, first {proof.failures[0]}; try another precision, and report it with the output of "
        "`edge-asr doctor`"
    )
