"""`edge-asr build` as a function: bundle -> TensorRT engine for this device, proven, beside its model.

This file only orders the steps: parse and build (plan.py), write (files.py), prove (proof.py). The plan
appears in its place proven, or not at all. If no GPU can run it (TensorRT-RTX builds without one), its
sidecar says so and the runtime refuses it. An older engine stays until the new one is written. onnx and
PyTorch are not needed, except for TensorRT 8.6, which requires a copy of the model at opset 17.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import edge_asr
from edge_asr.atomic import write_file
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Artifact, Precision
from edge_asr.bundle.names import ENGINES_FOLDER
from edge_asr.errors import ConfigError, EngineError, GateError, ManifestError, require
from edge_asr.export.engine.cases import build_engine_cases
from edge_asr.export.engine.files import TIMING_CACHE_NAME, adding_files, check_place
from edge_asr.export.engine.opset17 import check_opset17, convert_to_opset17
from edge_asr.export.engine.plan import is_strongly_typed, make_plan
from edge_asr.export.engine.profiles import DEFAULT_BATCH, DEFAULT_PROFILE_SECONDS, build_profiles
from edge_asr.export.engine.proof import EngineProof, prove_engine
from edge_asr.manifest import Utterance, read_manifest
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.stages import Progress, StageProgress, Stages
from edge_asr.runtime.engine.api import create_logger, load_tensorrt, version_of
from edge_asr.runtime.engine.backend import TensorRTBackend
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
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.windows import OVERLAP_S
from edge_asr.stream_geometry import StreamingGeometry

_MOST_SHARED_WORKSPACE_MB = 2048
_MAX_OPSET_8_6 = 17
NOT_RUN = (
    "the plan was built but not run, because this machine has no GPU; so it is not proven, and the runtime "
    "refuses it. For a proven plan, build on the device that will run it: "
)
OPSET_17 = (
    f"this TensorRT has no strongly typed networks (8.6), so it was given a copy of the model at opset "
    f"{_MAX_OPSET_8_6}; edge-asr has not yet been run on 8.6"
)
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


def default_precisions(bundle: Bundle) -> list[Precision]:
    """List what to build by default: the smaller precisions that the bundle has, else fp32."""
    have = [artifact.precision for artifact in bundle.info.artifacts]
    return [precision for precision in have if precision != "fp32"] or have


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build any engine.

    Attributes:
        flavor: "tensorrt", or "tensorrt-rtx".
        workspace_mb: limit of the builder's scratch memory, MiB; None for TensorRT's own, which is all of a
            GPU, and on a GPU that shares the processor's memory for a quarter of it, at most 2048.
        timing_cache: a file to read and to write back, in addition to the copy beside the engine.
        force: replace an existing engine, once the new one is proven.

    Raises:
        ConfigError: an option is out of range.
    """

    flavor: Flavor = "tensorrt"
    workspace_mb: int | None = None
    timing_cache: str | Path | None = None
    force: bool = False

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
        model: content for the parser, which may be a rewritten copy of the file.
        profiles: shapes to serve.
        geometry: that of a streaming graph.
        notes: for the user.
    """

    artifact: Artifact
    precision: Precision
    graph: Graph = "model"
    model: bytes
    profiles: tuple[EngineProfile, ...]
    geometry: StreamingGeometry | None = None
    notes: tuple[str, ...] = ()


def build_engine(
    bundle: Bundle,
    precision: Precision,
    *,
    flavor: Flavor = "tensorrt",
    profile_seconds: Sequence[float] = DEFAULT_PROFILE_SECONDS,
    batch: Sequence[int] | None = None,
    workspace_mb: int | None = None,
    timing_cache: str | Path | None = None,
    clips: Sequence[str | Path] | None = None,
    manifest: str | Path | None = None,
    force: bool = False,
    progress: StageProgress | None = None,
) -> EngineReport:
    """Build the engine of one precision for this device, prove it there, and put it into the bundle.

    Args:
        bundle: a loaded bundle.
        precision: "fp32", "fp16" or "int8"; the bundle must have that ONNX file.
        profile_seconds: edges; each neighboring pair is one optimization profile.
        batch: smallest, best and largest batch; None is 1,1,8, and 1,1,1 where the GPU shares the processor's
            memory.
        flavor, workspace_mb, timing_cache, force: see `BuildOptions`.
        clips: real recordings for the proof: sound files, folders, manifests; the embedded samples when None.
        manifest: speech with its text; the proof then compares word errors too.
        progress: called as stages begin and advance.

    Raises:
        MissingDependencyError: TensorRT, or onnxruntime for the proof, is not installed.
        EngineError: the model, a profile or the destination is refused, or the build failed.
        GateError: the engine failed its proof and was deleted.
        BundleError: the bundle lacks the precision, or the fp32 model that a proof needs.
        ConfigError, ManifestError, AudioError: options, manifest or clips cannot be used.
    """
    options = BuildOptions(flavor=flavor, workspace_mb=workspace_mb, timing_cache=timing_cache, force=force)
    artifact, info = bundle.artifact(precision), bundle.info
    if batch is not None:
        build_profiles(info.features, profile_seconds, batch)  # its errors come before those of the device
    place = BuildPlace.find(bundle, flavor)
    notes = []
    if batch is None:
        batch = DEFAULT_BATCH if place.shared_bytes is None else (1, 1, 1)
    if place.shared_bytes is not None:
        notes.append(
            f"GPU and processor share {place.shared_bytes / 2**30:.1f} GiB: batches of up to {batch[-1]}, "
            f"{place.workspace_mb(workspace_mb)} MiB for the builder (--batch, --workspace-mb)"
        )
    profiles = build_profiles(info.features, profile_seconds, batch, rule=info.output_frames)
    check_place(bundle, place.folder, precision, force=force)
    proof = _ProofInputs.load(bundle, clips, manifest) if place.can_run else None
    stages = Stages(progress)
    model = bundle.artifact_path(precision).read_bytes()
    if not is_strongly_typed(place.trt) and artifact.opset > _MAX_OPSET_8_6:
        with stages.stage(f"write opset {_MAX_OPSET_8_6}"):
            model = _opset_17_copy(model, info.features.n_mels)
        notes.append(OPSET_17)
    if (note := _window_note(bundle, profiles)) is not None:
        notes.append(note)
    source = EngineSource(
        artifact=artifact, precision=precision, model=model, profiles=profiles, notes=tuple(notes)
    )
    prove = None if proof is None else functools.partial(proof.run, bundle)
    return put_engine(bundle, source, place, options, prove, stages)


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
    with stages.stage(f"build {name}") as advance:
        plan = make_plan(
            place.trt,
            create_logger(place.trt),
            source.model,
            source.artifact.file,
            precision=precision,
            profiles=source.profiles,
            n_mels=bundle.info.features.n_mels,
            geometry=source.geometry,
            workspace_mb=workspace_mb,
            timing_cache=cache_path.read_bytes() if cache_path.is_file() else b"",
            progress=advance,
        )
    if options.timing_cache is not None:
        if plan.timing_cache is None:
            notes.append(NO_TIMING_CACHE)
        else:  # before the proof, because timings cost time and do not depend on whether the engine is right
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
        flags=plan.flags,
        workspace_mb=workspace_mb,
        plan_sha256=hashlib.sha256(plan.data).hexdigest(),
        plan_size_bytes=len(plan.data),
        build_time_s=round(plan.build_time_s, 3),
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        toolkit_version=edge_asr.__version__,
        proof=None,
    )
    with adding_files(folder) as partial:
        path = plan_path_of(partial, precision, source.graph)
        path.write_bytes(plan.data)
        sidecar_path_of(path).write_text(sidecar.to_json(), encoding="utf-8")
        if prove is not None:
            with stages.stage(f"prove {name}") as advance:
                result = prove(path, sidecar, advance)
            if not result.passed:
                raise GateError(_failed(bundle, name, result))
            sidecar = dataclasses.replace(sidecar, proof=result.to_dict())
        sidecar = seal(sidecar)
        sidecar_path_of(path).write_text(sidecar.to_json(), encoding="utf-8")
        if plan.timing_cache is not None:
            (partial / TIMING_CACHE_NAME).write_bytes(plan.timing_cache)
    report_path = plan_path_of(folder, precision, source.graph)
    return EngineReport(plan=report_path, sidecar=sidecar, notes=tuple(notes))


def _count_shared_bytes() -> int | None:
    gpu = query_gpu()
    if gpu is None or not gpu.integrated:
        return None
    cuda = Cuda()
    with cuda.current_device():
        return cuda.memory()[1]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _ProofInputs:
    """What a proof needs, read before the long build so that a wrong path is reported at once."""

    reference: Artifact
    waveforms: dict[str, npt.NDArray[np.float32]]
    utterances: tuple[Utterance, ...]

    @classmethod
    def load(
        cls, bundle: Bundle, clips: Sequence[str | Path] | None, manifest: str | Path | None
    ) -> _ProofInputs:
        require("onnxruntime", extra="cpu")
        utterances: tuple[Utterance, ...] = ()
        if manifest is not None:
            require("jiwer", extra="eval")
            listed = read_manifest(manifest)
            missing = [u.audio_path for u in listed.utterances if not u.audio_path.is_file()]
            if listed.bad_rows or missing or not listed.utterances:
                raise ManifestError(
                    f"{manifest} has {len(listed.utterances)} usable rows, {len(listed.bad_rows)} others and "
                    f"{len(missing)} whose sound is missing; fix it (see `edge-asr evaluate`)"
                )
            utterances = listed.utterances
        return cls(
            reference=bundle.artifact("fp32"),
            waveforms=load_clips(find_clips(clips), bundle.info.features.sample_rate),
            utterances=utterances,
        )

    def run(self, bundle: Bundle, plan: Path, sidecar: EngineSidecar, progress: Progress) -> EngineProof:
        """Run the plan, which is not in its place yet, against the fp32 model."""
        engine = TensorRTBackend(
            bundle, sidecar.precision, flavor=sidecar.flavor, allow_unverified=True, engine=(plan, sidecar)
        )
        try:
            engine.warm_up([profile.opt_frames for profile in sidecar.profiles])
            reference = OnnxRuntimeBackend(bundle.path / self.reference.file, precision="fp32")
            try:
                return prove_engine(
                    engine,
                    reference,
                    build_engine_cases(self.waveforms, bundle.info, sidecar.profiles),
                    precision=sidecar.precision,
                    info=bundle.info,
                    vocabulary=bundle.vocabulary,
                    utterances=self.utterances,
                    longest_frames=max(profile.max_frames for profile in sidecar.profiles),
                    progress=progress,
                )
            finally:
                reference.close()
        finally:
            engine.close()


def _opset_17_copy(model: bytes, n_mels: int) -> bytes:
    onnx = require("onnx", extra="export")
    original = onnx.load_from_string(model)
    converted = convert_to_opset17(original)
    check_opset17(original, converted, n_mels)
    content: bytes = converted.SerializeToString()
    return content


def _window_note(bundle: Bundle, profiles: Sequence[EngineProfile]) -> str | None:
    features = bundle.info.features
    longest_s = max(profile.max_frames for profile in profiles) * features.hop_length / features.sample_rate
    shortest_window_s = 2 * OVERLAP_S
    if longest_s >= shortest_window_s:
        return None
    return (
        f"the longest profile takes {longest_s:g} s; `edge-asr transcribe` needs pieces of "
        f"at least {shortest_window_s:g} s and will refuse this engine"
    )


def _failed(bundle: Bundle, name: str, proof: EngineProof) -> str:
    return (
        f"the {name} of {bundle.path} failed its proof and was deleted: {len(proof.failures)} "
        f"findings, first {proof.failures[0]}; try another precision, and report it with the output of "
        "`edge-asr doctor`"
    )
