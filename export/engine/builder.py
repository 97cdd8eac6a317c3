"""`edge-asr build` as a function: bundle -> TensorRT engine for this device, proven, beside its model.

This file says what is built and how it is proven: the offline graph (model.py), against the fp32 model
(proof.py). put.py does it. onnx is needed, PyTorch is not.
What this file does not do: the engine of the streaming graph (streams.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Artifact, Precision
from edge_asr.errors import ManifestError, require
from edge_asr.export.engine.cases import build_engine_cases
from edge_asr.export.engine.files import check_place
from edge_asr.export.engine.graph_proof import prove_int8_graph
from edge_asr.export.engine.model import make_engine_model
from edge_asr.export.engine.opset17 import OPSET, make_opset17_copy
from edge_asr.export.engine.plan import SearchOptions, check_parses, is_strongly_typed
from edge_asr.export.engine.profiles import DEFAULT_BATCH, DEFAULT_PROFILE_SECONDS, build_profiles
from edge_asr.export.engine.proof import EngineProof, prove_engine
from edge_asr.export.engine.put import BuildOptions, BuildPlace, EngineReport, EngineSource, put_engine
from edge_asr.manifest import Utterance, read_manifest
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.stages import Progress, StageProgress, Stages
from edge_asr.runtime.engine.api import create_logger
from edge_asr.runtime.engine.backend import TensorRTBackend
from edge_asr.runtime.engine.lookup import artifact_of
from edge_asr.runtime.engine.sidecar import EngineProfile, EngineSidecar, Flavor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.windows import OVERLAP_S

OPSET_17 = (
    f"this TensorRT has no strongly typed networks (8.6), so it was given a copy of the model at opset "
    f"{OPSET}; edge-asr has not yet been run on 8.6"
)


def default_precisions(bundle: Bundle) -> list[Precision]:
    """List what to build by default: the smaller precisions that the bundle has, else fp32."""
    have = [artifact.precision for artifact in bundle.info.artifacts]
    return [precision for precision in have if precision != "fp32"] or have


def build_engine(
    bundle: Bundle,
    precision: Precision,
    *,
    flavor: Flavor = "tensorrt",
    profile_seconds: Sequence[float] = DEFAULT_PROFILE_SECONDS,
    batch: Sequence[int] | None = None,
    workspace_mb: int | None = None,
    search: SearchOptions | None = None,
    attention_operator: bool = False,
    timing_cache: str | Path | None = None,
    clips: Sequence[str | Path] | None = None,
    manifest: str | Path | None = None,
    force: bool = False,
    progress: StageProgress | None = None,
) -> EngineReport:
    """Build the engine of one precision for this device, prove it there, and put it into the bundle.

    Args:
        bundle: a loaded bundle.
        precision: "fp32", "fp16" or "int8"; the bundle must have `artifact_of` it.
        profile_seconds: edges; each neighboring pair is one optimization profile.
        batch: smallest, best and largest batch; None is 1,1,8, and 1,1,1 where the GPU shares the processor's
            memory.
        flavor, workspace_mb, search, attention_operator, timing_cache, force: see `BuildOptions`.
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
    options = BuildOptions(
        flavor=flavor,
        workspace_mb=workspace_mb,
        timing_cache=timing_cache,
        force=force,
        search=search or SearchOptions(),
        attention_operator=attention_operator,
    )
    artifact, info = artifact_of(bundle, precision), bundle.info
    if batch is not None:
        build_profiles(info.features, profile_seconds, batch)  # its errors come before those of the device
    place = BuildPlace.find(bundle, flavor)
    place.check(options)
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
    longest = max(profile.max_frames for profile in profiles)
    typed = is_strongly_typed(place.trt)
    if not typed and artifact.opset > OPSET:
        notes.append(OPSET_17)

    def make_model(wide_softmax: bool) -> bytes:
        if not typed:
            own = bundle.artifact_behind(precision)  # which says where half is safe, if there is one in half
            original = (bundle.path / own.file).read_bytes()
            return make_opset17_copy(original, info.features.n_mels) if own.opset > OPSET else original
        operator = attention_operator and not wide_softmax
        forms = {"wide_softmax": wide_softmax, "attention_operator": operator}
        content: bytes = make_engine_model(bundle, precision, max_frames=longest, **forms).SerializeToString()
        return content

    if typed and precision == "int8":
        check_parses(place.trt, create_logger(place.trt), make_model(False), artifact.file)
        with stages.stage("prove int8 graph") as advance:
            waveforms = _load_waveforms(bundle, clips) if proof is None else proof.waveforms
            prove_int8_graph(bundle, waveforms, longest, advance)
    if (note := _window_note(bundle, profiles)) is not None:
        notes.append(note)
    source = EngineSource(
        artifact=artifact,
        precision=precision,
        make_model=make_model,
        profiles=profiles,
        notes=tuple(notes),
    )
    prove = None if proof is None else functools.partial(proof.run, bundle)
    return put_engine(bundle, source, place, options, prove, stages)


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
            waveforms=_load_waveforms(bundle, clips),
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
                    reference_key=f"{self.reference.sha256} {reference.runtime}",
                    progress=progress,
                )
            finally:
                reference.close()
        finally:
            engine.close()


def _load_waveforms(bundle: Bundle, clips: Sequence[str | Path] | None) -> dict[str, npt.NDArray[np.float32]]:
    return load_clips(find_clips(clips), bundle.info.features.sample_rate)


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
