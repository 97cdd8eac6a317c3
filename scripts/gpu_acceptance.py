#!/usr/bin/env python3
"""Run everything that needs an NVIDIA GPU in one command: parity, engines, latency, batch scaling.

NOT YET RUN ON A GPU: written and rehearsed on a CPU machine; this line goes when a result is in docs/results.

    python scripts/gpu_acceptance.py [BUNDLE] -o gpu-acceptance      on a machine with an NVIDIA GPU
    python scripts/gpu_acceptance.py --rehearse                      the same roads on a CPU, marked as such

Sections: `onnxruntime` (its CUDA provider against the CPU's fp32, each precision), `tensorrt PRECISION`
and `tensorrt-rtx PRECISION` (build, the builder's proof, and parity with CUDA graphs on and off), `torch`
(eager and torch.compile on the GPU), `latency` (each runner that was right, by seconds of audio) and
`batch scaling`. Each runs in a process of its own: one that crashes or hangs is a line of the result, and
the others go on; what it had found until then is kept. What is not installed is "not run", with the reason.

DIR gets gpu_acceptance.md and gpu_acceptance.json. Exit codes: 0 all gates passed, 3 one failed or a section
crashed, 1 there is no GPU or nothing could run, 2 usage. Speed is reported and is no gate.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from acceptance.report import markdown
from acceptance.sections import Answer, child_main, gate, not_run, section_names
from acceptance.settings import Settings

from edge_asr.benchmark.provenance import describe_cpu, package_versions
from edge_asr.bundle.folder import Bundle, list_embedded_models
from edge_asr.diagnostics.check import Check
from edge_asr.diagnostics.cuda import check_cuda
from edge_asr.diagnostics.inference import check_onnxruntime
from edge_asr.diagnostics.jetson import check_jetson
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.tensorrt import check_tensorrt
from edge_asr.errors import EdgeAsrError

PACKAGES = (
    "edge-asr",
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "torch",
    "triton",
)
NVIDIA_SMI = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
)


def main() -> int:
    """Run the sections and write the result; return the exit code."""
    arguments = parse_arguments()
    if arguments.child:
        child_main(arguments.child[0], *(Path(path) for path in arguments.child[1:]))
        return 0
    machine = Machine()
    cuda_checks, cuda = check_cuda(machine)
    if not cuda.works and not arguments.rehearse:
        found = "; ".join(f"{check.name}: {check.detail}" for check in cuda_checks)
        fail(f"there is no NVIDIA GPU that CUDA can use here ({found}), so nothing was run (see --rehearse)")
    output: Path = arguments.output
    if output.exists() and any(output.iterdir()) and not arguments.force:
        fail(f"{output} is not empty; give another -o, or --force to write into it")
    try:
        bundle = Bundle.load(arguments.bundle)
    except EdgeAsrError as error:
        fail(str(error))
    lines = [*check_jetson(machine), *cuda_checks]
    lines += [*check_tensorrt(machine, cuda)[0], *check_onnxruntime(machine)]
    with tempfile.TemporaryDirectory(prefix="gpu-acceptance-") as folder:
        # Engines are built into a copy: the bundle may be the one inside the package.
        working = Path(folder) / "bundle"
        shutil.copytree(bundle.path, working, ignore=shutil.ignore_patterns("engines"))
        settings = make_settings(arguments, bundle, working)
        started = time.perf_counter()
        before = query_nvidia_smi()
        sections = run_sections(settings, arguments.only, arguments.section_timeout, Path(folder))
    n_ran = sum(section["status"] == "ran" for section in sections)
    result = {
        "what": "gpu acceptance",
        "rehearsal": settings.rehearsal,
        "verdict": judge(sections),
        "sections_ran": f"{n_ran} of {len(sections)} sections ran",
        "bundle": f"{bundle.info.name} ({', '.join(settings.precisions)})",
        "seconds": round(time.perf_counter() - started, 1),
        "machine": describe_machine(lines, settings, before),
        "settings": {**dataclasses.asdict(settings), "bundle": str(arguments.bundle)},
        "sections": sections,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "gpu_acceptance.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (output / "gpu_acceptance.md").write_text(markdown(result), encoding="utf-8")
    mark = "rehearsal on a CPU: " if settings.rehearsal else ""
    print(f"{mark}{result['verdict']}, {result['sections_ran']}; see {output / 'gpu_acceptance.md'}")
    return {"passed": 0, "nothing ran": 1}.get(str(result["verdict"]), 3)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="tiny-en", help="folder or embedded model (tiny-en)")
    parser.add_argument("--checkpoint", help="of the bundle, for PyTorch; an embedded model has its own")
    parser.add_argument("--manifest", help="speech with its text: word error rates in the proof of engines")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu-acceptance"), metavar="DIR")
    parser.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU; the result is marked")
    parser.add_argument(
        "--only", action="append", metavar="SECTION", help="by name or first word, repeatable"
    )
    parser.add_argument("--precisions", type=split, metavar="P,P", help="default: all of the bundle")
    parser.add_argument("--seconds", type=split, default=["1", "2", "5", "10", "30"], metavar="S,S")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--batch-seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, it is slow to start"
    )
    parser.add_argument("--section-timeout", type=float, default=900.0, metavar="S")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def split(text: str) -> list[str]:
    """Split "a,b" into a list."""
    return text.split(",")


def make_settings(arguments: argparse.Namespace, bundle: Bundle, working: Path) -> Settings:
    """Make the settings of the sections."""
    embedded = str(arguments.bundle) if str(arguments.bundle) in list_embedded_models() else None
    have: list[str] = [artifact.precision for artifact in bundle.info.artifacts]
    unknown = [precision for precision in arguments.precisions or [] if precision not in have]
    if unknown:
        fail(f"{bundle.path} has no {', '.join(unknown)}; --precisions may name {', '.join(have)}")
    return Settings(
        bundle=str(working),
        checkpoint=arguments.checkpoint or embedded,
        device="cpu" if arguments.rehearse else "cuda",
        precisions=tuple(arguments.precisions or have),
        buckets_s=tuple(float(seconds) for seconds in arguments.seconds),
        max_batch=arguments.max_batch,
        batch_s=arguments.batch_seconds,
        rounds=arguments.rounds,
        warm_up=arguments.warm_up,
        compile=not arguments.no_compile,
        manifest=arguments.manifest,
    )


def run_sections(settings: Settings, only: list[str] | None, timeout_s: float, folder: Path) -> list[Answer]:
    """Run every section, in order, for its answer; those that `only` leaves out are "not run"."""
    answers: list[Answer] = []
    runners: list[str] = []
    for name in section_names(settings):
        if only and not any(wanted in (name, name.split()[0]) for wanted in only):
            answers.append({"name": name, **not_run("left out by --only"), "seconds": 0.0})
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.perf_counter()
        answer = run_child(name, settings, runners, timeout_s, folder)
        answers.append({"name": name, **answer, "seconds": round(time.perf_counter() - started, 1)})
        runners += answer["runners"]
    return answers


def run_child(
    name: str, settings: Settings, runners: list[str], timeout_s: float, folder: Path
) -> dict[str, Any]:
    """Run one section in a process of its own; a crash gives a failed gate, and what was saved."""
    paths = [folder / file for file in ("settings.json", "runners.json", "answer.json")]
    settings.write(paths[0])
    paths[1].write_text(json.dumps(runners), encoding="utf-8")
    paths[2].unlink(missing_ok=True)
    log = folder / "child.log"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, *(str(path) for path in paths)]
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=file, timeout=timeout_s).returncode
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            code, why = -1, f"did not end within {timeout_s:g} s"
    answer: dict[str, Any] = not_run("")
    if paths[2].is_file():
        answer = json.loads(paths[2].read_text(encoding="utf-8"))
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = f"{why}: {lines[-1] if lines else 'no message'}"
        answer.update(status="crashed", why=why)
        answer["gates"].append(gate("the section ends", why, "ends", False))
    return answer


def judge(sections: list[Answer]) -> str:
    """Return "passed", "failed", or "nothing ran" (not even to fail)."""
    if any(not check["passed"] for section in sections for check in section["gates"]):
        return "failed"
    return "passed" if any(section["status"] == "ran" for section in sections) else "nothing ran"


def describe_machine(lines: list[Check], settings: Settings, before: str) -> dict[str, Any]:
    """Describe who measured: GPU, clocks, versions, and the doctor's report."""
    gpu = next((check.detail.split(",")[0] for check in lines if check.name.startswith("GPU ")), "no GPU")
    return {
        "name": "rehearsal on a CPU" if settings.rehearsal else gpu,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "os": platform.platform(),
        "cpu": describe_cpu(Machine()),
        "gpu_before": before,
        "gpu_after": query_nvidia_smi(),
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "doctor": [dataclasses.asdict(check) for check in lines],
    }


def query_nvidia_smi() -> str:
    """Read clocks, power and temperature of the GPUs now; empty if nvidia-smi does not say."""
    answer = Machine().run("nvidia-smi", f"--query-gpu={','.join(NVIDIA_SMI)}", "--format=csv,noheader")
    rows = (answer or "").strip().splitlines()
    return "; ".join(
        ", ".join(f"{key} {value.strip()}" for key, value in zip(NVIDIA_SMI, row.split(","), strict=False))
        for row in rows
    )


def fail(message: str) -> NoReturn:
    """Say why nothing was run, and exit with code 1."""
    sys.exit(f"gpu_acceptance: {message}")


if __name__ == "__main__":
    sys.exit(main())
