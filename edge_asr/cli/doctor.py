"""`edge-asr doctor`: what this machine can run, what is missing or broken, and how to mend it.

Checks that touch native libraries (inference providers, PortAudio) run in a process of their own,
so that a library that crashes or hangs becomes a line of the report. `missing` is something that
is not installed and needed only for some commands; `broken` is there and does not work.

The exit code is 0 when sound files can be transcribed here with the embedded model and nothing is
broken, else 1; a missing extra or microphone alone is no failure.
What this file does not do: look at GPUs or TensorRT beyond whether a provider really loads.
"""

from __future__ import annotations

import difflib
import json
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import click

from edge_asr.errors import EdgeAsrError

Status = Literal["ok", "missing", "broken"]
_PROBE_TIMEOUT_S = 60
_MIN_SIMILARITY = 0.8
"""Of the sample's transcription to its text: recognisers err, broken installs give noise or nothing."""

_EXTRAS_SHOWN = ("eval", "export", "train", "tensorrt")

# y = x + x of one float; onnx 1.23.2, opset 13, ir_version 8, written with onnx.helper.make_model.
_PROVIDERS_PROBE = """
import base64, json
import numpy, onnxruntime
onnxruntime.set_default_logger_severity(4)
model = base64.b64decode(
    "CAg6NQoOCgF4CgF4EgF5IgNBZGQSAWdaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
results = {}
for provider in onnxruntime.get_available_providers():
    if provider == "AzureExecutionProvider":
        continue  # calls a cloud service, runs nothing here
    try:
        session = onnxruntime.InferenceSession(model, providers=[provider])
        used = session.get_providers()[0]
        value = session.run(None, {"x": numpy.ones(1, numpy.float32)})[0][0]
        results[provider] = "" if used == provider and value == 2 else f"fell back to {used}"
    except Exception as error:
        results[provider] = str(error)
print(json.dumps({"version": onnxruntime.__version__, "providers": results}))
"""

_AUDIO_PROBE = """
import json
import sounddevice
devices = [d["name"] for d in sounddevice.query_devices() if d["max_input_channels"] > 0]
print(json.dumps({"version": sounddevice.get_portaudio_version()[1], "inputs": devices}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report; `mend` is the command or advice for what is not ok."""

    name: str
    status: Status
    detail: str
    mend: str = ""
    required: bool = False


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def command(as_json: bool) -> None:
    """Check what this machine can run; each line that is not ok says how to mend it.

    The exit code is 0 when sound files can be transcribed here and nothing is broken, else 1.
    Missing extras and microphones are no failure.
    """
    checks: list[Check] = []
    for check in (check_python, check_onnxruntime, check_model, check_sample, check_microphone, check_extras):
        found = check()
        for item in found:
            if not as_json:
                _print(item)
        checks += found
    healthy = not any(c.status == "broken" or (c.required and c.status == "missing") for c in checks)
    if as_json:
        click.echo(json.dumps({"healthy": healthy, "checks": [asdict(c) for c in checks]}))
    sys.exit(0 if healthy else 1)


def check_python() -> list[Check]:
    """Python and platform, and the packages that edge-asr always needs."""
    where = f"{platform.python_implementation()} {platform.python_version()}, {platform.platform()}"
    checks = [Check(name="python", status="ok", detail=where, required=True)]
    versions, absent = _split_installed(_requirements(None))
    checks.append(
        Check(
            name="packages",
            status="missing" if absent else "ok",
            detail=f"not installed: {', '.join(absent)}" if absent else ", ".join(versions),
            mend="pip install edge-asr" if absent else "",
            required=True,
        )
    )
    return checks


def check_onnxruntime() -> list[Check]:
    """onnxruntime, and each of its providers by loading and running a trivial model."""
    installed, _ = _split_installed(["onnxruntime", "onnxruntime-gpu"])
    if not installed:
        return [
            Check(
                name="onnxruntime",
                status="missing",
                detail="nothing here can run a model",
                mend="pip install 'edge-asr[cpu]' (or 'edge-asr[gpu]' for an NVIDIA GPU)",
                required=True,
            )
        ]
    if len(installed) > 1:
        return [
            Check(
                name="onnxruntime",
                status="broken",
                detail=f"{' and '.join(installed)} are installed, and are the same Python module",
                mend="pip uninstall both, then pip install 'edge-asr[cpu]' or 'edge-asr[gpu]'",
                required=True,
            )
        ]
    package = installed[0].split()[0]
    reinstall = f"pip install --force-reinstall {package}"
    result, error = _probe(_PROVIDERS_PROBE)
    if result is None:
        return [
            Check(name="onnxruntime", status="broken", detail=error, mend=reinstall, required=True),
        ]
    checks = [Check(name="onnxruntime", status="ok", detail=installed[0], required=True)]
    for provider, problem in result["providers"].items():
        gpu = (
            "install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu asks for, or use 'edge-asr[cpu]'"
        )
        checks.append(
            Check(
                name=provider,
                status="broken" if problem else "ok",
                detail=_first_line(problem) or "loads and runs a model",
                mend="" if not problem else reinstall if provider.startswith("CPU") else gpu,
            )
        )
    return checks


def check_model() -> list[Check]:
    """The embedded model, whole: every artefact compared with its hash."""
    try:
        from edge_asr.bundle import DEFAULT_MODEL, Bundle

        bundle = Bundle.load(DEFAULT_MODEL)
    except (EdgeAsrError, ImportError, OSError) as error:
        return [
            Check(
                name="embedded model",
                status="broken",
                detail=_first_line(str(error)),
                mend="pip install --force-reinstall --no-deps edge-asr",
                required=True,
            )
        ]
    files = ", ".join(
        f"{a.file} {a.size_bytes / 1e6:.1f} MB sha256 {a.sha256[:12]}" for a in bundle.info.artifacts
    )
    return [Check(name="embedded model", status="ok", detail=f"{bundle.info.name}: {files}", required=True)]


def check_sample() -> list[Check]:
    """A real transcription of the embedded sample, compared with its text."""
    name = "transcription"
    try:
        from edge_asr.bundle import EMBEDDED_MODELS
        from edge_asr.runtime.recognizer import Recognizer

        sample = EMBEDDED_MODELS / "samples" / "robot_commands.flac"
        expected = sample.with_suffix(".txt").read_text(encoding="utf-8")
        with Recognizer.load() as recognizer:
            started = time.perf_counter()
            transcript = recognizer.transcribe_file(sample)
            elapsed_s = time.perf_counter() - started
    except (EdgeAsrError, ImportError, OSError) as error:
        mend = "mend what is above, then run edge-asr doctor again"
        return [Check(name=name, status="broken", detail=_first_line(str(error)), mend=mend, required=True)]
    heard = f"{transcript.text!r}, {transcript.duration_s:.1f} s of audio in {elapsed_s:.2f} s"
    words = [re.sub(r"[^\w' ]", " ", text.lower()).split() for text in (expected, transcript.text)]
    similarity = difflib.SequenceMatcher(None, " ".join(words[0]), " ".join(words[1]), autojunk=False).ratio()
    if similarity >= _MIN_SIMILARITY:
        return [Check(name=name, status="ok", detail=heard, required=True)]
    return [
        Check(
            name=name,
            status="broken",
            detail=f"heard {heard}; the sample says {' '.join(words[0])!r}",
            mend="pip install --force-reinstall edge-asr; if that does not help, report it with this output",
            required=True,
        )
    ]


def check_microphone() -> list[Check]:
    """PortAudio, and the devices one can record from."""
    result, error = _probe(_AUDIO_PROBE)
    if result is None:
        absent = "PortAudio library not found" in error
        return [
            Check(
                name="microphone",
                status="missing" if absent else "broken",
                detail=_first_line(error),
                mend="sudo apt-get install libportaudio2"
                if absent
                else "pip install --force-reinstall sounddevice",
            )
        ]
    if not result["inputs"]:
        return [
            Check(
                name="microphone",
                status="missing",
                detail=f"{result['version']}, no device to record from",
                mend="plug one in and look for it with `arecord -l`; a container needs --device /dev/snd",
            )
        ]
    detail = f"{result['version']}: {', '.join(result['inputs'])}"
    return [Check(name="microphone", status="ok", detail=detail)]


def check_extras() -> list[Check]:
    """The extras that commands other than transcribe and listen need."""
    checks = []
    for extra in _EXTRAS_SHOWN:
        versions, absent = _split_installed(_requirements(extra))
        if absent:
            detail, mend = f"not installed: {', '.join(absent)}", f"pip install 'edge-asr[{extra}]'"
            checks.append(Check(name=f"extra {extra}", status="missing", detail=detail, mend=mend))
        else:
            checks.append(Check(name=f"extra {extra}", status="ok", detail=", ".join(versions)))
    return checks


def _requirements(extra: str | None) -> list[str]:
    """Distribution names that edge-asr's metadata asks for: always (None), or for an extra."""
    try:
        listed = metadata.requires("edge-asr") or []
    except metadata.PackageNotFoundError:
        return ["edge-asr"]
    names = []
    for requirement in listed:
        marker = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and (marker.group(1) if marker else None) == extra:
            names.append(name.group())
    return names


def _split_installed(distributions: list[str]) -> tuple[list[str], list[str]]:
    """("name version" of those installed, names of the others)."""
    installed, absent = [], []
    for name in distributions:
        try:
            installed.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    return installed, absent


def _probe(code: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON that `code` prints in a process of its own, or None and what went wrong."""
    command_line = [sys.executable, "-c", code]
    try:
        done = subprocess.run(
            command_line, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, cwd=Path.home()
        )
    except subprocess.TimeoutExpired:
        return None, f"did not answer within {_PROBE_TIMEOUT_S} s"
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result, ""
    if done.returncode < 0:
        return None, f"crashed with signal {-done.returncode}"
    lines = done.stderr.strip().splitlines()
    return None, lines[-1] if lines else f"exit code {done.returncode}"


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


def _print(check: Check) -> None:
    color = {"ok": "green", "missing": "yellow", "broken": "red"}[check.status]
    click.echo(f"{click.style(f'{check.status:8}', fg=color)} {check.name:22} {check.detail}")
    if check.mend:
        click.echo(f"{'':8} {'':22} -> {check.mend}")
