"""The engine of a bundle's streaming graph: built for fixed numbers of streams, and proven chunk by chunk.

stream.onnx in float32 is the source of "fp32" and "fp16", stream.int8.onnx that of "int8" (model.py). The
proof runs whole clips as streams, one and as many at once as each profile takes, with pauses, on the device
with its caches there, against stream.onnx on onnxruntime's CPU.
What this file does not do: build, judge or write anything by itself (put.py, proof.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import Precision
from edge_asr.errors import EngineError
from edge_asr.export.engine.cases import Speech
from edge_asr.export.engine.files import check_place
from edge_asr.export.engine.graph_proof import prove_stream_graph
from edge_asr.export.engine.model import make_engine_model
from edge_asr.export.engine.plan import is_strongly_typed
from edge_asr.export.engine.profiles import DEFAULT_STREAMS, build_stream_profiles
from edge_asr.export.engine.proof import EngineProof, prove_engine
from edge_asr.export.engine.put import BuildOptions, BuildPlace, EngineReport, EngineSource, put_engine
from edge_asr.proof.cases import CasePlan, ProofCase, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.stages import Progress, StageProgress, Stages
from edge_asr.proof.streams import LockstepStreams, stream_cases
from edge_asr.runtime.engine.lookup import artifact_of
from edge_asr.runtime.engine.sidecar import EngineSidecar
from edge_asr.runtime.engine.stream_runner import EngineSteps
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend
from edge_asr.runtime.step_batching import Arrays
from edge_asr.runtime.streaming_model import StreamingModel

F32Array = npt.NDArray[np.float32]

_MAX_CLIP_S = 8.0
_TOGETHER_S = 3.0
_TOGETHER = "padded"


def build_stream_engine(
    bundle: Bundle,
    precision: Precision,
    options: BuildOptions | None = None,
    *,
    streams: Sequence[int] | None = None,
    clips: Sequence[str | Path] | None = None,
    progress: StageProgress | None = None,
) -> EngineReport:
    """Build the engine of a bundle's streaming graph for this device, prove it, and put it into the bundle.

    Args:
        bundle: a loaded bundle.
        precision: "fp32", "fp16" or "int8".
        options: how to build.
        streams: numbers of streams that run at once, one optimization profile each; None is 1, 8, 32 and 64,
            and 1 where the GPU shares the processor's memory.
        clips: real recordings for the proof; the embedded samples when None.
        progress: called as stages begin and advance.

    Raises:
        As `build_engine`. The bundle may lack a streaming graph, or that precision of it.
    """
    options = options or BuildOptions()
    geometry, artifact = bundle.streaming.geometry, artifact_of(bundle, precision, "stream")
    place = BuildPlace.find(bundle, options.flavor)
    place.check(options)
    if not is_strongly_typed(place.trt):
        raise EngineError(
            f"TensorRT {place.version} has no strongly typed networks, which the engine of a stream needs; "
            "partials run on onnxruntime here, or update JetPack"
        )
    if streams is None:
        streams = DEFAULT_STREAMS if place.shared_bytes is None else DEFAULT_STREAMS[:1]
    profiles = build_stream_profiles(geometry, streams)
    check_place(bundle, place.folder, precision, "stream", force=options.force)
    waveforms = load_clips(find_clips(clips), bundle.info.features.sample_rate) if place.can_run else {}
    stages = Stages(progress)
    if precision != "fp32" and waveforms:
        with stages.stage(f"prove {precision} stream's graph"):
            prove_stream_graph(bundle, precision, waveforms)

    def make_model(wide_softmax: bool) -> bytes:
        operator = options.attention_operator and not wide_softmax
        forms = {"wide_softmax": wide_softmax, "attention_operator": operator}
        content: bytes = make_engine_model(bundle, precision, stream=True, **forms).SerializeToString()
        return content

    source = EngineSource(
        artifact=artifact,
        precision=precision,
        graph="stream",
        make_model=make_model,
        profiles=profiles,
        geometry=geometry,
    )

    def prove(path: Path, sidecar: EngineSidecar, advance: Progress) -> EngineProof:
        return prove_stream_engine(bundle, path, sidecar, waveforms, progress=advance)

    return put_engine(bundle, source, place, options, prove if place.can_run else None, stages)


def prove_stream_engine(
    bundle: Bundle,
    plan: Path,
    sidecar: EngineSidecar,
    waveforms: Mapping[str, F32Array],
    *,
    progress: Progress | None = None,
) -> EngineProof:
    """Compare a plan, which is not in its place yet, with stream.onnx on onnxruntime's CPU.

    Raises:
        EngineError, BackendError: the plan does not load or run.
        GateError: the reference failed.
    """
    info, streaming = bundle.info, bundle.streaming
    shape = {"n_mels": info.features.n_mels, "vocab_size": info.vocabulary_size}
    steps = EngineSteps(
        bundle, sidecar.precision, flavor=sidecar.flavor, allow_unverified=True, engine=(plan, sidecar)
    )
    engine = StreamingModel(steps, streaming.geometry, **shape)
    try:
        engine.warm_up(max(profile.max_batch for profile in sidecar.profiles))
        backend = OnnxRuntimeBackend(
            bundle.path / streaming.artifact.file, precision=streaming.artifact.precision
        )
        reference = StreamingModel(backend, streaming.geometry, **shape)
        try:
            return prove_engine(
                _Streams(_Pausing(engine), sidecar.flavor),
                _Streams(reference, "cpu"),
                build_stream_cases(waveforms, bundle, sidecar),
                precision=sidecar.precision,
                info=info,
                vocabulary=bundle.vocabulary,
                reference_key=f"{streaming.artifact.sha256} stream {backend.runtime}",
                progress=progress,
            )
        finally:
            reference.close()
    finally:
        engine.close()


def build_stream_cases(
    waveforms: Mapping[str, F32Array], bundle: Bundle, sidecar: EngineSidecar
) -> list[ProofCase]:
    """Build the cases of the export's proof of a stream, and as many streams at once as a profile takes."""
    info, geometry = bundle.info, bundle.streaming.geometry
    frame_s = info.features.hop_length / info.features.sample_rate
    sizes = [profile.max_batch for profile in sidecar.profiles]
    plan = CasePlan(random_lengths=2, max_random_s=_MAX_CLIP_S, max_batch=min(max(sizes), 8))
    cases = stream_cases(build_cases(waveforms, info.features, info.output_frames, plan), geometry)
    speech = Speech(waveforms, info.features)
    longest = int(_TOGETHER_S / frame_s)
    for n_streams in (n for n in sizes if n > 1):
        # They end at different steps: the rows of those that have ended are empty.
        lengths = np.linspace(geometry.first_window_frames, longest, n_streams).astype(int)
        rows = tuple(speech.frames(int(n)) for n in lengths)
        cases += [
            ProofCase(family=_TOGETHER, name=f"{n_streams} streams, padding {p}", features=rows, padding=p)
            for p in ("zeros", "noise")
        ]
    return cases


class _Pausing:
    """A streaming model with a pause before every second step: a run of empty windows, which changes nothing.

    The runtime relies on that: the streams of a profile that have nothing to hear pass through the others'
    steps.
    """

    def __init__(self, model: StreamingModel) -> None:
        self._model = model
        self._n_steps = 0
        self.geometry, self.precision, self.close = model.geometry, model.precision, model.close
        self.initial_caches = model.initial_caches

    def run_step(
        self, features: F32Array, feature_lens: npt.NDArray[np.int64], caches: Arrays
    ) -> tuple[F32Array, npt.NDArray[np.int64], Arrays]:
        """See `StreamingModel.run_step`."""
        self._n_steps += 1
        if self._n_steps % 2 == 0:
            caches = self._model.run_step(features, np.zeros_like(feature_lens), caches)[2]
        return self._model.run_step(features, feature_lens, caches)


@dataclass(frozen=True, slots=True)
class _Streams:
    """A streaming model as a `Backend`: the rows of a batch are streams that begin together."""

    model: StreamingModel | _Pausing
    name: str
    num_threads: int | None = None
    max_frames: int | None = None

    @property
    def precision(self) -> str:
        return self.model.precision

    def log_probs(self, features: F32Array, feature_lens: npt.NDArray[np.int64]) -> F32Array:
        return LockstepStreams(self.model).log_probs(features, feature_lens)

    def close(self) -> None:
        self.model.close()
