"""`edge-asr export` as a function: checkpoint -> ONNX, streaming, FP16, INT8, all proven -> bundle.

Only the order of things is here; each stage has its file. The bundle appears at its place complete
and proven, or not at all. Engines start from the bundle (engine_builder.py), and INT8 for a bundle that
exists is edge_asr.calibration.pipeline's.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import edge_asr
from edge_asr.atomic import check_target, replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER
from edge_asr.bundle.manifest import PRECISIONS, Artifact, BundleInfo, Precision, StreamingInfo
from edge_asr.bundle.names import STREAM_NAME
from edge_asr.bundle.writer import onnx_metadata, write_manifest, write_model, write_token_files
from edge_asr.errors import ConfigError, GateError, require
from edge_asr.export.onnx_export import DEFAULT_OPSET, export_onnx
from edge_asr.export.optimize import count_operators, set_metadata, simplify_graph
from edge_asr.export.prover import ExportRun, Prover
from edge_asr.export.report import ExportReport, collect_versions
from edge_asr.export.streaming.graph import make_stream_graph, stream_metadata
from edge_asr.export.streaming.plan import StreamingOptions, plan_streaming
from edge_asr.export.streaming.proof import prove_stream, stream_cases
from edge_asr.graph.check import check_graph
from edge_asr.graph.weightless import return_memory
from edge_asr.graph.weights import store_weights_as_float16
from edge_asr.proof.cases import CasePlan, ProofCase, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.compare import ProofStep, summarize_step
from edge_asr.proof.stages import StageProgress

if TYPE_CHECKING:
    import onnx

    from edge_asr.calibration.int8 import Int8Options, Int8Result
    from edge_asr.checkpoints import Checkpoint
    from edge_asr.export.fp16.proof import Fp16Proof
    from edge_asr.model import ConformerConfig
    from edge_asr.stream_geometry import StreamingGeometry

Weights = Literal["fp32", "fp16"]


def export_bundle(
    checkpoint: str | Path | Checkpoint,
    output: str | Path,
    *,
    name: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    int8: Int8Options | None = None,
    streaming: StreamingOptions | None = None,
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
        name: short name of the model in the bundle; the output folder's name when None.
        precisions: what to write beside "fp32", which is always there: "fp16", "int8".
        int8: how to quantize, for "int8"; None is all defaults, on the embedded, synthetic speech. Its
            calibration speech serves "fp16" too.
        streaming: whether and how to stream; None writes stream.onnx when the checkpoint was trained for it.
        weights: of the fp32 file: "fp32", or "fp16" to store them in half the space (cast to float32 when
            loaded; proven against the float32 file by identical greedy text on the clips and a reported
            error).
        opset: ONNX opset, 18 to 22.
        clips: real recordings for the proof: sound files, folders, manifests; the embedded samples when None.
        plan: how many other cases the proof tries.
        force: replace an existing bundle, after success.
        keep_failed: folder for a bundle that failed its proof, marked `"verified": false`.
        progress: called as stages begin and advance.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: the output exists, or cannot be written.
        GateError: a comparison failed, or INT8 is over its budget; only `keep_failed` was written.
        AudioError, ConfigError: clips or options that cannot be used.
        MissingDependencyError: torch, onnx, onnxscript, onnxsim or onnxruntime is not installed.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights is {weights!r}; it must be one of {', '.join(get_args(Weights))}")
    unknown = [precision for precision in precisions if precision not in PRECISIONS]
    if unknown:
        raise ConfigError(f"precision is {unknown[0]!r}; it must be one of {', '.join(PRECISIONS)}")
    target = Path(output)
    check_target(target, BUNDLE_FOLDER, force=force)
    if keep_failed is not None:
        check_target(Path(keep_failed), BUNDLE_FOLDER, force=force)
    for module in ("torch", "onnx", "onnxscript", "onnxsim"):
        require(module, extra="export")
    require("onnxruntime", extra="cpu")
    if "int8" in precisions:
        from edge_asr.calibration.bundle_files import describe_int8, write_int8

        for module in ("jiwer", "matplotlib"):
            require(module, extra="export")
    started = time.perf_counter()
    run = ExportRun(progress)
    name = name or target.absolute().name
    with run.stage("load"):
        loaded = _load(checkpoint)
        streaming_plan = plan_streaming(loaded, streaming or StreamingOptions())
        loaded = dataclasses.replace(loaded, model_config=streaming_plan.offline)
        config, features, vocabulary = loaded.model_config, loaded.features, loaded.vocabulary
        model = loaded.build_model()
        n_parameters = sum(p.numel() for p in model.parameters())
        waveforms = load_clips(find_clips(clips), features.sample_rate)
    with run.stage("rewrite"):
        from edge_asr.export.inference_form import to_inference_form  # imports torch

        rewritten = to_inference_form(model)
    with run.stage("export"):
        exported = export_onnx(rewritten, features.n_mels, opset=opset)
        exported_operators = count_operators(exported)
    # Of a large model each copy is half a gigabyte: what is no longer needed goes.
    del rewritten
    cases = build_cases(waveforms, features, config.output_frames, plan)
    prover = Prover(run, cases, features, vocabulary, config.output_frames, int8)
    prover.run_reference(model)
    del model
    return_memory(exported)
    prover.prove_export(exported)
    with run.stage("simplify"):
        simplified = simplify_graph(exported, features.n_mels)
        set_metadata(simplified, onnx_metadata(name, features, vocabulary, config.subsampling_factor))
        del exported
        return_memory(simplified)
    with run.stage("check"):
        check_graph(simplified)
    prover.prove_simplified(simplified)
    stream = None
    if streaming_plan.stream is not None and all(step.passed for step in run.steps):
        stream = _export_stream(run, loaded, streaming_plan.stream, cases, opset, name)
    loaded = dataclasses.replace(loaded, state_dict={})  # what is left to do needs no PyTorch
    return_memory(simplified)
    shipped = simplified
    if weights == "fp16" and all(step.passed for step in run.steps):
        with run.stage("store weights as fp16"):
            shipped = store_weights_as_float16(simplified)
            check_graph(shipped)
        prover.prove_weights(shipped)
    half, quantized = None, None
    if all(step.passed for step in run.steps):
        if "fp16" in precisions:
            half = prover.prove_half(simplified)
        if "int8" in precisions and not _failures(run.steps, half, None):
            quantized = prover.prove_int8(simplified)
    failures = _failures(run.steps, half, quantized)
    verified = not failures
    destination = target if verified else None if keep_failed is None else Path(keep_failed)
    if destination is not None:
        with run.stage("write"), replacing_folder(destination, BUNDLE_FOLDER, force=force) as folder:
            artifacts = [
                write_model(folder, shipped, "fp32", "fp16" if shipped is not simplified else "fp32")
            ]
            if half is not None:
                artifacts.append(write_model(folder, half[0], "fp16", "fp16"))
            if quantized is not None:
                artifacts.append(write_int8(folder, quantized, simplified.ByteSize()))
            write_token_files(folder, vocabulary, features.n_mels, config.subsampling_factor)
            info = _bundle_info(name, loaded, n_parameters, artifacts, run.steps, verified)
            if stream is not None:
                artifact = write_model(folder, stream[0], "fp32", "fp32", file=STREAM_NAME)
                info = dataclasses.replace(
                    info, streaming=StreamingInfo(artifact=artifact, geometry=stream[1])
                )
            write_manifest(folder, info)
            run.timings_s["total"] = time.perf_counter() - started
            report = ExportReport(
                name=name,
                output=destination,
                verified=verified,
                source=info.source,
                n_parameters=info.n_parameters,
                weights=artifacts[0].weights,
                opset=artifacts[0].opset,
                ir_version=artifacts[0].ir_version,
                sizes_bytes={p.name: p.stat().st_size for p in sorted(folder.iterdir())},
                operators={"exported": exported_operators, "shipped": count_operators(shipped)},
                clips=tuple(waveforms),
                steps=tuple(run.steps),
                timings_s=dict(run.timings_s),
                versions=collect_versions(),
                fp16=None if half is None else half[1],
                int8=None if quantized is None else describe_int8(quantized, simplified.ByteSize()),
                streaming=None if stream is None else stream[1],
                not_streaming=streaming_plan.reason,
            )
            report.write(folder)
    if not verified:
        kept = "nothing was written" if destination is None else f"kept in {destination}"
        raise GateError(f"{failures[0]}; {kept}")
    return report


def _failures(
    steps: Sequence[ProofStep], half: tuple[onnx.ModelProto, Fp16Proof] | None, quantized: Int8Result | None
) -> list[str]:
    """What failed, in sentences, in the order of the chain."""
    failures = [step.failure_message() for step in steps if not step.passed]
    if half is not None and not half[1].passed:
        failures.append(half[1].failure_message())
    if quantized is not None and quantized.failure is not None:
        failures.append(quantized.failure)
    return failures


def _load(checkpoint: str | Path | Checkpoint) -> Checkpoint:
    from edge_asr.checkpoints import load_any

    return load_any(checkpoint) if isinstance(checkpoint, (str, Path)) else checkpoint


def _export_stream(
    run: ExportRun,
    checkpoint: Checkpoint,
    config: ConformerConfig,
    cases: Sequence[ProofCase],
    opset: int,
    name: str,
) -> tuple[onnx.ModelProto, StreamingGeometry]:
    """The streaming graph of a checkpoint with the stream's context, and the steps of its proof in `run`."""
    from edge_asr.model.streamable import geometry_from_config
    from edge_asr.model.streaming import StreamingStep

    features, vocabulary = checkpoint.features, checkpoint.vocabulary
    geometry = geometry_from_config(config, features)
    model = dataclasses.replace(checkpoint, model_config=config).build_model()
    with run.stage("export: streaming"):
        graph = make_stream_graph(model, geometry, opset=opset)
        metadata = onnx_metadata(name, features, vocabulary, config.subsampling_factor)
        set_metadata(graph, {**metadata, **stream_metadata(geometry)})
    with run.stage("prove: streaming") as progress:
        chosen = stream_cases(cases, geometry)
        step = StreamingStep(model, geometry)
        run.steps += prove_stream(step, graph, chosen, vocabulary, progress)
    del model, step
    return_memory(graph)
    return graph, geometry


def _bundle_info(
    name: str,
    checkpoint: Checkpoint,
    n_parameters: int,
    artifacts: Sequence[Artifact],
    steps: Sequence[ProofStep],
    verified: bool,
) -> BundleInfo:
    vocabulary = checkpoint.vocabulary
    return BundleInfo(
        name=name,
        family="conformer-ctc",
        preset=checkpoint.model_config.size,
        n_parameters=n_parameters,
        features=checkpoint.features,
        subsampling_factor=checkpoint.model_config.subsampling_factor,
        first_output_frames=checkpoint.model_config.output_frames.first,
        vocabulary_kind=vocabulary.kind,
        vocabulary_size=len(vocabulary),
        blank_id=vocabulary.blank_id,
        artifacts=tuple(artifacts),
        source={"checkpoint": checkpoint.path.name, "provenance": checkpoint.provenance},
        verification={"steps": [summarize_step(step) for step in steps]},
        verified=verified,
        toolkit_version=edge_asr.__version__,
    )
