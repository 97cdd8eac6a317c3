"""`edge-asr export` as a function: checkpoint -> ONNX, streaming, FP16, INT8, all proven -> bundle.

This file only orders the steps; each graph has its own file. The bundle appears in its place complete and
proven, or not at all.
What this file does not do: build engines (engine/builder.py), add INT8 to an existing bundle
(edge_asr.calibration.pipeline).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import edge_asr
from edge_asr.atomic import check_target, replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER
from edge_asr.bundle.manifest import PRECISIONS, BundleInfo, Precision, StreamingInfo
from edge_asr.bundle.names import STREAM_NAME
from edge_asr.bundle.writer import write_manifest, write_model, write_token_files
from edge_asr.calibration.int8 import Int8Options
from edge_asr.checkpoints import load_any
from edge_asr.errors import ConfigError, GateError, require
from edge_asr.export.graphs import (
    ExportedGraphs,
    ExportOptions,
    Weights,
    make_graphs_of_float32,
    make_graphs_of_torch,
)
from edge_asr.export.onnx_export import DEFAULT_OPSET
from edge_asr.export.optimize import count_operators
from edge_asr.export.report import ExportReport, collect_versions
from edge_asr.export.streaming.plan import StreamingOptions, StreamingPlan, plan_streaming
from edge_asr.proof.cases import CasePlan, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.compare import summarize_step
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.report import file_sizes
from edge_asr.proof.self_test import add_self_test
from edge_asr.proof.stages import StageProgress, Stages

if TYPE_CHECKING:
    from edge_asr.checkpoints import Checkpoint


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    *,
    name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    int8: Int8Options | None = None,
    streaming: StreamingOptions | None = None,
    decoder: bool = True,
    weights: Weights = "fp32",
    opset: int = DEFAULT_OPSET,
    clips: Sequence[str | Path] | None = None,
    plan: CasePlan | None = None,
    force: bool = False,
    keep_failed: str | Path | None = None,
    progress: StageProgress | None = None,
) -> ExportReport:
    """Export a checkpoint to a bundle and prove it against the PyTorch model.

    Args:
        checkpoint: a folder, the name of an embedded model, or a loaded checkpoint.
        output: folder of the bundle; its parents are created.
        name: short name of the model in the bundle; None takes the name of the output folder.
        precisions: what to write besides "fp32", which is always written: "fp16", "int8".
        int8: how to quantize, for "int8"; None takes all defaults, on the embedded, synthetic speech. "fp16"
            uses its calibration speech too.
        streaming: whether and how to stream; None writes stream.onnx if the checkpoint was trained for it.
        decoder: whether to export the attention decoder of a checkpoint that has one.
        weights: how the fp32 file stores weights: "fp32", or "fp16" to store them in half the space (cast to
            float32 when loaded; proven against the float32 file by identical greedy text on the clips and a
            reported error).
        opset: ONNX opset, 18 to 22.
        clips: real recordings for the proof: sound files, folders, manifests; None takes the embedded
            samples.
        plan: how many other cases the proof tries.
        force: replace an existing bundle after success.
        keep_failed: folder for a bundle that failed its proof, marked `"verified": false`.
        progress: called as stages begin and advance.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: the output exists, or cannot be written.
        GateError: a comparison failed, or INT8 is over its budget; only `keep_failed` was written.
        AudioError, ConfigError: clips or options cannot be used.
        MissingDependencyError: torch, onnx, onnxscript, onnxsim or onnxruntime is not installed.
    """
    target, failed = Path(output), None if keep_failed is None else Path(keep_failed)
    _check_request(target, failed, precisions, weights, force=force)
    stages = Stages(progress)
    options = ExportOptions(
        name=name or target.absolute().name,
        precisions=tuple(precisions),
        weights=weights,
        opset=opset,
        int8=int8 or Int8Options(),
    )
    source = _load(checkpoint, streaming or StreamingOptions(), clips, plan, stages, decoder=decoder)
    graphs = make_graphs_of_torch(source.checkpoint, source.plan, source.inputs, options, stages)
    source = source.without_weights()  # gigabytes in a large model, and no longer needed
    graphs = make_graphs_of_float32(graphs, source.inputs, options, stages)
    destination = failed if graphs.failures else target
    report = None
    if destination is not None:
        with stages.stage("write"), replacing_folder(destination, BUNDLE_FOLDER, force=force) as folder:
            info = _write_files(folder, options.name, source, graphs)
            report = _make_report(folder, destination, info, source, graphs, stages)
            report.write(folder)
    if report is None or not report.verified:
        kept = "nothing was written" if destination is None else f"kept in {destination}"
        raise GateError(f"{graphs.failures[0]}; {kept}")
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The model that is exported.

    Attributes:
        checkpoint: the checkpoint, with the context of the offline graph.
        plan: what streams.
        clips: names of the real clips of the proof.
        inputs: those of the proof.
    """

    checkpoint: Checkpoint
    plan: StreamingPlan
    clips: tuple[str, ...]
    inputs: ProofInputs

    def without_weights(self) -> _Source:
        """Return a copy for the steps that need no PyTorch."""
        return dataclasses.replace(self, checkpoint=dataclasses.replace(self.checkpoint, state_dict={}))


def _check_request(
    target: Path, failed: Path | None, precisions: Sequence[str], weights: str, *, force: bool
) -> None:
    """Refuse impossible requests, before any work."""
    if weights not in get_args(Weights):
        raise ConfigError(f"weights is {weights!r}; it must be one of {', '.join(get_args(Weights))}")
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ConfigError(f"precision is {unknown[0]!r}; it must be one of {', '.join(PRECISIONS)}")
    for place in (target, failed):
        if place is not None:
            check_target(place, BUNDLE_FOLDER, force=force)
    for_int8 = ("jiwer", "matplotlib") if "int8" in precisions else ()
    for module in ("torch", "onnx", "onnxscript", "onnxsim", *for_int8):
        require(module, extra="export")
    require("onnxruntime", extra="cpu")


def _load(
    checkpoint: str | Path | Checkpoint,
    streaming: StreamingOptions,
    clips: Sequence[str | Path] | None,
    plan: CasePlan | None,
    stages: Stages,
    *,
    decoder: bool,
) -> _Source:
    """Read the checkpoint, plan the stream, and make the inputs of the proof."""
    with stages.stage("load"):
        loaded = load_any(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint
        loaded = loaded if decoder else loaded.without_decoder()
        planned = plan_streaming(loaded, streaming)
        loaded = dataclasses.replace(loaded, model_config=planned.offline)
        frames = loaded.model_config.output_frames
        waveforms = load_clips(find_clips(clips), loaded.features.sample_rate)
        cases = build_cases(waveforms, loaded.features, frames, plan)
    inputs = ProofInputs(
        cases=cases, features=loaded.features, vocabulary=loaded.vocabulary, output_frames=frames
    )
    return _Source(checkpoint=loaded, plan=planned, clips=tuple(waveforms), inputs=inputs)


def _write_files(folder: Path, name: str, source: _Source, graphs: ExportedGraphs) -> BundleInfo:
    """Write all files of a bundle except its reports."""
    checkpoint, config = source.checkpoint, source.checkpoint.model_config
    features, vocabulary = checkpoint.features, checkpoint.vocabulary
    artifacts = [write_model(folder, graphs.shipped, "fp32", graphs.weights)]
    if graphs.fp16 is not None:
        artifacts.append(write_model(folder, graphs.fp16.model, "fp16", "fp16"))
    if graphs.int8 is not None:
        artifacts.append(graphs.int8.write(folder))
    streaming = None
    if graphs.stream is not None:
        model, stored = graphs.stream.model, graphs.stream_stored
        if stored is not None:
            model = stored.model
        weights: Weights = "fp32" if stored is None else "fp16"
        artifact = write_model(folder, model, "fp32", weights, file=STREAM_NAME)
        int8 = None if graphs.stream_int8 is None else graphs.stream_int8.write(folder)
        streaming = StreamingInfo(artifact=artifact, geometry=graphs.stream.geometry, int8=int8)
    write_token_files(folder, vocabulary, features.n_mels, config.subsampling_factor)
    info = BundleInfo(
        name=name,
        family="conformer-ctc",
        preset=config.size,
        n_parameters=graphs.float32.n_parameters,
        features=features,
        subsampling_factor=config.subsampling_factor,
        first_output_frames=config.output_frames.first,
        vocabulary_kind=vocabulary.kind,
        vocabulary_size=len(vocabulary),
        blank_id=vocabulary.blank_id,
        artifacts=tuple(artifacts),
        streaming=streaming,
        decoder=None if graphs.decoder is None else graphs.decoder.write(folder),
        source={"checkpoint": checkpoint.path.name, "provenance": checkpoint.provenance},
        verification={"steps": [summarize_step(step) for step in graphs.steps]},
        verified=not graphs.failures,
        toolkit_version=edge_asr.__version__,
    )
    write_manifest(folder, info)
    return add_self_test(folder) if info.verified else info


def _make_report(
    folder: Path,
    destination: Path,
    info: BundleInfo,
    source: _Source,
    graphs: ExportedGraphs,
    stages: Stages,
) -> ExportReport:
    """Describe what the export did, for a folder that lacks only the reports."""
    model, *_ = info.artifacts
    return ExportReport(
        name=info.name,
        output=destination,
        verified=info.verified,
        source=info.source,
        n_parameters=info.n_parameters,
        weights=model.weights,
        opset=model.opset,
        ir_version=model.ir_version,
        sizes_bytes=file_sizes(folder),
        operators={
            "exported": graphs.float32.exported_operators,
            "shipped": count_operators(graphs.shipped),
        },
        clips=source.clips,
        steps=graphs.steps,
        timings_s={**stages.timings_s, "total": stages.elapsed_s()},
        versions=collect_versions(),
        fp16=None if graphs.fp16 is None else graphs.fp16.proof,
        int8=None if graphs.int8 is None else graphs.int8.result.to_dict(),
        int8_stream=None if graphs.stream_int8 is None else graphs.stream_int8.result.to_dict(),
        int8_decoder=(
            None if graphs.decoder is None or graphs.decoder.int8 is None else graphs.decoder.int8.to_dict()
        ),
        streaming=None if info.streaming is None else info.streaming.geometry,
        not_streaming=source.plan.reason,
    )
