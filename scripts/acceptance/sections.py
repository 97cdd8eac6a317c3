"""The sections of an acceptance run; each runs in a process of its own and returns what it found.

A section's answer is a dictionary: `status` ("ran" or "not run"), `why`, `gates` (what, value, limit,
passed), `rows` (one table), `runners` (names that gave right results, for the sections that time them).
The reference is always the fp32 ONNX on onnxruntime's CPU provider, each row alone and unpadded. Speed is
reported and is no gate. What this file does not do: start processes, write the report.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acceptance import measure
from acceptance.runners import (
    BASELINE,
    engine_names,
    onnxruntime_name,
    open_runner,
    torch_names,
)
from acceptance.settings import Settings
from edge_asr.atomic import write_file
from edge_asr.bundle.folder import Bundle
from edge_asr.bundle.manifest import PRECISIONS, Precision
from edge_asr.errors import ConfigError, EdgeAsrError, MissingDependencyError
from edge_asr.proof.cases import ProofCase
from edge_asr.proof.compare import run_cases
from edge_asr.runtime.engine.sidecar import FLAVORS, DeviceIdentity, Flavor
from edge_asr.runtime.onnxruntime_backend import OnnxRuntimeBackend, check_device

if TYPE_CHECKING:
    from edge_asr.export.engine.put import EngineReport
    from edge_asr.proof.stages import StageProgress

Answer = dict[str, Any]
Save = Callable[[Answer], None]

MIN_AGREEMENT = {"fp32": 0.995, "fp16": 0.995, "int8": 0.985}
"""Pooled frame-argmax agreement with the fp32 reference; the bars of the export's own proof."""

NOT_FOR_RTX = {"8.7": "Orin", "9.0": "Hopper", "11.0": "Thor"}
"""Compute capabilities that TensorRT-RTX does not target: a refusal there is recorded, not a failure."""

COMPILED_CASES = 2
"""How many of the cases are tried with torch.compile, which compiles again for each."""
MIN_COMPILED_FRAMES = 32
"""Shorter ones, and a batch of one row, are special to torch.compile."""


def section_names(settings: Settings) -> list[str]:
    """List all sections, in the order in which they run."""
    wanted = [(p == "fp32", "", p) for p in settings.engines]
    wanted += [(p == "fp32", "stream ", p) for p in settings.streams]
    graphs = [f"{graph}{p}" for _, graph, p in sorted(wanted, key=lambda item: item[0])]
    engines = [f"{flavor} {graph}" for flavor in FLAVORS for graph in graphs]
    return ["cuda", "torch", "onnxruntime", *engines, "speed"]


def run_section(name: str, settings: Settings, runners: Sequence[str], save: Save) -> Answer:
    """Run one section.

    Args:
        name: one of `section_names`.
        settings: those of the run.
        runners: names that earlier sections found to be right.
        save: keeps an answer so far, in case the process ends before the section does.
    """
    bundle = Bundle.load(settings.bundle)
    if name == "onnxruntime":
        return _onnxruntime(settings, bundle, save)
    if name == "torch":
        return _torch(settings, bundle, save)
    if name == "speed":
        return _speed(settings, bundle, runners, save)
    if name == "cuda":
        return _cuda(settings, save)
    for flavor in FLAVORS:
        for precision in PRECISIONS:
            if name == f"{flavor} {precision}":
                return _engine(flavor, precision, settings, bundle, save)
            if name == f"{flavor} stream {precision}":
                return _stream(flavor, precision, settings, bundle, save)
    raise ConfigError(f"no section is called {name!r}; known are {', '.join(section_names(settings))}")


def not_run(why: str) -> Answer:
    """Return the answer of a section that could not run here."""
    return {"status": "not run", "why": why, "gates": [], "rows": [], "runners": []}


def gate(what: str, value: object, limit: object, passed: bool) -> Answer:
    """Record one thing that must hold."""
    return {"what": what, "value": value, "limit": limit, "passed": passed}


def _parity(names: Sequence[str], settings: Settings, bundle: Bundle, save: Save) -> Answer:
    """Run each runner of `names` on the cases of a proof, against the fp32 reference."""
    cases = measure.proof_cases(bundle, settings.max_batch, settings.clips)
    reference = OnnxRuntimeBackend(bundle.artifact_path("fp32"), precision="fp32", device="cpu")
    expected = run_cases(reference, cases, bundle.info.output_frames, rows_alone=True)
    answer: Answer = {"status": "ran", "why": "", "gates": [], "rows": [], "runners": []}
    missing = []
    for name in names:
        limit = MIN_AGREEMENT[next(p for p in MIN_AGREEMENT if p in name)]
        chosen = list(range(len(cases)))
        if "compile" in name:
            chosen = [i for i, case in enumerate(cases) if _compiles_usually(case)][:COMPILED_CASES]
        try:
            runner = open_runner(name, settings, bundle)
            found = measure.compare([expected[i] for i in chosen], runner, [cases[i] for i in chosen], bundle)
        except ImportError as error:
            missing.append(f"{name}: {error}")
            continue
        except Exception as error:  # noqa: BLE001 - whatever a compiler or driver raises, the others go on
            answer["gates"].append(gate(f"{name} runs", f"{type(error).__name__}: {error}", "runs", False))
            continue
        right = not found["failures"] and found["agreement"] >= limit
        answer["gates"].append(gate(f"{name}: frames like fp32's", found["agreement"], limit, right))
        answer["rows"].append(
            {
                "runner": name,
                "cases": found["n_cases"],
                "failures": len(found["failures"]),
                "agreement": round(found["agreement"], 6),
                "max_log_prob_error": float(f"{found['max_log_prob_error']:.3g}"),
                "first_failure": (found["failures"] or [""])[0],
            }
        )
        if right:
            answer["runners"].append(name)
        save(answer)
    answer["why"] = "; ".join(missing)
    if not answer["gates"]:
        return not_run(answer["why"])
    return answer


def _compiles_usually(case: ProofCase) -> bool:
    return len(case.lengths) > 1 and max(case.lengths) >= MIN_COMPILED_FRAMES


def _cuda(settings: Settings, save: Save) -> Answer:
    try:
        import torch  # noqa: F401 - the stand-in's work

        from acceptance.cuda_section import run_cuda
    except ImportError as error:
        return not_run(f"{error}: the stand-in for TensorRT needs PyTorch")
    return run_cuda(settings, save)


def _onnxruntime(settings: Settings, bundle: Bundle, save: Save) -> Answer:
    try:
        check_device(settings.device)
    except EdgeAsrError as error:  # onnxruntime, or its CUDA provider, is not installed
        return not_run(str(error))
    return _parity([onnxruntime_name(p) for p in settings.precisions], settings, bundle, save)


def _torch(settings: Settings, bundle: Bundle, save: Save) -> Answer:
    if settings.checkpoint is None:
        return not_run("no checkpoint was named; give --checkpoint")
    return _parity(torch_names(settings), settings, bundle, save)


def _engine(flavor: Flavor, precision: Precision, settings: Settings, bundle: Bundle, save: Save) -> Answer:
    from edge_asr.export.engine.builder import build_engine

    name = f"{flavor} {precision}"
    built = _built(
        name,
        flavor,
        settings,
        lambda progress: build_engine(
            bundle,
            precision,
            flavor=flavor,
            batch=(1, 1, settings.max_batch),
            manifest=settings.manifest,
            force=True,
            progress=progress,
        ),
    )
    if settings.rehearsal or not built["build"]:
        return built
    save(built)
    answer = _parity(engine_names(flavor, precision), settings, bundle, save)
    return {**answer, "gates": [*built["gates"], *answer["gates"]], "build": built["build"]}


def _stream(flavor: Flavor, precision: Precision, settings: Settings, bundle: Bundle, save: Save) -> Answer:
    """Build the engine of a stream, which its proof runs chunk by chunk, and time its steps."""
    from acceptance.stream_steps import time_steps
    from edge_asr.export.engine.put import BuildOptions
    from edge_asr.export.engine.streams import build_stream_engine

    name = f"{flavor} stream {precision}"
    options = BuildOptions(flavor=flavor, force=True)
    built = _built(
        name,
        flavor,
        settings,
        lambda progress: build_stream_engine(bundle, precision, options, progress=progress),
    )
    if settings.rehearsal or not built["build"]:
        return built
    save(built)
    rows, failures = time_steps(bundle, flavor, precision, settings)
    timed = gate(f"{name}: recorded steps are launches", "; ".join(failures) or "all", "all", not failures)
    return {**built, "gates": [*built["gates"], timed], "rows": rows}


def _built(
    name: str, flavor: Flavor, settings: Settings, build: Callable[[StageProgress], EngineReport]
) -> Answer:
    """Build an engine; the answer has a row `build` if there is one now."""
    none: dict[str, Any] = {"build": []}
    if settings.rehearsal and flavor == "tensorrt":
        why = "a rehearsal has no GPU, and TensorRT builds on the GPU that will run the engine"
        return {**not_run(why), **none}
    stages: dict[str, float] = {}
    began, began_busy = time.perf_counter(), time.process_time()
    try:
        built = build(lambda stage, done, total: stages.setdefault(stage, time.perf_counter() - began))
    except MissingDependencyError as error:
        return {**not_run(str(error)), **none}
    except EdgeAsrError as error:
        capability = DeviceIdentity.detect().compute_capability
        if flavor == "tensorrt-rtx" and capability in NOT_FOR_RTX:
            why = f"TensorRT-RTX refused {NOT_FOR_RTX[capability]} ({capability}): {error}"
            return {**not_run(why), **none}
        failed = gate(f"{name} builds and passes its proof", str(error), "passes", False)
        return {**not_run(""), "status": "ran", "gates": [failed], **none}
    sidecar = built.sidecar
    row = {
        "engine": name,
        "version": sidecar.tensorrt_version,
        "build_s": round(sidecar.build_time_s, 1),
        "cpu_s": round(time.process_time() - began_busy, 1),
        "stages": ", ".join(f"{stage} at {second:.0f} s" for stage, second in stages.items()),
        "plan_mb": round(sidecar.plan_size_bytes / 1e6, 2),
        "profiles": len(sidecar.profiles),
        "flags": ", ".join(sidecar.flags),
        "proof": json.dumps(dict(sidecar.proof)) if sidecar.proof else "none",
    }
    what, proven = (
        (f"{name} builds", True) if settings.rehearsal else (f"{name} passes its proof", built.proven)
    )
    gates = [gate(what, proven, True, proven)]
    return {**not_run("; ".join(built.notes)), "status": "ran", "gates": gates, "build": [row]}


def _speed(settings: Settings, bundle: Bundle, names: Sequence[str], save: Save) -> Answer:
    """Time single clips of each length, then batches, in one process, so that PyTorch compiles once."""
    shapes = [(seconds, 1) for seconds in settings.buckets_s]
    shapes += [(settings.batch_s, n_rows) for n_rows in settings.batches if n_rows > 1]
    if not names:
        return not_run("no runner gave right results, see the sections above")
    errors: list[str] = []
    runners = {}
    for name in names:
        try:
            runners[name] = open_runner(name, settings, bundle)
        except (EdgeAsrError, ImportError) as error:
            errors.append(f"{name}: {error}")
    answer: Answer = {"status": "ran", "why": "", "gates": [], "rows": [], "runners": []}
    for seconds, n_rows in shapes:
        features, lengths = measure.speech_batch(bundle, seconds, n_rows, settings.clips)
        times = measure.time_runners(
            runners,
            features,
            lengths,
            n_rounds=settings.rounds,
            warm_up=settings.warm_up,
            on_error=lambda name, why: errors.append(f"{name}: {why}"),
        )
        for row in measure.latency_rows(times, seconds * n_rows, BASELINE):
            answer["rows"].append({"audio_s": seconds, "batch": n_rows, **row})
        answer["why"] = "; ".join(errors)
        save(answer)
    answer["gates"] = [gate("every runner was measured", len(errors), 0, not errors)]
    return answer


def child_main(section: str, settings_path: Path, runners_path: Path, answer_path: Path) -> None:
    """Run a section in its process, and leave the answer in a file."""

    def save(answer: Answer) -> None:
        write_file(answer_path, json.dumps(answer))  # the process may be killed at any time

    runners = json.loads(runners_path.read_text(encoding="utf-8"))
    settings = Settings.read(settings_path)
    if settings.device == "cuda":
        load_cuda_libraries()
    save(run_section(section, settings, runners, save))


def load_cuda_libraries() -> None:
    """Load the CUDA libraries that onnxruntime's provider links to and does not look for."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401
    with contextlib.suppress(ImportError):
        import onnxruntime

        with contextlib.redirect_stdout(sys.stderr):
            getattr(onnxruntime, "preload_dlls", lambda: None)()
