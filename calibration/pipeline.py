"""`edge-asr quantize` as a function: INT8 for a bundle that exists, from its fp32 file; no PyTorch needed.

The bundle is replaced whole, once the gate is passed; until then it stays as it was.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import edge_asr
from edge_asr.atomic import check_target, replacing_folder
from edge_asr.bundle.folder import BUNDLE_FOLDER, EMBEDDED_MODELS, Bundle
from edge_asr.bundle.names import CPU_GRAPH_NAME, MODEL_FILES, PLOT_NAME
from edge_asr.bundle.writer import write_manifest
from edge_asr.calibration.bundle_files import describe_int8, replace_section, write_int8
from edge_asr.calibration.cpu_graph import make_cpu_graph
from edge_asr.calibration.int8 import Int8Options, Int8Result, quantize_to_int8
from edge_asr.calibration.proof import INT8_TOLERANCE
from edge_asr.errors import BundleError, GateError, require
from edge_asr.graph.check import check_graph
from edge_asr.graph.session import open_graph
from edge_asr.graph.weights import load_float32
from edge_asr.proof.cases import CasePlan, build_cases
from edge_asr.proof.clips import find_clips, load_clips
from edge_asr.proof.compare import ProofStep, compare_outputs, run_cases, summarize_step
from edge_asr.proof.stages import StageProgress


def quantize_bundle(
    bundle: str | Path,
    options: Int8Options | None = None,
    *,
    output: str | Path | None = None,
    plan: CasePlan | None = None,
    force: bool = False,
    keep_failed: str | Path | None = None,
    progress: StageProgress | None = None,
) -> tuple[Bundle, Int8Result]:
    """Add an INT8 model to a bundle, in place of an earlier one.

    Args:
        bundle: folder with an fp32 model, or the name of an embedded one.
        options: how to quantize; None is all defaults, on the embedded, synthetic speech.
        output: folder of the new bundle; the old one's place when None.
        plan: what the INT8 graph is run on besides, to be finite everywhere.
        force: replace an existing `output`, or `keep_failed`.
        keep_failed: folder for a bundle that failed the gate, marked `"verified": false`.
        progress: called as stages begin and advance.

    Returns:
        The new bundle, and what was measured.

    Raises:
        BundleError: the bundle lacks an fp32 model, or a place cannot be written.
        GateError: over the budget, or not finite; nothing was changed, but `keep_failed` written.
        ManifestError, AudioError, ConfigError: speech or options that cannot be used.
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
    report = progress or (lambda stage, done, total: None)
    model = load_float32(source.artifact_path("fp32"))
    result = quantize_to_int8(
        model,
        source.info.features,
        source.vocabulary,
        options or Int8Options(),
        report,
        output_frames=source.info.output_frames,
    )
    check_graph(result.model)
    report("prove: int8", 0, 0)
    clips = load_clips(find_clips(), source.info.features.sample_rate)
    cases = build_cases(clips, source.info.features, source.info.output_frames, plan)
    outputs = []
    for graph in (model, result.model):
        with open_graph(graph) as backend:
            outputs.append(run_cases(backend, cases, source.info.output_frames))
    step = compare_outputs(
        outputs[0],
        outputs[1],
        cases,
        source.vocabulary,
        reference_name="ONNX simplified",
        candidate_name="ONNX INT8",
        tolerance=INT8_TOLERANCE,
    )
    failure = result.failure if step.passed else step.failure_message()
    if failure is None:
        cpu_graph = make_cpu_graph(result.model, cases, outputs[1], source.info.output_frames)
        result = dataclasses.replace(result, cpu_graph=cpu_graph)
        with replacing_folder(target, BUNDLE_FOLDER, force=force or in_place) as folder:
            _write(folder, source, result, step, model.ByteSize(), verified=source.info.verified)
        return Bundle.load(target), result
    if keep_failed is None:
        raise GateError(f"{failure}; nothing was written")
    with replacing_folder(Path(keep_failed), BUNDLE_FOLDER, force=force) as folder:
        _write(folder, source, result, step, model.ByteSize(), verified=False)
    raise GateError(f"{failure}; kept in {keep_failed}")


def _write(
    folder: Path, source: Bundle, result: Int8Result, step: ProofStep, float32_bytes: int, *, verified: bool
) -> None:
    """The old folder's files, engines too, with a new INT8 model and what belongs to it."""
    stale = shutil.ignore_patterns(
        MODEL_FILES["int8"], CPU_GRAPH_NAME, PLOT_NAME, "model.int8.plan", "model.int8.json"
    )
    shutil.copytree(source.path, folder, dirs_exist_ok=True, ignore=stale)
    artifact = write_int8(folder, result, float32_bytes)
    kept = tuple(a for a in source.info.artifacts if a.precision != "int8")
    steps = [s for s in source.info.verification.get("steps", []) if s.get("candidate") != step.candidate]
    info = dataclasses.replace(
        source.info,
        artifacts=(*kept, artifact),
        verification={**source.info.verification, "steps": [*steps, summarize_step(step)]},
        verified=verified,
        toolkit_version=edge_asr.__version__,
    )
    write_manifest(folder, info)
    replace_section(folder, describe_int8(result, float32_bytes))
