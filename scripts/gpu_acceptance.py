#!/usr/bin/env python3
"""Run everything that needs an NVIDIA GPU in one command: our CUDA code, parity, engines, speed.

NOT YET RUN ON A GPU: written and rehearsed on a CPU machine; this line goes when a result is in docs/results.

    python scripts/gpu_acceptance.py [BUNDLE] -o gpu-acceptance      on a machine with an NVIDIA GPU
    python scripts/gpu_acceptance.py --rehearse                      the same roads on a CPU, marked as such
    timeout 440 python scripts/gpu_acceptance.py --deadline 420 --no-compile      on borrowed time

Sections: `cuda` (our CUDA code on the real driver, with a stand-in for TensorRT that PyTorch works for),
`torch` (eager and torch.compile on the GPU), `onnxruntime` (its CUDA provider against the CPU's fp32, each
precision), `tensorrt PRECISION` and `tensorrt-rtx PRECISION` (build, the builder's proof, and parity with
CUDA graphs on and off), `tensorrt stream PRECISION` and the same of RTX (the engine of a stream: build, proof
chunk by chunk, time of a step by number of streams) and `speed` (each runner that was right, by seconds of
audio and by batch). An FP16 engine is made from model.onnx, so the bundle needs no FP16 file; float32 engines
come last, for a run that has the time. Each section runs in a process of its own: one that crashes or hangs
is a line of the result, and the others go on; what it had found until then is kept. What is not installed is
"not run", with the reason. Nothing is needed beside NumPy, SciPy, onnxruntime and, for `cuda` and `torch`,
PyTorch and safetensors; engines want TensorRT and onnx.

DIR gets gpu_acceptance.md and gpu_acceptance.json, written after each section and on SIGTERM,
gpu_acceptance.log with all that the sections print, and the engines. Exit codes: 0 all gates passed, 3 one
failed, a section crashed or the run was stopped, 1 there is no GPU or nothing could run, 2 usage. Speed is
reported and is no gate.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from acceptance.inputs import find_files, read_former, save_clips
from acceptance.machine import describe_machine, query_nvidia_smi
from acceptance.report import markdown
from acceptance.sections import (
    Answer,
    child_main,
    gate,
    not_run,
    section_names,
)
from acceptance.settings import Settings

from edge_asr.atomic import write_file
from edge_asr.bundle.folder import Bundle, list_embedded_models
from edge_asr.bundle.manifest import PRECISIONS
from edge_asr.diagnostics.cuda import check_cuda
from edge_asr.diagnostics.inference import check_onnxruntime
from edge_asr.diagnostics.jetson import check_jetson
from edge_asr.diagnostics.machine import Machine
from edge_asr.diagnostics.tensorrt import check_tensorrt
from edge_asr.errors import ConfigError, EdgeAsrError
from edge_asr.runtime.engine.lookup import engine_precisions

RESERVE_S = 10.0
"""Kept before a deadline, to end a section and to write."""
MIN_SECTION_S = 5.0
"""With less left, a section is not begun."""


def main() -> int:
    """Run the sections and write the result; return the exit code."""
    began = time.monotonic()
    arguments = parse_arguments()
    if arguments.save_clips:
        return save_clips(*arguments.save_clips)
    if arguments.child:
        for number in (signal.SIGTERM, signal.SIGINT):  # sent to all; the parent ends this process
            signal.signal(number, signal.SIG_IGN)
        child_main(arguments.child[0], *(Path(path) for path in arguments.child[1:]))
        return 0
    machine = Machine()
    cuda_checks, cuda = check_cuda(machine)
    if not cuda.works and not arguments.rehearse:
        found = "; ".join(f"{check.name}: {check.detail}" for check in cuda_checks)
        fail(f"there is no NVIDIA GPU that CUDA can use here ({found}), so nothing was run (see --rehearse)")
    output: Path = arguments.output
    resumes = arguments.resume is not None and arguments.resume.parent.resolve() == output.resolve()
    if output.exists() and any(output.iterdir()) and not (arguments.force or resumes):
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
        former = read_former(arguments.resume, arguments.bundle, settings.rehearsal, working)
        run = Run(settings, output, describe_machine(lines, settings), bundle, arguments.bundle, former)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, run.stop)
        run.sections(arguments.only, arguments.section_timeout, began + arguments.deadline, Path(folder))
    mark = "rehearsal on a CPU: " if settings.rehearsal else ""
    result = run.result()
    print(f"{mark}{result['verdict']}, {result['sections_ran']}; see {output / 'gpu_acceptance.md'}")
    if run.stopped or result["verdict"] == "failed":
        return 3
    return 1 if result["verdict"] == "nothing ran" else 0


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
    parser.add_argument(
        "--precisions",
        type=split,
        metavar="P,P",
        help="default: all that the bundle has or that an engine of it can be built in",
    )
    parser.add_argument("--seconds", type=split, default=["1", "2", "5", "10", "30"], metavar="S,S")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--batch-seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out, it is slow to start"
    )
    parser.add_argument("--section-timeout", type=float, default=900.0, metavar="S")
    parser.add_argument(
        "--deadline",
        type=float,
        default=math.inf,
        metavar="S",
        help="seconds for everything; the rest is not run",
    )
    parser.add_argument(
        "--resume", type=Path, metavar="JSON", help="a former result, whose sections are kept"
    )
    parser.add_argument(
        "--clips", action="append", metavar="FILE", help="sound file, folder or .npy, repeatable"
    )
    parser.add_argument(
        "--save-clips", nargs=2, metavar=("FROM", "TO"), help="write sound files as .npy into TO, and end"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def split(text: str) -> list[str]:
    """Split "a,b" into a list."""
    return text.split(",")


def make_settings(arguments: argparse.Namespace, bundle: Bundle, working: Path) -> Settings:
    """Make the settings of the sections."""
    embedded = str(arguments.bundle) if str(arguments.bundle) in list_embedded_models() else None
    files = [artifact.precision for artifact in bundle.info.artifacts]
    engines, streams = engine_precisions(bundle), engine_precisions(bundle, "stream")
    have = [p for p in PRECISIONS if p in (*files, *engines, *streams)]
    wanted = have if arguments.precisions is None else arguments.precisions
    unknown = [precision for precision in wanted if precision not in have]
    if unknown:
        fail(f"{bundle.path} has no {', '.join(unknown)}; --precisions may name {', '.join(have)}")
    return Settings(
        bundle=str(working),
        checkpoint=arguments.checkpoint or embedded,
        device="cpu" if arguments.rehearse else "cuda",
        precisions=tuple(p for p in files if p in wanted),
        engines=tuple(p for p in engines if p in wanted),
        streams=tuple(p for p in streams if p in wanted),
        buckets_s=tuple(float(seconds) for seconds in arguments.seconds),
        max_batch=arguments.max_batch,
        batch_s=arguments.batch_seconds,
        rounds=arguments.rounds,
        warm_up=arguments.warm_up,
        compile=not arguments.no_compile,
        manifest=arguments.manifest,
        clips=find_files(arguments.clips or []),
    )


class Run:
    """One acceptance run: it runs sections and keeps the result on disk up to date.

    Args:
        settings: those of the run.
        output: the folder of the result.
        machine: who measures.
        bundle, source: the bundle, and how the command line named it.
        former: sections of a former run, which are not run again.
    """

    def __init__(
        self,
        settings: Settings,
        output: Path,
        machine: dict[str, Any],
        bundle: Bundle,
        source: str,
        former: list[Answer],
    ) -> None:
        self.stopped = False
        self._settings, self._output, self._machine = settings, output, machine
        self._bundle, self._source = bundle, source
        self._former = {section["name"]: section for section in former}
        self._answers: dict[str, Answer] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        output.mkdir(parents=True, exist_ok=True)

    def sections(self, only: list[str] | None, timeout_s: float, deadline: float, folder: Path) -> None:
        """Run every section, in order; what `only` leaves out, or has no time left, is "not run".

        SIGTERM and Ctrl-C end the section under way, keep what it had found, and leave out the rest.
        """
        for name in section_names(self._settings):
            named = only is not None and any(wanted in (name, name.split()[0]) for wanted in only)
            left_s = deadline - time.monotonic() - RESERVE_S
            if name in self._former and not named:
                self._answers[name] = self._former[name]
                continue
            answer: Answer
            if only is not None and not named:
                answer = not_run("left out by --only")
            elif self.stopped:
                answer = not_run("the run was stopped before it")
            elif left_s < MIN_SECTION_S:
                answer = not_run("no time was left before --deadline")
            else:
                print(f"{name} ...", file=sys.stderr, flush=True)
                runners = [runner for found in self._answers.values() for runner in found["runners"]]
                started = time.monotonic()
                limit_s = min(timeout_s, left_s)
                answer = run_child(
                    name, self._settings, runners, limit_s, folder, self._output, self._note_child
                )
                answer["seconds"] = round(time.monotonic() - started, 1)
            self._answers[name] = {"name": name, "seconds": 0.0, **answer}
            built = Path(self._settings.bundle) / "engines"
            if built.is_dir():
                shutil.copytree(built, self._output / "engines", dirs_exist_ok=True)
            self._write()

    def result(self) -> dict[str, Any]:
        """Return everything that was found so far."""
        sections = list(self._answers.values())
        ran = [section["name"] for section in sections if section["status"] != "not run"]
        said = f"{len(ran)} of {len(sections)} sections ran ({', '.join(ran) or 'none'})"
        return {
            "what": "gpu acceptance",
            "rehearsal": self._settings.rehearsal,
            "verdict": judge(sections),
            "sections_ran": said + (", then it was stopped" if self.stopped else ""),
            "bundle": self._describe_bundle(),
            "seconds": round(time.monotonic() - self._started, 1),
            "machine": {**self._machine, "gpu_after": query_nvidia_smi()},
            "settings": {**dataclasses.asdict(self._settings), "bundle": self._source},
            "sections": sections,
        }

    def stop(self, number: int, frame: object) -> None:
        """End the section under way and begin no other; a signal handler."""
        self.stopped = True
        if self._child is not None:
            self._child.kill()

    def _describe_bundle(self) -> str:
        settings = self._settings
        kinds = (("files", settings.precisions), ("engines", settings.engines), ("streams", settings.streams))
        said = "; ".join(f"{kind} {', '.join(found) or 'none'}" for kind, found in kinds)
        return f"{self._bundle.info.name} ({said})"

    def _note_child(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        if self.stopped:
            child.kill()

    def _write(self) -> None:
        result = self.result()
        write_file(self._output / "gpu_acceptance.json", json.dumps(result, indent=1) + "\n")
        write_file(self._output / "gpu_acceptance.md", markdown(result))


def run_child(
    name: str,
    settings: Settings,
    runners: list[str],
    timeout_s: float,
    folder: Path,
    output: Path,
    started: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> Answer:
    """Run one section in a process of its own; a crash gives a failed gate, and what was saved.

    `started` gets the process, for whoever may have to end it.
    """
    paths = [folder / file for file in ("settings.json", "runners.json", "answer.json")]
    settings.write(paths[0])
    paths[1].write_text(json.dumps(runners), encoding="utf-8")
    paths[2].unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, *(str(path) for path in paths)]
    log_path = output / "gpu_acceptance.log"
    with log_path.open("ab") as log:
        log.write(f"=== {name}\n".encode())
        log.flush()
        begin = log.tell()
        child = subprocess.Popen(command, stdout=log, stderr=log)
        started(child)
        try:
            code = child.wait(timeout_s)
            why = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code, why = -1, f"did not end within {timeout_s:g} s"
    answer: Answer = not_run("")
    if paths[2].is_file():
        answer = json.loads(paths[2].read_text(encoding="utf-8"))
    if code:
        lines = log_path.read_bytes()[begin:].decode("utf-8", errors="replace").strip().splitlines()
        why = f"{why}: {lines[-1] if lines else 'no message'}"
        answer.update(status="crashed", why=why)
        answer["gates"].append(gate("the section ends", why, "ends", False))
    return answer


def judge(sections: Sequence[Answer]) -> str:
    """Return the verdict: "passed" only if an engine of TensorRT ran, and less where it did not."""
    if any(not check["passed"] for section in sections for check in section["gates"]):
        return "failed"
    ran = {section["name"].split()[0] for section in sections if section["status"] == "ran"}
    if not ran:
        return "nothing ran"
    if "tensorrt" in ran:
        return "passed"
    return "passed, no TensorRT" if "cuda" in ran else "passed, none of our code for GPUs ran"


def fail(message: str) -> NoReturn:
    """Say why nothing was run, and exit with code 1."""
    sys.exit(f"gpu_acceptance: {message}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        fail(str(error))
