"""No library of ours phones home: seen from outside, by the files and connections of whole processes."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

#: Modules that load onnxruntime, ours not among them.
LOADS_ONNXRUNTIME = ("onnxruntime", "onnx_asr")

PROGRAMS = {
    "transcribe": "from edge_asr.cli.main import main; main()",
    "recognizer": "import sys; from edge_asr.runtime import Recognizer;"
    "print(Recognizer.load(num_threads=1).transcribe_file(sys.argv[-1]).text)",
    "probe of doctor": "from edge_asr.diagnostics.inference import check_onnxruntime;"
    "from edge_asr.diagnostics.machine import Machine; print(check_onnxruntime(Machine()))",
    "quantization": "import edge_asr.export; from onnxruntime import quantization, InferenceSession;"
    "from edge_asr.bundle.folder import Bundle;"
    "InferenceSession(str(Bundle.load('tiny-en').artifact_path('fp32')))",
}


def run_python(code: str, home: Path, sound: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in an empty home, without what this process has set.

    Nor with `CI`, which switches the telemetry of onnxruntime off by itself.
    """
    ours = ("ORT_DISABLE_TELEMETRY", "CI")
    kept = {k: v for k, v in os.environ.items() if k not in ours and not k.startswith("XDG_")}
    done = subprocess.run(
        [*before, sys.executable, "-c", code, "transcribe", str(sound)],
        env={**kept, "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_is_left_in_the_home_folder(program: str, tmp_path: Path, sample_path: Path) -> None:
    assert run_python(PROGRAMS[program], tmp_path, sample_path).stdout or program == "quantization"
    # But for what we document: an empty file that says that the self-test has passed here.
    left = [name for name in files_below(tmp_path) if not name.startswith(".cache/edge-asr/self-test/")]
    ours = list((tmp_path / ".cache" / "edge-asr" / "self-test").glob("*"))
    assert left == []
    assert [file.read_bytes() for file in ours] == [b""] * (program == "transcribe")


def test_onnxruntime_alone_would_leave_something(tmp_path: Path, sample_path: Path) -> None:
    """So the test above can fail."""
    run_python("import onnxruntime, time; time.sleep(0.5)", tmp_path, sample_path)
    if not files_below(tmp_path):
        pytest.skip("this onnxruntime has no telemetry of its own")
    assert any("Microsoft" in name for name in files_below(tmp_path))


def test_no_connection_is_tried_and_no_name_looked_up(tmp_path: Path, sample_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("needs strace and the right to use it")
    log = tmp_path / "calls"
    watch = (strace, "-f", "-o", str(log), "-e", "trace=connect,sendto,sendmsg,sendmmsg")
    (tmp_path / "home").mkdir()
    run_python(PROGRAMS["transcribe"], tmp_path / "home", sample_path, *watch)
    calls = [line for line in log.read_text().splitlines() if "AF_INET" in line or "AF_UNIX" in line]
    assert calls == []


def test_scripts_that_load_onnxruntime_switch_its_telemetry_off_first(repository: Path) -> None:
    """Whoever imports a part of edge_asr has done it; a script imports that at its top, or does it itself."""
    checked = []
    for file in sorted((repository / "scripts").rglob("*.py")):
        text = file.read_text()
        tree = ast.parse(text)
        loads = [module for module in LOADS_ONNXRUNTIME if module in _imports(tree)]
        if not loads:
            continue
        checked.append(file.name)
        above = [tree, *(ast.parse(p.read_text()) for p in [file.with_name("__init__.py")] if p.exists())]
        package_first = any("edge_asr" in _imports(t, top_only=True) for t in above)
        assert package_first or 'os.environ["ORT_DISABLE_TELEMETRY"] = "1"' in text, file
    assert len(checked) >= 3


def _imports(tree: ast.Module, *, top_only: bool = False) -> set[str]:
    """First parts of the names that a file imports."""
    found: set[str] = set()
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
