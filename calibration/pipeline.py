"""`edge-asr quantize` as a function: adds INT8 to an existing bundle, from its fp32 file, without PyTorch.

The bundle is replaced whole, once the check has passed; until then it does not change.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import edge_asr
from edge_asr.atomic import check_target, replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER, EMBEDDED_MODELS, Bundle
from edge_asr.bundle.manifest import AttentionDecoderInfo
from edge_asr.bundle.names import (
    CPU_GRAPH_NAME,
    DECODER_INT8_NAME,
    MODEL_FILES,
    PLOT_NAME,
    RIGHT_DECODER_INT8_NAME,
    STREAM_CPU_GRAPH_NAME,
    STREAM_INT8_NAME,
)
from edge_asr.bundle.writer import write_manifest
from edge_asr.calibration.decoders import Int8Decoder, make_int8_decoder
from edge_asr.calibration.int8 import Int8Options, Int8Result, choose_calibration_set
from edge_asr.calibration.proof import Int8Graph, make_int8
from edge_asr.errors import BundleError, GateError, require
from edge_asr.graph.decoder import load_directions
from edge_asr.graph.weights import load_float32
from edge_asr.proof.cases import CasePlan, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.compare import summarize_step
from edge_asr.proof.inputs import ProofInputs
from edge_asr.proof.report import file_sizes, read_report, step_to_dict, write_report
from edge_asr.proof.self_test import add_self_test
from edge_asr.proof.stages import StageProgress, Stages
from edge_asr.runtime.decoding.attention.rescoring import ScoreWeights


def quantize_bundle(
    bundle: str | Path,
    options: Int8Options | None = None,
    *,
    output: str | Path | None = None,
    clips: Sequence[str | Path] | None = None,
    plan: CasePlan | None = None,
    force: bool = False,
    keep_failed: str | Path | None = None,
    progress: StageProgress | None = None,
) -> tuple[Bundle, Int8Result]:
    """Add an INT8 model to a bundle, and one of its stream if it has that, replacing earlier ones.

    Args:
        bundle: folder with an fp32 model, or the name of an embedded one.
        options: how to quantize; None takes all defaults, on the embedded, synthetic speech.
        output: folder of the new bundle; None replaces the old one.
        clips: real recordings that the INT8 graph is run on: sound files, folders, manifests; None takes the
            embedded samples.
        plan: further cases that it is run on, to be finite everywhere.
        force: replace an existing `output`, or `keep_failed`.
        keep_failed: folder for a bundle that failed the gate, marked `"verified": false`.
        progress: called as stages begin and advance.

    Returns:
        The new bundle, and what was measured.

    Raises:
        BundleError: the bundle lacks an fp32 model, or a folder cannot be written.
        GateError: the result is over the budget, or not finite; only `keep_failed` was written.
        ManifestError, AudioError, ConfigError: speech or options cannot be used.
        MissingDependencyError: onnx, onnxruntime, jiwer or matplotlib is not installed.
    """
    for module in ("onnx", "jiwer", "matplotlib"):
        require(module, extra="export")
    require("onnxruntime", extra="cpu")
    source = Bundle.load(bundle)
    target = source.path if output is None else Path(output)
    if target.resolve().is_relative_to(EMBEDDED_MODELS):
        raise BundleError(
            f"{source.info.name} ships inside the package; name a folder for the result with -o"
        )
    in_place = target.resolve() == source.path.resolve()
    check_target(target, BUNDLE_FOLDER, force=force or in_place)
    if keep_failed is not None:
        check_target(Path(keep_failed), BUNDLE_FOLDER, force=force)
    model = load_float32(source.artifact_path("fp32"))
    waveforms = load_clips(find_clips(clips), source.info.features.sample_rate)
    inputs = ProofInputs(
        cases=build_cases(waveforms, source.info.features, source.info.output_frames, plan),
        features=source.info.features,
        vocabulary=source.vocabulary,
        output_frames=source.info.output_frames,
    )
    options, stages = options or Int8Options(), Stages(progress)
    speech = choose_calibration_set(options, source.info.features.sample_rate)
    graphs = [make_int8(model, options, inputs, stages, calibration=speech)]
    stream = source.info.streaming
    if stream is not None and stream.artifact.precision == "fp32" and graphs[0].failure is None:
        model = load_float32(source.path / stream.artifact.file)
        graphs.append(make_int8(model, options, inputs, stages, calibration=speech, stream=stream.geometry))
    failure = graphs[-1].failure
    if failure is None:
        decoder = None
        if source.info.decoder is not None:
            weights = ScoreWeights(ctc=source.decoder.ctc_weight, reverse=source.decoder.reverse_weight)
            encoder = load_float32(source.artifact_path("fp32"))
            directions = load_directions(source)
            decoder = make_int8_decoder(directions, encoder, weights, options, speech, inputs, stages)
        with replacing_folder(target, BUNDLE_FOLDER, force=force or in_place) as folder:
            _write(folder, source, graphs, decoder, verified=source.info.verified)
        return Bundle.load(target), graphs[0].result
    if keep_failed is None:
        raise GateError(f"{failure}; nothing was written")
    with replacing_folder(Path(keep_failed), BUNDLE_FOLDER, force=force) as folder:
        _write(folder, source, graphs, None, verified=False)
    raise GateError(f"{failure}; kept in {keep_failed}")


def _write(
    folder: Path,
    source: Bundle,
    graphs: Sequence[Int8Graph],
    decoder: Int8Decoder | None,
    *,
    verified: bool,
) -> None:
    """Write the files of the old folder, engines too, with new INT8 models and what belongs to them."""
    stale = [MODEL_FILES["int8"], CPU_GRAPH_NAME, PLOT_NAME]
    stale += ["model.int8.plan", "model.int8.json", "layers.int8.json"]
    stale += [DECODER_INT8_NAME, RIGHT_DECODER_INT8_NAME]
    streaming = source.info.streaming
    offline, stream = graphs[0], graphs[1] if len(graphs) > 1 else None
    if stream is not None:
        stale += [STREAM_INT8_NAME, STREAM_CPU_GRAPH_NAME]
    shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*stale))
    artifact = offline.write(folder)
    if stream is not None and streaming is not None:
        streaming = dataclasses.replace(streaming, int8=stream.write(folder))
    verification = source.info.verification
    steps = [*_other_steps(verification, graphs), *(summarize_step(graph.step) for graph in graphs)]
    info = dataclasses.replace(
        source.info,
        artifacts=(*(a for a in source.info.artifacts if a.precision != "int8"), artifact),
        streaming=streaming,
        decoder=_with_int8(folder, source.info.decoder, decoder),
        verification={**verification, "steps": steps},
        verified=verified,
        self_test=None,
        toolkit_version=edge_asr.__version__,
    )
    write_manifest(folder, info)
    if verified:
        add_self_test(folder)
    report = {"name": info.name, **read_report(folder), "verified": verified}
    report["steps"] = [*_other_steps(report, graphs), *(step_to_dict(graph.step) for graph in graphs)]
    report["sizes_bytes"] = file_sizes(folder)
    for graph in graphs:
        report["int8_stream" if graph.is_stream else "int8"] = graph.result.to_dict()
    if decoder is not None:
        report["int8_decoder"] = decoder.to_dict()
    write_report(folder, report)


def _with_int8(
    folder: Path, info: AttentionDecoderInfo | None, decoder: Int8Decoder | None
) -> AttentionDecoderInfo | None:
    """Write a new INT8 decoder in the place of an earlier one; return the record."""
    if info is None:
        return None
    left, right = (
        None if one is None else dataclasses.replace(one, int8=None) for one in (info.left, info.right)
    )
    assert left is not None
    info = dataclasses.replace(info, left=left, right=right)
    return info if decoder is None else decoder.write(folder, info)


def _other_steps(record: Mapping[str, Any], graphs: Sequence[Int8Graph]) -> list[Any]:
    """Return the steps of a report or a verification, except those of earlier graphs of the same names."""
    names = [graph.step.candidate for graph in graphs]
    return [step for step in record.get("steps", ()) if step.get("candidate") not in names]
